//! What holds while a commit cannot be brought in, judged or reached: no link is ahead of
//! the high-water mark, and what stands is looked after.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata::pass::{Options, PassReport, Reconciler};
use strata::rollout::request::{Ask, Request};
use strata::rollout::{RolloutFile, pins};
use strata::state::{ReconcileState, RefusalReason};
use strata_core::GenerationId;
use strata_core::rollout::{Order, Waiting};
use strata_store::Store;
use strata_store::durable::Disk;

use crate::daemon::Daemon;
use crate::rollouts::{GATED, obey, report};
use crate::support::{World, mac, name, wait_until};

static NEVER: AtomicBool = AtomicBool::new(false);

fn bump(world: &World, version: u32) -> String {
    world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
    world.push(&format!("app {version}"))
}

fn mark(world: &World) -> String {
    let state = ReconcileState::read(&world.store).expect("readable").expect("a state");
    state.mark().expect("a mark").commit.clone()
}

/// The source is out of reach until this is dropped.
struct Away<'w>(&'w World);

impl<'w> Away<'w> {
    fn new(world: &'w World) -> Self {
        fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
        fs::create_dir(world.path("fleet.git")).expect("in its place");
        Away(world)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        fs::remove_dir(self.0.path("fleet.git")).expect("empty");
        fs::rename(self.0.path("away.git"), self.0.path("fleet.git")).expect("moved back");
    }
}

#[test]
fn a_stop_anywhere_leaves_no_link_ahead_of_the_mark() {
    let (mut moved, mut kept) = (0, 0);
    for steps in 0..45 {
        let world = World::new();
        world.once();
        let (first, before) = (world.head(), world.ring("web", "everyone"));
        let second = bump(&world, 2);
        let disk = Disk::failing_at(steps);
        let store = Store::open_with(world.store.root(), disk).expect("a store");
        let opened = Reconciler::open(store.into(), world.source(), Options::default());
        if let Ok(mut reconciler) = opened {
            // It may fail at any step; the links count.
            let _cut_short = reconciler.pass(&NEVER);
        }
        let links = [world.ring("web", "canary"), world.ring("web", "everyone")];
        if links.iter().all(|link| *link == before) {
            kept += 1;
            continue;
        }
        moved += 1;
        assert_eq!(mark(&world), second, "stopped at step {steps}");
        // The one restart that finds no source goes on from there, never back.
        let away = Away::new(&world);
        let mut reconciler = world.reconciler();
        assert!(reconciler.pass(&NEVER).is_err());
        reconciler.step(&NEVER).expect("a step");
        assert_ne!(world.ring("web", "canary"), before, "stopped at step {steps}");
        drop((reconciler, away));
        // And a branch that goes back is refused.
        world.git(&["reset", "-q", "--hard", &first]);
        world.git(&["push", "-qf", "origin", "HEAD:main"]);
        assert_eq!(world.once().refusal, Some(RefusalReason::Rewritten));
    }
    assert!(moved > 0 && kept > 0, "{moved} {kept}");
}

#[test]
fn a_link_that_cannot_be_moved_holds_neither_the_mark_nor_the_others_up() {
    let world = World::new();
    world.once();
    let first = world.head();
    let stuck = world.store.root().join("rings/sql/canary");
    fs::remove_file(&stuck).expect("removed");
    fs::create_dir(&stuck).expect("in its place");
    fs::write(world.store.state("set-aside"), "").expect("no room to set it aside");
    let second = bump(&world, 2);
    assert!(world.reconciler().pass(&NEVER).is_err());
    let moved = world.ring("web", "everyone");
    assert_eq!(mark(&world), second);
    let away = Away::new(&world);
    let mut reconciler = world.reconciler();
    assert!(reconciler.pass(&NEVER).is_err());
    assert!(reconciler.step(&NEVER).is_err(), "the link is still stuck");
    assert_eq!(world.ring("web", "everyone"), moved);
    drop((reconciler, away));
    world.git(&["reset", "-q", "--hard", &first]);
    world.git(&["push", "-qf", "origin", "HEAD:main"]);
    assert_eq!(world.once().refusal, Some(RefusalReason::Rewritten));
    assert_eq!(world.ring("web", "everyone"), moved);
}

/// A fleet whose canaries are on what cannot be judged any more.
fn stranded(more: &str) -> (World, GenerationId) {
    let world = World::new();
    let soak = GATED.replacen("name = \"canary\"\n", "name = \"canary\"\nsoak = \"1h\"\n", 1);
    world.write("strata.toml", &format!("{soak}{more}"));
    world.push("gates");
    world.once();
    world.claim("web", "canary", 0..2);
    world.claim("web", "everyone", 2..6);
    obey(&world);
    let first = world.ring("web", "everyone").expect("a generation");
    bump(&world, 2);
    world.once();
    assert_ne!(world.ring("web", "canary"), Some(first));
    (world, first)
}

fn step(reconciler: &mut Reconciler) -> PassReport {
    reconciler.step(&NEVER).expect("a step").expect("something was rolled out")
}

fn abort(world: &World) {
    let ask = Ask::Rollout { composition: Some(name("web")), order: Order::Abort };
    let request = Request::new("ann".to_owned(), "because".to_owned(), ask);
    request.submit(&world.store).expect("submitted");
}

/// Orders, links and pins are looked after by a reconciler whose pass goes wrong; no ring
/// goes on.
fn is_looked_after(world: &World, first: GenerationId) {
    let mut reconciler = world.reconciler();
    assert!(!reconciler.pass(&NEVER).is_ok_and(|report| report.refusal.is_none()));
    obey(world);
    let stands = step(&mut reconciler);
    assert!(matches!(stands.waiting[0].waiting, Waiting::Commit { .. }), "{stands:?}");
    assert_eq!(world.ring("web", "everyone"), Some(first));
    fs::remove_file(world.store.root().join("rings/web/everyone")).expect("removed");
    step(&mut reconciler);
    assert_eq!(world.ring("web", "everyone"), Some(first), "a link that is gone comes back");
    let told = ("debugging".to_owned(), "ann".to_owned(), 0);
    pins::pin(&world.store, mac(3), first, Some(1), told).expect("pinned");
    step(&mut reconciler);
    assert!(pins::read(&world.store, mac(3)).expect("readable").is_none(), "it has expired");
    let before = world.snapshot();
    assert!(!step(&mut reconciler).news);
    world.assert_unchanged(&before);
    abort(world);
    step(&mut reconciler);
    assert!(!reconciler.is_asked(), "the order was taken");
    assert_eq!(world.ring("web", "canary"), Some(first));
}

#[test]
fn without_mirror_and_source_what_stands_is_looked_after() {
    let (world, first) = stranded("");
    fs::remove_dir_all(world.store.state("mirror.git")).expect("removed");
    let _away = Away::new(&world);
    is_looked_after(&world, first);
}

#[test]
fn with_a_withdrawn_layer_what_stands_is_looked_after() {
    let (world, first) = stranded("");
    let withdrawn = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["layer", "withdraw", "main/app", "2", "--reason", "a hole"])
        .env("STRATA_STORE", world.store.root())
        .output()
        .expect("runs");
    assert!(withdrawn.status.success(), "{withdrawn:?}");
    is_looked_after(&world, first);
    // A commit that can be judged is taken as ever.
    world.write("templates/web/etc/motd", "fixed\n");
    bump(&world, 1);
    let report = world.once();
    assert_eq!(report.refusal, None, "{report:?}");
}

#[test]
fn a_ring_that_fails_goes_back_without_its_commit() {
    let (world, first) = stranded("\n[rollout]\non-failure = \"auto-rollback\"\n");
    fs::remove_dir_all(world.store.state("mirror.git")).expect("removed");
    let _away = Away::new(&world);
    obey(&world);
    report(&world, 0, Some(first), Some("no space left"));
    let mut reconciler = world.reconciler();
    wait_until("it is rolled back", Duration::from_secs(20), || {
        step(&mut reconciler);
        world.ring("web", "canary") == Some(first)
    });
    let file = RolloutFile::read(&world.store).expect("readable");
    assert_eq!(file.compositions[&name("web")].phase(), "quarantined");
}

/// A remote that accepts and says nothing is waited for beside the loop.
#[test]
fn an_order_is_obeyed_while_a_remote_hangs() {
    let (world, first) = stranded("");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let settings = format!(
        "[[source.remote]]\nurl = \"https://127.0.0.1:{port}/fleet.git\"\n\n[[source.remote]]\nurl = \"{}\"\n",
        world.path("fleet.git").display()
    );
    fs::write(world.path("reconciler.toml"), settings).expect("written");
    let daemon = Daemon::configured(&world, &["--fetch-deadline", "300"]);
    // It has come to its first pass, which hangs.
    silent.set_nonblocking(true).expect("set");
    let mut asked = None;
    wait_until("the remote is asked", Duration::from_secs(60), || {
        asked = silent.accept().ok();
        asked.is_some()
    });
    abort(&world);
    wait_until("the order is obeyed", Duration::from_secs(20), || {
        world.ring("web", "canary") == Some(first)
    });
    assert_eq!(daemon.terminate(), Some(0), "and the fetch is killed at the end");
}
