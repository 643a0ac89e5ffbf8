//! Rollouts on a real store: rings one after the other, and restarts anywhere.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strata::pass::{PassReport, Reconciler};
use strata::rollout::RolloutFile;
use strata::rollout::request::{Ask, Request};
use strata_core::GenerationId;
use strata_core::event::Event;
use strata_core::report::{Report, ServingState};
use strata_core::rollout::{Order, RingStep, Waiting};
use strata_store::VaTarget;

use crate::support::{World, mac, name, wait_until};

mod halts;
mod removals;
mod transfers;

pub const GATED: &str = "[[repository]]\nname = \"main\"\n\n[[rollout.ring]]\nname = \"canary\"\n\n[[rollout.ring]]\nname = \"everyone\"\n";

fn gated(more: &str) -> World {
    let world = World::new();
    world.write("strata.toml", &format!("{GATED}{more}"));
    world.push("gates");
    world.once();
    world.claim("web", "canary", 0..2);
    world.claim("web", "everyone", 2..6);
    obey(&world);
    world
}

fn bump(world: &World, version: u32) -> String {
    world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
    world.push(&format!("app {version}"))
}

/// A VA's report: what it serves, or why it does not.
pub fn report(world: &World, number: u32, serves: Option<GenerationId>, error: Option<&str>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now_ms = u64::try_from(now.as_millis()).expect("fits");
    let mut report = golden();
    report.mac = mac(number);
    report.state = ServingState::Serving;
    report.generation = serves;
    report.desired = world.store.desired(mac(number)).expect("readable");
    report.error = error.map(str::to_owned);
    (report.written_at_ms, report.interval_s) = (now_ms, 10);
    strata_store::write_report(&world.store.reports(), &report).expect("written");
}

fn golden() -> Report {
    let text = include_bytes!("../../../vlfs/core/golden/report");
    serde_json::from_slice(text).expect("the golden report")
}

/// All VAs serve what their links name.
pub fn obey(world: &World) {
    for number in 0..6 {
        let desired = world.store.desired(mac(number)).expect("readable");
        report(world, number, desired, None);
    }
}

fn step(reconciler: &mut Reconciler) -> PassReport {
    reconciler.step(&AtomicBool::new(false)).expect("a step").expect("a commit was taken")
}

fn phase(world: &World) -> String {
    let file = RolloutFile::read(&world.store).expect("readable");
    file.compositions[&name("web")].phase().to_owned()
}

/// Steps until the rings of web are as they are told.
fn settle(world: &World, reconciler: &mut Reconciler, what: &str, done: impl Fn() -> bool) {
    wait_until(what, Duration::from_secs(20), || {
        obey(world);
        step(reconciler);
        done()
    });
}

#[test]
fn the_second_ring_follows_the_healthy_first() {
    let world = gated("");
    let first = world.ring("web", "everyone");
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let second = world.ring("web", "canary");
    assert_ne!(second, first);
    assert_eq!(world.ring("web", "everyone"), first);
    assert!(matches!(report.waiting[0].waiting, Waiting::Evidence { .. }), "{report:?}");
    assert_eq!(world.ring("sql", "everyone"), world.ring("sql", "canary"), "no other waits");
    // One of two has arrived.
    self::report(&world, 0, second, None);
    step(&mut reconciler);
    step(&mut reconciler);
    assert_eq!(world.ring("web", "everyone"), first);
    // A restart goes on where it was, whatever it remembers.
    drop(reconciler);
    std::fs::remove_file(world.store.state("rollout.json")).expect("removed");
    let mut reconciler = world.reconciler();
    step(&mut reconciler);
    assert_eq!(world.ring("web", "everyone"), first);
    settle(&world, &mut reconciler, "everyone follows", || world.ring("web", "everyone") == second);
    settle(&world, &mut reconciler, "it is done", || phase(&world) == "done");
    let before = world.snapshot();
    assert!(!step(&mut reconciler).news);
    world.assert_unchanged(&before);
}

#[test]
fn a_ring_that_fails_goes_back_and_the_commit_is_quarantined() {
    let world = gated("\n[rollout]\non-failure = \"auto-rollback\"\n");
    let first = world.ring("web", "everyone");
    let bad = bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    report(&world, 0, world.ring("web", "canary"), None);
    report(&world, 1, first, Some("no space left"));
    let mut told = Vec::new();
    wait_until("it is rolled back", Duration::from_secs(20), || {
        told.extend(step(&mut reconciler).events);
        world.ring("web", "canary") == first
    });
    let rolled_back = told.iter().find_map(|record| match &record.event {
        Event::RolledBack { commit, unhealthy, .. } => Some((commit.clone(), unhealthy.clone())),
        _ => None,
    });
    let (commit, unhealthy) = rolled_back.expect("it is told");
    assert_eq!((commit, unhealthy[0].reason.as_str()), (bad, "no space left"));
    // Neither passes nor restarts nor commits of others bring it back.
    world.write("templates/sql.ldf", "main/app 1\nmain/base 1\n");
    world.push("another template");
    drop(reconciler);
    world.once();
    assert_eq!((world.ring("web", "canary"), phase(&world).as_str()), (first, "quarantined"));
    let told = crate::views::holds(&world, "rollout-status-1", &["rollout", "status", "web"]);
    assert_eq!(told["rollouts"][0]["phase"], "quarantined");
    let sql = world.ring("sql", "canary");
    assert_ne!(sql, world.ring("web", "canary"), "sql is rolled out all the same");
    // The fix is taken.
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n# fixed\n");
    world.write("templates/web/etc/motd", "fixed\n");
    world.push("the fix");
    world.once();
    assert_ne!(world.ring("web", "canary"), first);
}

#[test]
fn operators_are_heard_and_each_request_counts_once() {
    let world = gated("");
    let first = world.ring("web", "everyone");
    let ask = |order: Order| {
        let ask = Ask::Rollout { composition: Some(name("web")), order };
        let request = Request::new("ann".to_owned(), "because".to_owned(), ask);
        request.submit(&world.store).expect("submitted")
    };
    ask(Order::Pause);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert!(!reconciler.is_asked(), "it was taken");
    bump(&world, 2);
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!((world.ring("web", "canary"), phase(&world).as_str()), (first, "paused"));
    ask(Order::Resume { quarantined: false });
    step(&mut reconciler);
    assert_ne!(world.ring("web", "canary"), first);
    let name = ask(Order::Promote { all: false, override_window: false });
    let kept = std::fs::read(world.store.state("requests").join(&name)).expect("there");
    step(&mut reconciler);
    assert_ne!(world.ring("web", "everyone"), first);
    // A request whose file outlived its being carried out is not carried out again.
    std::fs::write(world.store.state("requests").join(&name), kept).expect("put back");
    step(&mut reconciler);
    assert_eq!(phase(&world), "rolling", "the second ring still owes its health");
    ask(Order::Abort);
    std::fs::write(world.store.state("requests/000-rubbish.json"), "{").expect("written");
    step(&mut reconciler);
    assert_eq!((world.ring("web", "canary"), world.ring("web", "everyone")), (first, first));
    assert_eq!(phase(&world), "quarantined");
    assert!(!reconciler.is_asked(), "rubbish is removed");
}

#[test]
fn batches_move_vas_and_end_with_the_link_of_the_ring() {
    let more = "swapping = 2\n";
    let world = gated(more);
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let (old, new) = (world.ring("web", "everyone"), world.ring("web", "canary"));
    assert_ne!(old, new);
    let mut most = 0;
    let staged = VaTarget::Ring { composition: name("web"), ring: name("everyone+next") };
    wait_until("the ring has moved", Duration::from_secs(30), || {
        step(&mut reconciler);
        let swapping = (2..6).filter(|number| {
            let serves = world.store.report(mac(*number)).expect("readable");
            let serves = serves.and_then(|report| report.generation);
            let target = world.store.va_target(mac(*number)).expect("readable");
            target.as_ref() == Some(&staged) && serves != new
        });
        most = most.max(swapping.count());
        obey(&world);
        world.ring("web", "everyone") == new
    });
    assert_eq!(most, 2, "no more than two swapped at once");
    let own = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    for number in 2..6 {
        assert_eq!(world.store.va_target(mac(number)).expect("readable"), Some(own.clone()));
    }
    assert_eq!(world.ring("web", "everyone+next"), None);
}

/// Killed at every step of a rollout's writes, the next reconciler ends where an
/// undisturbed one does.
#[test]
fn a_rollout_that_is_cut_short_anywhere_is_finished() {
    let mut ends = BTreeSet::new();
    for steps in (0..60).step_by(3) {
        let world = gated("swapping = 2\n");
        let first = world.ring("web", "everyone");
        obey(&world);
        bump(&world, 2);
        let disk = strata_store::durable::Disk::failing_at(steps);
        let store = strata_store::Store::open_with(world.store.root(), disk).expect("a store");
        let options = strata::pass::Options::default();
        if let Ok(mut reconciler) = Reconciler::open(store.into(), world.source(), options) {
            let never = AtomicBool::new(false);
            let mut passed = reconciler.pass(&never).is_ok();
            for _ in 0..6 {
                obey(&world);
                passed = passed && reconciler.step(&never).is_ok();
            }
            ends.insert((passed, world.ring("web", "canary") == first));
        }
        let mut reconciler = world.reconciler();
        reconciler.pass(&AtomicBool::new(false)).expect("a pass");
        settle(&world, &mut reconciler, "it is done", || phase(&world) == "done");
        let new = world.ring("web", "everyone");
        assert_eq!(world.ring("web", "canary"), new, "after a stop at step {steps}");
        assert_ne!(new, first);
        let file = RolloutFile::read(&world.store).expect("readable");
        let rings = &file.compositions[&name("web")].rings;
        assert!(rings.values().all(|ring| ring.step == RingStep::Passed));
        assert_eq!(world.ring("web", "everyone+next"), None);
    }
    assert!(ends.len() > 1, "the stops were spread: {ends:?}");
}

/// Without a daemon each pass is a process of its own: what rings wait for is looked at
/// by the pass itself.
#[test]
fn passes_of_their_own_go_on_from_ring_to_ring() {
    let world = gated("");
    bump(&world, 2);
    world.once();
    let second = world.ring("web", "canary");
    assert_ne!(world.ring("web", "everyone"), second);
    obey(&world);
    world.once();
    assert_eq!(world.ring("web", "everyone"), second);
    obey(&world);
    world.once();
    assert_eq!(phase(&world), "done");
}
