//! What of a source is followed, and from which of several remotes.

use std::fs;
use std::sync::atomic::AtomicBool;

use strata::pass::{Options, PassError, PassReport, PassResult, Reconciler};
use strata::source::{Remote, Selector, Source, Testing};
use strata::state::{ReconcileState, RefusalReason};

use crate::support::World;

/// A reconciler of these repositories of the world's directory.
fn reconciler(world: &World, remotes: &[&str], selector: &Selector) -> Reconciler {
    let remote =
        |name: &&str| Remote::parse(world.path(name).to_str().expect("UTF-8")).expect("a remote");
    let source = Source::new(remotes.iter().map(remote).collect(), selector.clone());
    world.opened_from(&source.expect("a source"), Options::default)
}

fn pass(world: &World, remotes: &[&str], selector: &Selector) -> Result<PassReport, PassError> {
    reconciler(world, remotes, selector).pass(&AtomicBool::new(false))
}

#[track_caller]
fn applied(world: &World, selector: &Selector, commit: &str) {
    let report = pass(world, &["fleet.git"], selector).expect("a pass");
    assert_ne!(report.result, PassResult::Refused, "{:?}", report.message);
    assert_eq!(report.commit, commit);
}

/// A commit with this version of web, and a tag on it.
fn release(world: &World, tag: &str, version: u32) -> String {
    world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
    let commit = world.push(tag);
    world.git(&["tag", "-a", "-m", tag, tag]);
    world.git(&["push", "-q", "origin", tag]);
    commit
}

#[test]
fn a_tag_is_followed_forwards_and_told_when_it_goes_back() {
    let world = World::new();
    let first = world.head();
    let production = release(&world, "production", 2);
    let selector = Selector::tag("production").expect("a tag");
    applied(&world, &selector, &production);
    let moved = |to: &str| {
        world.git(&["tag", "-f", "production", to]);
        world.git(&["push", "-qf", "origin", "production"]);
    };
    world.write("templates/web.ldf", "main/app 1\nmain/base 1\n");
    let next = world.push("next");
    moved(&next);
    applied(&world, &selector, &next);
    moved(&first);
    let report = pass(&world, &["fleet.git"], &selector).expect("a pass");
    assert_eq!(report.refusal, Some(RefusalReason::Rewritten));
    world.git(&["push", "-q", "--delete", "origin", "production"]);
    let error = pass(&world, &["fleet.git"], &selector).expect_err("the tag is gone");
    assert!(error.to_string().contains("refs/tags/production"), "{error}");
}

#[test]
fn the_highest_tag_of_a_range_is_followed() {
    let world = World::new();
    let selector = Selector::range("^1.2").expect("a range");
    let error = pass(&world, &["fleet.git"], &selector).expect_err("no tag yet");
    assert!(error.to_string().contains("has no tags ^1.2"), "{error}");
    let old = release(&world, "v1.2.0", 2);
    applied(&world, &selector, &old);
    let new = release(&world, "v1.10.0", 1);
    release(&world, "v2.0.0", 2);
    release(&world, "v1.11.0-rc.1", 1);
    applied(&world, &selector, &new);
    assert!(world.rings().len() == 4);
    // Without the highest, the one below is behind the high-water mark.
    world.git(&["push", "-q", "--delete", "origin", "v1.10.0"]);
    let report = pass(&world, &["fleet.git"], &selector).expect("a pass");
    assert_eq!(report.refusal, Some(RefusalReason::Rewritten));
    // One version on two commits is nobody's choice.
    world.git(&["push", "-q", "origin", "v1.10.0", "v2.0.0^{}:refs/tags/1.10.0"]);
    let error = pass(&world, &["fleet.git"], &selector).expect_err("ambiguous");
    assert!(error.to_string().contains("one version and two commits"), "{error}");
}

/// Also one that no reference leads to directly, from a server that sends only those.
#[test]
fn one_commit_is_followed_and_nothing_else() {
    let world = World::new();
    let fixed = release(&world, "fixed", 2);
    release(&world, "later", 1);
    let selector = Selector::commit(&fixed).expect("a commit");
    applied(&world, &selector, &fixed);
    world.push("another");
    applied(&world, &selector, &fixed);
    let unknown = Selector::commit(&"5".repeat(40)).expect("a commit");
    let error = pass(&world, &["fleet.git"], &unknown).expect_err("unknown");
    assert!(error.to_string().contains("has no commit 5555"), "{error}");
}

#[test]
fn a_remote_of_lower_priority_is_used_when_the_first_fails_and_never_takes_back() {
    let world = World::new();
    let branch = Selector::branch("main").expect("a branch");
    let remotes = ["fleet.git", "mirror.git"];
    let copy = || {
        let _gone = fs::remove_dir_all(world.path("mirror.git"));
        world.git_at(&world.path("."), &["clone", "-q", "--mirror", "fleet.git", "mirror.git"]);
    };
    copy();
    let first = world.head();
    let state = || ReconcileState::read(&world.store).expect("readable").expect("written");
    let mut reconciler = reconciler(&world, &remotes, &branch);
    let mut go = || reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!((go().commit, state().fallback), (first, None));
    let ahead = release(&world, "ahead", 2);
    assert_eq!(go().commit, ahead);
    let rings = world.rings();
    // The mirror lags: what was applied stays wanted, and that is said.
    fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    for _ in 0..2 {
        let report = go();
        assert_eq!(
            (report.commit.as_str(), report.result),
            (ahead.as_str(), PassResult::Unchanged)
        );
        let fallback = state().fallback.expect("told");
        assert!(fallback.behind && fallback.remote.ends_with("/mirror.git"), "{fallback:?}");
        assert!(fallback.failures[0].contains("/fleet.git"), "{fallback:?}");
        assert_eq!(world.rings(), rings);
    }
    // It catches up and goes ahead: that is taken.
    fs::rename(world.path("away.git"), world.path("fleet.git")).expect("moved back");
    let further = release(&world, "further", 1);
    copy();
    fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    let report = go();
    assert_eq!((report.commit, report.result), (further, PassResult::Applied));
    assert!(!state().fallback.expect("told").behind);
    // One with another history is refused.
    world.git_at(&world.path("mirror.git"), &["update-ref", "refs/heads/main", "HEAD~2"]);
    let parent = world.git_at(&world.path("mirror.git"), &["rev-parse", "HEAD"]);
    let tree = world.git_at(&world.path("mirror.git"), &["rev-parse", "HEAD^{tree}"]);
    let other = world.git_at(
        &world.path("mirror.git"),
        &["commit-tree", "-m", "another history", "-p", &parent, &tree],
    );
    world.git_at(&world.path("mirror.git"), &["update-ref", "refs/heads/main", &other]);
    assert_eq!(go().refusal, Some(RefusalReason::Rewritten));
    // Nobody answers: the pass fails and names both.
    fs::remove_dir_all(world.path("mirror.git")).expect("removed");
    let error = reconciler.pass(&AtomicBool::new(false)).expect_err("nobody");
    let text = error.to_string();
    assert!(text.contains("/fleet.git") && text.contains("/mirror.git"), "{text}");
}

/// One template is tried on a branch; nothing that goes wrong there holds the rest up.
#[test]
fn chosen_definitions_follow_a_testing_branch() {
    let world = World::new();
    let branch = Selector::branch("main").expect("a branch");
    let path = world.path("fleet.git");
    let remote = Remote::parse(path.to_str().expect("UTF-8")).expect("a remote");
    let testing = Testing::new("next", vec!["templates/web".to_owned()]).expect("a branch");
    let source = Source::new(vec![remote], branch).expect("a source").with_testing(testing);
    let go = || {
        let mut reconciler = world.opened_from(&source, Options::default);
        let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
        assert_ne!(report.result, PassResult::Refused, "{:?}", report.message);
        report.testing.expect("followed")
    };
    let (web, sql) = (|| world.ring("web", "everyone"), || world.ring("sql", "everyone"));
    // Without the branch, nothing is different.
    assert_eq!((go().commit, go().refused), (None, None));
    let before = (web(), sql());
    let push_next = |web: &str, sql: &str| {
        world.git(&["checkout", "-q", "-B", "next", "origin/main"]);
        world.write("templates/web.ldf", web);
        world.write("templates/sql.ldf", sql);
        world.git(&["commit", "-qa", "--allow-empty", "-m", "next"]);
        world.git(&["push", "-qf", "origin", "next"]);
        let commit = world.head();
        world.git(&["checkout", "-q", "main"]);
        commit
    };
    let (newer, older) = ("main/app 2\nmain/base 1\n", "main/app 1\nmain/base 1\n");
    let next = push_next(newer, "main/app 2\nmain/base 1\n");
    assert_eq!(go().commit.as_ref(), Some(&next));
    let tried = web();
    assert_ne!(tried, before.0, "the chosen template moved");
    assert_eq!(sql(), before.1, "no other did");
    // A bad one is told, and what was tried last stays; the main branch goes on.
    push_next("main/no-such-layer 1\n", "main/base 1\n");
    world.write("templates/sql.ldf", newer);
    world.push("sql goes on");
    let told = go();
    assert_eq!(told.commit.as_ref(), Some(&next));
    assert!(told.refused.expect("told").contains("no-such-layer"));
    assert_eq!(web(), tried);
    assert_ne!(sql(), before.1, "the main branch is not held up");
    // Rewritten, as testing branches are; then merged.
    let again = push_next(older, newer);
    assert_eq!((go().commit.as_ref(), web()), (Some(&again), before.0));
    world.git(&["merge", "-q", "-m", "merge", &push_next(newer, newer)]);
    world.git(&["push", "-q", "origin", "main"]);
    assert_eq!((go().commit, web()), (None, tried));
    world.git(&["push", "-q", "--delete", "origin", "next"]);
    assert_eq!((go().commit, web()), (None, tried));
}
