//! Passes that apply.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use strata::pass::PassResult;
use strata::state::ReconcileState;
use strata_core::RepositoryName;
use strata_core::plan::Note;
use strata_store::VaTarget;

use crate::support::{World, mac, name};

#[test]
fn a_commit_reaches_every_ring() {
    let world = World::new();
    let report = world.once();
    assert_eq!(report.result, PassResult::Applied, "{report:?}");
    assert_eq!(world.rings().len(), 4);
    let generation = world.ring("web", "canary").expect("moved");
    assert_eq!(world.ring("web", "everyone"), Some(generation));
    let sealed = world.store.generation(&generation).expect("sealed and sound");
    let layers: Vec<_> = sealed.layers().iter().map(ToString::to_string).collect();
    assert_eq!(layers, ["main/app 1", "main/base 1"]);
    assert_eq!(world.store.generation_origin(&generation).expect("told"), world.head());
}

#[test]
fn the_same_commit_twice_writes_nothing_at_all() {
    let world = World::new();
    world.once();
    let before = world.snapshot();
    let report = world.once();
    assert_eq!(report.result, PassResult::Unchanged);
    assert_eq!((report.actions.len(), report.renames, report.news), (0, 0, false));
    world.assert_unchanged(&before);
}

#[test]
fn a_revert_gives_the_exact_former_ids() {
    let world = World::new();
    world.once();
    let first = world.rings();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    let report = world.once();
    assert_eq!(report.actions.len(), 3, "one generation, two rings: {report:?}");
    assert_ne!(world.rings(), first);
    world.git(&["revert", "--no-edit", "HEAD"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    let report = world.once();
    assert_eq!(report.actions.len(), 2, "nothing to seal: {report:?}");
    assert_eq!(world.rings(), first);
}

#[test]
fn a_tree_in_git_becomes_a_configuration_layer() {
    let world = World::new();
    world.write("templates/web/etc/motd", "welcome\n");
    world.write("templates/web/usr/bin/hello", "#!/bin/sh\n");
    world.write("templates/web.modes", "etc/motd 0600 0 0\n");
    std::fs::set_permissions(
        world.path("work/templates/web/usr/bin/hello"),
        std::fs::Permissions::from_mode(0o755),
    )
    .expect("executable");
    world.push("configure web");
    let report = world.once();
    assert_eq!(report.result, PassResult::Applied, "{report:?}");
    let templates = world.store.database(&RepositoryName::templates()).expect("sealed");
    let unit = templates.units().next().expect("one unit");
    let generation = world.ring("web", "everyone").expect("moved");
    let generation = world.store.generation(&generation).expect("sealed");
    let top = generation.layers().last().expect("layers");
    assert_eq!((top.digest, top.repository.as_str()), (unit.digest, "templates"));
    let opened = world.store.open_unit(top).expect("sound");
    let motd = opened.path.join("filesystem/etc/motd");
    assert_eq!(std::fs::read(&motd).expect("there"), b"welcome\n");
    let mode = |path: &str| {
        let metadata = opened.path.join("filesystem").join(path).metadata().expect("there");
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode("etc/motd"), mode("usr/bin/hello")), (0o600, 0o755));
    let before = world.snapshot();
    assert_eq!(world.once().result, PassResult::Unchanged);
    world.assert_unchanged(&before);
}

#[test]
fn declared_vas_get_their_links_and_moves() {
    let world = World::new();
    let declare = |template: &str| {
        let text = format!(
            "[[appliance]]\nname = \"web-1\"\nmac = \"{}\"\nldf = \"{template}\"\nring = \"canary\"\n",
            mac(1)
        );
        world.write("appliances.toml", &text);
        world.push(template);
        world.once()
    };
    declare("web");
    let ring =
        |composition| VaTarget::Ring { composition: name(composition), ring: name("canary") };
    assert_eq!(world.store.va_target(mac(1)).expect("readable"), Some(ring("web")));
    declare("sql");
    assert_eq!(world.store.va_target(mac(1)).expect("readable"), Some(ring("sql")));
    assert_eq!(world.store.desired(mac(1)).expect("readable"), world.ring("sql", "canary"));
}

#[test]
fn what_a_commit_no_longer_has_stays_and_is_named() {
    let world = World::new();
    world.once();
    let before = world.rings();
    world.remove("templates/sql.ldf");
    world.push("retire sql");
    let report = world.once();
    assert_eq!(report.notes, [Note::CompositionGone { composition: name("sql") }]);
    assert_eq!(world.rings(), before);
}

#[test]
fn a_ring_link_deleted_by_hand_comes_back() {
    let world = World::new();
    world.once();
    let before = world.rings();
    world.store.remove_ring(&name("web"), &name("canary")).expect("removed");
    assert_eq!(world.once().actions.len(), 1);
    assert_eq!(world.rings(), before);
}

#[test]
fn a_lost_or_damaged_mirror_is_fetched_again() {
    let world = World::new();
    world.once();
    let before = world.rings();
    std::fs::remove_dir_all(world.store.state("mirror.git")).expect("removed");
    assert_eq!(world.once().result, PassResult::Unchanged);
    let packs = world.store.state("mirror.git").join("objects/pack");
    for pack in std::fs::read_dir(&packs).expect("packs") {
        std::fs::remove_file(pack.expect("an entry").path()).expect("removed");
    }
    assert_eq!(world.once().result, PassResult::Unchanged);
    assert_eq!(world.rings(), before);
}

#[test]
fn an_interrupted_pass_is_finished_by_the_next() {
    let whole = World::new();
    whole.write("templates/web/etc/motd", "welcome\n");
    whole.push("configure web");
    whole.once();
    let expected = whole.rings();
    let mut steps = 0;
    let mut ends = BTreeSet::new();
    loop {
        let world = World::new();
        world.write("templates/web/etc/motd", "welcome\n");
        world.push("configure web");
        let disk = strata_store::durable::Disk::failing_at(steps);
        let store = strata_store::Store::open_with(world.store.root(), disk).expect("a store");
        let options = strata::pass::Options::default();
        let failed = strata::pass::Reconciler::open(store.into(), world.source(), options)
            .and_then(|mut reconciler| reconciler.pass(&AtomicBool::new(false)));
        let done = failed.is_ok();
        for ring in world.rings() {
            assert!(expected.contains(&ring), "no half state is ever visible: {ring}");
        }
        ends.insert(world.rings().len());
        world.once();
        assert_eq!(world.rings(), expected, "after a stop at step {steps}");
        if done {
            break;
        }
        steps += 5;
    }
    assert!(ends.len() > 3, "the stops were spread: {ends:?}");
}

/// A bump costs the same number of renames whatever hangs off the ring.
#[test]
fn renames_do_not_depend_on_the_number_of_vas() {
    let mut measured = Vec::new();
    for vas in [100, 10_000] {
        let world = World::new();
        world.once();
        world.claim("web", "everyone", 0..vas);
        world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
        world.push("bump");
        let begun = Instant::now();
        let report = world.once();
        println!(
            "{vas} VAs: {} renames, {:?}, {:?}",
            report.renames,
            begun.elapsed(),
            report.timings
        );
        assert_eq!(world.store.desired(mac(7)).expect("readable"), world.ring("web", "everyone"));
        measured.push(report.renames);
    }
    assert_eq!(measured[0], measured[1]);
}

#[test]
fn the_state_names_the_commit_and_the_conditions() {
    let world = World::new();
    world.once();
    let state = ReconcileState::read(&world.store).expect("readable").expect("written");
    assert_eq!(state.applied.as_ref().expect("applied").commit, world.head());
    assert!(state.conditions()[0].status, "{:?}", state.conditions());
}

/// Somebody's hand in one link does not stop the fleet: a ring's is made anew, a
/// VA's is named and left where nothing is to be enforced.
#[test]
fn one_link_that_strata_did_not_make_stops_nobody_else() {
    let world = World::new();
    let configuration = std::fs::read_to_string(world.path("work/strata.toml")).expect("read");
    world.write("strata.toml", &format!("{configuration}\n[drift]\nlinks = \"warn\"\n"));
    let text = format!("[[appliance]]\nname = \"web-1\"\nmac = \"{}\"\nldf = \"web\"\n", mac(1));
    world.write("appliances.toml", &text);
    world.push("a declared VA");
    world.once();
    let rings = world.rings();
    world.claim("web", "everyone", 2..3);
    let va = world.store.root().join(format!("va/{}", mac(1)));
    std::fs::remove_file(&va).expect("removed");
    std::os::unix::fs::symlink("/nowhere", &va).expect("linked");
    let hand_made = world.store.root().join("rings/web/everyone");
    for target in ["/etc", "../../generations/x"] {
        std::fs::remove_file(&hand_made).expect("removed");
        std::os::unix::fs::symlink(target, &hand_made).expect("linked");
        let fleet = strata::fleet::fleet(&world.store).expect("readable");
        assert_eq!((fleet.vas.len(), fleet.damage.len()), (1, 1), "{fleet:?}");
        let report = world.once();
        assert_eq!(world.rings(), rings);
        assert!(matches!(report.notes.as_slice(), [Note::ForeignLink { .. }]), "{report:?}");
    }
    std::fs::remove_file(&hand_made).expect("removed");
    std::fs::write(&hand_made, "not a link").expect("written");
    world.once();
    assert_eq!(world.rings(), rings);
}
