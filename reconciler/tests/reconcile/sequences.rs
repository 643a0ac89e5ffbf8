//! Random lives: commits that are good, bad, reverted and rewritten, kills at any
//! write, VAs that obey and that do not. In the end the store is where an undisturbed
//! run on the last good commit brings it.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata::pass::{Options, Reconciler};
use strata::rollout::RolloutFile;
use strata_store::Store;
use strata_store::durable::Disk;

use crate::rollouts::{GATED, obey, report};
use crate::support::{World, mac, wait_until};

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a good commit says of web.
fn good(world: &World, version: u64, motd: u64) {
    world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
    world.write("templates/web/etc/motd", &format!("{motd}\n"));
}

/// A pass and some steps, on a disk that fails at a step where one is given.
fn live(world: &World, fails_at: Option<u64>) {
    let disk = fails_at.map_or_else(Disk::default, Disk::failing_at);
    let store = Store::open_with(world.store.root(), disk).expect("a store");
    let never = AtomicBool::new(false);
    let opened = Reconciler::open(store.into(), world.source(), Options::default());
    let Ok(mut reconciler) = opened else { return };
    // What fails is what the test wants; the end is what counts.
    let mut went_on = reconciler.pass(&never).is_ok();
    for _ in 0..3 {
        went_on = went_on && reconciler.step(&never).is_ok();
    }
}

fn life(seed: u64) {
    let mut random = Random(seed);
    let world = World::new();
    world.write("strata.toml", GATED);
    let (mut version, mut motd) = (1, 0);
    good(&world, version, motd);
    world.push("the first");
    world.once();
    world.claim("web", "canary", 0..2);
    world.claim("web", "everyone", 2..6);
    let mut told = Vec::new();
    for number in 1..12 {
        let happening = random.below(8);
        told.push(happening);
        match happening {
            0 | 1 => {
                (version, motd) = (1 + random.below(2), number);
                good(&world, version, motd);
                world.push("good");
            }
            2 => {
                world.write("templates/web.ldf", "nonsense\n");
                world.push("bad");
                live(&world, None);
                world.git(&["revert", "--no-edit", "HEAD"]);
                world.git(&["push", "-q", "origin", "HEAD:main"]);
            }
            3 => {
                // What was never taken may be rewritten; this was.
                live(&world, None);
                let head = world.head();
                world.git(&["commit", "-q", "--amend", "-m", "rewritten"]);
                world.git(&["push", "-qf", "origin", "HEAD:main"]);
                live(&world, None);
                world.git(&["reset", "-q", "--hard", &head]);
                world.git(&["push", "-qf", "origin", "HEAD:main"]);
            }
            4 | 5 => live(&world, Some(random.below(40))),
            6 => obey(&world),
            _ => {
                let stubborn = u32::try_from(random.below(6)).expect("small");
                report(&world, stubborn, None, Some("busy"));
            }
        }
        if random.below(2) == 0 {
            live(&world, None);
        }
    }
    // From here on nothing disturbs it; a halt is ended by the operator's next commit.
    good(&world, version, motd + 100);
    world.push("the last");
    let mut reconciler = world.reconciler();
    reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    wait_until(&format!("seed {seed} settles after {told:?}"), Duration::from_secs(30), || {
        obey(&world);
        reconciler.step(&AtomicBool::new(false)).expect("a step");
        let file = RolloutFile::read(&world.store).expect("readable");
        file.compositions.values().all(|state| state.phase() == "done")
    });
    let undisturbed = World::new();
    undisturbed.write("strata.toml", GATED);
    good(&undisturbed, version, motd + 100);
    undisturbed.push("the last");
    undisturbed.once();
    assert_eq!(world.rings(), undisturbed.rings(), "seed {seed}: {told:?}");
    for number in 0..6 {
        let desired = world.store.desired(mac(number)).expect("readable");
        assert_eq!(desired, undisturbed.ring("web", "everyone"), "seed {seed}");
    }
}

#[test]
fn any_life_ends_where_an_undisturbed_one_does() {
    for seed in 1..=12 {
        life(0x9e37_79b9_7f4a_7c15 ^ seed);
    }
}
