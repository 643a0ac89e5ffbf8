//! The rules of the repository itself, and that the scripts of CI can fail.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use strata_core::desired::DesiredState;
use strata_core::source::{SourceContent, SourceTree as SourceCommit};
use strata_tests::source_tree::{self, SourceTree, repository_root};

const NONE: [String; 0] = [];

/// What may stand at the top, names that start with a dot aside.
const TOP: [&str; 12] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "ci",
    "docs",
    "examples",
    "reconciler",
    "tests",
    "vlfs",
];

fn sources() -> SourceTree {
    source_tree::read(&repository_root()).expect("the sources are readable")
}

fn check_top(names: &BTreeSet<String>) -> Vec<String> {
    let plain = names.iter().filter(|name| !name.starts_with('.') && *name != "target");
    plain.filter(|name| !TOP.contains(&name.as_str())).cloned().collect()
}

/// Relative links in Markdown whose file, or whose heading, is not there.
fn check_links(tree: &SourceTree) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "md"))
    {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let target = path.parent().unwrap_or(Path::new("")).join(file);
            let target = if file.is_empty() { path.clone() } else { normal(&target) };
            let there = match tree.get(&target) {
                Some(text) => heading.is_empty() || headings(text).contains(heading),
                None => tree.keys().any(|path| path.starts_with(&target)),
            };
            if !there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    broken
}

/// A relative path without `.` and `..`.
fn normal(path: &Path) -> std::path::PathBuf {
    let mut plain = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// The anchors of a Markdown text.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Notes to oneself that were left in a file.
fn check_notes(tree: &SourceTree) -> Vec<String> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let mut found = Vec::new();
    for (path, text) in tree {
        for (number, line) in (1..).zip(text.lines()) {
            let words_of = line.split(|c: char| !c.is_ascii_uppercase());
            if words_of.into_iter().any(|word| words.contains(&word)) {
                found.push(format!("{}:{number}", path.display()));
            }
        }
    }
    found
}

/// Dependencies whose version stands elsewhere than in the workspace's manifest.
fn check_versions(tree: &SourceTree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree {
        let member = path.ends_with("Cargo.toml") && path != Path::new("Cargo.toml");
        // The fuzz targets are a workspace of their own.
        let fuzz = ["reconciler/import/fuzz", "vlfs/core/fuzz", "vlfs/fuzz"];
        if !member || fuzz.iter().any(|directory| path.starts_with(directory)) {
            continue;
        }
        let mut dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                dependencies = line.trim_end_matches(']').ends_with("dependencies");
            } else if dependencies
                && line.contains('=')
                && !line.contains("workspace = true")
                && !line.starts_with('#')
            {
                found.push(format!("{}: {line}", path.display()));
            }
        }
    }
    found
}

/// Golden files that the formats' documentation does not name.
fn check_golden(tree: &SourceTree) -> Vec<String> {
    let formats = tree.get(Path::new("docs/formats.md")).map_or("", String::as_str);
    let golden = tree.keys().filter(|path| path.starts_with("vlfs/core/golden"));
    let shown = golden.map(|path| path.display().to_string());
    shown.filter(|path| !formats.contains(path.trim_start_matches("vlfs/core/"))).collect()
}

#[test]
fn the_top_level_is_for_people() {
    let entries = fs::read_dir(repository_root()).expect("the repository is readable");
    let mut names: BTreeSet<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(check_top(&names), NONE);
    for needed in ["CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        assert!(names.contains(needed), "{needed} is missing");
    }
    names.insert("scratch.txt".to_owned());
    assert_eq!(check_top(&names), ["scratch.txt"]);
}

#[test]
fn relative_links_resolve() {
    let mut tree = sources();
    assert_eq!(check_links(&tree), NONE);
    tree.insert(
        "docs/x.md".into(),
        "[a](no.md) [b](x.md#no) [c](../ci) [d](#yes-it)\n# Yes, it".into(),
    );
    assert_eq!(check_links(&tree), ["docs/x.md: no.md", "docs/x.md: x.md#no"]);
}

#[test]
fn nothing_is_left_for_later_in_a_comment() {
    let mut tree = sources();
    assert_eq!(check_notes(&tree), NONE);
    tree.insert("vlfs/x.rs".into(), concat!("\n// TO", "DO: x\n").into());
    assert_eq!(check_notes(&tree), ["vlfs/x.rs:2"]);
}

#[test]
fn versions_stand_in_one_place() {
    let mut tree = sources();
    assert_eq!(check_versions(&tree), NONE);
    tree.insert("vlfs/x/Cargo.toml".into(), "[dev-dependencies]\nrand = \"1\"\n".into());
    assert_eq!(check_versions(&tree), ["vlfs/x/Cargo.toml: rand = \"1\""]);
}

#[test]
fn every_golden_file_is_documented() {
    let mut tree = sources();
    assert_eq!(check_golden(&tree), NONE);
    tree.insert("vlfs/core/golden/x-undocumented".into(), String::new());
    assert_eq!(check_golden(&tree), ["vlfs/core/golden/x-undocumented"]);
}

#[test]
fn the_change_log_has_a_place_for_what_comes() {
    let tree = sources();
    assert!(tree[Path::new("CHANGELOG.md")].contains("\n## Unreleased\n"));
}

#[test]
fn scripts_are_executable_and_parse() {
    let ci = fs::read_dir(repository_root().join("ci")).expect("ci/ is readable");
    let mut scripts: Vec<_> = ci.flatten().map(|entry| entry.path()).collect();
    scripts.push(repository_root().join(".ci/run"));
    for script in scripts.iter().filter(|path| path.is_file()) {
        let name = script.display();
        let text = fs::read_to_string(script).expect("a script is text");
        let library = script.extension().is_some_and(|extension| extension == "sh");
        let mode = fs::metadata(script).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o111 != 0, !library, "{name}: libraries alone are not executable");
        assert!(library || text.starts_with("#!"), "{name}: no interpreter");
        if library || text.starts_with("#!/usr/bin/env bash") {
            let parsed = Command::new("bash").arg("-n").arg(script).status().expect("bash runs");
            assert!(parsed.success(), "{name}");
        }
    }
}

/// Feeds a log of cargo's to the functions that `ci/test` closes with; returns
/// what it printed and whether it passed.
fn closing(log: &str) -> (String, bool) {
    let mut bash = Command::new("bash")
        .arg("-c")
        .arg(". ci/lib.sh; read -r p f s < <(sum_results); closing_line $p $f $s")
        .current_dir(repository_root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash runs");
    let mut input = bash.stdin.take().expect("a pipe");
    input.write_all(log.as_bytes()).expect("bash reads");
    drop(input);
    let output = bash.wait_with_output().expect("bash ends");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

#[test]
fn ci_fails_when_a_test_fails_or_none_runs() {
    let result = |verdict: &str, numbers: [u32; 3]| {
        let [passed, failed, ignored] = numbers;
        format!(
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; \
             0 measured; 0 filtered out; finished in 0.10s\n"
        )
    };
    let good = result("ok", [5, 0, 1]) + "noise: 9 failed;\n" + &result("ok", [2, 0, 0]);
    assert_eq!(closing(&good), ("7 passed, 0 failed, 1 skipped\n".to_owned(), true));
    let bad = good + &result("FAILED", [1, 2, 0]);
    assert_eq!(closing(&bad), ("8 passed, 2 failed, 1 skipped\n".to_owned(), false));
    assert_eq!(closing("error: x\n"), ("0 passed, 0 failed, 0 skipped\n".to_owned(), false));
    let none = result("ok", [0, 0, 4]);
    assert_eq!(closing(&none), ("0 passed, 0 failed, 4 skipped\n".to_owned(), false));
}

/// The example as the reconciler reads it: `files` are added or replaced.
fn read_example(files: &[(&str, &str)]) -> (DesiredState, Vec<String>) {
    let root = repository_root().join("examples/repo-layout");
    let mut texts = source_tree::read(&root).expect("the example is readable");
    texts.extend(files.iter().map(|(path, text)| (path.into(), (*text).to_owned())));
    let mut tree = SourceCommit::default();
    for (path, text) in texts {
        let path = path.to_str().expect("the example's paths are plain");
        if SourceCommit::concerns(path) {
            let content = SourceContent::Regular { bytes: text.into_bytes(), executable: false };
            tree.insert(path.as_bytes(), content).expect("the example's paths are valid");
        }
    }
    let (desired, diagnostics) = DesiredState::read(&tree);
    (desired, diagnostics.iter().map(ToString::to_string).collect())
}

#[test]
fn the_example_repository_reads_without_a_fault() {
    let (desired, faults) = read_example(&[]);
    assert_eq!(faults, NONE);
    let names: Vec<_> = desired.definitions.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["file-server", "sql-server", "ssh-server", "web-03", "web-server"]);
    assert_eq!(desired.appliances.len(), 2);
    let (_, faults) = read_example(&[("templates/web-server.ldf", "main/\n")]);
    assert_eq!(faults.len(), 1, "{faults:?}");
}

/// What ci/conformance finds between results of the disk and of the union.
fn differences(native: &str, union: &str, allowed: &str) -> (String, bool) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in [("native", native), ("union", union), ("allowed", allowed)] {
        fs::write(directory.path().join(name), text).expect("written");
    }
    let output = Command::new("bash")
        .arg("-c")
        .arg(r#". ci/conformance.d/compare.sh; differences suite "$0/native" "$0/union" "$0/allowed""#)
        .arg(directory.path())
        .current_dir(repository_root())
        .output()
        .expect("bash runs");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

#[test]
fn conformance_fails_on_what_the_disk_passes() {
    let native = "a\tok\nb\tok\nc\tfailed\nd\tskipped\n";
    let none = (String::new(), true);
    assert_eq!(differences(native, "a\tok\nb\tok\nc\tfailed\n", "# none\n"), none);
    let worse = differences(native, "b\tskipped\nd\tfailed\n", "other a is another suite's\n");
    assert_eq!(worse, ("a: missing\nb: skipped\n".to_owned(), false));
    let allowed = "# why\nsuite a for a reason\nsuite b\n";
    let without_a_reason = differences(native, "a\tfailed\nb\tfailed\n", allowed);
    assert_eq!(without_a_reason, ("b: failed\n".to_owned(), false));
    assert!(!differences("a\tfailed\n", "a\tok\n", "").1, "native passes nothing");
}
