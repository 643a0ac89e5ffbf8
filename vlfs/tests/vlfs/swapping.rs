//! Swaps under load, white-outs paired with units, revert (§5.5).

use std::io::{Read, Seek};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::fixture::{Mapping, Mount, names, read};

/// Acceptance 2 of the whole-line issue: 200 swaps under four readers and a lister.
fn two_hundred_swaps(extra: &[&str]) {
    let mut mount = Mount::new();
    mount.extra = extra.iter().map(|s| (*s).to_owned()).collect();
    let stable: Vec<String> = (0..60).map(|n| format!("stable/d{}/f{n}", n % 6)).collect();
    let files: Vec<(&str, &str)> =
        stable.iter().map(|path| (path.as_str(), path.as_str())).collect();
    let base = mount.layer("base", &files);
    let old: Vec<(String, &str)> = (0..40).map(|n| (format!("mixed/old{n}"), "old")).collect();
    let new: Vec<(String, &str)> = (0..40).map(|n| (format!("mixed/new{n}"), "new")).collect();
    let borrow = |all: &[(String, &'static str)]| -> Vec<(String, &'static str)> { all.to_vec() };
    let with = |name: &str, all: Vec<(String, &'static str)>, content: &'static str| {
        let mut all: Vec<(&str, &str)> = all.iter().map(|(p, c)| (p.as_str(), *c)).collect();
        all.push(("version", content));
        mount.layer(name, &all)
    };
    let old = with("old", borrow(&old), "old bytes");
    let new = with("new", borrow(&new), "new bytes");
    mount.mount(&[&old, &base]);

    let mut held = std::fs::File::open(mount.path("version")).expect("opened");
    let mapped = std::fs::File::open(mount.path("version")).expect("opened");
    let map = Mapping::new(&mapped);
    let stop = AtomicBool::new(false);
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for reader in 0..4_usize {
            let (mount, stable, stop, reads) = (&mount, &stable, &stop, &reads);
            scope.spawn(move || {
                let mut at = reader;
                while !stop.load(Ordering::Relaxed) {
                    at = (at * 31 + 7 + reader) % stable.len();
                    let path = mount.path(&stable[at]);
                    assert_eq!(read(&path), stable[at]);
                    assert_eq!(
                        std::fs::metadata(&path).expect("described").len(),
                        stable[at].len() as u64
                    );
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (lister_mount, lister_stop) = (&mount, &stop);
        scope.spawn(move || {
            while !lister_stop.load(Ordering::Relaxed) {
                let found = names(lister_mount.path("mixed"));
                let olds = found.iter().filter(|name| name.starts_with("old")).count();
                assert!(
                    found.len() == 40 && (olds == 0 || olds == 40),
                    "a listing of two sets: {olds} of {} are old",
                    found.len()
                );
            }
        });
        let stopper = StopOnDrop(&stop);
        for round in 0..200 {
            let layer = if round % 2 == 0 { &new } else { &old };
            mount.swap(&[layer, &base]);
            let expected = if round % 2 == 0 { "new bytes" } else { "old bytes" };
            assert_eq!(read(mount.path("version")), expected, "after swap {round}");
            let mut text = String::new();
            held.rewind().expect("rewound");
            held.read_to_string(&mut text).expect("read");
            assert_eq!(text, "old bytes", "the held file");
            assert_eq!(map.bytes(), b"old bytes", "the mapped file");
        }
        drop(stopper);
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn two_hundred_swaps_under_load() {
    two_hundred_swaps(&[]);
}

#[test]
fn two_hundred_swaps_under_load_without_passthrough() {
    two_hundred_swaps(&["--no-passthrough"]);
}

/// Acceptance 3: §5.5, "a new empty white-out layer will be associated with the replacement".
#[test]
fn a_white_out_lives_as_long_as_its_unit() {
    let mount = Mount::new();
    let one = mount.layer("x1", &[("etc/motd", "one"), ("etc/conf", "conf one")]);
    let two = mount.layer("x2", &[("etc/motd", "two"), ("etc/conf", "conf two")]);
    mount.mount(&[&one]);
    std::fs::remove_file(mount.path("etc/motd")).expect("removed");
    std::fs::write(mount.path("etc/conf"), "mine").expect("written");
    assert_eq!(names(mount.path("etc")), ["conf"]);
    mount.swap(&[&two]);
    assert_eq!(read(mount.path("etc/motd")), "two");
    assert_eq!(read(mount.path("etc/conf")), "mine", "a modified copy survives");
    mount.revert("etc/conf");
    assert_eq!(read(mount.path("etc/conf")), "conf two", "the original of the current set");
    // Swapped back it gets an empty pair: it was replaced in between.
    mount.swap(&[&one]);
    assert_eq!(read(mount.path("etc/motd")), "one");
}

#[test]
fn a_white_out_of_a_unit_that_stays_survives_swaps_and_remounts() {
    let mount = Mount::new();
    let stays = mount.layer("stays", &[("a", "a"), ("d/b", "b")]);
    let other = mount.layer("other", &[("c", "c")]);
    mount.mount(&[&stays]);
    std::fs::remove_file(mount.path("a")).expect("removed");
    std::fs::remove_dir_all(mount.path("d")).expect("removed");
    mount.swap(&[&other, &stays]);
    assert_eq!(names(mount.path("")), ["c"]);
    mount.unmount();
    mount.mount(&[&other, &stays]);
    assert_eq!(names(mount.path("")), ["c"]);
    mount.revert("a");
    assert_eq!(names(mount.path("")), ["a", "c"]);
}

#[test]
fn a_refused_swap_leaves_the_old_set_and_says_why() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let missing = layer.join("missing").display().to_string();
    let done = mount.run(&["swap", &mount.path("").display().to_string(), "--layer", &missing]);
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("missing"));
    assert_eq!(read(mount.path("a")), "a");
}

#[test]
fn the_reason_of_a_refused_swap_goes_with_the_next_swap() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    let other = mount.layer("two", &[("a", "b")]);
    mount.mount(&[&layer]);
    let one = layer.display().to_string();
    let point = mount.path("").display().to_string();
    let done = mount.run(&["swap", &point, "--layer", &one, "--layer", &one]);
    assert_eq!(done.status.code(), Some(2));
    assert!(!mount.status().contains("\"error\": null"), "{}", mount.status());
    mount.swap(&[&other]);
    assert!(mount.status().contains("\"error\": null"), "{}", mount.status());
}

#[test]
fn an_unlinked_layer_is_listed_while_held_and_let_go() {
    let mount = Mount::new();
    let one = mount.layer("one", &[("a", "one")]);
    let two = mount.layer("two", &[("a", "two")]);
    mount.mount(&[&one]);
    let held = std::fs::File::open(mount.path("a")).expect("opened");
    mount.swap(&[&two]);
    assert!(mount.status().contains("\"open_files\": 1"), "{}", mount.status());
    drop(held);
    crate::fixture::wait_for("the layer's end", || mount.status().contains("\"held_layers\": []"));
}

/// What a busy mount tells the kernel all the time keeps no former set alive.
#[test]
fn what_was_swapped_away_goes_while_files_are_copied_and_reverted() {
    let mount = Mount::new();
    let base = mount.layer("base", &[("f", "text")]);
    let (one, two) = (mount.layer("one", &[("a", "one")]), mount.layer("two", &[("a", "two")]));
    mount.mount(&[&one, &base]);
    let descriptors = std::path::PathBuf::from(format!("/proc/{}/fd", mount.daemon()));
    let holds = |layer: &std::path::Path| {
        let opened = std::fs::read_dir(&descriptors).expect("listed");
        opened.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == layer))
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::write(mount.path("f"), "changed").expect("written");
                let none = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(mount.path(""), "trusted.strata.revert", b"f", none)
                    .expect("reverted");
            }
        });
        let _stops_if_it_panics = Stop(&stop);
        assert!(holds(&one));
        mount.swap(&[&two, &base]);
        crate::fixture::wait_for("the old layer's end", || !holds(&one));
    });
}

struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn white_outs_are_names_of_one_empty_file() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", ""), ("b", ""), ("d/c", ""), ("e/f/g", "")]);
    mount.mount(&[&layer]);
    std::fs::remove_file(mount.path("a")).expect("removed");
    std::fs::remove_file(mount.path("d/c")).expect("removed");
    std::fs::remove_dir_all(mount.path("e")).expect("removed");
    let unit =
        |directory: std::path::PathBuf| directory.join(&crate::fixture::names(&directory)[0]);
    let markers = unit(unit(mount.private().join("whiteouts")));
    let ino = |path: &str| crate::fixture::ino(markers.join(path));
    assert_eq!([ino("d/c"), ino("e")], [ino("a"), ino("a")]);
    mount.unmount();
    mount.mount(&[&layer]);
    assert_eq!(crate::fixture::names(mount.path("")), ["b", "d"]);
    std::fs::remove_file(mount.path("b")).expect("removed");
    mount.revert("d/c");
    assert_eq!(crate::fixture::names(mount.path("d")), ["c"]);
}

/// What is mounted on a name that a swap changes stays, however soon after the mount.
#[test]
fn a_swap_right_after_the_mount_detaches_nothing() {
    let mount = Mount::new();
    let one = mount.layer("one", &[("d/one", "1")]);
    let two = mount.layer("two", &[("d/two", "2")]);
    let disk = mount.layer("disk", &[("on the disk", "")]);
    for _ in 0..3 {
        mount.mount(&[&one]);
        // A copy keeps the directory where a set has none.
        rustix::fs::chmod(mount.path("d"), rustix::fs::Mode::from_raw_mode(0o700)).expect("set");
        rustix::mount::mount_bind(&disk, mount.path("d")).expect("mounted");
        mount.swap(&[&two]);
        assert_eq!(names(mount.path("d")), ["on the disk"]);
        rustix::mount::unmount(mount.path("d"), rustix::mount::UnmountFlags::empty())
            .expect("it is still mounted");
        mount.unmount();
    }
}
