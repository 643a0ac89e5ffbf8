//! `strata update`: a branch with a commit for each thing that is newer.

use std::process::{Command, Output};

use crate::support::World;

fn strata(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .current_dir(world.path("work"))
        .env("STRATA_STORE", world.store.root())
        .env("GIT_CONFIG_GLOBAL", world.path("gitconfig"))
        .env("HOME", world.directory.path())
        .env_remove("STRATA_LOG")
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// web has app 1 where app 2 is there; sql is up to date until base 2 comes.
fn outdated() -> World {
    let world = World::new();
    world.once();
    world.claim("web", "everyone", 0..3);
    world.build_layer("base", "2");
    world.git(&["config", "user.name", "Ann"]);
    world.git(&["config", "user.email", "ann@example.org"]);
    world
}

#[test]
fn the_environment_says_who_commits() {
    let world = World::new();
    world.once();
    let made = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["update", "."])
        .current_dir(world.path("work"))
        .env("STRATA_STORE", world.store.root())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", world.directory.path())
        .envs([("GIT_COMMITTER_NAME", "Bot"), ("GIT_COMMITTER_EMAIL", "bot@example.org")])
        .envs([("GIT_AUTHOR_NAME", "Eve"), ("GIT_AUTHOR_EMAIL", "eve@example.org")])
        .output()
        .expect("runs");
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let who = world.git(&["log", "-1", "--format=%cn <%ce>, %an <%ae>", "strata/update"]);
    assert_eq!(who, "Bot <bot@example.org>, Eve <eve@example.org>");
}

#[test]
fn a_branch_with_one_commit_an_update() {
    let world = outdated();
    let head = world.head();
    let dry = strata(&world, &["update", ".", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    assert!(text(&dry.stdout).contains("2 updates; nothing was made"), "{dry:?}");
    assert!(world.git(&["branch", "--list", "strata/update"]).is_empty());

    let made = strata(&world, &["update", "."]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let printed = text(&made.stdout);
    assert!(printed.contains("2 commits on the branch strata/update"), "{printed}");
    let subjects = world.git(&["log", "--reverse", "--format=%s", "HEAD..strata/update"]);
    assert_eq!(subjects, "Update app to 2\nUpdate base to 2");
    let body = world.git(&["log", "-1", "--format=%b", "strata/update~1"]);
    for words in ["templates/web.ldf", "main/app 1 → main/app 2", "blast radius: 3 of 3 VAs"] {
        assert!(body.contains(words), "{words:?} in {body}");
    }
    let changed = world.git(&["diff", "--name-only", "HEAD", "strata/update"]);
    assert_eq!(changed, "templates/sql.ldf\ntemplates/web.ldf");
    assert_eq!((world.head(), world.git(&["status", "--porcelain"])), (head, String::new()));

    let again = strata(&world, &["update", "."]);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    assert!(text(&again.stderr).contains("hint: replace it with --force"), "{again:?}");
    world.git(&["checkout", "-q", "strata/update"]);
    let own = strata(&world, &["update", ".", "--force"]);
    assert!(text(&own.stderr).contains("is checked out"), "{own:?}");
    let nothing = strata(&world, &["update", ".", "--branch", "other", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&nothing.stdout).expect("JSON");
    assert_eq!(
        (report["updates"].as_array().map(Vec::len), &report["branch"]),
        (Some(0), &serde_json::Value::Null)
    );
}

#[test]
fn the_branch_is_what_the_reconciler_takes() {
    let world = outdated();
    let made = strata(&world, &["update", ".", "--layer", "app", "--branch", "app"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let before = world.ring("web", "everyone");
    world.git(&["merge", "-q", "--ff-only", "app"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    let report = world.once();
    assert_eq!(report.refusal, None, "{report:?}");
    assert_ne!(world.ring("web", "everyone"), before);
}

#[test]
fn what_cannot_be_updated_is_said() {
    let world = outdated();
    world.write("templates/web.ldf", "=main/app 1\nmain/base 1\n");
    world.git(&["commit", "-qam", "hold app"]);
    let held = strata(&world, &["update", ".", "--dry-run"]);
    assert!(!text(&held.stdout).contains("main/app"), "{held:?}");
    let output = strata(&world, &["update", ".", "--base", "gone"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("there is no revision \"gone\""), "{output:?}");
    world.git(&["config", "--unset", "user.name"]);
    let nobody = strata(&world, &["update", "."]);
    assert_eq!(nobody.status.code(), Some(2), "{nobody:?}");
    assert!(text(&nobody.stderr).contains("hint: git config user.name"), "{nobody:?}");
    assert!(world.git(&["branch", "--list", "strata/update"]).is_empty());
}
