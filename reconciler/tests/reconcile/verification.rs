//! What VAs report against what they should serve.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use strata::fleet::fleet;
use strata::traces::spans::Origin;
use strata::verify::{Event, Verifier};
use strata_core::report::{Report, ServingState};
use strata_core::status::{Summary, SyncState};
use strata_core::{GenerationId, MacAddr};

use crate::support::{World, mac, name};

fn report(mac: MacAddr, generation: Option<GenerationId>) -> Report {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now_ms = u64::try_from(now.as_millis()).expect("fits");
    Report {
        version: 1,
        mac,
        state: ServingState::Serving,
        generation,
        composition: Some(name("web")),
        layers: 2,
        desired: generation,
        error: None,
        pid: 1,
        host: "here".to_owned(),
        mount_point: "/".to_owned(),
        swaps: 0,
        started_at_ms: now_ms,
        written_at_ms: now_ms,
        interval_s: 10,
        scripts: None,
    }
}

pub fn write(world: &World, number: u32, generation: Option<GenerationId>) {
    strata_store::write_report(&world.store.reports(), &report(mac(number), generation))
        .expect("written");
}

#[test]
fn a_rollout_is_verified_by_the_vas_own_reports() {
    let world = World::new();
    world.claim("web", "everyone", 0..3);
    let actions = world.once().actions;
    let generation = world.ring("web", "everyone");
    let mut verifier = Verifier::new(world.store.clone());
    verifier.follow(&actions, &Origin::default()).expect("followed");
    assert_eq!(verifier.tick().expect("a tick"), []);
    write(&world, 0, generation);
    write(&world, 1, generation);
    assert_eq!(verifier.tick().expect("a tick"), []);
    write(&world, 2, generation);
    match verifier.tick().expect("a tick").as_slice() {
        [Event::RingInSync { composition, ring, vas: 3, .. }] => {
            assert_eq!((composition.as_str(), ring.as_str()), ("web", "everyone"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(verifier.tick().expect("a tick"), [], "told once");
}

#[test]
fn lies_and_floods_make_a_va_unknown_and_disturb_no_other() {
    let world = World::new();
    world.claim("web", "everyone", 0..4);
    world.once();
    let generation = world.ring("web", "everyone");
    write(&world, 0, generation);
    let reports = world.store.reports();
    std::fs::write(reports.join(mac(1).to_string()), vec![b'x'; 1 << 20]).expect("written");
    let other = report(mac(9), generation).print();
    std::fs::write(reports.join(mac(2).to_string()), other).expect("written");
    // A directory is a machine's own place; what stands in the report's place there is none.
    let place = reports.join(mac(3).to_string());
    std::fs::create_dir_all(place.join(mac(3).to_string())).expect("made");
    let statuses = fleet(&world.store).expect("readable").vas;
    let states: BTreeMap<_, _> = statuses.iter().map(|va| (va.mac, va.state)).collect();
    let expected = [SyncState::InSync, SyncState::Unknown, SyncState::Unknown, SyncState::Unknown];
    for (number, expected) in (0..).zip(expected) {
        assert_eq!(states[&mac(number)], expected, "{statuses:?}");
    }
    assert_eq!(Summary::of(&statuses).unknown, 3);
}

#[test]
fn a_report_is_as_old_as_the_older_of_its_two_clocks_says() {
    let world = World::new();
    world.claim("web", "everyone", 0..2);
    world.once();
    let generation = world.ring("web", "everyone");
    let mut old = report(mac(0), generation);
    old.written_at_ms -= 3_600_000;
    strata_store::write_report(&world.store.reports(), &old).expect("written");
    let mut ahead = report(mac(1), generation);
    ahead.written_at_ms += 3_600_000;
    strata_store::write_report(&world.store.reports(), &ahead).expect("written");
    let hour_ago = SystemTime::now() - std::time::Duration::from_secs(3_600);
    std::fs::File::open(world.store.reports().join(mac(1).to_string()))
        .and_then(|file| file.set_modified(hour_ago))
        .expect("set back");
    for va in fleet(&world.store).expect("readable").vas {
        assert_eq!(va.state, SyncState::Unknown, "{va:?}");
    }
}
