//! `strata layer lint`: a layer with one of everything, and one with nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;

use crate::{Bench, text};

fn file(root: &Path, path: &str, content: &str, mode: u32) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(&path, content).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn link(root: &Path, path: &str, target: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    symlink(target, path).expect("a link");
}

fn build(bench: &Bench, name: &str, root: &Path, options: &[&str]) {
    let head = ["layer", "build", "--version", "1", "--name", name, "--root", text(root)];
    let arguments: Vec<_> = head.into_iter().chain(options.iter().copied()).collect();
    bench.good(&arguments);
}

/// Severity, kind and path of each finding.
fn findings(said: &str) -> Vec<(String, String, String)> {
    let said: Value = serde_json::from_str(said).expect("JSON");
    let all = said["findings"].as_array().expect("a list").iter();
    let field = |one: &Value, name: &str| one[name].as_str().unwrap_or("").to_owned();
    all.map(|one| (field(one, "severity"), field(one, "kind"), field(one, "path"))).collect()
}

#[test]
fn everything_that_is_suspicious_is_found_with_path_and_reason() {
    let bench = Bench::set_up();
    let other = bench.path("other");
    file(&other, "usr/share/both", "1", 0o644);
    file(&other, "usr/share/same", "same", 0o644);
    file(&other, "usr/bin/there", "", 0o755);
    build(&bench, "other", &other, &[]);
    build(&bench, "foe", &other, &["--conflicts", "bad"]);
    let bad = bench.path("bad");
    file(&bad, "usr/share/both", "2", 0o644);
    fs::copy(other.join("usr/share/same"), bad.join("usr/share/same")).expect("copied");
    let times =
        fs::metadata(other.join("usr/share/same")).expect("there").modified().expect("a time");
    let same = fs::File::options().write(true).open(bad.join("usr/share/same")).expect("open");
    same.set_modified(times).expect("a time");
    file(&bad, "bin/old", "", 0o755);
    file(&bad, "run/never-seen", "", 0o644);
    file(&bad, "usr/local/x", "", 0o644);
    file(&bad, "usr/share/open", "", 0o666);
    file(&bad, "usr/bin/root", "", 0o4755);
    file(&bad, "usr/bin/group", "", 0o2755);
    file(&bad, "usr/bin/lost", "#!/usr/bin/nothing -e\n", 0o755);
    file(&bad, "usr/bin/found", "#!/bin/there\n", 0o755);
    link(&bad, "usr/share/out", "../../../etc/passwd");
    link(&bad, "usr/share/absolute", "/usr/share/both");
    link(&bad, "usr/share/theirs", "/usr/bin/there");
    link(&bad, "usr/share/dangling", "nowhere");
    link(&bad, "usr/share/relative", "../bin/there");
    link(&bad, "usr/share/null", "/dev/null");
    build(&bench, "bad", &bad, &["--depends", "other (>= 2), other | none, none"]);
    let lint = ["layer", "lint", "main/bad"];
    let output = bench.strata(&[&lint[..], &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found = findings(&String::from_utf8(output.stdout).expect("UTF-8"));
    let found: Vec<_> =
        found.iter().map(|(s, k, p)| (s.as_str(), k.as_str(), p.as_str())).collect();
    assert_eq!(
        found,
        [
            ("error", "outside-hierarchy", "/run/never-seen"),
            ("error", "unmerged-usr", "/bin/old"),
            ("error", "link-out-of-tree", "/usr/share/out"),
            ("error", "world-writable", "/usr/share/open"),
            ("error", "missing-interpreter", "/usr/bin/lost"),
            ("error", "unmet-dependency", ""),
            ("error", "unmet-dependency", ""),
            ("error", "shared-path", "/usr/share/both"),
            ("warning", "outside-hierarchy", "/usr/local/x"),
            ("warning", "absolute-link", "/usr/share/theirs"),
            ("warning", "dangling-link", "/usr/share/dangling"),
            ("warning", "setuid", "/usr/bin/root"),
            ("warning", "setgid", "/usr/bin/group"),
        ]
    );
    let output = bench.strata(&lint);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    for line in [
        "error   missing-interpreter /usr/bin/lost: it is run by /usr/bin/nothing, which no layer here has\n",
        "error   unmet-dependency    Depends: none: no repository has it\n",
        "error   unmet-dependency    Depends: other (>= 2): no repository has it\n",
        "error   shared-path         /usr/share/both: main/other 1 has it too; they cannot stand in one composition\n",
        "warning absolute-link       /usr/share/theirs: it leads to /usr/bin/there, which main/foe has\n",
        "main/bad 1: 8 errors, 5 warnings\n",
    ] {
        assert!(said.contains(line), "{line}{said}");
    }
}

#[test]
fn what_is_allowed_does_not_count() {
    let bench = Bench::set_up();
    let root = bench.path("root");
    file(&root, "usr/bin/sudo", "", 0o4755);
    file(&root, "usr/bin/open", "", 0o757);
    build(&bench, "sudo", &root, &[]);
    let lint = |options: &[&str]| {
        let output = bench.strata(&[&["layer", "lint", "main/sudo"], options].concat());
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let closing = |said: &str| said.lines().last().unwrap_or("").to_owned();
    let (code, said) = lint(&[]);
    assert_eq!((code, closing(&said).as_str()), (Some(1), "main/sudo 1: 1 error, 1 warning"));
    let allow = ["--allow", "world-writable:/usr/bin/o*"];
    let (code, said) = lint(&allow);
    let wanted = "main/sudo 1: 1 warning, 1 allowed finding";
    assert_eq!((code, closing(&said).as_str()), (Some(0), wanted));
    assert_eq!(lint(&[&allow[..], &["--strict"]].concat()).0, Some(1));
    let (code, said) = lint(&[&allow[..], &["--strict", "--allow", "setuid"]].concat());
    assert_eq!((code, said.as_str()), (Some(0), "main/sudo 1: 2 allowed findings\n"));
    assert_eq!(lint(&["--allow", "world-writable:/usr/share/*"]).0, Some(1));
    for (wrong, reason) in [
        ("sticky", "there are outside-hierarchy, unmerged-usr"),
        ("setuid:usr/bin/x", "a pattern is an absolute path"),
    ] {
        let said = bench.bad(&["layer", "lint", "main/sudo", "--allow", wrong]);
        assert!(said.contains(reason), "{said}");
    }
    let clean = bench.path("clean");
    file(&clean, "usr/share/clean", "", 0o644);
    build(&bench, "clean", &clean, &[]);
    assert_eq!(
        bench.good(&["layer", "lint", "main/clean", "--strict"]),
        "main/clean 1: nothing found\n"
    );
}
