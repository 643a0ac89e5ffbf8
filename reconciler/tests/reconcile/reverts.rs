//! A branch with the revert, after an automatic rollback: pushed by the real program.

use std::fs;
use std::time::Duration;

use strata::audit::{Position, Reader};
use strata::rollout::RolloutFile;
use strata_core::event::Event;

use crate::daemon::{Daemon, log};
use crate::rollouts::{GATED, obey, report};
use crate::support::{World, name, wait_until};

const SOON: Duration = Duration::from_secs(40);

/// A reconciler with `settings` of a fleet on `app 1`.
fn started(settings: &str) -> (World, Daemon) {
    let world = World::new();
    world.write("strata.toml", &format!("{GATED}\n[rollout]\non-failure = \"auto-rollback\"\n"));
    world.push("gates");
    world.once();
    world.claim("web", "canary", 0..2);
    world.claim("web", "everyone", 2..6);
    obey(&world);
    // A directory, and no repository yet.
    fs::create_dir(world.path("elsewhere")).expect("made");
    let file = world.path("settings.toml");
    let place = world.path(".").display().to_string();
    fs::write(&file, settings.replace("DIRECTORY", &place)).expect("written");
    let arguments = ["--config", file.to_str().expect("UTF-8"), "--poll", "3600"];
    let daemon = Daemon::start(&world, &arguments);
    // From here on what is rolled back is its business.
    wait_until("it follows the log", SOON, || world.store.state("telling/revert.json").exists());
    (world, daemon)
}

/// Brings `app 2`, with which a VA fails. Returns the commit, once it is rolled back.
fn fail(world: &World) -> String {
    let first = world.ring("web", "canary");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    let bad = world.push("app 2");
    wait_until("canary moves", SOON, || world.ring("web", "canary") != first);
    report(world, 0, world.ring("web", "canary"), None);
    report(world, 1, first, Some("no space left"));
    let what = format!("it is rolled back; log:\n{}", log(world));
    wait_until(&what, SOON, || world.ring("web", "canary") == first);
    bad
}

fn branch(world: &World, repository: &str, branch: &str) -> Option<String> {
    let reference = format!("refs/heads/{branch}");
    let arguments = ["rev-parse", "--verify", "--quiet", &reference];
    let output = world.git_output(&world.path(repository), &arguments, b"");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then(|| text.trim().to_owned())
}

fn events(world: &World, kind: &str) -> Vec<Event> {
    let mut reader = Reader::new(world.store.clone(), Position::default());
    let mut events = Vec::new();
    while let Some(record) = reader.next().expect("readable") {
        events.extend(Some(record.event).filter(|event| event.kind() == kind));
    }
    events
}

#[test]
fn the_revert_is_a_branch_that_mends_the_fleet_when_it_is_merged() {
    let (world, daemon) = started("[revert]\nauthor = \"Fleet <fleet@example.org>\"\n");
    let bad = fail(&world);
    let wanted = format!("strata/revert-web-{}", &bad[..12]);
    wait_until("the branch is there", SOON, || branch(&world, "fleet.git", &wanted).is_some());
    world.git(&["fetch", "-q", "origin"]);
    let shown =
        world.git(&["log", "-1", "--format=%an <%ae>%n%P%n%B", &format!("origin/{wanted}")]);
    for part in [
        "Fleet <fleet@example.org>\n",
        &format!("\n{bad}\n"),
        "\nRevert \"app 2\"\n",
        &format!("This reverts commit {bad}."),
        "Template: web\nRing: canary\n",
        "02:00:00:00:00:01: no space left",
    ] {
        assert!(format!("\n{shown}\n").contains(part), "{part} in\n{shown}");
    }
    assert_eq!(branch(&world, "fleet.git", "main"), Some(bad.clone()), "nothing else is touched");
    wait_until("it is told", SOON, || !events(&world, "revert-pushed").is_empty());
    let told = events(&world, "revert-pushed");
    assert!(
        matches!(&told[..], [Event::RevertPushed { branch, commit, reverted, .. }]
            if *branch == wanted && *commit == bad && *reverted == [bad.clone()]),
        "{told:?}"
    );
    // What people do with it.
    world.git(&["merge", "-q", "--no-edit", &format!("origin/{wanted}")]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    wait_until("all is well again", SOON, || {
        obey(&world);
        let file = RolloutFile::read(&world.store).expect("readable");
        file.compositions[&name("web")].phase() == "done"
    });
    assert_eq!(daemon.terminate(), Some(0));
    // A restart does not push it again.
    assert_eq!(events(&world, "revert-pushed").len(), 1);
}

#[test]
fn what_cannot_be_pushed_is_told_and_tried_again() {
    let remote = "[revert.remote]\nurl = \"DIRECTORY/elsewhere\"\n";
    let (world, daemon) = started(&format!("[revert]\nbranch-prefix = \"undo/\"\n{remote}"));
    let bad = fail(&world);
    wait_until("it is told", SOON, || !events(&world, "revert-failed").is_empty());
    let told = events(&world, "revert-failed");
    assert!(
        matches!(&told[0], Event::RevertFailed { message, given_up: false, .. }
            if message.contains("elsewhere")),
        "{told:?}"
    );
    // The fleet is looked after meanwhile.
    world.write("templates/sql.ldf", "main/app 1\nmain/base 1\n");
    world.push("another template");
    let sql = world.ring("sql", "canary");
    wait_until("passes go on", SOON, || world.ring("sql", "canary") != sql);
    world.git_at(&world.path("elsewhere"), &["init", "-q", "--bare"]);
    let wanted = format!("undo/web-{}", &bad[..12]);
    wait_until("the branch is there", SOON, || branch(&world, "elsewhere", &wanted).is_some());
    assert_eq!(daemon.terminate(), Some(0));
}
