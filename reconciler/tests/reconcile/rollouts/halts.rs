//! Rollouts that stand, and what lets them go on: on a real store, with health checks that ask.

use std::net::TcpListener;

use super::*;

const HALTS: &str = "[[repository]]\nname = \"main\"\n\n[[rollout.ring]]\nname = \"canary\"\ndeadline = \"60s\"\n\n[[rollout.ring]]\nname = \"everyone\"\n";

/// A health check that asks this address once.
fn check(address: &str) -> String {
    format!("[[check]]\ntcp = \"{address}\"\nretries = 0\ndeadline = \"5s\"\n")
}

#[test]
fn a_commit_that_mends_the_health_check_lets_go_on_what_it_halted() {
    let world = gated("");
    world.write("strata.toml", HALTS);
    world.push("halts");
    world.once();
    let first = world.ring("web", "everyone");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let here = listener.local_addr().expect("bound").to_string();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    world.write("templates/web.health", &check(&closed.to_string()));
    let typo = bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    settle(&world, &mut reconciler, "it halts", || phase(&world) == "halted");
    assert_eq!(world.ring("web", "everyone"), first);
    // A commit that has nothing to do with it is not blamed for it.
    world.write("README.md", "a fleet\n");
    world.push("a README");
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let file = RolloutFile::read(&world.store).expect("readable");
    let halt = file.compositions[&name("web")].halted.clone().expect("halted");
    assert_eq!(halt.commit, typo);
    let told = crate::views::holds(&world, "rollout-status-1", &["rollout", "status", "web"]);
    assert_eq!(told["rollouts"][0]["halted"]["commit"], typo.as_str());
    // Nor does a restart let it go on.
    drop(reconciler);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!(phase(&world), "halted");
    world.write("templates/web.health", &check(&here));
    world.push("mends the check");
    let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let started = |event: &Event| matches!(event, Event::RolloutStarted { .. });
    assert!(report.events.iter().any(|record| started(&record.event)), "{report:?}");
    settle(&world, &mut reconciler, "it is everywhere", || phase(&world) == "done");
    assert_ne!(world.ring("web", "everyone"), first);
}

#[test]
fn a_ring_that_its_keys_keep_from_passing_and_failing_is_told() {
    let world = gated("");
    let ring = "[[rollout.ring]]\nname = \"canary\"\nunhealthy = \"1\"\ndeadline = \"1s\"\n";
    let more = "\n[[rollout.ring]]\nname = \"everyone\"\n";
    world.write("strata.toml", &format!("[[repository]]\nname = \"main\"\n\n{ring}{more}"));
    world.push("what cannot be");
    let taken = world.once();
    let warned = |found: &&strata_core::Diagnostic| found.message.contains("what `success` does");
    let found: Vec<_> = taken.diagnostics.iter().filter(warned).collect();
    assert!(matches!(&found[..], [found] if found.line == 6), "{:?}", taken.diagnostics);
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let mut told = Vec::new();
    wait_until("it is told", Duration::from_secs(20), || {
        obey(&world);
        report(&world, 1, None, Some("no space left"));
        told.extend(step(&mut reconciler).events);
        told.iter().any(|record| matches!(record.event, Event::RingStuck { .. }))
    });
    assert_eq!(phase(&world), "rolling");
    let shown = crate::views::holds(&world, "rollout-status-1", &["rollout", "status", "web"]);
    assert_eq!(shown["rollouts"][0]["waiting"]["first"][0], mac(1).to_string());
    let told = told.iter().find(|record| matches!(record.event, Event::RingStuck { .. }));
    let text = told.expect("told").event.to_string();
    assert!(text.contains("(no space left)") && text.contains(&mac(1).to_string()), "{text}");
}

/// A report that cannot be read is no silence.
#[test]
fn who_reports_what_cannot_be_read_is_said_to() {
    let world = gated("");
    let ring = "[[rollout.ring]]\nname = \"canary\"\ndeadline = \"1s\"\n";
    let more = "\n[[rollout.ring]]\nname = \"everyone\"\n";
    world.write("strata.toml", &format!("[[repository]]\nname = \"main\"\n\n{ring}{more}"));
    world.push("soon");
    world.once();
    bump(&world, 2);
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    let damaged = world.store.reports().join(mac(1).to_string());
    wait_until("it halts", Duration::from_secs(20), || {
        obey(&world);
        std::fs::write(&damaged, "no JSON").expect("written");
        step(&mut reconciler);
        phase(&world) == "halted"
    });
    let file = RolloutFile::read(&world.store).expect("readable");
    let halt = file.compositions[&name("web")].halted.clone().expect("halted");
    assert!(halt.reason.contains("no word by the deadline: "), "{}", halt.reason);
}
