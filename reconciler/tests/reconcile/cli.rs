//! What the commands print, and their exit statuses.

use std::process::{Command, Output};

use crate::support::World;

fn strata(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .env("STRATA_STORE", world.store.root())
        .env_remove("STRATA_LOG")
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn reconcile(world: &World, more: &[&str]) -> Output {
    let source = world.path("fleet.git");
    let source = source.to_str().expect("UTF-8");
    strata(world, &[&["reconcile", "--once", "--source", source], more].concat())
}

#[test]
fn reconcile_says_what_it_did() {
    let world = World::new();
    let applied = reconcile(&world, &[]);
    let printed = text(&applied.stdout);
    assert_eq!(applied.status.code(), Some(0), "{applied:?}");
    assert!(printed.contains("web: new → "), "{printed}");
    assert!(printed.contains("in canary, everyone"), "{printed}");
    assert!(printed.contains("2 generations sealed, 4 ring links moved"), "{printed}");
    assert!(text(&reconcile(&world, &[]).stdout).contains("nothing to do"));
    world.write("templates/web.ldf", "nonsense\n");
    world.push("bad");
    let refused = reconcile(&world, &["--output", "json"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let report: serde_json::Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!((&report["result"], &report["refusal"]), (&"refused".into(), &"invalid".into()));
    assert_eq!(report["diagnostics"][0]["file"], "templates/web.ldf");
    let status = strata(&world, &["status"]);
    assert_eq!(status.status.code(), Some(1), "the head is not what runs: {status:?}");
    let printed = text(&status.stdout);
    assert!(printed.contains("refused ") && printed.contains("templates/web.ldf:1"), "{printed}");
}

#[test]
fn errors_have_hints_and_status_2() {
    let world = World::new();
    for source in ["http://example.org/x", "/no/such/repository", "ext::sh -c true"] {
        let output = strata(&world, &["reconcile", "--once", "--source", source]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains("\nhint: "), "{output:?}");
    }
    let unknown = reconcile(&world, &["--branch", "production"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let hint = "hint: name one of its branches with --branch: main\n";
    assert!(text(&unknown.stderr).contains(hint), "{unknown:?}");
    let _reconciler = world.reconciler();
    let output = reconcile(&world, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let holder = format!("process {}", std::process::id());
    assert!(text(&output.stderr).contains(&holder), "{output:?}");
}

/// A share that is away when the reconciler starts is as one that goes away later.
#[test]
fn a_remote_that_is_away_at_the_start_keeps_no_other_from_being_asked() {
    let world = World::new();
    let here = world.path("fleet.git");
    let text = format!(
        "[[source.remote]]\nurl = \"{}\"\n[[source.remote]]\nurl = \"{}\"\n",
        world.path("away.git").display(),
        here.display()
    );
    let settings = world.path("reconciler.toml");
    std::fs::write(&settings, text).expect("written");
    let settings = settings.to_str().expect("UTF-8");
    let output = strata(&world, &["reconcile", "--once", "--config", settings]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(world.applied(), Some(world.head()));
    assert!(text_of_status(&world).contains("away.git"), "{}", text_of_status(&world));
}

fn text_of_status(world: &World) -> String {
    text(&strata(world, &["status"]).stdout)
}

#[test]
fn a_va_is_explained_from_the_commit_to_the_mount() {
    let world = World::new();
    reconcile(&world, &[]);
    let provisioned = strata(&world, &["va", "provision", "--template", "web", "web-1"]);
    assert_eq!(provisioned.status.code(), Some(0), "{provisioned:?}");
    let status = strata(&world, &["status", "--output", "json"]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    let report: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(report["summary"]["pending"], 1, "{report}");
    let va = &report["vas"][0];
    assert_eq!((&va["state"], &va["reason"]), (&"pending".into(), &"never-started".into()));
    let explained = strata(&world, &["va", "explain", "web-1"]);
    assert_eq!(explained.status.code(), Some(1), "{explained:?}");
    let printed = text(&explained.stdout);
    let generation = world.ring("web", "everyone").expect("moved").to_string();
    for expected in
        ["is pending: never started", &world.head(), "main/app 1", &generation, "not mounted"]
    {
        assert!(printed.contains(expected), "{expected} in\n{printed}");
    }
}
