//! Files of the reconciler's state that are gone, empty or garbage: each is made anew, or
//! refused by its name and with a remedy, and nothing moves that should not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata::audit::{Position, Reader, verify_knowing};
use strata::pass::{Options, PassError};
use strata::rollout::request::{Ask, Request};
use strata::rollout::{RolloutFile, pins};
use strata::state::{ReconcileState, RefusalReason};
use strata::telling::place::Place;
use strata_core::event::Event;
use strata_core::rollout::Order;

use crate::rollouts::{GATED, obey, report};
use crate::support::{World, mac, name, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Gone,
    Empty,
    Garbage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All goes on as it was.
    GoesOn,
    /// An error names the file and what to do.
    Refused,
}

/// A store in which much must not move: web is quarantined, sql is paused, and a VA is
/// pinned.
fn stopped() -> World {
    let world = World::new();
    world.write("strata.toml", &format!("{GATED}\n[rollout]\non-failure = \"auto-rollback\"\n"));
    world.push("gates");
    world.once();
    world.claim("web", "canary", 0..2);
    world.claim("web", "everyone", 2..6);
    world.claim("sql", "canary", 6..7);
    let first = world.ring("web", "canary");
    pins::pin(
        &world.store,
        mac(3),
        first.expect("a generation"),
        None,
        ("a look".to_owned(), "ann".to_owned(), 0),
    )
    .expect("pinned");
    obey(&world);
    ask(&world, "sql", Order::Pause);
    world.once();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.write("templates/sql.ldf", "main/app 1\nmain/base 1\n");
    world.push("bad for web");
    let mut reconciler = world.reconciler();
    let never = AtomicBool::new(false);
    reconciler.pass(&never).expect("a pass");
    assert_ne!(world.ring("web", "canary"), first);
    report(&world, 0, world.ring("web", "canary"), None);
    report(&world, 1, first, Some("no space left"));
    wait_until("it is rolled back", Duration::from_secs(20), || {
        reconciler.step(&never).expect("a step");
        world.ring("web", "canary") == first
    });
    drop(reconciler);
    Place::at(Position::default()).write(&world.store, "notify-ops").expect("written");
    world.once();
    assert_eq!(phases(&world), ["quarantined", "paused"]);
    world
}

fn ask(world: &World, composition: &str, order: Order) {
    let ask = Ask::Rollout { composition: Some(name(composition)), order };
    Request::new("ann".to_owned(), "because".to_owned(), ask)
        .submit(&world.store)
        .expect("submitted");
}

/// Of web and sql.
fn phases(world: &World) -> [&'static str; 2] {
    let file = RolloutFile::read(&world.store).expect("readable");
    ["web", "sql"].map(|composition| file.compositions[&name(composition)].phase())
}

/// All links: of rings, and of VAs.
fn links(world: &World) -> (Vec<String>, String) {
    let vas = world.store.va_links().expect("readable").targets;
    (world.rings(), format!("{vas:?}"))
}

/// What a new process does: it opens the store, passes, and goes on.
fn run(world: &World) -> Result<(), PassError> {
    let mut reconciler = world.try_opened(&world.source(), Options::default)?;
    let never = AtomicBool::new(false);
    reconciler.pass(&never)?;
    reconciler.step(&never)?;
    reconciler.step(&never).map(drop)
}

fn do_damage(path: &Path, damage: Damage) {
    if path.is_dir() {
        fs::remove_dir_all(path).expect("removed");
    } else {
        fs::remove_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    match damage {
        Damage::Gone => {}
        Damage::Empty => fs::write(path, "").expect("written"),
        Damage::Garbage => fs::write(path, b"\0{]garbage\n\xff").expect("written"),
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(done.success());
}

#[test]
fn every_file_of_the_state_is_made_anew_or_refused_and_nothing_moves() {
    use Damage::{Empty, Garbage, Gone};
    use Outcome::{GoesOn, Refused};
    let world = stopped();
    let (before, state, kept) = (links(&world), world.store.state(""), world.path("kept"));
    fs::write(world.store.state("requests/000-waits.json"), "").expect("written");
    copy(&state, &kept);
    let pin = format!("pins/{}.json", mac(3));
    let files = [
        ("reconcile.json", [GoesOn, Refused, Refused]),
        ("rollout.json", [GoesOn, Refused, Refused]),
        ("audit/00000001.log", [GoesOn; 3]),
        // Where there is something to tell it is refused: audit.rs.
        ("audit", [GoesOn; 3]),
        ("git-config", [GoesOn; 3]),
        ("mirror.git", [GoesOn; 3]),
        ("mirror.git/HEAD", [GoesOn; 3]),
        ("mirror.git/config", [GoesOn; 3]),
        ("mirror.git/refs/strata/head", [GoesOn; 3]),
        (pin.as_str(), [GoesOn; 3]),
        ("telling/notify-ops.json", [GoesOn; 3]),
        ("requests/000-waits.json", [GoesOn; 3]),
        ("requests", [GoesOn, Refused, Refused]),
        ("pins", [GoesOn, Refused, Refused]),
        ("reconcile.lock", [GoesOn; 3]),
        ("audit.lock", [GoesOn; 3]),
    ];
    for (file, outcomes) in files {
        for (damage, outcome) in [Gone, Empty, Garbage].into_iter().zip(outcomes) {
            let case = format!("{file}: {damage:?}");
            fs::remove_dir_all(&state).expect("removed");
            copy(&kept, &state);
            do_damage(&world.store.state(file), damage);
            let ended = run(&world);
            assert_eq!(links(&world), before, "{case}: {ended:?}");
            match (outcome, ended) {
                (GoesOn, Ok(())) => assert_eq!(phases(&world), ["quarantined", "paused"], "{case}"),
                (Refused, Err(error)) => {
                    let named = error.to_string().contains(file);
                    assert!(named && error.hint().is_some(), "{case}: {error}");
                }
                (_, ended) => panic!("{case}: {ended:?}"),
            }
            if file.starts_with("mirror.git") {
                let head = world.push("nothing but a commit");
                run(&world).unwrap_or_else(|error| panic!("{case}: {error}"));
                let state = ReconcileState::read(&world.store).expect("readable").expect("there");
                assert_eq!(state.observed_commit(), Some(head.as_str()), "{case}");
            }
            let found = Place::read(&world.store, "notify-ops").expect("readable");
            assert_eq!(found.is_some(), !file.starts_with("telling"), "{case}");
        }
    }
}

#[test]
fn what_was_stopped_is_told_and_the_fix_is_taken() {
    let world = stopped();
    let before = links(&world);
    let lost = world.store.state("rollout.json");
    fs::remove_file(&lost).expect("removed");
    let told = world.once().events;
    let rebuilt = told.iter().find_map(|record| match &record.event {
        Event::StateRebuilt { file, kept, doubt } => {
            Some((file.clone(), kept.join(", "), doubt.clone()))
        }
        _ => None,
    });
    let (file, kept, doubt) = rebuilt.expect("it is told");
    assert_eq!((file.as_str(), doubt), ("state/rollout.json", None));
    assert!(kept.contains("sql: paused") && kept.contains("web: "), "{kept}");
    assert_eq!(links(&world), before);
    // It is told once.
    assert!(!world.once().news);
    // Why it was stopped is known as before.
    let file = RolloutFile::read(&world.store).expect("readable");
    let quarantine = file.compositions[&name("web")].quarantined.clone().expect("quarantined");
    assert_eq!(quarantine.commit, world.head());
    assert_eq!(quarantine.unhealthy[0].reason, "no space left");
    // The fix goes its way.
    let first = world.ring("web", "canary");
    world.write("templates/web/etc/motd", "fixed\n");
    world.push("the fix");
    fs::remove_file(&lost).expect("removed");
    world.once();
    assert_ne!(world.ring("web", "canary"), first);
    assert_eq!(world.ring("web", "everyone"), first);
}

#[test]
fn without_the_audit_log_what_may_have_been_stopped_waits_for_an_operator() {
    for broken in [false, true] {
        let world = stopped();
        let before = links(&world);
        fs::remove_file(world.store.state("rollout.json")).expect("removed");
        let log = world.store.state("audit/00000001.log");
        match broken {
            // Its beginning is changed: what follows proves nothing any more.
            true => {
                let text = fs::read_to_string(&log).expect("read");
                let changed = text.replacen("ring-moved", "ring-mOved", 1);
                assert_ne!(text, changed);
                fs::write(&log, changed).expect("written");
            }
            false => fs::remove_dir_all(world.store.state("audit")).expect("removed"),
        }
        let events = world.once().events;
        let doubt = events.iter().find_map(|record| match &record.event {
            Event::StateRebuilt { doubt, .. } => doubt.clone(),
            _ => None,
        });
        let doubt = doubt.expect("it is told");
        assert!(
            doubt.contains(if broken { "broken at record" } else { "gone as well" }),
            "{doubt}"
        );
        assert_eq!((links(&world), phases(&world)), (before.clone(), ["paused", "paused"]));
        // Later passes and commits of others do not let it go.
        world.write("templates/dns.ldf", "main/base 1\n");
        world.push("another template");
        world.once();
        assert!(world.ring("dns", "canary").is_some(), "what is new waits for nobody");
        let web = (world.ring("web", "canary"), world.ring("web", "everyone"));
        assert_eq!(web.0, web.1);
        // An operator looks, and lets it go.
        ask(&world, "web", Order::Resume { quarantined: false });
        world.once();
        assert_ne!(world.ring("web", "canary"), web.0);
    }
}

#[test]
fn a_rewritten_branch_is_refused_although_the_mark_was_lost() {
    let world = World::new();
    let applied = world.once().commit;
    world.git(&["checkout", "-q", "--orphan", "other"]);
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.git(&["add", "-A"]);
    world.git(&["commit", "-q", "-m", "another history"]);
    world.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
    let rings = world.rings();
    fs::remove_file(world.store.state("reconcile.json")).expect("removed");
    let refused = world.once();
    assert_eq!(refused.refusal, Some(RefusalReason::Rewritten), "{refused:?}");
    assert_eq!(world.rings(), rings);
    let mut reader = Reader::new(world.store.clone(), Position::default());
    let mut told = false;
    while let Some(record) = reader.next().expect("readable") {
        if let Event::StateRebuilt { file, kept, doubt: None } = &record.event {
            told |= file == "state/reconcile.json" && kept[0].contains(&applied);
        }
    }
    assert!(told);
    // Whoever wants the other history says so.
    let mut reconciler = world.opened(|| Options { allow_rewrite: true, ..Options::default() });
    let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!(report.refusal, None, "{report:?}");
}

#[test]
fn a_lost_pin_keeps_its_va_until_somebody_says_where_it_belongs() {
    let world = stopped();
    let file = world.store.state(&format!("pins/{}.json", mac(3)));
    for damage in [Damage::Gone, Damage::Garbage] {
        do_damage(&file, damage);
        let error = pins::unpin(&world.store, mac(3), None, "ann").expect_err("nobody knows");
        assert!(error.to_string().contains(&format!("pins/{}.json", mac(3))), "{error}");
        let nowhere = name("nowhere");
        let error = pins::unpin(&world.store, mac(3), Some(&nowhere), "ann").expect_err("no ring");
        assert!(matches!(error, pins::PinError::NoRing { .. }), "{error}");
        fs::write(&file, "").expect("written");
    }
    let everyone = name("everyone");
    pins::unpin(&world.store, mac(3), Some(&everyone), "ann").expect("unpinned");
    assert!(!file.exists());
    assert_eq!(world.store.desired(mac(3)).expect("readable"), world.ring("web", "everyone"));
    run(&world).expect("goes on");
}

#[test]
fn a_store_without_its_state_is_taken_up_again() {
    let world = World::new();
    world.once();
    let rings = world.rings();
    fs::remove_dir_all(world.store.state("")).expect("removed");
    let report = world.once();
    assert_eq!(report.refusal, None, "{report:?}");
    assert_eq!(world.rings(), rings);
    assert!(world.applied().is_some());
}

/// An accident must not look like a log that has just begun.
#[test]
fn an_audit_log_that_vanishes_is_told() {
    let world = World::new();
    world.once();
    let missing = || {
        let mark = RolloutFile::read(&world.store).expect("readable").audited;
        let verified = verify_knowing(&world.store, None, mark).expect("readable");
        assert_eq!(verified.broken, None);
        (mark.map(|mark| mark.seq), verified.missing)
    };
    let (known, found) = missing();
    assert!(known.is_some() && found.is_none(), "{known:?} {found:?}");
    fs::remove_dir_all(world.store.state("audit")).expect("removed");
    assert_eq!(missing(), (known, known));
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("app 2");
    world.once();
    let mut reader = Reader::new(world.store.clone(), Position::default());
    let first = reader.next_with(|_| true).expect("readable").expect("a record");
    let Event::StateRebuilt { file, doubt: Some(doubt), .. } = &first.event else {
        panic!("{first:?}")
    };
    assert_eq!((first.seq, file.as_str()), (1, "state/audit"));
    assert!(doubt.contains(&format!("record {} was in it", known.expect("just seen"))), "{doubt}");
    assert_eq!(missing().1, None, "what follows is whole again");
}
