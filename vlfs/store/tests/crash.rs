//! Every operation of the store, cut short at each of its steps: the old state
//! or the new one is there, and the operation can be done again.

use std::fs;
use std::path::Path;

use strata_core::database::unit_digest;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::{CompositionName, GenerationId, MacAddr, RepositoryName, RingName};
use strata_store::durable::Disk;
use strata_store::{Store, StoreError, VaTarget};

fn composition() -> CompositionName {
    "web-server".parse().expect("valid")
}

fn ring() -> RingName {
    "everyone".parse().expect("valid")
}

fn main_repository() -> RepositoryName {
    "main".parse().expect("valid")
}

fn mac() -> MacAddr {
    "52:54:00:00:00:01".parse().expect("valid")
}

fn metadata(version: &str) -> Metadata {
    let version = version.parse().expect("valid");
    Metadata::new("apache2".parse().expect("valid"), version, LayerKind::Software)
}

fn manifest() -> Manifest {
    Manifest::new(vec![Entry {
        path: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        link_count: 1,
        xattrs: Default::default(),
    }])
    .expect("valid")
}

fn generation(version: &str) -> Generation {
    let metadata = metadata(version);
    let digest = unit_digest(&metadata, &manifest().print(), &Default::default());
    let entry = LayerSetEntry {
        kind: LayerKind::Software,
        repository: main_repository(),
        layer: metadata.layer,
        version: metadata.version,
        digest,
    };
    let ldf = format!("{entry}\n");
    Generation::new(composition(), vec![entry], ldf).expect("valid")
}

fn publish(store: &Store, version: &str) -> Result<(), StoreError> {
    let staged = store.stage_unit(&main_repository())?;
    let mut writer = store.write_repository(&main_repository())?;
    writer.publish(staged, metadata(version), &manifest())?;
    writer.commit()?;
    Ok(())
}

fn deploy(store: &Store, version: &str) -> Result<GenerationId, StoreError> {
    let (id, _) = store.seal_generation(&generation(version), "c0ffee")?;
    store.move_ring(&composition(), &ring(), &id)?;
    Ok(id)
}

/// Runs `operation` on a fresh copy of the store for every step it has, failing
/// there, then `check`s what a reader sees, then runs it undisturbed.
fn at_every_step(
    prepare: impl Fn(&Store),
    operation: impl Fn(&Store) -> Result<(), StoreError>,
    check: impl Fn(&Store, bool),
) {
    let mut step = 0;
    loop {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        prepare(&Store::init(root).expect("a new store"));
        let failing = Store::open_with(root, Disk::failing_at(step)).expect("the store");
        let cut_short = operation(&failing).is_err();
        check(&Store::open(root).expect("the store after the crash"), false);
        let store = Store::open(root).expect("the store again");
        operation(&store).unwrap_or_else(|error| panic!("again after step {step}: {error}"));
        check(&store, true);
        if !cut_short {
            assert_eq!(failing.disk().steps(), step, "every step was tried");
            assert!(step > 0, "an operation without steps proves nothing");
            return;
        }
        step += 1;
    }
}

#[test]
fn a_layer_appears_whole_or_not_at_all() {
    at_every_step(
        |_| {},
        |store| publish(store, "1"),
        |store, done| {
            let unit =
                store.unit_path(&main_repository(), &metadata("1").layer, &metadata("1").version);
            if unit.exists() {
                store.open_unit(&generation("1").layers()[0]).expect("a whole unit");
            }
            if !store.repositories().expect("a list").is_empty() {
                let listed = store.database(&main_repository()).expect("a database").len();
                assert!(listed == 0 || unit.exists());
                assert!(!done || listed == 1);
            }
        },
    );
}

/// Stages and adds units, so that they share one sync.
fn publish_group(store: &Store, versions: &[&str]) -> Result<(), StoreError> {
    let mut writer = store.write_repository(&main_repository())?;
    for version in versions {
        let staged = store.stage_unit(&main_repository())?;
        writer.add(staged, metadata(version), &manifest())?;
    }
    writer.commit()?;
    Ok(())
}

#[test]
fn each_layer_of_a_group_appears_whole_or_not_at_all() {
    let versions = ["1", "2", "3"];
    at_every_step(
        |_| {},
        |store| publish_group(store, &versions),
        |store, done| {
            let mut there = 0;
            for version in versions {
                let unit = metadata(version);
                if store.unit_path(&main_repository(), &unit.layer, &unit.version).exists() {
                    store.open_unit(&generation(version).layers()[0]).expect("a whole unit");
                    there += 1;
                }
            }
            if !store.repositories().expect("a list").is_empty() {
                let listed = store.database(&main_repository()).expect("a database").len();
                assert!(listed == 0 || (listed == 3 && there == 3));
                assert!(!done || listed == 3);
            }
        },
    );
}

#[test]
fn a_unit_that_stands_twice_in_a_group_is_one() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a new store");
    publish_group(&store, &["1", "1"]).expect("the same unit twice");
    let mut writer = store.write_repository(&main_repository()).expect("a writer");
    let staged = || store.stage_unit(&main_repository()).expect("a unit");
    writer.add(staged(), metadata("2"), &manifest()).expect("a new unit");
    let mut other = metadata("2");
    other.essential = true;
    let differs = writer.add(staged(), other, &manifest());
    assert!(matches!(differs, Err(StoreError::UnitDiffers { .. })), "{differs:?}");
    writer.commit().expect("the first one appears all the same");
    assert_eq!(store.database(&main_repository()).expect("a database").len(), 2);
}

#[test]
fn a_unit_is_removed_whole_or_not_at_all() {
    let key = || (metadata("1").layer, metadata("1").version);
    at_every_step(
        |store| {
            publish(store, "1").expect("a unit");
            publish(store, "2").expect("another");
        },
        |store| {
            let mut writer = store.write_repository(&main_repository())?;
            let aside = writer.remove(&[key()].into())?;
            drop(writer);
            store.discard(&aside)
        },
        |store, done| {
            // Whoever writes next finishes what was begun.
            let mut writer = store.write_repository(&main_repository()).expect("a writer");
            let listed = writer.database().get(&key().0, &key().1).is_some();
            let path = store.unit_path(&main_repository(), &key().0, &key().1);
            assert_eq!(path.exists(), listed);
            assert!(!done || !listed);
            let units = writer.index(&Default::default()).expect("an index brings nothing back");
            assert_eq!(units, if listed { 2 } else { 1 });
        },
    );
}

/// What was withdrawn is so whenever it comes again, until it is restored, wherever a collection,
/// an import or a restoration is cut short.
#[test]
fn what_is_withdrawn_stays_so_when_it_is_removed() {
    let key = || (metadata("1").layer, metadata("1").version);
    let withdraw = |store: &Store, reason: Option<&str>| {
        let mut writer = store.write_repository(&main_repository())?;
        writer.set_withdrawn(&key().0, &key().1, reason.map(str::to_owned))?;
        writer.commit()
    };
    let remove = |store: &Store| {
        let mut writer = store.write_repository(&main_repository())?;
        let aside = writer.remove(&[key()].into())?;
        drop(writer);
        store.discard(&aside)
    };
    let mark = |store: &Store| {
        let database = store.database(&main_repository()).expect("a database");
        database.get(&key().0, &key().1).map(|unit| unit.withdrawn.clone())
    };
    let withdrawn = Some(Some("CVE-1".to_owned()));
    let prepare = |store: &Store| {
        publish(store, "1").expect("a unit");
        withdraw(store, Some("CVE-1")).expect("withdrawn");
    };
    at_every_step(prepare, remove, |store, _| {
        publish(store, "1").expect("it comes again");
        assert_eq!(mark(store), withdrawn);
    });
    let prepare_removed = |store: &Store| {
        prepare(store);
        remove(store).expect("removed");
        assert_eq!(mark(store), None);
    };
    at_every_step(
        prepare_removed,
        |store| publish(store, "1"),
        |store, done| {
            assert!(mark(store).is_none_or(|mark| mark.as_deref() == Some("CVE-1")));
            assert!(!done || mark(store) == withdrawn);
            let mut writer = store.write_repository(&main_repository()).expect("a writer");
            writer.index(&Default::default()).expect("an index");
            writer.commit().expect("written");
            assert!(mark(store).is_none_or(|mark| mark.as_deref() == Some("CVE-1")));
        },
    );
    let prepare_again = |store: &Store| {
        prepare_removed(store);
        publish(store, "1").expect("it comes again");
    };
    at_every_step(
        prepare_again,
        |store| withdraw(store, None).map(drop),
        |store, done| {
            if done {
                assert_eq!(mark(store), Some(None));
                remove(store).expect("removed");
                publish(store, "1").expect("it comes once more");
                assert_eq!(mark(store), Some(None), "no record is left");
            }
        },
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a new store");
    prepare_removed(&store);
    assert!(withdraw(&store, None).expect("restored"), "where it is gone, too");
    assert!(matches!(withdraw(&store, None), Err(StoreError::NoUnit { .. })));
    publish(&store, "1").expect("it comes again");
    assert_eq!(mark(&store), Some(None));
}

const SHARED: &str = "usr/share/text";

/// A unit with one file that every version has.
fn publish_with_file(store: &Store, version: &str) -> Result<(), StoreError> {
    let content = "text\n".repeat(1000);
    let staged = store.stage_unit(&main_repository())?;
    let root = staged.filesystem();
    let path = root.join(SHARED);
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(&path, &content).expect("written");
    let found = fs::metadata(&path).expect("there");
    fs::File::open(&path).and_then(|f| f.set_modified(std::time::UNIX_EPOCH)).expect("set");
    use std::os::unix::fs::MetadataExt;
    let entry = |path: &str, kind| Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        uid: found.uid(),
        gid: found.gid(),
        mtime: Timestamp::default(),
        link_count: 1,
        xattrs: Default::default(),
    };
    let digest = strata_core::Digest::of(content.as_bytes());
    let file = Kind::Regular { size: content.len() as u64, digest };
    let mut file = entry(SHARED, file);
    file.mode = found.mode() & 0o7777;
    let entries = vec![
        entry("", Kind::Directory),
        entry("usr", Kind::Directory),
        entry("usr/share", Kind::Directory),
        file,
    ];
    let mut writer = store.write_repository(&main_repository())?;
    writer.publish(staged, metadata(version), &Manifest::new(entries).expect("valid"))?;
    writer.commit()?;
    Ok(())
}

#[test]
fn a_file_that_is_shared_is_whole_in_every_unit() {
    use std::os::unix::fs::MetadataExt;
    let file = |store: &Store, version: &str| {
        let unit = metadata(version);
        let unit = store.unit_path(&main_repository(), &unit.layer, &unit.version);
        unit.join("filesystem").join(SHARED)
    };
    at_every_step(
        |store| publish_with_file(store, "1").expect("a unit"),
        |store| publish_with_file(store, "2"),
        |store, done| {
            for version in ["1", "2"] {
                if let Ok(content) = fs::read_to_string(file(store, version)) {
                    assert_eq!(content, "text\n".repeat(1000));
                } else {
                    assert!(version == "2" && !done);
                }
            }
            let inode = |version| fs::metadata(file(store, version)).map(|found| found.ino());
            assert!(!done || inode("1").expect("there") == inode("2").expect("there"));
        },
    );
}

#[test]
fn a_rollout_leaves_the_ring_on_the_old_generation_or_the_new() {
    at_every_step(
        |store| {
            deploy(store, "1").expect("the first generation");
            let target = VaTarget::Ring { composition: composition(), ring: ring() };
            store.claim_va(mac(), &target).expect("a VA");
        },
        |store| deploy(store, "2").map(|_| ()),
        |store, done| {
            let desired = store.desired(mac()).expect("a chain").expect("a generation");
            let served = store.generation(&desired).expect("the link never dangles");
            assert!(served == generation("2") || (!done && served == generation("1")));
        },
    );
}

/// One sync of the contents and one of the names, however many there are.
#[test]
fn each_generation_of_a_group_appears_whole_or_not_at_all() {
    let versions = ["1", "2", "3"];
    let group = versions.map(generation);
    at_every_step(
        |store| {
            deploy(store, "1").expect("deployed");
        },
        // One stands already, one stands twice.
        |store| store.seal_generations(group.iter().chain(&group[..2]), "c0ffee"),
        |store, done| {
            let seen = store.generations().expect("a list");
            for id in &seen {
                store.generation(id).expect("a whole generation");
            }
            assert!(!done || seen.len() == versions.len());
        },
    );
    let steps = |count: usize| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::init(directory.path()).expect("a store");
        let before = store.disk().steps();
        store.seal_generations(&group[..count], "c0ffee").expect("sealed");
        store.disk().steps() - before
    };
    // A name, and two steps for each of three files.
    assert_eq!(steps(3) - steps(2), 7);
    assert_eq!(steps(1), 7 + 2);
}

#[test]
fn what_a_dead_writer_leaves_is_swept() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    let (mark, dead) = (strata_store::host_mark(), u32::MAX);
    fs::write(store.root().join(format!("va/.new-{mark}-{dead}-0")), "").expect("a leftover");
    fs::create_dir(store.root().join(format!("generations/.staging-{mark}-{dead}-0")))
        .expect("another");
    fs::create_dir(store.root().join("generations/.removing-1-0")).expect("a third");
    let alive = store.root().join(format!("va/.new-{mark}-{}-9", std::process::id()));
    fs::write(&alive, "").expect("of the living");
    assert!(store.va_links().expect("readers pass them over").targets.is_empty());
    assert_eq!(store.sweep().expect("swept"), 3);
    assert!(alive.exists());
}

/// A process id says nothing on another host: what one makes there is no leftover here.
#[test]
fn what_other_hosts_make_is_left_alone_until_it_is_old() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    let dead = u32::MAX;
    let names = [format!("0123456789abcdef-{dead}-0"), format!("{dead}-0"), String::new()];
    let files = names.each_ref().map(|name| store.reports().join(format!(".new-{name}")));
    let staged = names
        .each_ref()
        .map(|name| store.root().join("generations").join(format!(".staging-{name}")));
    for (file, staged) in files.iter().zip(&staged) {
        fs::write(file, "").expect("a report in the making");
        fs::create_dir(staged).expect("a generation in the making");
    }
    assert_eq!(store.sweep().expect("swept"), 0);
    let ago =
        |hours: u64| std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
    let age = |path: &Path, hours| {
        fs::File::open(path).expect("there").set_modified(ago(hours)).expect("older");
    };
    files.iter().chain(&staged).for_each(|path| age(path, 23));
    assert_eq!(store.sweep().expect("swept"), 0);
    files.iter().chain(&staged).for_each(|path| age(path, 25));
    assert_eq!(store.sweep().expect("swept"), 6);
}

/// VAs may write into reports/.
#[test]
fn nothing_in_the_place_of_a_leftover_stops_a_sweep() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    let mark = strata_store::host_mark();
    let leftover = |name: &str| store.reports().join(format!(".new-{mark}-{}-{name}", u32::MAX));
    fs::create_dir_all(leftover("directory").join("with/more")).expect("a directory");
    let kept = directory.path().join("kept");
    fs::write(&kept, "").expect("a file");
    std::os::unix::fs::symlink(&kept, leftover("link")).expect("a link");
    std::os::unix::fs::symlink("nowhere", leftover("dangling")).expect("another");
    assert_eq!(store.sweep().expect("swept"), 2, "the links themselves");
    assert!(kept.exists() && leftover("directory").exists());
}

#[test]
fn nobody_is_in_the_way_of_a_writer_who_comes_later() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    let target = VaTarget::Ring { composition: composition(), ring: ring() };
    store.claim_va(mac(), &target).expect("claimed");
    // Whatever the numbers of a dead process with the same id were.
    for number in 0..1000 {
        let name = format!(".new-{}-{}-{number}", strata_store::host_mark(), std::process::id());
        fs::write(store.root().join("va").join(name), "").expect("a leftover");
    }
    store.move_va(mac(), &target).expect("moved");
}

#[test]
fn the_same_twice_writes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    publish(&store, "1").expect("published");
    let id = deploy(&store, "1").expect("deployed");
    let again = Store::open(directory.path()).expect("the store");
    assert_eq!(again.seal_generation(&generation("1"), "other").expect("sealed"), (id, false));
    assert!(
        !again.write_repository(&main_repository()).expect("a writer").commit().expect("no change")
    );
    assert_eq!(again.writes(), Default::default());
}

#[test]
fn a_generation_that_lost_a_file_is_sealed_anew() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    publish(&store, "1").expect("published");
    let id = deploy(&store, "1").expect("deployed");
    fs::remove_file(store.root().join(format!("generations/{id}/layers"))).expect("lost");
    assert_eq!(store.seal_generation(&generation("1"), "other").expect("sealed"), (id, true));
    assert_eq!(store.generation(&id).expect("whole"), generation("1"));
    assert_eq!(store.generations().expect("a list"), [id]);
}

#[test]
fn a_unit_never_changes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    publish(&store, "1").expect("published");
    let staged = store.stage_unit(&main_repository()).expect("staged");
    let mut other = metadata("1");
    other.essential = true;
    let mut writer = store.write_repository(&main_repository()).expect("a writer");
    let refused = writer.publish(staged, other, &manifest());
    assert!(matches!(refused, Err(StoreError::UnitDiffers { .. })), "{refused:?}");
}

#[test]
fn damage_is_found() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    publish(&store, "1").expect("published");
    let entry = generation("1").layers()[0].clone();
    let unit = store.unit_path(&entry.repository, &entry.layer, &entry.version);
    rewrite(&unit.join("metadata"), "Essential: yes\n");
    assert!(matches!(store.open_unit(&entry), Err(StoreError::Damaged { .. })));
    let id = deploy(&store, "1").expect("deployed");
    rewrite(&store.root().join(format!("generations/{id}/web-server.ldf")), "# more\n");
    assert!(matches!(store.generation(&id), Err(StoreError::Damaged { .. })));
}

#[test]
fn foreign_links_and_taken_addresses_are_told() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    let target = VaTarget::Ring { composition: composition(), ring: ring() };
    store.claim_va(mac(), &target).expect("claimed");
    assert!(matches!(store.claim_va(mac(), &target), Err(StoreError::MacTaken(_))));
    assert_eq!(store.desired(mac()).expect("no ring link yet"), None);
    let path = store.root().join("va/52:54:00:00:00:02");
    std::os::unix::fs::symlink("/etc/passwd", path).expect("a hand-made link");
    fs::create_dir(store.root().join("va/52:54:00:00:00:03")).expect("a hand-made directory");
    let links = store.va_links().expect("the others are read");
    assert_eq!(links.targets.into_keys().collect::<Vec<_>>(), [mac()]);
    assert_eq!(links.foreign.len(), 2);
    assert!(links.foreign.iter().all(StoreError::is_foreign_link), "{:?}", links.foreign);
}

#[test]
fn one_foreign_ring_link_does_not_hide_the_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::init(directory.path()).expect("a store");
    publish(&store, "1").expect("published");
    let id = deploy(&store, "1").expect("deployed");
    let rings = store.root().join("rings");
    fs::write(rings.join("notes"), "").expect("a hand-made file");
    let beside = rings.join(composition().as_str());
    std::os::unix::fs::symlink("/etc", beside.join("linked")).expect("a hand-made link");
    fs::write(beside.join("written"), "").expect("a hand-made file");
    assert_eq!(store.rings().expect("read"), [((composition(), ring()), id)].into());
    assert_eq!(store.sweep().expect("swept"), 0);
}

#[test]
fn only_an_empty_directory_becomes_a_store() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    assert!(matches!(Store::open(directory.path()), Err(StoreError::NotAStore(_))));
    fs::write(directory.path().join("thesis.txt"), "").expect("a file");
    assert!(matches!(Store::init(directory.path()), Err(StoreError::NotEmpty(_))));
}

/// Appends to a read-only file, as a fault of the disk would.
fn rewrite(path: &Path, more: &str) {
    let mut text = fs::read_to_string(path).expect("readable");
    text.push_str(more);
    fs::remove_file(path).expect("removable");
    fs::write(path, text).expect("writable");
}
