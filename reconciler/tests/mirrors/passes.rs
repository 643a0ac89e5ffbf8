//! What a pass of the reconciler does about layers that are somewhere else.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

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

/// Ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Why a rollout does not begin: bytes are waited for.
#[test]
fn what_is_mirrored_and_what_fails_is_shown() {
    let bench = Bench::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = silent.local_addr().expect("bound");
    bench.configure(&format!("http://{address}/main"), "");
    commit(&bench);
    let log = fs::File::create(bench.path("daemon.log")).expect("a log");
    let mut command = bench.command(&bench.reader, &["reconcile", "--source", &bench.gitops()]);
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("starts");
    let _daemon = Daemon(child);
    let mirrors = |command: &[&str]| {
        let output =
            bench.strata(&bench.reader, &[command, &["status", "--output", "json"]].concat());
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        status["mirrors"].as_array().expect("mirrors").clone()
    };
    let wait = |what: &str, condition: &dyn Fn(&[Value]) -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition(&mirrors(&["rollout"])) {
            let log = fs::read_to_string(bench.path("daemon.log")).unwrap_or_default();
            assert!(Instant::now() < end, "{what}: {:?}\n{log}", mirrors(&["rollout"]));
            std::thread::sleep(Duration::from_millis(50));
        }
        mirrors(&[])
    };
    let text = |command: &[&str]| {
        let output = bench.strata(&bench.reader, &[command, &["status"]].concat());
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let is = |kind: &'static str| {
        move |all: &[Value]| all.first().is_some_and(|one| one["state"]["kind"] == kind)
    };
    let shown = wait("it is asked", &is("fetching"));
    assert_eq!(shown[0]["repository"], "main", "{shown:?}");
    assert_eq!(
        (&shown[0]["state"]["units"], &shown[0]["state"]["units_there"]),
        (&2.into(), &0.into())
    );
    for command in [&["rollout"][..], &[]] {
        let text = text(command);
        assert!(
            text.contains("mirror   main: 0 of 2 missing layers are there, 0.0 MB came"),
            "{text}"
        );
    }
    drop(silent);
    let shown = wait("it fails", &is("failing"));
    assert!(shown[0]["state"]["failures"].as_u64() >= Some(1), "{shown:?}");
    assert!(text(&[]).contains("mirror   main: failed "), "{}", text(&[]));
    let (_server, url) = bench.serve();
    let configuration = bench.path("gitops/strata.toml");
    let before = fs::read_to_string(&configuration).expect("read");
    let after = before.replace(&format!("http://{address}/main"), &url);
    fs::write(&configuration, after).expect("written");
    commit(&bench);
    assert_eq!(wait("it is back", &|all| all.is_empty()), Vec::<Value>::new());
    wait_for(&bench, "it is rolled out", || ring(&bench).is_some());
    assert!(!bench.path("reader/state/mirroring.json").exists(), "it leaves no trace");
}

fn wait_for(bench: &Bench, what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        let log = fs::read_to_string(bench.path("daemon.log")).unwrap_or_default();
        assert!(Instant::now() < end, "{what}\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
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
