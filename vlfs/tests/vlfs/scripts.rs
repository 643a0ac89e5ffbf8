//! A change of layers with scripts, cut short at each step of its journal: it goes on
//! from there, and nothing runs twice. (With scripts that really run: `tests/tests/scripts.rs`.)

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strata_core::GenerationId;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::scripts::outcome::{Outcome, ScriptsState};
use strata_core::scripts::policy::{OnFailure, ScriptPolicy};
use strata_store::Store;
use strata_vlfs::index::cache::Cache;
use strata_vlfs::private::disk::Disk;
use strata_vlfs::private::{Owner, Private};
use strata_vlfs::scripts::run::{Ended, Order, Runner};
use strata_vlfs::scripts::{Scripts, Turn, served_instead};
use strata_vlfs::set;
use strata_vlfs::stop::Stop;
use strata_vlfs::vfs::Vfs;

use crate::fixture::wait_for;
use crate::store::{mac, publish};

/// Notes what it is asked to run.
#[derive(Debug, Clone, Default)]
struct StandIn {
    ran: Arc<Mutex<Vec<String>>>,
    /// A script that fails.
    fails: Option<&'static str>,
}

impl Runner for StandIn {
    fn first_process(&self) -> Option<u32> {
        Some(1)
    }

    fn run(&self, _init: u32, order: &Order<'_>, _stop: &Stop) -> Ended {
        let of = |name| {
            let found = order.environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let name =
            format!("{} {} {}", of("STRATA_SCRIPT"), of("STRATA_LAYER"), of("STRATA_VERSION"));
        let outcome = match self.fails == Some(name.as_str()) {
            true => Outcome::Exit(1),
            false => Outcome::Succeeded,
        };
        self.ran.lock().expect("no panic while held").push(name);
        Ended { outcome, output: String::new(), took: Duration::ZERO }
    }
}

struct World {
    directory: tempfile::TempDir,
    old: GenerationId,
    new: GenerationId,
}

impl World {
    /// From `app 1` and `lib 1` to `app 2` and `lib 1`, all with all scripts.
    fn new(on_failure: OnFailure) -> World {
        let directory = tempfile::tempdir().expect("made");
        let store = Store::init(&directory.path().join("store")).expect("a new store");
        let unit = |layer: &str, version: &str| {
            let files = [(format!("usr/{layer}"), version.as_bytes().to_vec(), 0o644)];
            let names = ["pre-remove", "pre-install", "post-remove", "post-install"];
            publish(&store, (layer, version), &files, &names.map(|name| (name, "#!/bin/sh\n")))
        };
        let (one, two, lib) = (unit("app", "1"), unit("app", "2"), unit("lib", "1"));
        let seal = |layers: Vec<LayerSetEntry>| {
            let ldf = layers.iter().map(|entry| format!("{entry}\n")).collect();
            let web = "web".parse().expect("a name");
            let policy = ScriptPolicy::new(on_failure, 10).expect("valid");
            let generation = Generation::new(web, layers, ldf).expect("a set").with_scripts(policy);
            store.seal_generation(&generation, "test").expect("sealed").0
        };
        let (old, new) = (seal(vec![one, lib.clone()]), seal(vec![two, lib]));
        World { directory, old, new }
    }

    fn store(&self) -> Store {
        Store::open(&self.directory.path().join("store")).expect("there")
    }

    /// The file system as a mount makes it.
    fn mount(&self, private: &Path, desired: GenerationId, disk: Disk) -> Option<Arc<Vfs>> {
        let owner = Owner::Va(mac());
        let private = Private::open_with(private, &owner, disk).ok()?;
        let (set, info) =
            set::open_generation(&self.store(), &desired, None, None).expect("opened");
        Vfs::new(private, set, info).ok().map(Arc::new)
    }

    fn scripts(&self, vfs: &Vfs, stand_in: &StandIn) -> Arc<Scripts> {
        let cache = Cache::new(self.directory.path().join("index"));
        Arc::new(Scripts::open(Box::new(stand_in.clone()), self.store(), cache, vfs.private()))
    }
}

/// What the follower does until nothing is left to do, or something fails.
fn follow(world: &World, vfs: &Arc<Vfs>, scripts: &Arc<Scripts>, desired: GenerationId) -> bool {
    loop {
        let aim = match scripts.turn(vfs, desired) {
            Turn::Busy => {
                std::thread::yield_now();
                continue;
            }
            Turn::Failed(_) => return false,
            Turn::Held { back, .. } => back,
            Turn::Free => desired,
        };
        if vfs.active().info.generation == Some(aim) {
            scripts.settle(vfs, aim);
            let status = scripts.status();
            match status.state {
                ScriptsState::Idle | ScriptsState::SwappedBack => return true,
                _ if status.error.is_some() => return false,
                _ => continue,
            }
        }
        let (set, info) = set::open_generation(&world.store(), &aim, None, None).expect("opened");
        if scripts.swap(vfs, set, info).is_err() {
            return false;
        }
    }
}

/// Brings a private directory to the old generation, then to the new one on a disk that
/// fails at `step`, and then, as the next mount does, on one that works. Returns what ran
/// in each of the last two, what is served, and whether nothing failed.
fn cut_short(
    world: &World,
    step: u64,
    fails: Option<&'static str>,
) -> (Vec<String>, GenerationId, bool) {
    let private = world.directory.path().join(format!("private-{step}"));
    let quiet = StandIn::default();
    let vfs = world.mount(&private, world.old, Disk::default()).expect("mounted");
    let scripts = world.scripts(&vfs, &quiet);
    assert!(follow(world, &vfs, &scripts, world.old));
    scripts.end();
    drop((scripts, vfs));

    let stand_in = StandIn { fails, ..StandIn::default() };
    let mut whole = false;
    if let Some(vfs) = world.mount(&private, world.old, Disk::failing_at(step)) {
        let scripts = world.scripts(&vfs, &stand_in);
        whole =
            follow(world, &vfs, &scripts, world.old) && follow(world, &vfs, &scripts, world.new);
        scripts.end();
    }
    wait_for("the private directory is free", || {
        Private::open(&private, &Owner::Va(mac())).is_ok()
    });
    let desired = served_instead(&private, world.new).unwrap_or(world.new);
    let vfs = world.mount(&private, desired, Disk::default()).expect("mounted");
    let scripts = world.scripts(&vfs, &stand_in);
    assert!(follow(world, &vfs, &scripts, world.new), "step {step}");
    let status = scripts.status();
    assert!(
        status.units.iter().all(|unit| unit.stage == strata_core::scripts::plan::Stage::Installed)
    );
    scripts.end();
    let served = vfs.active().info.generation.expect("a generation");
    let ran = stand_in.ran.lock().expect("no panic while held").clone();
    (ran, served, whole)
}

#[test]
fn a_change_that_is_cut_short_goes_on_and_repeats_nothing() {
    let world = World::new(OnFailure::KeepGoing);
    let all = [
        "pre-remove main/app 1",
        "pre-install main/app 2",
        "post-remove main/app 1",
        "post-install main/app 2",
    ];
    for step in 0.. {
        let (ran, served, whole) = cut_short(&world, step, None);
        assert_eq!(served, world.new, "step {step}");
        // One may be noted and not begun: it was interrupted. None runs twice.
        let mut expected = all.iter();
        assert!(ran.iter().all(|name| expected.any(|all| all == name)), "step {step}: {ran:?}");
        assert!(ran.len() >= all.len() - 1, "step {step}: {ran:?}");
        if whole {
            assert_eq!(ran, all);
            assert!(step > 30, "{step} steps");
            break;
        }
    }
}

#[test]
fn going_back_that_is_cut_short_ends_at_the_layers_of_before() {
    let world = World::new(OnFailure::SwapBack);
    let fails = "post-install main/app 2";
    for step in 0.. {
        let (ran, served, whole) = cut_short(&world, step, Some(fails));
        assert_eq!(served, world.old, "step {step}: {ran:?}");
        for name in &ran {
            let count = ran.iter().filter(|other| *other == name).count();
            assert_eq!(count, 1, "step {step}: {ran:?}");
        }
        if whole {
            assert_eq!(ran.len(), 8, "{ran:?}");
            assert!(step > 40, "{step} steps");
            break;
        }
    }
}
