//! `strata init`, `strata layer` and `strata repo` as a user runs them. Needs
//! root (layers keep owners) and `dpkg-deb`.

mod build;
mod infer;
mod killed;
mod lint;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn set_up() -> Self {
        let bench = Bench { directory: TempDir::new().expect("a temporary directory") };
        let made = bench.strata(&["init", text(&bench.path("store"))]);
        assert!(made.status.success(), "{made:?}");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.args(arguments).env("STRATA_STORE", self.path("store"));
        command
    }

    fn strata(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("strata runs")
    }

    /// What a successful command prints.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.strata(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What a command that exits with 2 says.
    fn bad(&self, arguments: &[&str]) -> String {
        let output = self.strata(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    fn package(&self, name: &str, content: &[u8]) -> PathBuf {
        let root = self.path(&format!("{name}.root"));
        fs::create_dir_all(root.join("DEBIAN")).expect("a directory");
        fs::create_dir_all(root.join("usr/share")).expect("a directory");
        let control = format!(
            "Package: {name}\nVersion: 1:1.0-1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a package\n"
        );
        fs::write(root.join("DEBIAN/control"), control).expect("written");
        fs::write(root.join("usr/share").join(name), content).expect("written");
        let package = self.path(&format!("{name}.deb"));
        let built = Command::new("dpkg-deb")
            .args(["-Zgzip", "-z1", "--root-owner-group", "--build", text(&root), text(&package)])
            .output()
            .expect("dpkg-deb is needed: apt-get install dpkg");
        assert!(built.status.success(), "{built:?}");
        package
    }

    /// Names in the repository that are neither units nor the database.
    fn leftovers(&self, repository: &str) -> Vec<String> {
        fs::read_dir(self.path("store/repos").join(repository))
            .expect("the repository")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(".staging"))
            .collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_layer_from_import_to_withdrawal() {
    let bench = Bench::set_up();
    let package = bench.package("sample", b"content");
    let import = ["layer", "import", "--repo", "main", text(&package)];
    assert_eq!(bench.good(&import), "imported main/sample 1:1.0-1 (4 entries, 7 B)\n");
    assert_eq!(bench.good(&import), "present already main/sample 1:1.0-1\n");
    let listed = bench.good(&["layer", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["layer"], "sample");
    let shown = bench.good(&["layer", "show", "main/sample", "--files"]);
    assert!(shown.contains("Description: a package\n"), "{shown}");
    assert!(shown.contains("- 0644 0:0                7 /usr/share/sample\n"), "{shown}");
    let unit = ["main/sample", "1:1.0-1"];
    bench.good(&["layer", "withdraw", unit[0], unit[1], "--reason", "CVE-2007-6304"]);
    bench.good(&["repo", "index", "main"]);
    assert!(bench.good(&["layer", "list"]).contains("withdrawn: CVE-2007-6304"));
    bench.good(&["layer", "restore", unit[0], unit[1]]);
    assert!(!bench.good(&["layer", "list"]).contains("withdrawn"));
}

/// Which of both it is the disk decides; what is said is what is.
#[test]
fn a_unit_is_sealed_by_the_kernel_or_that_is_refused_with_a_hint() {
    const VERITY: u64 = 0x0010_0000;
    let bench = Bench::set_up();
    let package = bench.package("sample", b"content");
    bench.good(&["layer", "import", "--repo", "main", text(&package)]);
    let message = bench.bad(&["layer", "seal", "main/sample", "9"]);
    assert!(message.contains("hint: `strata layer list"), "{message}");
    let file = bench.path("store/repos/main/sample_1%3a1.0-1/filesystem/usr/share/sample");
    let sealed = || {
        let none = rustix::fs::StatxFlags::empty();
        let statx = rustix::fs::statx(rustix::fs::CWD, &file, rustix::fs::AtFlags::empty(), none);
        statx.expect("described").stx_attributes.bits() & VERITY != 0
    };
    assert!(!sealed());
    let output = bench.strata(&["layer", "seal", "main/sample", "1:1.0-1"]);
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if sealed() {
        assert_eq!(said, "sealed main/sample 1:1.0-1: 1 files, 0 were sealed already\n");
        fs::OpenOptions::new().append(true).open(&file).expect_err("for good, and for root");
    } else {
        assert_eq!((output.status.code(), &*said), (Some(2), ""));
        assert!(complaint.contains("no fs-verity"), "{complaint}");
        assert!(complaint.contains("hint: ext4: tune2fs -O verity DEVICE"), "{complaint}");
    }
    assert_eq!(fs::read(&file).expect("read"), b"content");
}

#[test]
fn a_lost_database_is_built_anew() {
    let bench = Bench::set_up();
    let packages = [bench.package("one", b"1"), bench.package("two", b"2")];
    bench.good(&["layer", "import", "--repo", "main", text(bench.directory.path())]);
    let database = bench.path("store/repos/main/database");
    let before = fs::read(&database).expect("the database");
    fs::remove_file(&database).expect("removed");
    assert_eq!(bench.good(&["layer", "list"]), "");
    let indexed = bench.good(&["repo", "index", "main"]);
    assert_eq!(indexed, format!("main: {} units, the database was written anew\n", packages.len()));
    assert_eq!(fs::read(&database).expect("the database"), before);
}

#[test]
fn messages_say_what_failed_and_what_to_do() {
    let bench = Bench::set_up();
    let package = bench.package("sample", b"content");
    let broken = bench.path("broken.deb");
    fs::write(&broken, b"no package").expect("written");
    let both = ["layer", "import", "--repo", "main", text(&broken), text(&package)];
    let message = bench.bad(&both);
    assert!(message.contains("broken.deb: it does not start with !<arch>"), "{message}");
    assert!(message.contains("1 of 2 packages were not imported"), "{message}");
    assert!(bench.good(&["layer", "list"]).contains("main/sample"), "the good one is in");
    let other = bench.package("sample", b"other content");
    for (arguments, hint) in [
        (&["layer", "import", "--repo", "main", text(&other)][..], "hint: a rebuilt package"),
        (&["layer", "import", "--repo", "templates", text(&other)], "hint: "),
        (&["layer", "show", "main/missing"], "hint: `strata layer list --repo main`"),
        (&["layer", "show", "main/sample", "9"], "hint: there are 1:1.0-1"),
        (&["layer", "show", "elsewhere/sample"], "hint: "),
        (&["layer", "withdraw", "main/sample", "9", "--reason", "x"], "hint: "),
        (&["layer", "list", "--store", "/nowhere"], "hint: "),
        (&["layer", "list", "--repo", "elsewhere"], "hint: `strata repo list`"),
        (&["layer", "users", "main/sample", "9"], "hint: there are 1:1.0-1"),
        (&["layer", "users", "main/missing", "1"], "hint: `strata layer list --repo main`"),
        (&["layer", "infer", "main/missing"], "hint: `strata layer list --repo main`"),
        (&["layer", "import", "openssh-server"], "hint: name .deb or .rpm files"),
        (&["repo", "index", "elsewhere"], "hint: "),
    ] {
        let message = bench.bad(arguments);
        assert!(
            message.starts_with("error: ") && message.contains(hint),
            "{arguments:?}: {message}"
        );
    }
    assert!(!bench.path("store/repos/elsewhere").exists());
    let listed = bench.command(&["layer", "list", "sample", "smaple"]).output().expect("runs");
    assert!(listed.status.success() && !listed.stdout.is_empty(), "{listed:?}");
    let said = String::from_utf8_lossy(&listed.stderr);
    assert_eq!(said, "note: no repository has a layer smaple\n");
    for option in [["--cache", "/tmp"], ["--connections", "2"], ["--timeout", "9"]] {
        let arguments = [&["layer", "import", text(&other)][..], &option].concat();
        let said = bench.bad(&arguments);
        assert!(said.contains("--from"), "{option:?} means nothing without it: {said}");
    }
}

#[test]
fn killed_imports_leave_a_valid_repository() {
    let bench = Bench::set_up();
    let content: Vec<u8> =
        (0..2_000_000_u32).map(|n| (n.wrapping_mul(40_503) >> 8) as u8).collect();
    let packages: Vec<_> =
        (0..8).map(|number| bench.package(&format!("sample{number}"), &content)).collect();
    let mut arguments = vec!["layer", "import", "--repo", "main"];
    arguments.extend(packages.iter().map(|package| text(package)));
    let units = |bench: &Bench| {
        let Ok(entries) = fs::read_dir(bench.path("store/repos/main")) else { return 0 };
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        entries.map(name).filter(|n| n.to_string_lossy().starts_with("sample")).count()
    };
    // Killed once a first, second, third … unit has appeared.
    for wanted in 1..5 {
        let mut child =
            bench.command(&arguments).stdout(Stdio::null()).spawn().expect("strata runs");
        while units(&bench) < wanted && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        bench.good(&["repo", "index", "main"]);
        assert_eq!(bench.leftovers("main"), Vec::<String>::new());
    }
    bench.good(&arguments);
    let listed = bench.good(&["layer", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(packages.len()));
    assert_eq!(bench.leftovers("main"), Vec::<String>::new());
}

#[test]
fn two_imports_at_once_are_safe() {
    let bench = Bench::set_up();
    let packages: Vec<_> =
        (0..6).map(|number| bench.package(&format!("sample{number}"), b"x")).collect();
    let mut arguments = vec!["layer", "import", "--repo", "main"];
    arguments.extend(packages.iter().map(|package| text(package)));
    let children: Vec<_> = (0..3)
        .map(|_| bench.command(&arguments).stdout(Stdio::null()).spawn().expect("strata runs"))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
    assert_eq!(bench.good(&["layer", "list"]).lines().count(), packages.len());
}
