//! A store on a disk that is full, at any write, or read-only: the old state or the
//! new, and the next pass with room does the rest.

use std::sync::atomic::AtomicBool;

use strata::pass::{Options, PassReport};

use crate::support::{Disk, World};

/// One pass of a new reconciler, or why there is none.
fn attempt(world: &World) -> Result<PassReport, String> {
    let opened = world.try_opened(&world.source(), Options::default);
    let mut reconciler = opened.map_err(|error| error.to_string())?;
    reconciler.pass(&AtomicBool::new(false)).map_err(|error| error.to_string())
}

/// Another version, and a configuration tree that becomes a layer.
fn change(world: &World) {
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.write("templates/web/etc/motd", "welcome\n");
    world.push("another version");
}

/// What the rings are on before the change and after it.
fn before_and_after() -> [Vec<String>; 2] {
    let world = World::new();
    world.once();
    let before = world.rings();
    change(&world);
    world.once();
    [before, world.rings()]
}

/// Passes with ever more room, until one succeeds. Returns how many did not.
fn until_it_fits(world: &World, room: impl Fn(&Disk, u64)) -> u64 {
    let [before, after] = before_and_after();
    world.once();
    assert_eq!(world.rings(), before);
    change(world);
    let disk = world.disk.as_ref().expect("its own");
    for attempts in 0..500 {
        room(disk, attempts);
        let passed = attempt(world);
        for (now, (old, new)) in world.rings().iter().zip(before.iter().zip(&after)) {
            assert!(now == old || now == new, "{now}: neither {old} nor {new}");
        }
        for id in world.store.rings().expect("readable").values() {
            assert!(world.store.has_generation(id), "a link leads to what is not whole");
        }
        match passed {
            Ok(report) => {
                assert!(report.diagnostics.is_empty(), "{:?}", report.diagnostics);
                assert_eq!(world.rings(), after);
                disk.remount("size=64M,nr_inodes=100000");
                assert!(world.once().actions.is_empty(), "all was done");
                return attempts;
            }
            Err(message) => assert!(
                message.contains("No space left") || message.contains("git"),
                "it says why: {message}"
            ),
        }
    }
    panic!("it never fits");
}

#[test]
fn a_disk_without_room_for_one_file_more_at_any_write() {
    let world = World::on_a_disk();
    let refused = until_it_fits(&world, |disk, attempts| {
        let (files, _) = disk.used();
        disk.remount(&format!("nr_inodes={}", files + attempts));
    });
    assert!(refused > 5, "{refused} passes found the disk full");
}

#[test]
fn a_disk_without_room_for_one_page_more_at_any_write() {
    let world = World::on_a_disk();
    let refused = until_it_fits(&world, |disk, attempts| {
        let (_, pages) = disk.used();
        disk.remount(&format!("size={}k", (pages + attempts) * 4));
    });
    assert!(refused > 2, "{refused} passes found the disk full");
}

#[test]
fn a_read_only_store_is_said_and_nothing_is_lost() {
    let [before, after] = before_and_after();
    let world = World::on_a_disk();
    world.once();
    change(&world);
    let disk = world.disk.as_ref().expect("its own");
    let unchanged = world.snapshot();
    disk.remount("ro");
    let refused = attempt(&world).expect_err("nothing can be written");
    assert!(refused.contains("Read-only file system"), "{refused}");
    world.assert_unchanged(&unchanged);
    assert_eq!(world.rings(), before);
    disk.remount("rw");
    world.once();
    assert_eq!(world.rings(), after);
}
