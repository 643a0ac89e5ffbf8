//! What is changed in the store by hand is found, put back where the policy says so, and told;
//! what was found is set aside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use strata::audit::{Position, Reader};
use strata::pass::{PassReport, Reconciler};
use strata::rollout::pins;
use strata_core::GenerationId;
use strata_core::event::{Event, Importance};
use strata_store::VaTarget;

use crate::support::{World, mac, name};

fn pass(reconciler: &mut Reconciler) -> PassReport {
    reconciler.pass(&AtomicBool::new(false)).expect("a pass")
}

/// What the audit log tells was changed by hand.
fn told(world: &World) -> Vec<(String, bool, Option<String>)> {
    let mut reader = Reader::new(world.store.clone(), Position::default());
    let mut told = Vec::new();
    while let Some(record) = reader.next().expect("readable") {
        let importance = record.event.importance();
        if let Event::StoreTampered { path, restored, set_aside, .. } = record.event {
            let expected = if restored { Importance::Warning } else { Importance::Error };
            assert_eq!(importance, expected);
            told.push((path, restored, set_aside));
        }
    }
    told
}

fn declared(drift: &str) -> World {
    let world = World::new();
    let configuration = fs::read_to_string(world.path("work/strata.toml")).expect("read");
    world.write("strata.toml", &format!("{configuration}\n[drift]\nlinks = \"{drift}\"\n"));
    let table =
        |n| format!("[[appliance]]\nname = \"web-{n}\"\nmac = \"{}\"\nldf = \"web\"\n", mac(n));
    world.write("appliances.toml", &[table(1), table(2)].concat());
    world.push("declared VAs");
    world.once();
    world
}

fn link(world: &World, number: u32) -> PathBuf {
    world.store.root().join(format!("va/{}", mac(number)))
}

#[test]
fn a_link_of_a_va_that_is_none_is_set_aside_and_comes_back() {
    let world = declared("enforce");
    let generation = world.ring("web", "everyone").expect("a generation");
    let why = ("a look".to_owned(), "ann".to_owned(), 0);
    pins::pin(&world.store, mac(2), generation, None, why).expect("pinned");
    let before = [1, 2].map(|n| world.store.va_target(mac(n)).expect("readable"));
    fs::remove_file(link(&world, 1)).expect("removed");
    symlink("/nowhere", link(&world, 1)).expect("linked");
    fs::remove_file(link(&world, 2)).expect("removed");
    fs::create_dir_all(link(&world, 2).join("with/more")).expect("a directory");
    let mut reconciler = world.reconciler();
    let report = pass(&mut reconciler);
    let after = [1, 2].map(|n| world.store.va_target(mac(n)).expect("readable"));
    assert_eq!(after, before, "{report:?}");
    assert!(matches!(after[1], Some(VaTarget::Pinned { .. })));
    let told = told(&world);
    assert_eq!(told.len(), 2, "{told:?}");
    let aside = |n: usize| {
        assert_eq!((&told[n].0, told[n].1), (&format!("va/{}", mac(n as u32 + 1)), true));
        world.store.root().join(told[n].2.as_ref().expect("it is set aside"))
    };
    assert_eq!(fs::read_link(aside(0)).expect("a link"), PathBuf::from("/nowhere"));
    assert!(aside(1).join("with/more").is_dir(), "it is whole");
    let kinds: Vec<_> = report.events.iter().map(|record| record.event.kind()).collect();
    assert_eq!(kinds, ["store-tampered"; 2]);
    let snapshot = world.snapshot();
    assert_eq!(pass(&mut reconciler).events, []);
    world.assert_unchanged(&snapshot);
}

#[test]
fn what_stands_in_the_place_of_a_rings_link_is_set_aside() {
    let world = declared("warn");
    let rings = world.rings();
    let ring = world.store.root().join("rings/web/everyone");
    let mut reconciler = world.reconciler();
    pass(&mut reconciler);
    fs::remove_file(&ring).expect("removed");
    fs::create_dir_all(ring.join("with/more")).expect("a directory");
    let report = pass(&mut reconciler);
    assert_eq!(world.rings(), rings, "without a link no VA can start: {report:?}");
    let [(path, true, Some(aside))] = &told(&world)[..] else { panic!("{:?}", told(&world)) };
    assert_eq!(path, "rings/web/everyone");
    assert!(world.store.root().join(aside).join("with/more").is_dir());
    let once = report.events.iter().filter(|record| record.event.kind() == "store-tampered");
    assert_eq!(once.count(), 1);
    assert_eq!(pass(&mut reconciler).events, []);
}

#[test]
fn what_cannot_be_set_aside_is_told_once_and_again_when_it_can() {
    let world = declared("warn");
    let rings = world.rings();
    let ring = world.store.root().join("rings/web/everyone");
    let mut reconciler = world.reconciler();
    pass(&mut reconciler);
    // So many lie there that nothing more is put there.
    let full = world.store.state("set-aside");
    fs::create_dir(&full).expect("made");
    (0..100).for_each(|n| fs::write(full.join(format!("{n}")), "").expect("written"));
    fs::remove_file(&ring).expect("removed");
    fs::create_dir(&ring).expect("a directory");
    for _ in 0..3 {
        reconciler.pass(&AtomicBool::new(false)).expect_err("the link cannot be made");
    }
    let path = "rings/web/everyone".to_owned();
    assert_eq!(told(&world), [(path.clone(), false, None)]);
    fs::remove_file(full.join("7")).expect("somebody looked");
    pass(&mut reconciler);
    assert_eq!(world.rings(), rings);
    let [_, (again, true, Some(_))] = &told(&world)[..] else { panic!("{:?}", told(&world)) };
    assert_eq!(*again, path);
}

/// Changes the definition in a generation; the directory, with what it was.
fn tamper(world: &World, id: GenerationId) -> (PathBuf, Vec<u8>) {
    let directory = world.store.root().join(format!("generations/{id}"));
    let file = directory.join("web.ldf");
    let before = fs::read(&file).expect("read");
    // As root does: over the mode, in place.
    fs::write(&file, [&before[..], b"main/app 2\n"].concat()).expect("written");
    assert!(world.store.generation(&id).is_err(), "it is no more what it was sealed as");
    (file, before)
}

#[test]
fn a_generation_that_was_changed_is_sealed_anew_from_git() {
    let world = declared("enforce");
    let id = world.ring("web", "everyone").expect("a generation");
    let (file, before) = tamper(&world, id);
    let mut reconciler = world.reconciler();
    let report = pass(&mut reconciler);
    assert_eq!(fs::read(&file).expect("read"), before, "{report:?}");
    world.store.generation(&id).expect("it is whole");
    let [(path, true, Some(aside))] = &told(&world)[..] else { panic!("{:?}", told(&world)) };
    assert_eq!(*path, format!("generations/{id}"));
    let aside = fs::read(world.store.root().join(aside).join("web.ldf")).expect("it is kept");
    assert!(aside.ends_with(b"main/app 2\n"));
    let snapshot = world.snapshot();
    assert_eq!(pass(&mut reconciler).events, []);
    world.assert_unchanged(&snapshot);
    // Also one that is found so by a process that saw it whole.
    tamper(&world, id);
    pass(&mut reconciler);
    world.store.generation(&id).expect("it is whole");
    assert_eq!(told(&world).len(), 2);
}

/// A ring that has not moved yet is on a generation that the commit does not want.
#[test]
fn a_generation_of_before_is_sealed_anew_as_it_was_read() {
    let world = declared("enforce");
    let mut reconciler = world.reconciler();
    pass(&mut reconciler);
    let configuration = fs::read_to_string(world.path("work/strata.toml")).expect("read");
    let freeze = "\n[[rollout.freeze]]\nfrom = \"2020-01-01 00:00\"\nto = \"2100-01-01 00:00\"\nzone = \"UTC\"\n";
    world.write("strata.toml", &format!("{configuration}{freeze}"));
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("an update that waits");
    pass(&mut reconciler);
    let id = world.ring("web", "everyone").expect("a generation");
    let (file, before) = tamper(&world, id);
    pass(&mut reconciler);
    assert_eq!(fs::read(&file).expect("read"), before);
    assert_eq!(world.ring("web", "everyone"), Some(id));
    // A process that never saw it whole leaves it, and says so once.
    drop(reconciler);
    let (file, _) = tamper(&world, id);
    let changed = fs::read(&file).expect("read");
    let mut reconciler = world.reconciler();
    pass(&mut reconciler);
    pass(&mut reconciler);
    assert_eq!(fs::read(&file).expect("read"), changed);
    let told = told(&world);
    let restored: Vec<_> = told.iter().map(|(_, restored, _)| *restored).collect();
    assert_eq!(restored, [true, false], "{told:?}");
}

#[test]
fn what_is_only_warned_of_is_told_once_and_left() {
    let world = declared("warn");
    let id = world.ring("web", "everyone").expect("a generation");
    let (file, _) = tamper(&world, id);
    let changed = fs::read(&file).expect("read");
    let mut reconciler = world.reconciler();
    pass(&mut reconciler);
    pass(&mut reconciler);
    assert_eq!(fs::read(&file).expect("read"), changed);
    assert_eq!(told(&world), [(format!("generations/{id}"), false, None)]);
    assert!(!world.store.state("set-aside").exists());
    let pinned: VaTarget = VaTarget::Ring { composition: name("web"), ring: name("everyone") };
    assert_eq!(world.store.va_target(mac(1)).expect("readable"), Some(pinned));
}
