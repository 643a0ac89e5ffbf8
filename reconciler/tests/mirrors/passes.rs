//! What a pass of the reconciler does about layers that are somewhere else.

use std::fs;
use std::process::{Command, Output};

use crate::support::{Bench, text};

/// A branch in the place of the directory that [`Bench::configure`] writes.
pub fn commit(bench: &Bench) {
    let directory = bench.path("gitops");
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .current_dir(&directory)
            .output()
            .expect("git runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    if !directory.join(".git").exists() {
        git(&["init", "-q", "-b", "main"]);
    }
    git(&["add", "-A"]);
    git(&["commit", "-q", "--allow-empty", "-m", "change"]);
}

pub fn pass(bench: &Bench) -> (Output, serde_json::Value) {
    let source = bench.gitops();
    let arguments = ["reconcile", "--once", "--source", &source, "--output", "json"];
    let output = bench.strata(&bench.reader, &arguments);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, report)
}

fn ring(bench: &Bench) -> Option<std::path::PathBuf> {
    fs::read_link(bench.path("reader/rings/web/everyone")).ok()
}

#[test]
fn the_layers_of_a_commit_are_mirrored_before_it_is_taken() {
    let bench = Bench::new();
    bench.layer("unused", "1", "unused");
    bench.publish();
    let (_server, url) = bench.serve();
    bench.configure(&url, "");
    commit(&bench);
    let (output, report) = pass(&bench);
    assert_eq!(report["result"], "applied", "{output:?}");
    assert!(ring(&bench).is_some());
    assert!(bench.unit("lib", "1:2").exists());
    assert!(!bench.unit("unused", "1").exists(), "nobody chose it");
    let (output, report) = pass(&bench);
    assert_eq!(report["result"], "unchanged", "{output:?}");
}

#[test]
fn a_mirror_out_of_reach_leaves_what_is_and_is_a_condition() {
    let bench = Bench::new();
    let (server, url) = bench.serve();
    bench.configure(&url, "");
    commit(&bench);
    assert_eq!(pass(&bench).1["result"], "applied");
    let before = ring(&bench);

    bench.layer("app", "2", "two");
    bench.sign();
    bench.sync();
    drop(server);
    // Nothing new is needed: the pass goes on, and says so.
    let (output, report) = pass(&bench);
    assert_eq!(report["result"], "unchanged", "{output:?}");
    assert_eq!(report["diagnostics"][0]["severity"], "warning", "{report}");

    // A layer that is not there: what runs stays, and it is tried again.
    let ldf = bench.path("gitops/templates/web.ldf");
    fs::write(&ldf, "main/app 2\nmain/lib 1:2\n").expect("written");
    commit(&bench);
    let (output, report) = pass(&bench);
    assert_eq!(
        (&report["result"], &report["refusal"]),
        (&"refused".into(), &"mirror".into()),
        "{output:?}"
    );
    let message = report["message"].as_str().expect("a message");
    assert!(message.contains("the repository main could not be mirrored"), "{message}");
    assert_eq!(ring(&bench), before);
    let status = bench.strata(&bench.reader, &["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let condition = |kind: &str| {
        let all = status["conditions"].as_array().expect("conditions");
        all.iter().find(|condition| condition["type"] == kind).expect("a condition").clone()
    };
    assert_eq!(condition("Reconciling")["reason"], "Mirroring", "{status}");
    assert_eq!(condition("Stalled")["status"], false, "{status}");

    // It is back, at another address.
    let (_server, url) = bench.serve();
    let configuration = bench.path("gitops/strata.toml");
    let text = fs::read_to_string(&configuration).expect("read");
    let line = text.lines().find(|line| line.starts_with("url")).expect("a line").to_owned();
    fs::write(&configuration, text.replace(&line, &format!("url = \"{url}\""))).expect("written");
    commit(&bench);
    let (output, report) = pass(&bench);
    assert_eq!(report["result"], "applied", "{output:?}");
    assert_ne!(ring(&bench), before);
    assert!(bench.unit("app", "2").exists());
}

#[test]
fn a_repository_that_is_not_to_be_trusted_moves_nothing() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    commit(&bench);
    let snapshot = bench.path("published/main/snapshot.toml");
    let good = fs::read_to_string(&snapshot).expect("a snapshot");
    fs::write(&snapshot, good.replace("version = 1", "version = 2")).expect("written");
    let (output, report) = pass(&bench);
    assert_eq!(report["refusal"], "mirror", "{output:?}");
    assert!(
        report["message"].as_str().is_some_and(|m| m.contains("0 of 1 signatures")),
        "{report}"
    );
    assert!(ring(&bench).is_none() && !bench.path("reader/repos/main").exists());
}
