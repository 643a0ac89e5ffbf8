//! The index that a host keeps of a generation: shared, made anew when it is lost or damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use strata_core::metadata::Metadata;

use crate::fixture::{Mount, names, read, wait_for};
use crate::store::{Va, publish_as};

/// The indexes that are kept.
fn kept(va: &Va) -> Vec<PathBuf> {
    let entries = fs::read_dir(va.index_cache()).expect("listed");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn rolled_out() -> Va {
    let va = Va::new();
    let units = vec![va.unit("library", "1", "lib", "one"), va.unit("program", "1", "prog", "p")];
    va.roll_out(units);
    va
}

/// Files that the daemon maps from the cache.
fn mapped(va: &Va) -> usize {
    let maps = read(format!("/proc/{}/maps", va.mount.daemon()));
    let cache = va.index_cache().display().to_string();
    maps.lines().filter(|line| line.contains(&cache) && line.contains("r--s")).count()
}

#[test]
fn a_generation_is_merged_once_and_mapped_by_every_mount() {
    let va = rolled_out();
    va.mount();
    let first = kept(&va);
    assert_eq!((first.len(), mapped(&va)), (1, 1));
    let made = fs::metadata(&first[0]).expect("there");
    va.mount.unmount();
    va.mount();
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(&first[0]).expect("there");
    assert_eq!((made.ino(), made.len()), (found.ino(), found.len()), "not made again");
    assert_eq!((read(va.path("lib")), mapped(&va)), ("one".to_owned(), 1));
    let next = va.roll_out(vec![va.unit("library", "2", "lib", "two")]);
    wait_for("the swap", || va.generation_attribute() == next.to_string());
    wait_for("the new bytes", || read(va.path("lib")) == "two");
    assert_eq!(kept(&va).len(), 2);
    va.mount.unmount();
}

#[test]
fn a_lost_or_damaged_index_is_made_anew() {
    let va = rolled_out();
    va.mount();
    va.mount.unmount();
    let path = kept(&va).remove(0);
    let whole = fs::read(&path).expect("read");
    for cut in [0, 100, 4500, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).expect("cut");
        va.mount();
        assert_eq!(read(va.path("lib")), "one", "{cut} bytes");
        va.mount.unmount();
        assert!(fs::read(&path).expect("there") == whole, "made anew");
    }
    // The header holds, nothing below it does: found when it is read, errors until then.
    let damaged: Vec<u8> =
        (0..).zip(&whole).map(|(at, byte)| if at == 4300 { !byte } else { *byte }).collect();
    fs::write(&path, damaged).expect("damaged");
    va.mount();
    wait_for("an index that holds", || {
        fs::read(va.path("lib")).is_ok_and(|content| content == b"one")
    });
    assert_eq!(read(va.path("prog")), "p");
    va.mount.unmount();
    assert!(fs::read(&path).expect("there") == whole, "made anew");
}

#[test]
fn a_manifest_that_was_changed_is_read_again_whatever_is_kept() {
    let va = rolled_out();
    va.mount();
    va.mount.unmount();
    let unit = fs::read_dir(va.store.root().join("repos/main")).expect("listed");
    let unit = unit
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.join("manifest").is_file());
    let manifest = unit.expect("a unit").join("manifest");
    let text = read(&manifest);
    fs::write(&manifest, text.replace("644", "600")).expect("damaged");
    let said = va.try_mount();
    assert!(!said.status.success(), "a damaged manifest is refused");
}

#[test]
fn a_cache_that_cannot_be_written_is_said_and_done_without() {
    let va = rolled_out();
    fs::write(va.index_cache(), "no directory").expect("written");
    va.mount();
    assert_eq!(read(va.path("lib")), "one");
    let log = read(va.mount.private().join("vlfs.log"));
    assert_eq!(log.matches("the index cannot be kept").count(), 1, "{log}");
    va.mount.unmount();
}

/// A page of it could only be read by asking a daemon, perhaps the one that reads it.
#[test]
fn a_cache_on_a_fuse_mount_is_not_used() {
    let va = rolled_out();
    let other = Mount::new();
    let layer = other.layer("one", &[("some/", "")]);
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o700)).expect("set");
    other.mount(&[&layer]);
    fs::create_dir(va.index_cache()).expect("made");
    rustix::mount::mount_bind(other.path(""), va.index_cache()).expect("mounted");
    let done = va.try_mount();
    let there = names(va.index_cache());
    rustix::mount::unmount(va.index_cache(), rustix::mount::UnmountFlags::DETACH)
        .expect("unmounted");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(there, ["some"], "nothing is written there");
    assert_eq!(read(va.path("lib")), "one");
    let log = read(va.mount.private().join("vlfs.log"));
    assert_eq!(log.matches("the index cannot be kept").count(), 1, "{log}");
    va.mount.unmount();
    other.unmount();
}

#[test]
fn software_layers_that_share_a_path_are_refused_at_mount_and_at_swap() {
    let va = Va::new();
    let library = va.unit("library", "1", "usr/lib", "one");
    let thief = va.unit("thief", "1", "usr/lib", "mine");
    va.roll_out(vec![library.clone(), thief.clone()]);
    let said = va.try_mount();
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    let named = ["main/library 1", "main/thief 1", "/usr/lib"];
    assert!(!said.status.success() && named.iter().all(|n| error.contains(n)), "{error}");
    va.roll_out(vec![library.clone()]);
    va.mount();
    va.roll_out(vec![library.clone(), thief]);
    let refusal = || va.report().and_then(|report| report.error);
    wait_for("the refusal", || {
        refusal().is_some_and(|error| named.iter().all(|name| error.contains(name)))
    });
    assert_eq!(read(va.path("usr/lib")), "one");
    // One that says that it replaces the other's files shows its own.
    let heir = "Layer: heir\nVersion: 1\nReplaces: library (<< 2)\n";
    let heir = Metadata::parse(heir.as_bytes()).expect("valid");
    let heir =
        publish_as(&va.store, heir, &[("usr/lib".to_owned(), b"inherited".to_vec(), 0o644)], &[]);
    va.roll_out(vec![library.clone(), heir.clone()]);
    wait_for("the swap", || read(va.path("usr/lib")) == "inherited");
    va.roll_out(vec![heir, library]);
    wait_for("the refusal of the other order", || {
        refusal().is_some_and(|error| error.contains("main/heir 1"))
    });
    va.mount.unmount();
}
