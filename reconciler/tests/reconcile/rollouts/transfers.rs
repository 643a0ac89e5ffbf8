//! VAs that a commit gives to another template or ring.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata::pass::PassReport;
use strata::rollout::pins;
use strata::rollout::request::{Ask, Request};
use strata_core::GenerationId;
use strata_core::event::Event;
use strata_core::rollout::Order;
use strata_store::VaTarget;

use super::{GATED, obey, report, step};
use crate::support::{CONFIGURATION, World, mac, name, wait_until};

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
    // No VA is there: none is out of step.
    for (command, code) in
        [(&["rollout", "status"][..], 1), (&["rollout", "status", "sql"], 1), (&["status"], 0)]
    {
        let (status, text) = shown(command);
        assert_eq!(status, Some(code), "{command:?}: {text}");
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

const ALWAYS: &str = "\n[[rollout.freeze]]\nfrom = \"2020-01-01 00:00\"\nto = \"2100-01-01 00:00\"\nzone = \"UTC\"\n";

/// Six declared VAs of two plain rings.
fn plain() -> World {
    let world = World::new();
    give(&world, "web");
    world.once();
    world
}

fn configure(world: &World, text: &str) -> PassReport {
    world.write("strata.toml", text);
    world.push("the configuration");
    world.once()
}

fn notes(report: &PassReport) -> String {
    report.notes.iter().map(|note| format!("{note}\n")).collect()
}

fn order(world: &World, template: &str, order: Order) {
    let ask = Ask::Rollout { composition: Some(name(template)), order };
    Request::new("ann".to_owned(), "hold".to_owned(), ask).submit(&world.store).expect("submitted");
}

fn pin(world: &World, number: u32, generation: Option<GenerationId>, expires_at_ms: Option<u64>) {
    let told = ("a look".to_owned(), "ann".to_owned(), 0);
    let generation = generation.expect("a generation");
    pins::pin(&world.store, mac(number), generation, expires_at_ms, told).expect("pinned");
}

fn target(world: &World, number: u32) -> VaTarget {
    world.store.va_target(mac(number)).expect("readable").expect("a link")
}

#[test]
fn a_paused_template_takes_nobody_in_and_lets_nobody_go() {
    let world = plain();
    for paused in ["sql", "web"] {
        let before = targets(&world);
        order(&world, paused, Order::Pause);
        let after = give(&world, paused);
        let report = world.once();
        assert_eq!(targets(&world), before, "{paused}");
        let note =
            format!("6 VAs wait to follow {paused}; canary: {paused} is paused: hold (by ann)\n");
        assert_eq!(notes(&report), note);
        order(&world, paused, Order::Resume { quarantined: false });
        world.once();
        assert_eq!(targets(&world), after);
    }
    // All are of web, and nobody leaves it.
    order(&world, "web", Order::Pause);
    let before = targets(&world);
    give(&world, "sql");
    let report = world.once();
    assert_eq!(targets(&world), before);
    let note = "6 VAs wait to follow sql; canary: web is paused: hold (by ann)\n";
    assert_eq!(notes(&report), note);
}

/// The record of a pin may be older than what git says.
#[test]
fn a_pin_that_ends_leads_where_git_wants_the_va_and_past_no_freeze() {
    let world = plain();
    let first = world.ring("web", "everyone");
    for (number, expires) in [(4, None), (5, Some(1))] {
        pin(&world, number, first, None);
        give(&world, "sql");
        world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
        world.push("web goes on");
        world.once();
        let held = target(&world, number);
        assert_ne!(world.ring("web", "everyone"), first);
        configure(&world, &format!("{CONFIGURATION}{ALWAYS}"));
        match expires {
            Some(_) => pin(&world, number, first, expires),
            None => {
                let ended = pins::unpin(&world.store, mac(number), None, "ann").expect("unpinned");
                assert_eq!((ended.to.to_string().as_str(), ended.gone), ("sql/everyone", false));
            }
        }
        assert_eq!(target(&world, number), held);
        let report = world.once();
        assert_eq!(target(&world, number), held);
        assert!(
            notes(&report).contains("1 VA waits to follow sql; everyone: frozen\n"),
            "{report:?}"
        );
        world.write("strata.toml", CONFIGURATION);
        world.push("the year has begun");
        let mut reconciler = world.reconciler();
        let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
        let sql = VaTarget::Ring { composition: name("sql"), ring: name("everyone") };
        assert_eq!(target(&world, number), sql, "{report:?}");
        let events = step(&mut reconciler).events;
        let ended = Event::VaUnpinned { mac: mac(number), expired: expires.is_some() };
        let told: Vec<_> = events.iter().map(|told| (&told.event, told.by.as_deref())).collect();
        assert_eq!(told, [(&ended, Some("ann").filter(|_| expires.is_none()))]);
        assert_eq!(pins::read(&world.store, mac(number)).expect("readable"), None);
        drop(reconciler);
        // As it was, for the next.
        world.write("templates/web.ldf", "main/app 1\nmain/base 1\n");
        give(&world, "web");
        world.once();
        world.once();
    }
}

#[test]
fn a_pin_that_ends_swaps_its_va_past_no_freeze_of_its_own_ring() {
    let world = plain();
    let first = world.ring("web", "everyone");
    let own = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    for number in 2..5 {
        pin(&world, number, first, None);
    }
    // As long as nothing swaps by it, it goes.
    configure(&world, &format!("{CONFIGURATION}{ALWAYS}"));
    assert!(pins::unpin(&world.store, mac(2), None, "ann").expect("unpinned").gone);
    assert_eq!(target(&world, 2), own);
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    configure(&world, CONFIGURATION);
    assert_ne!(world.ring("web", "everyone"), first);
    configure(&world, &format!("{CONFIGURATION}{ALWAYS}"));
    let held = target(&world, 3);
    assert!(!pins::unpin(&world.store, mac(3), None, "ann").expect("unpinned").gone);
    pin(&world, 4, first, Some(1));
    let report = world.once();
    assert_eq!([target(&world, 3), target(&world, 4)], [held.clone(), held]);
    assert!(
        notes(&report).contains("2 VAs wait to follow web; everyone: frozen\n"),
        "{}",
        notes(&report)
    );
    let report = configure(&world, CONFIGURATION);
    assert_eq!([target(&world, 3), target(&world, 4)], [own.clone(), own], "{report:?}");
    let told: Vec<_> = report.events.iter().map(|told| (&told.event, told.by.as_deref())).collect();
    assert!(told.contains(&(&Event::VaUnpinned { mac: mac(3), expired: false }, Some("ann"))));
    assert!(told.contains(&(&Event::VaUnpinned { mac: mac(4), expired: true }, None)));
}
