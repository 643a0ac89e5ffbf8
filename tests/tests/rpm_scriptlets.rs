//! `strata template build` of RPM packages (§4.2, §5.3): a base with rpm itself, a library
//! in two versions, a daemon with scriptlets and triggers, made by rpmbuild. Needs `rpm`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use strata_tests::git::init;
use strata_tests::rpm::{build, copy_programs, spec};
use strata_tests::{Finished, Workspace, finish};

const PROGRAMS: [&str; 6] = ["sh", "cat", "env", "sleep", "mkdir", "chmod"];

struct Bench {
    workspace: Workspace,
    git: PathBuf,
}

/// The base of the system, with or without rpm.
fn base(workspace: &Workspace, with_rpm: bool) -> String {
    let root = workspace.path("base");
    copy_programs(&root, &PROGRAMS);
    let mut more = String::new();
    if with_rpm {
        copy_programs(&root, &["rpm"]);
        more = "cp -a /usr/lib/rpm %{buildroot}/usr/lib/\nmkdir -p %{buildroot}/etc/rpm\necho '%%_dbpath /var/lib/rpm' > %{buildroot}/etc/rpm/macros\n".to_owned();
    }
    let install = format!(
        "for name in proc sys dev run tmp etc var/lib var/tmp var/log root; do mkdir -p %{{buildroot}}/$name; done\ncp -a {}/usr %{{buildroot}}/\nfor name in bin lib lib64; do ln -s usr/$name %{{buildroot}}/$name; done\necho 'root:x:0:0::/root:/bin/sh' > %{{buildroot}}/etc/passwd\necho 'root:x:0:' > %{{buildroot}}/etc/group\n{more}",
        root.display()
    );
    let head = "Name: base\nVersion: 40\nRelease: 1.test\nAutoReqProv: no\nProvides: /bin/sh";
    spec(head, &install, "%files\n/*")
}

fn library(version: &str, scripts: &str) -> String {
    let head = format!(
        "Name: libdemo2\nVersion: {version}\nRelease: 1.test\nProvides: libdemo.so.2()(64bit)"
    );
    let install =
        "mkdir -p %{buildroot}/usr/share/demo\necho 2 > %{buildroot}/usr/share/demo/abi-2";
    spec(&head, install, &format!("{scripts}%files\n/usr/share/demo/abi-2"))
}

/// Says after `%` what ran, with its arguments, in /etc/calls.
fn note(scriptlet: &str, options: &str, version: &str) -> String {
    format!("%{scriptlet}{options}\necho \"{scriptlet} {version} $*\" >> /etc/calls\n")
}

/// A file trigger for rpm's own Lua.
const LUA: &str = "%filetriggerin -p <lua> -- /usr/sbin\nlocal f = io.open('/etc/lua', 'a')\nf:write(arg[1], ' ', tostring(arg[2]), ' ', posix.stat('/etc/daemon.conf', 'type'), '\\n')\nf:close()\n";

fn daemon(version: &str, more: &str) -> String {
    let mut scripts: String = ["pretrans", "pre", "post", "preun", "postun", "posttrans"]
        .map(|scriptlet| note(scriptlet, "", version))
        .concat();
    scripts.push_str(&note("triggerin", " -- libdemo2 >= 2", version));
    scripts.push_str(&note("triggerin", " -- libdemo2 < 1", version));
    scripts.push_str("%transfiletriggerin -- /usr/share/demo\ncat > /etc/demo.files\n");
    scripts.push_str(more);
    let head = format!(
        "Name: daemon\nEpoch: 1\nVersion: {version}\nRelease: 2.test\nAutoReqProv: no\nRequires: libdemo.so.2()(64bit), /bin/sh\nRequires(pre): libdemo2"
    );
    let install = "mkdir -p %{buildroot}/usr/sbin %{buildroot}/etc\necho 'exec cat /etc/daemon.conf' > %{buildroot}/usr/sbin/daemon\necho configured > %{buildroot}/etc/daemon.conf";
    let files =
        "%files\n%attr(0755,root,root) /usr/sbin/daemon\n%config(noreplace) /etc/daemon.conf";
    spec(&head, install, &(scripts + files))
}

const FAILING: &str = "%post\necho this went wrong; exit 3\n";

impl Bench {
    fn new(name: &str, with_rpm: bool, packages: &[(&str, String)]) -> Self {
        let workspace = Workspace::new(name);
        workspace.init_store();
        let files = [
            ("strata.toml", "base = [\"fedora/base\"]\n[[repository]]\nname = \"fedora\"\n"),
            ("templates/daemon.ldf", "fedora/daemon\n"),
        ];
        let git = workspace.write("gitops", &files);
        let bench = Bench { workspace, git };
        bench.import(&[("base", base(&bench.workspace, with_rpm))]);
        bench.import(packages);
        bench.strata(&["resolve"], &[&bench.git]).ok();
        bench
    }

    fn import(&self, specs: &[(&str, String)]) {
        let top = self.workspace.path("rpmbuild");
        let packages = build(&top, specs);
        self.strata(&["layer", "import", "--repo", "fedora"], &[&packages]).ok();
        fs::remove_dir_all(top).expect("removed");
    }

    fn strata(&self, words: &[&str], paths: &[&Path]) -> Finished {
        finish(self.workspace.strata().args(words).args(paths))
    }

    fn build(&self, more: &[&str]) -> Finished {
        let mut command = self.workspace.strata();
        command.args(["template", "build"]).arg(&self.git).arg("daemon").args(more);
        finish(command.arg("--scratch").arg(self.workspace.path("scratch")))
    }

    fn built(&self, more: &[&str]) -> Value {
        let text = self.build(&[&["--repo", "fedora", "--output", "json"], more].concat()).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    fn file(&self, built: &Value, path: &str) -> PathBuf {
        let version = built["version"].as_str().expect("a version");
        let unit = format!("store/repos/fedora/daemon-configuration_{version}/filesystem");
        self.workspace.path(unit).join(path)
    }

    fn read(&self, built: &Value, path: &str) -> String {
        let path = self.file(built, path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

#[test]
fn scriptlets_run_as_rpm_runs_them() {
    let packages = [("libdemo2", library("2.0", FAILING)), ("daemon", daemon("3.0", LUA))];
    let bench = Bench::new("rpm-scriptlets", true, &packages);
    let built = bench.built(&[]);
    assert_eq!((&built["status"], &built["configured"]), (&"built".into(), &3.into()), "{built}");
    let calls = bench.read(&built, "etc/calls");
    let expected = "pretrans 3.0 1\npre 3.0 1\npost 3.0 1\ntriggerin 3.0 1 1\nposttrans 3.0 1\n";
    assert_eq!(calls, expected);
    assert_eq!(bench.read(&built, "etc/demo.files"), "/usr/share/demo/abi-2\n");
    assert_eq!(bench.read(&built, "etc/lua"), "<lua> 0 regular\n");
    let warning = built["warnings"][0].as_str().expect("a warning");
    let told = ["%post of libdemo2 failed", "this went wrong"];
    assert!(told.iter().all(|part| warning.contains(part)), "{built}");
    assert!(!bench.file(&built, "var/lib/rpm/.rpm.lock").exists());
    let left = fs::read_dir(bench.file(&built, "var/tmp")).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "scratch files are no part of the layer");

    // The same layers under another umask, at another time: the same files, rpm's database too.
    let mut again = Command::new("sh");
    again.args(["-c", "umask 077; exec \"$@\"", "sh"]);
    again.arg(strata_tests::program("strata")).env("STRATA_STORE", bench.workspace.store());
    again.args(["template", "build"]).arg(&bench.git).arg("daemon");
    again.args(["--repo", "fedora", "--layer", "again", "--output", "json"]);
    let again = finish(again.arg("--scratch").arg(bench.workspace.path("scratch"))).ok();
    let again: Value = serde_json::from_str(&again).expect("JSON");
    let manifest = |layer: &str| {
        let version = built["version"].as_str().expect("a version");
        let unit = format!("store/repos/fedora/{layer}_{version}/manifest");
        fs::read_to_string(bench.workspace.path(unit)).expect("a manifest")
    };
    assert_eq!(again["version"], built["version"], "{again}");
    assert_eq!(manifest("again"), manifest("daemon-configuration"));

    // In the appliance rpm knows its packages and finds them as they were made.
    assert_eq!(bench.built(&["--write"])["status"], "present");
    init(&bench.git);
    bench.strata(&["reconcile", "--once", "--source"], &[&bench.git]).ok();
    let va = |words: &[&str]| bench.strata(&[&["va"], words].concat(), &[]);
    va(&["provision", "--template", "daemon", "first"]).ok();
    va(&["start", "first"]).ok();
    let all = va(&["exec", "first", "--", "rpm", "-qa", "--queryformat", "%{NEVRA}\n"]).ok();
    let mut all: Vec<_> = all.lines().collect();
    all.sort_unstable();
    let expected =
        ["base-40-1.test.x86_64", "daemon-1:3.0-2.test.x86_64", "libdemo2-2.0-1.test.x86_64"];
    assert_eq!(all, expected);
    let verified = va(&["exec", "first", "--", "rpm", "-V", "daemon", "libdemo2"]).ok();
    assert_eq!(verified, "");
    va(&["stop", "first"]).ok();
    va(&["destroy", "--yes", "first"]).ok();
    bench.workspace.finish();
}

#[test]
fn a_build_that_goes_on_from_a_former_one_upgrades() {
    let packages = [("libdemo2", library("2.0", "")), ("daemon", daemon("3.0", LUA))];
    let bench = Bench::new("rpm-upgrade", true, &packages);
    bench.built(&["--write"]);
    bench.import(&[("daemon", daemon("3.1", LUA))]);
    finish(bench.workspace.strata().arg("resolve").arg(&bench.git).arg("--upgrade")).ok();
    let check = bench.build(&["--check"]);
    assert_eq!(check.code, 1, "{check:?}");
    let built = bench.built(&["--write"]);
    let calls = bench.read(&built, "etc/calls");
    let upgrade = "pretrans 3.1 2\npre 3.1 2\npost 3.1 2\ntriggerin 3.1 2 1\npreun 3.0 1\npostun 3.0 1\nposttrans 3.1 2\n";
    assert!(calls.ends_with(upgrade) && calls.starts_with("pretrans 3.0 1\n"), "{calls}");
    assert_eq!(built["configured"], 1, "{built}");
    bench.workspace.finish();
}

#[test]
fn what_rpm_does_not_let_fail_ends_the_build() {
    let failing = "%pre\necho no account; exit 4\n";
    let packages = [("libdemo2", library("2.0", failing)), ("daemon", daemon("3.0", LUA))];
    let bench = Bench::new("rpm-failing", true, &packages);
    let failed = bench.build(&["--repo", "fedora"]);
    let told = ["%pre of libdemo2 failed", "no account"];
    assert_eq!(failed.code, 2);
    assert!(told.iter().all(|part| failed.stderr.contains(part)), "{}", failed.stderr);
    let units = fs::read_dir(bench.workspace.path("store/repos/fedora")).expect("listed");
    let names = units.map(|unit| unit.expect("an entry").file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("configuration")));
    bench.workspace.finish();
}

#[test]
fn lua_needs_rpm() {
    let packages = [("libdemo2", library("2.0", "")), ("daemon", daemon("3.0", LUA))];
    let bench = Bench::new("rpm-lua", false, &packages);
    let refused = bench.build(&["--repo", "fedora"]);
    assert_eq!(refused.code, 2);
    let told = ["%filetriggerin of daemon is a script for rpm's own Lua", "hint: add the layer"];
    assert!(told.iter().all(|part| refused.stderr.contains(part)), "{}", refused.stderr);
    // Without Lua it goes without rpm, too.
    bench.import(&[("daemon", daemon("3.1", ""))]);
    finish(bench.workspace.strata().arg("resolve").arg(&bench.git).arg("--upgrade")).ok();
    let built = bench.built(&[]);
    assert!(bench.read(&built, "etc/calls").starts_with("pretrans 3.1 1\n"), "{built}");
    let mode = fs::metadata(bench.file(&built, "etc/calls")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(!bench.file(&built, "var/lib/rpm").exists());
    bench.workspace.finish();
}
