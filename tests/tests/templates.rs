//! A template's configuration layer, built by the packages' own scripts in a build VA
//! (§4.2, §5.3), with the distribution's dpkg and packages made for the purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use strata_tests::{Finished, Workspace, finish};

/// What maintainer scripts and dpkg call.
const PROGRAMS: [&str; 25] = [
    "sh",
    "env",
    "cat",
    "sleep",
    "rm",
    "mkdir",
    "chmod",
    "chown",
    "ln",
    "mv",
    "ls",
    "touch",
    "id",
    "tail",
    "tar",
    "diff",
    "dpkg",
    "dpkg-deb",
    "dpkg-split",
    "dpkg-query",
    "dpkg-divert",
    "readlink",
    "/usr/sbin/ldconfig",
    "/usr/sbin/start-stop-daemon",
    "date",
];

/// A store with a layer of the host's programs and a GitOps repository.
struct Bench {
    workspace: Workspace,
    git: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let workspace = Workspace::new(name);
        workspace.init_store();
        build_tools(&workspace);
        let git =
            workspace.write("gitops", &[("strata.toml", "[[repository]]\nname = \"main\"\n")]);
        fs::create_dir(git.join("templates")).expect("made");
        Bench { workspace, git }
    }

    /// Imports a package with these scripts and files.
    fn import(&self, name: &str, version: &str, scripts: &[(&str, &str)], files: &[(&str, &str)]) {
        let root = self.workspace.write(format!("debs/{name}-{version}"), files);
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        );
        self.workspace.write(root.join("DEBIAN"), &[("control", &control)]);
        for (script, text) in scripts {
            let path = root.join("DEBIAN").join(script);
            fs::write(&path, text).expect("written");
            let mode = if *script == "conffiles" { 0o644 } else { 0o755 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        let mut pack = Command::new("dpkg-deb");
        // The same bytes, whenever it is made.
        pack.env("SOURCE_DATE_EPOCH", "1700000000").args(["--root-owner-group", "-b"]);
        let deb = self.workspace.path(format!("debs/{name}-{version}.deb"));
        finish(pack.arg(&root).arg(&deb)).ok();
        let mut import = self.workspace.strata();
        finish(import.args(["layer", "import", "--repo", "main"]).arg(deb)).ok();
    }

    fn define(&self, lines: &str) {
        fs::write(self.git.join("templates/web.ldf"), lines).expect("written");
    }

    fn build(&self, arguments: &[&str]) -> Finished {
        let mut command = self.workspace.strata();
        command.args(["template", "build"]).arg(&self.git).arg("web").args(arguments);
        command.arg("--scratch").arg(self.workspace.path("scratch"));
        let finished = finish(&mut command);
        let left: Vec<_> = fs::read_dir(self.workspace.path("scratch"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{left:?} {finished:?}");
        finished
    }

    fn built(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.build(&all).ok()).expect("JSON")
    }

    /// The files of a built layer.
    fn layer(&self, built: &Value) -> PathBuf {
        let version = built["version"].as_str().expect("a version");
        let unit = format!("store/repos/main/web-configuration_{version}");
        self.workspace.path(unit).join("filesystem")
    }
}

fn build_tools(workspace: &Workspace) {
    let root = workspace.write("tools", &[("etc/host.conf", "of the layer\n")]);
    for name in ["usr/bin", "usr/sbin", "usr/lib", "proc", "sys", "dev", "run", "tmp", "var/log"] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    for name in PROGRAMS {
        let program = Path::new("/usr/bin").join(name);
        let target = root.join(program.strip_prefix("/").expect("absolute"));
        fs::copy(&program, target).expect("copied");
        // One that is linked statically has no libraries, and ldd(1) fails.
        for word in finish(Command::new("ldd").arg(&program)).stdout.split_whitespace() {
            if let Some(path) = word.strip_prefix('/') {
                let path = path.strip_prefix("usr/").unwrap_or(path);
                let target = root.join("usr").join(path);
                fs::create_dir_all(target.parent().expect("a parent")).expect("made");
                fs::copy(word, target).expect("copied");
            }
        }
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name)).expect("made");
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
    }
    // Equal on every run: times are part of a layer.
    let mut touch = Command::new("find");
    touch.arg(&root).args(["-exec", "touch", "-h", "-d", "@1600000000", "{}", "+"]);
    finish(&mut touch).ok();
    let mut command = workspace.strata();
    command.args(["layer", "build", "--repo", "main", "--name", "tools", "--version", "1"]);
    finish(command.arg("--root").arg(root)).ok();
}

const POSTINST: &str = r#"#!/bin/sh
set -e
echo "$0 $*" >>/var/lib/web.calls
mkdir -p /etc/ssh /var/cache/debconf /var/log/web
echo "made by the script" >/etc/web.made
chmod 0640 /etc/web.made; chown 0:33 /etc/web.made
echo secret >/etc/ssh/ssh_host_rsa_key
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
date >/var/log/web/started
date >/var/cache/debconf/config.dat-old
date >/tmp/left
rm /usr/share/web/removed
/usr/sbin/policy-rc.d && exit 1
ls /sys/class/net >/etc/web.network
cat /etc/host.conf >/etc/web.host
"#;

fn web(bench: &Bench) {
    bench.import(
        "web",
        "1",
        &[
            ("preinst", "#!/bin/sh\necho \"preinst $*\" >>/var/lib/web.calls\n"),
            ("postinst", &POSTINST.replace("$0", "postinst")),
            ("conffiles", "/etc/web.conf\n"),
        ],
        &[
            ("etc/web.conf", "setting = 1\n"),
            ("usr/share/web/removed", "gone\n"),
            ("usr/share/web/kept", "kept\n"),
            ("var/lib/README", "\n"),
        ],
    );
}

#[test]
fn scripts_run_once_and_what_they_write_is_a_layer() {
    let bench = Bench::new("template");
    web(&bench);
    bench.define("main/tools 1\nmain/web 1\n");
    let due = bench.build(&["--repo", "main", "--check"]);
    assert_eq!(due.code, 1, "{due:?}");
    let first = bench.built(&["--repo", "main", "--write"]);
    assert_eq!((&first["status"], &first["written"]), (&"built".into(), &true.into()));
    assert_eq!((&first["scripts"], &first["configured"]), (&1.into(), &1.into()));

    let layer = bench.layer(&first);
    let read = |path: &str| {
        fs::read_to_string(layer.join(path)).unwrap_or_else(|e| format!("{path}: {e}"))
    };
    assert_eq!(read("var/lib/web.calls"), "preinst install\npostinst configure \n");
    assert_eq!(read("etc/web.made"), "made by the script\n");
    let made = fs::metadata(layer.join("etc/web.made")).expect("there");
    assert_eq!(made.permissions().mode() & 0o7777, 0o640);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&made), 33);
    assert!(read("var/lib/dpkg/status").contains("Status: install ok installed"), "configured");
    // Without network, and with nothing of the host.
    assert_eq!(read("etc/web.network"), "lo\n");
    assert_eq!(read("etc/web.host"), "of the layer\n");
    // What appliances must not share, and what the run left.
    for path in [
        "etc/ssh/ssh_host_rsa_key",
        "var/cache/debconf/config.dat-old",
        "tmp/left",
        "usr/sbin/policy-rc.d",
    ] {
        assert!(!layer.join(path).exists(), "{path}");
    }
    assert_eq!(
        (read("etc/machine-id"), read("var/log/web/started")),
        (String::new(), String::new())
    );

    // The LDF names it, and nothing is run again.
    let ldf = fs::read_to_string(bench.git.join("templates/web.ldf")).expect("there");
    let line = format!("=main/web-configuration {}", first["version"].as_str().expect("a version"));
    assert_eq!(ldf, format!("main/tools 1\nmain/web 1\n{line}\n"));
    assert_eq!(bench.build(&["--check"]).code, 0);
    assert_eq!(bench.built(&[])["status"], "up-to-date");
    bench.define("main/tools 1\nmain/web 1\n");
    let found = bench.built(&["--repo", "main"]);
    assert_eq!((&found["status"], &found["digest"]), (&"present".into(), &first["digest"]));
    assert_eq!(found["scripts"], 0);

    // An appliance of it starts with everything done, and without what was removed.
    bench.define(&ldf);
    let mut reconcile = bench.workspace.strata();
    strata_tests::git::init(&bench.git);
    strata_tests::git::commit_all(&bench.git, "a template");
    finish(reconcile.args(["reconcile", "--once", "--source"]).arg(&bench.git)).ok();
    let va = |arguments: &[&str]| finish(bench.workspace.strata().arg("va").args(arguments));
    va(&["provision", "--template", "web", "web"]).ok();
    va(&["start", "web"]).ok();
    let seen = va(&["exec", "web", "--", "sh", "-c", "ls /usr/share/web; dpkg --audit"]);
    assert_eq!(seen.stdout, "kept\n", "{seen:?}");
    va(&["stop", "web"]).ok();
    va(&["destroy", "--yes", "web"]).ok();
    bench.workspace.finish();
}

#[test]
fn own_scripts_of_layers_run_in_appliances_and_not_in_the_build() {
    let bench = Bench::new("own-scripts");
    web(&bench);
    let root =
        bench.workspace.write("hook", &[("usr/share/hook", "x"), ("var/lib/hook/README", "x")]);
    let script = "#!/bin/sh\necho \"post-install\" >>/var/lib/hook/calls\n";
    let scripts = bench.workspace.write("hook-scripts", &[("post-install", script)]);
    let mut build = bench.workspace.strata();
    build.args(["layer", "build", "--repo", "main", "--name", "hook", "--version", "1"]);
    finish(build.arg("--root").arg(&root).arg("--scripts").arg(&scripts)).ok();
    bench.define("main/tools 1\nmain/web 1\nmain/hook 1\n");
    let built = bench.built(&["--repo", "main", "--write"]);
    assert!(bench.layer(&built).join("etc/web.made").exists(), "the package's script ran");
    assert!(!bench.layer(&built).join("var/lib/hook/calls").exists(), "the layer's own did not");
    let mut reconcile = bench.workspace.strata();
    strata_tests::git::init(&bench.git);
    strata_tests::git::commit_all(&bench.git, "a template");
    finish(reconcile.args(["reconcile", "--once", "--source"]).arg(&bench.git)).ok();
    let va = |arguments: &[&str]| finish(bench.workspace.strata().arg("va").args(arguments));
    va(&["provision", "--template", "web", "hooked"]).ok();
    for _ in 0..2 {
        va(&["start", "hooked"]).ok();
        let seen = va(&["exec", "hooked", "--", "cat", "/var/lib/hook/calls"]);
        assert_eq!(seen.stdout, "post-install\n", "{seen:?}");
        va(&["stop", "hooked"]).ok();
    }
    va(&["destroy", "--yes", "hooked"]).ok();
    bench.workspace.finish();
}

#[test]
fn the_same_inputs_give_the_same_layer_in_another_store() {
    let digest = |name: &str| {
        let bench = Bench::new(name);
        web(&bench);
        bench.define("main/tools 1\nmain/web 1\n");
        let built = bench.built(&["--repo", "main"]);
        bench.workspace.finish();
        (built["version"].clone(), built["digest"].clone())
    };
    assert_eq!(digest("template-a"), digest("template-b"));
}

#[test]
fn a_script_that_fails_or_takes_too_long_leaves_nothing() {
    let bench = Bench::new("template-failing");
    bench.import("web", "1", &[("postinst", "#!/bin/sh\necho why it fails >&2\nexit 3\n")], &[]);
    bench.import("web", "2", &[("postinst", "#!/bin/sh\nsleep 1000 & sleep 1000\n")], &[]);
    let hungry =
        "#!/bin/sh\nv=0123456789abcdef; i=0\nwhile [ $i -lt 24 ]; do v=$v$v; i=$((i+1)); done\n";
    bench.import("web", "3", &[("postinst", hungry)], &[]);
    let cases: [(&str, &[&str], &str); 3] = [
        ("1", &[], "why it fails"),
        ("2", &["--timeout", "5"], "not done within 5s"),
        ("3", &["--memory", "64"], "dpkg"),
    ];
    for (version, arguments, told) in cases {
        bench.define(&format!("main/tools 1\nmain/web {version}\n"));
        let mut all = vec!["--repo", "main"];
        all.extend(arguments);
        let failed = bench.build(&all);
        assert_eq!(failed.code, 2, "{failed:?}");
        assert!(failed.stderr.contains(told) && failed.stderr.contains("hint:"), "{failed:?}");
        let layers = finish(bench.workspace.strata().args(["layer", "list"])).ok();
        assert!(!layers.contains("web-configuration"), "{layers}");
    }
    bench.workspace.finish();
}

#[test]
fn a_build_that_goes_on_from_a_former_one_upgrades() {
    let bench = Bench::new("template-upgrade");
    let script = |version: &str, name: &str| {
        format!("#!/bin/sh\necho \"{version} {name} $*\" >>/var/lib/web.calls\n")
    };
    for version in ["1", "2"] {
        let texts =
            ["preinst", "postinst", "prerm", "postrm"].map(|name| (name, script(version, name)));
        let scripts: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        bench.import("web", version, &scripts, &[("usr/share/web/version", version)]);
    }
    let prerm = script("1", "gone prerm");
    bench.import("gone", "1", &[("prerm", &prerm)], &[("usr/share/gone", "x")]);
    bench.define("main/tools 1\nmain/web 1\nmain/gone 1\n");
    let first = bench.built(&["--repo", "main", "--write"]);
    let ldf = fs::read_to_string(bench.git.join("templates/web.ldf")).expect("there");
    bench.define(&ldf.replace("main/web 1", "main/web 2").replace("main/gone 1\n", ""));
    assert_eq!(bench.build(&["--check"]).code, 1);
    let second = bench.built(&["--write"]);
    assert_ne!(first["version"], second["version"]);
    let calls = fs::read_to_string(bench.layer(&second).join("var/lib/web.calls")).expect("there");
    let wanted = [
        "1 preinst install",
        "1 postinst configure ",
        "1 gone prerm remove",
        "1 prerm upgrade 2",
        "2 preinst upgrade 1 2",
        "1 postrm upgrade 2",
        "2 postinst configure 1",
    ];
    assert_eq!(calls.lines().collect::<Vec<_>>(), wanted);
    let status =
        fs::read_to_string(bench.layer(&second).join("var/lib/dpkg/status")).expect("there");
    assert!(status.contains("Version: 2") && !status.contains("gone"), "{status}");
    assert_eq!(bench.build(&["--check"]).code, 0);
    bench.workspace.finish();
}

impl Bench {
    fn template(&self, command: &str, arguments: &[&str]) -> Finished {
        let mut strata = self.workspace.strata();
        finish(strata.args(["template", command]).arg(&self.git).args(arguments))
    }

    fn va(&self, arguments: &[&str]) -> Finished {
        finish(self.workspace.strata().arg("va").args(arguments))
    }

    fn sh(&self, va: &str, script: &str) -> String {
        self.va(&["exec", va, "--", "sh", "-c", script]).ok()
    }

    fn reconcile(&self) {
        let mut reconcile = self.workspace.strata();
        finish(reconcile.args(["reconcile", "--once", "--source"]).arg(&self.git)).ok();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.git.join(path)).unwrap_or_else(|e| format!("{path}: {e}"))
    }
}

#[test]
fn a_template_is_configured_by_hand_and_kept() {
    let bench = Bench::new("by-hand");
    strata_tests::git::init(&bench.git);
    strata_tests::git::commit_all(&bench.git, "nothing yet");
    let git = |arguments: &[&str]| strata_tests::git::git(&bench.git, arguments);
    git(&["config", "user.name", "Ann"]);
    git(&["config", "user.email", "ann@example.org"]);
    git(&["config", "commit.gpgsign", "true"]);
    let signed = bench.template("create", &["web", "--layer", "tools", "--commit"]).exits(2);
    assert!(signed.stderr.contains("commit.gpgsign"), "{signed:?}");
    git(&["config", "commit.gpgsign", "false"]);
    bench.template("create", &["web", "--layer", "tools", "--commit"]).ok();
    assert_eq!(bench.read("templates/web.ldf"), "main/tools 1\n");
    assert_eq!(git(&["log", "-1", "--format=%s"]), "Define the template web");
    assert_eq!(git(&["status", "--porcelain"]), "");
    let again = bench.template("create", &["web", "--layer", "tools"]).exits(2);
    assert!(again.stderr.contains("there is a web already"), "{again:?}");

    bench.reconcile();
    bench.va(&["provision", "--template", "web", "draft"]).ok();
    bench.va(&["start", "draft"]).ok();
    bench.sh(
        "draft",
        "mkdir -p /etc/ssh /etc/web; echo tuned >/etc/web/conf; rm /etc/host.conf; \
         echo secret >/etc/ssh/ssh_host_rsa_key; echo x >/tmp/x; echo 7 >/etc/machine-id",
    );
    let arguments = ["web", "draft", "--repo", "main"];
    let running = bench.template("commit", &arguments).exits(2);
    assert!(running.stderr.contains("is running"), "{running:?}");
    bench.va(&["stop", "draft"]).ok();

    let dry = bench.template("commit", &[&arguments[..], &["--dry-run"]].concat()).ok();
    for line in ["+ /etc/web/conf", "- /etc/host.conf", "! /etc/ssh/ssh_host_rsa_key", "! /tmp/x"] {
        assert!(dry.lines().any(|found| found == line), "{line}: {dry}");
    }
    assert!(!dry.contains("+ /etc/ssh/ssh_host_rsa_key"), "{dry}");
    assert!(dry.contains("0 /etc/machine-id\n") && dry.contains(", 1 of them empty (0)"), "{dry}");
    fs::write(bench.git.join("templates/web.ldf"), "main/tools 1 # mine\n").expect("written");
    let dirty = bench.template("commit", &arguments).exits(2);
    assert!(dirty.stderr.contains("not committed"), "{dirty:?}");
    git(&["checkout", "-q", "templates/web.ldf"]);

    // Something else is staged, and stays so.
    fs::write(bench.git.join("NOTES"), "mine\n").expect("written");
    git(&["add", "NOTES"]);
    bench.template("commit", &arguments).ok();
    assert_eq!(bench.read("templates/web.ldf"), "main/tools 1\nmain/web-changes 1\n");
    assert_eq!(git(&["status", "--porcelain"]), "A  NOTES");
    assert_eq!(git(&["show", "--format=", "--name-only", "HEAD"]), "templates/web.ldf");
    let layer = bench.workspace.path("store/repos/main/web-changes_1/filesystem");
    assert!(layer.join("etc/web/conf").exists());
    assert!(!layer.join("etc/ssh/ssh_host_rsa_key").exists());

    // A new VA has it; the draft goes on, and its next commit has both.
    bench.reconcile();
    bench.va(&["provision", "--template", "web", "second"]).ok();
    bench.va(&["start", "second"]).ok();
    let seen = bench.sh("second", "cat /etc/web/conf; ls /etc/host.conf /etc/ssh 2>&1 || true");
    assert!(seen.starts_with("tuned\n") && !seen.contains("ssh_host"), "{seen}");
    assert!(seen.contains("host.conf'") || seen.contains("host.conf:"), "{seen}");
    bench.va(&["stop", "second"]).ok();
    bench.va(&["start", "draft"]).ok();
    bench.sh("draft", "echo more >/etc/web/more");
    bench.va(&["stop", "draft"]).ok();
    bench.template("commit", &["web", "draft", "-m", "more"]).ok();
    assert_eq!(bench.read("templates/web.ldf"), "main/tools 1\nmain/web-changes 2\n");
    assert_eq!(git(&["log", "-1", "--format=%s"]), "more");
    let layer = bench.workspace.path("store/repos/main/web-changes_2");
    for path in ["conf", "more"] {
        assert!(layer.join("filesystem/etc/web").join(path).exists(), "{path}");
    }
    let hidden = fs::read_to_string(layer.join("scripts/whiteouts")).expect("it hides one");
    assert!(hidden.contains("/etc/host.conf\n"), "{hidden}");
    for va in ["draft", "second"] {
        bench.va(&["destroy", "--yes", va]).ok();
    }
    bench.workspace.finish();
}

#[test]
fn templates_are_composed_and_conflicts_told() {
    let bench = Bench::new("composed");
    let layer = |name: &str, files: &[(&str, &str)]| {
        let root = bench.workspace.write(format!("layers/{name}"), files);
        let mut build = bench.workspace.strata();
        build.args(["layer", "build", "--repo", "main", "--version", "1", "--name", name]);
        finish(build.arg("--root").arg(root)).ok();
    };
    layer("sql", &[("usr/share/sql/a", "a")]);
    layer("other-sql", &[("usr/share/sql/a", "b")]);
    bench.template("create", &["web", "--layer", "tools"]).ok();
    bench.template("create", &["sql", "--layer", "main/sql"]).ok();
    bench.template("create", &["both", "--from", "sql", "--from", "web"]).ok();
    assert_eq!(bench.read("templates/both.ldf"), "@sql\n@web\n");
    let mut check = bench.workspace.strata();
    finish(check.arg("check").arg(&bench.git)).ok();

    let clash = bench.template("create", &["clash", "--from", "both", "--layer", "other-sql"]);
    let clash = clash.exits(2);
    assert!(clash.stderr.contains("usr/share/sql/a"), "{clash:?}");
    let unknown = bench.template("create", &["x", "--layer", "no-such"]).exits(2);
    assert!(unknown.stderr.contains("no repository has no-such"), "{unknown:?}");
    let unknown = bench.template("create", &["x", "--from", "no-such"]).exits(2);
    assert!(unknown.stderr.contains("there is no template no-such"), "{unknown:?}");
    let nothing = bench.template("create", &["x"]).exits(2);
    assert!(nothing.stderr.contains("--layer"), "{nothing:?}");
    let commit = bench.template("create", &["x", "--layer", "sql", "--commit"]).exits(2);
    assert!(commit.stderr.contains("no git repository"), "{commit:?}");
    let names: Vec<_> = fs::read_dir(bench.git.join("templates"))
        .expect("listed")
        .map(|entry| entry.expect("listed").file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    bench.workspace.finish();
}
