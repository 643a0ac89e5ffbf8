//! VAs that a commit gives to another template or ring.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata_store::VaTarget;

use super::{GATED, obey, report, step};
use crate::support::{World, mac, name, wait_until};

/// Six declared VAs of two gated rings; they serve what they should.
fn declared(more: &str) -> World {
    let world = World::new();
    world.write("strata.toml", &format!("{GATED}{more}"));
    give(&world, "web");
    world.once();
    obey(&world);
    world
}

/// Declares all VAs to be of one template. Returns what their links should be then.
fn give(world: &World, template: &str) -> Vec<VaTarget> {
    let ring = |n| if n < 2 { "canary" } else { "everyone" };
    let table = |n: u32| {
        let (mac, ring) = (mac(n), ring(n));
        format!(
            "[[appliance]]\nname = \"va-{n}\"\nmac = \"{mac}\"\nldf = \"{template}\"\nring = \"{ring}\"\n"
        )
    };
    world.write("appliances.toml", &(0..6).map(table).collect::<String>());
    world.push(&format!("all follow {template}"));
    let target = |n| VaTarget::Ring { composition: name(template), ring: name(ring(n)) };
    (0..6).map(target).collect()
}

fn targets(world: &World) -> Vec<VaTarget> {
    let target = |n| world.store.va_target(mac(n)).expect("readable").expect("a link");
    (0..6).map(target).collect()
}

/// To another template VAs go as they go to another generation.
#[test]
fn vas_that_a_commit_gives_to_another_template_keep_to_freezes_and_rings() {
    const FREEZE: &str = "\n[[rollout.freeze]]\nfrom = \"2020-01-01 00:00\"\nto = \"2100-01-01 00:00\"\nzone = \"UTC\"\nreason = \"the year's end\"\n";
    let world = declared(FREEZE);
    let before = targets(&world);
    let after = give(&world, "sql");
    let report = world.once();
    assert_eq!(targets(&world), before);
    let notes: Vec<_> = report.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes, ["6 VAs wait to follow sql; canary: frozen: the year's end"]);
    // Commands show it as well, without a reconciler.
    let shown = |command: &[&str]| {
        let mut strata = std::process::Command::new(env!("CARGO_BIN_EXE_strata"));
        let output = strata.args(command).env("STRATA_STORE", world.store.root()).output();
        let output = output.expect("runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    for command in [&["rollout", "status"][..], &["rollout", "status", "sql"], &["status"]] {
        let (status, text) = shown(command);
        assert_eq!(status, Some(1), "{command:?}: {text}");
        assert!(text.contains(&format!("moves    {}\n", notes[0])), "{command:?}: {text}");
    }
    let (_, text) = shown(&["rollout", "status", "web"]);
    assert!(!text.contains("moves"), "{text}");
    let snapshot = world.snapshot();
    world.once();
    world.assert_unchanged(&snapshot);
    world.write("strata.toml", GATED);
    world.push("the year has begun");
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!((&targets(&world)[..2], &targets(&world)[2..]), (&after[..2], &before[2..]));
    // One of the two has arrived; a restart changes nothing.
    report_of(&world, 0);
    step(&mut reconciler);
    drop(reconciler);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    step(&mut reconciler);
    assert_eq!(&targets(&world)[2..], &before[2..]);
    report_of(&world, 1);
    wait_until("the others follow", Duration::from_secs(20), || {
        step(&mut reconciler);
        targets(&world) == after
    });
    obey(&world);
    let snapshot = world.snapshot();
    let never = AtomicBool::new(false);
    let report = reconciler.pass(&never).expect("a pass");
    assert!(report.notes.is_empty() && report.actions.is_empty(), "{report:?}");
    world.assert_unchanged(&snapshot);
    let file = strata::rollout::RolloutFile::read(&world.store).expect("readable");
    assert_eq!(file.moves_waiting, []);
}

/// The VA serves what its link names.
fn report_of(world: &World, number: u32) {
    report(world, number, world.store.desired(mac(number)).expect("readable"), None);
}

#[test]
fn vas_that_go_to_another_template_swap_so_many_at_a_time() {
    let world = declared("swapping = 2\n");
    let after = give(&world, "sql");
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let (mut most, mut rounds) = (0, 0);
    wait_until("all have gone", Duration::from_secs(30), || {
        step(&mut reconciler);
        let serves = |number| world.store.report(mac(number)).expect("readable");
        let swapping = (2..6).filter(|number| {
            let desired = world.store.desired(mac(*number)).expect("readable");
            serves(*number).and_then(|report| report.generation) != desired
        });
        let swapping = swapping.count();
        (most, rounds) = (most.max(swapping), rounds + usize::from(swapping > 0));
        obey(&world);
        targets(&world) == after
    });
    assert_eq!(most, 2, "no more than two swapped at once");
    assert!(rounds > 1);
}

#[test]
fn vas_whose_generation_stays_go_at_once_and_new_ones_too() {
    let world = declared(
        "\n[[rollout.freeze]]\nfrom = \"2020-01-01 00:00\"\nto = \"2100-01-01 00:00\"\nzone = \"UTC\"\n",
    );
    let text = std::fs::read_to_string(world.path("work/appliances.toml")).expect("there");
    let new = format!(
        "[[appliance]]\nname = \"va-9\"\nmac = \"{}\"\nldf = \"sql\"\nring = \"everyone\"\n",
        mac(9)
    );
    world.write("appliances.toml", &format!("{}{new}", text.replace("canary", "everyone")));
    world.push("all in one ring");
    let report = world.once();
    let ring = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    assert!(targets(&world).iter().all(|target| *target == ring), "{report:?}");
    assert!(world.store.va_target(mac(9)).expect("readable").is_some());
}
