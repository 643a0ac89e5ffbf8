//! Killed at any moment, and several at once: the repository stays valid.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Bench, text};

/// When a command is killed after its start: before its first write, amid them, and after.
const MOMENTS_MS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Runs a command and kills it after a while, if it still runs.
pub fn killed(mut command: Command, after_ms: u64) {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("strata runs");
    // The moment is what is tried here; nothing is waited for.
    std::thread::sleep(Duration::from_millis(after_ms));
    child.kill().expect("a signal");
    child.wait().expect("it ends");
}

/// Everything that the database lists is whole; a unit may be there that it does not
/// list yet, and is found by `index`.
fn valid(bench: &Bench) {
    let output = bench.strata(&["repo", "verify", "main"]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.code().is_some_and(|code| code <= 1), "{said}");
    for line in said.lines().filter(|line| !line.starts_with("main: ")) {
        assert!(line.contains(": database: it is not listed"), "{said}");
    }
    bench.good(&["repo", "index", "main"]);
    bench.good(&["repo", "verify", "main"]);
}

#[test]
fn a_build_that_is_killed_leaves_a_valid_repository() {
    let bench = Bench::new();
    bench.layer("main", "app", "0", &[("usr/bin/app", &"zero".repeat(2000))]);
    for moment in MOMENTS_MS {
        let version = moment.to_string();
        let root = bench.path(&format!("roots/main/app-{version}"));
        fs::create_dir_all(root.join("usr/bin")).expect("made");
        fs::write(root.join("usr/bin/app"), "zero".repeat(2000)).expect("written");
        let build = [
            "layer",
            "build",
            "--repo",
            "main",
            "--name",
            "app",
            "--version",
            &version,
            "--root",
            text(&root),
        ];
        killed(bench.command(&build), moment);
        valid(&bench);
    }
}

#[test]
fn a_collection_that_is_killed_brings_nothing_back() {
    let bench = Bench::new();
    bench.layer("main", "kept", "1", &[("usr/bin/kept", "kept")]);
    let gc = ["store", "gc", "--apply", "--grace-hours", "0", "--generations", "0"];
    for moment in MOMENTS_MS {
        let version = moment.to_string();
        bench.layer("main", "app", &version, &[("usr/bin/app", &version)]);
        bench.good(&["layer", "withdraw", "main/app", &version, "--reason", "CVE-2026-1"]);
        killed(bench.command(&gc), moment);
        // The next writer finishes what was begun: no unit is back, and none by halves.
        bench.good(&["repo", "index", "main"]);
        let listed = bench.good(&["layer", "list", "--repo", "main", "app"]);
        assert!(listed.lines().all(|line| line.contains("withdrawn")), "{listed}");
        bench.good(&["repo", "verify", "main"]);
    }
    bench.good(&gc);
    assert_eq!(bench.good(&["layer", "list"]).lines().count(), 1);
}

#[test]
fn several_at_once_on_one_repository_are_safe() {
    let bench = Bench::new();
    bench.layer("main", "first", "1", &[("usr/share/text", &"text".repeat(2000))]);
    let mut commands = Vec::new();
    for number in 0..6 {
        let name = format!("layer{number}");
        let root = bench.path(&format!("roots/main/{name}-1"));
        fs::create_dir_all(root.join("usr/share")).expect("made");
        fs::write(root.join("usr/share/text"), "text".repeat(2000)).expect("written");
        let build = [
            "layer",
            "build",
            "--repo",
            "main",
            "--name",
            &name,
            "--version",
            "1",
            "--root",
            text(&root),
        ];
        commands.push(bench.command(&build));
        commands.push(bench.command(&["store", "gc", "--apply"]));
        commands.push(bench.command(&["store", "dedup"]));
    }
    let running: Vec<_> = commands
        .iter_mut()
        .map(|command| {
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strata runs")
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(bench.good(&["layer", "list"]).lines().count(), 7);
    bench.good(&["repo", "verify", "main"]);
}
