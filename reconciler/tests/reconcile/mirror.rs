//! The mirror of the source: damaged in every way that was thought of, it heals by itself,
//! and nothing of it is lost before something better is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use strata::pass::{Options, PassError, PassReport, PassResult};
use strata::source::{Remote, Selector, Source};

use crate::support::World;

fn mirror(world: &World) -> PathBuf {
    world.store.state("mirror.git")
}

/// The packs of the mirror.
fn packs(world: &World, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(mirror(world).join("objects/pack")).expect("listed");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|found| found == end)).collect()
}

fn cut(path: &Path) {
    fs::File::options().write(true).open(path).expect("opened").set_len(20).expect("cut");
}

fn push(world: &World, text: &str) -> String {
    world.write("templates/web.ldf", &format!("main/app 1\nmain/base 1\n# {text}\n"));
    world.push(text)
}

#[test]
fn a_damaged_mirror_heals_by_itself() {
    let world = World::new();
    world.once();
    push(&world, "a second pack");
    world.once();
    let at = |name: &str| mirror(&world).join(name);
    let damages: [(&str, &dyn Fn()); 14] = [
        ("the head is empty", &|| fs::write(at("refs/strata/head"), "").expect("written")),
        ("the head is garbage", &|| {
            fs::write(at("refs/strata/head"), "garbage\n").expect("written")
        }),
        ("the head leads nowhere", &|| {
            fs::write(at("refs/strata/head"), format!("{:040}\n", 1)).expect("written");
        }),
        ("HEAD is empty", &|| fs::write(at("HEAD"), "").expect("written")),
        ("HEAD is gone", &|| fs::remove_file(at("HEAD")).expect("removed")),
        ("the configuration is empty", &|| fs::write(at("config"), "").expect("written")),
        ("the configuration is garbage", &|| fs::write(at("config"), "[[[").expect("written")),
        ("a pack is cut", &|| cut(&packs(&world, "pack")[0])),
        ("all packs are cut", &|| packs(&world, "pack").iter().for_each(|path| cut(path))),
        ("an index is cut", &|| cut(&packs(&world, "idx")[0])),
        ("the packed references are garbage", &|| {
            fs::write(at("packed-refs"), "xx\n").expect("written");
        }),
        ("the objects are gone", &|| fs::remove_dir_all(at("objects")).expect("removed")),
        ("it is a file", &|| {
            fs::remove_dir_all(mirror(&world)).expect("removed");
            fs::write(mirror(&world), "").expect("written");
        }),
        ("it is a link to nothing", &|| {
            fs::remove_dir_all(mirror(&world)).expect("removed");
            std::os::unix::fs::symlink("nowhere", mirror(&world)).expect("linked");
        }),
    ];
    // In one process that goes on, and in one that is started.
    let mut running = world.reconciler();
    for (round, (what, damage)) in damages.iter().chain(&damages).enumerate() {
        damage();
        let commit = push(&world, &format!("{round}"));
        if round >= damages.len() {
            drop(running);
            running = world.reconciler();
        }
        let report = running.pass(&AtomicBool::new(false));
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((report.commit, report.refusal), (commit, None), "{what}");
        let again = running.pass(&AtomicBool::new(false)).expect("a pass");
        assert_eq!(again.result, PassResult::Unchanged, "{what}");
    }
    let left = fs::read_dir(world.store.state(".")).expect("listed");
    let left = left.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let left: Vec<_> = left.filter(|name| name.starts_with("mirror")).collect();
    assert_eq!(left, ["mirror.git"]);
}

#[test]
fn a_damaged_mirror_stays_where_nothing_better_can_be_had() {
    let world = World::new();
    world.once();
    push(&world, "more");
    world.once();
    let pack =
        packs(&world, "pack").into_iter().min_by_key(|path| path.metadata().expect("there").len());
    cut(&pack.expect("a pack"));
    let before = packs(&world, "pack").len();
    let mut reconciler = world.reconciler();
    fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved");
    for _ in 0..3 {
        let failed = reconciler.pass(&AtomicBool::new(false));
        assert!(matches!(failed, Err(PassError::Mirror(_))), "{failed:?}");
        assert_eq!(packs(&world, "pack").len(), before, "what it has is kept");
    }
    fs::rename(world.path("away.git"), world.path("fleet.git")).expect("moved");
    let commit = push(&world, "back");
    assert_eq!(reconciler.pass(&AtomicBool::new(false)).expect("a pass").commit, commit);
}

#[test]
fn a_replacement_that_was_cut_short_is_finished_or_given_up() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.once();
    let place = |name: &str| world.store.state(name);
    let inode = || fs::metadata(mirror(&world)).expect("there").ino();
    let commit = world.head();
    // The new one was not whole: the old one stands.
    fs::create_dir(place("mirror.new.git")).expect("made");
    let before = inode();
    assert_eq!((world.once().commit, inode()), (commit.clone(), before));
    // It was, and the old one was out of its way.
    fs::rename(mirror(&world), place("mirror.new.git")).expect("moved");
    fs::create_dir(place("mirror.former.git")).expect("made");
    assert_eq!((world.once().commit, inode()), (commit.clone(), before));
    // It was in its place.
    fs::create_dir(place("mirror.former.git")).expect("made");
    assert_eq!((world.once().commit, inode()), (commit, before));
    assert!(!place("mirror.new.git").exists() && !place("mirror.former.git").exists());
}

fn pass(world: &World, selector: Selector) -> Result<PassReport, PassError> {
    let remote = Remote::parse(world.path("fleet.git").to_str().expect("UTF-8"));
    let source = Source::new(vec![remote.expect("a remote")], selector).expect("a source");
    world.try_opened(&source, Options::default)?.pass(&AtomicBool::new(false))
}

fn range() -> Selector {
    Selector::range("^1").expect("a range")
}

fn tag() -> Selector {
    Selector::Tag("production".to_owned())
}

#[test]
fn locks_that_a_killed_fetch_left_block_nothing() {
    let world = World::new();
    world.git(&["tag", "v1.0.0"]);
    world.git(&["push", "-q", "origin", "v1.0.0"]);
    pass(&world, range()).expect("a pass");
    let commit = push(&world, "more");
    for tag in ["v1.1.0", "deep/er/v1", "tmp_one"] {
        world.git(&["tag", tag]);
        world.git(&["push", "-q", "origin", tag]);
    }
    let references = mirror(&world).join("refs/strata/tags");
    fs::create_dir_all(references.join("deep/er")).expect("made");
    for lock in ["v1.1.0.lock", "deep/er/v1.lock"] {
        fs::write(references.join(lock), "").expect("written");
    }
    assert_eq!(pass(&world, range()).expect("a pass").commit, commit);
    // What only looks like a leftover stays.
    push(&world, "and more");
    world.git(&["tag", "v1.2.0"]);
    world.git(&["push", "-q", "origin", "v1.2.0"]);
    let kept = |path: &str| fs::metadata(references.join(path)).map(|found| found.is_file());
    let before =
        fs::metadata(references.join("tmp_one")).expect("there").modified().expect("a time");
    pass(&world, range()).expect("a pass");
    let after =
        fs::metadata(references.join("tmp_one")).expect("there").modified().expect("a time");
    assert_eq!(before, after, "it was not fetched again");
    assert!(kept("deep/er/v1").expect("there"));
}

#[test]
fn a_tag_that_leads_to_no_commit_is_no_damage() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.git(&["tag", "production"]);
    world.git(&["push", "-q", "origin", "production"]);
    pass(&world, tag()).expect("a pass");
    let made = fs::metadata(mirror(&world)).expect("there").ino();
    world.git(&["tag", "-f", "-a", "-m", "a tree", "production", "HEAD^{tree}"]);
    world.git(&["push", "-q", "-f", "origin", "production"]);
    for _ in 0..2 {
        let error = pass(&world, tag()).expect_err("no commit").to_string();
        assert!(error.contains("leads to no commit"), "{error}");
        assert_eq!(fs::metadata(mirror(&world)).expect("there").ino(), made);
    }
    world.git(&["tag", "-f", "production", "HEAD"]);
    world.git(&["push", "-q", "-f", "origin", "production"]);
    pass(&world, tag()).expect("a pass");
}

#[test]
fn packs_do_not_pile_up_and_nothing_is_lost_with_them() {
    let world = World::new();
    let mut reconciler = world.reconciler();
    let never = AtomicBool::new(false);
    reconciler.pass(&never).expect("a pass");
    let base = world.head();
    let mut most = 0;
    let mut last = String::new();
    for number in 0..60 {
        last = push(&world, &format!("{number}"));
        assert_eq!(reconciler.pass(&never).expect("a pass").commit, last);
        most = most.max(packs(&world, "pack").len());
    }
    assert!(most > 40 && packs(&world, "pack").len() < 40, "{most}");
    // What was applied is kept when the branch no longer has it.
    world.git(&["reset", "-q", "--hard", &base]);
    for number in 0..60 {
        world.write("templates/web.ldf", &format!("main/app 2\nmain/base 1\n# {number}\n"));
        world.git(&["add", "-A"]);
        world.git(&["commit", "-q", "-m", "other"]);
        world.git(&["push", "-q", "-f", "origin", "HEAD:main"]);
        assert!(reconciler.pass(&never).expect("a pass").refusal.is_some());
    }
    assert!(packs(&world, "pack").len() < 60);
    let repository = git2::Repository::open_bare(mirror(&world)).expect("sound");
    repository.find_commit(git2::Oid::from_str(&last).expect("an id")).expect("still there");
}
