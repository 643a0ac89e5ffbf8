//! Commits made to hurt: large, many, and with names and files that make other
//! programs run something.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use strata::mirror::MirrorError;
use strata::pass::{Options, PassError, PassResult, Policy};
use strata::state::{ReconcileState, RefusalReason};

use crate::support::World;

/// Adds files of these paths to the branch, which no work tree could hold as fast.
fn import(world: &World, paths: impl Iterator<Item = String>) -> String {
    let mut text = String::from(
        "commit refs/heads/main\ncommitter A <a@e> 1767225600 +0000\ndata 4\nmany\n\
         from refs/heads/main^0\n",
    );
    for path in paths {
        let _infallible = writeln!(text, "M 644 inline {path}\ndata 1\nx");
    }
    let bare = world.path("fleet.git");
    let output = world.git_output(&bare, &["fast-import", "--quiet"], text.as_bytes());
    assert!(output.status.success(), "{output:?}");
    world.git_at(&bare, &["rev-parse", "refs/heads/main"])
}

#[test]
fn a_hundred_thousand_files_beside_the_templates_cost_little() {
    let world = World::new();
    world.once();
    let commit = import(&world, (0..100_000).map(|n| format!("docs/{}/{n}", n / 1_000)));
    let begun = Instant::now();
    let report = world.once();
    assert_eq!((report.result, report.commit), (PassResult::Unchanged, commit));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(world.once().result, PassResult::Unchanged);
}

/// Where Strata looks at them, they are read once and held against the layers.
#[test]
fn a_hundred_thousand_files_of_a_template_are_taken() {
    let world = World::new();
    world.once();
    import(&world, (0..100_000).map(|n| format!("templates/web/srv/{}/{n}", n / 1_000)));
    let report = world.once();
    assert_eq!(report.result, PassResult::Applied, "{:?}", report.message);
    let generation = world.ring("web", "everyone").expect("moved");
    let generation = world.store.generation(&generation).expect("sealed");
    let unit = world.store.open_unit(generation.layers().last().expect("layers")).expect("sound");
    assert_eq!(fs::read(unit.path.join("filesystem/srv/99/99999")).expect("read"), b"x");
}

/// 3 MiB that no compression makes smaller.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).take((3 << 20) / 8).flatten().collect()
}

#[test]
fn a_fetch_beyond_the_limit_is_cut_off_and_what_was_applied_stays() {
    let world = World::new();
    let applied = world.once().commit;
    let rings = world.rings();
    fs::write(world.path("work/noise"), noise()).expect("written");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    let large = world.push("large");
    let mut reconciler = world.opened(|| Options { fetch_bytes: 1 << 20, ..Options::default() });
    let never = AtomicBool::new(false);
    for _ in 0..2 {
        let error = reconciler.pass(&never).expect_err("too large");
        assert!(
            matches!(error, PassError::Mirror(MirrorError::TooLarge { limit: 1_048_576, .. })),
            "{error}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("--fetch-limit")));
        assert_eq!(error.policy(), Policy::Retry);
        assert_eq!(world.rings(), rings);
    }
    // It is told, once, and rollouts of what was applied go on.
    let state = ReconcileState::read(&world.store).expect("readable").expect("there");
    assert_eq!(state.applied.map(|applied| applied.commit), Some(applied.clone()));
    assert!(state.failing.expect("told").message.contains("more than 1048576 bytes"));
    let step = reconciler.step(&never).expect("a step").expect("a commit was taken");
    assert_eq!(step.commit, applied);
    // Nothing of it is left.
    let packs = fs::read_dir(world.store.state("mirror.git/objects/pack")).expect("packs");
    let sizes = packs.map(|entry| entry.expect("an entry").metadata().expect("there").len());
    assert!(sizes.sum::<u64>() < 1 << 20);
    drop(reconciler);
    assert_eq!(world.once().commit, large);
    assert_ne!(world.rings(), rings);
}

#[test]
fn a_huge_blob_is_refused_before_it_is_read() {
    let world = World::new();
    world.once();
    let rings = world.rings();
    fs::create_dir_all(world.path("work/templates/web")).expect("made");
    let file = fs::File::create(world.path("work/templates/web/huge")).expect("created");
    file.set_len((256 << 20) + 1).expect("sparse");
    world.push("huge");
    let report = world.once();
    assert_eq!(report.refusal, Some(RefusalReason::Unreadable));
    assert!(report.message.expect("told").contains("templates/web/huge"));
    assert_eq!(world.rings(), rings);
}

/// What submodules say makes nothing run and nothing be fetched.
#[test]
fn submodules_are_never_looked_at() {
    for url in ["ext::sh -c 'touch PWNED'", "-u./payload", "file:///", "../../other.git"] {
        for path in ["module", "../up", "-x", ".git/hooks"] {
            let world = World::new();
            world.once();
            let rings = world.rings();
            let text = format!(
                "[submodule \"module\"]\n\tpath = {path}\n\turl = \"{url}\"\n\tupdate = !touch PWNED\n"
            );
            let modules = world.hash_object("blob", text.as_bytes());
            let configuration = world.hash_object("blob", b"[[repository]]\nname = \"main\"\n");
            let ldf = world.hash_object("blob", b"main/base 1\n");
            let templates =
                world.raw_tree(&[("100644", b"sql.ldf", &ldf), ("100644", b"web.ldf", &ldf)]);
            let commit = world.head();
            world.push_raw(&[
                ("100644", b".gitmodules", &modules),
                ("160000", b"module", &commit),
                ("100644", b"strata.toml", &configuration),
                ("40000", b"templates", &templates),
            ]);
            match world.reconciler().pass(&AtomicBool::new(false)) {
                Ok(report) => assert_eq!(report.result, PassResult::Applied, "{url} {path}"),
                // Git's own check may refuse the file.
                Err(error) => {
                    assert!(matches!(error, PassError::Mirror(_)), "{error}");
                    assert_eq!(world.rings(), rings);
                }
            }
            let mirror = world.store.state("mirror.git");
            assert!(!mirror.join("modules").exists());
            assert!(!mirror.join("PWNED").exists() && !world.path("PWNED").exists());
        }
    }
}

/// Hooks and settings of a source on this host are its owner's, not ours.
#[test]
fn what_a_source_has_configured_does_not_run_here() {
    let world = World::new();
    let bare = world.path("fleet.git");
    let hook = format!("#!/bin/sh\ntouch {}\n", world.path("PWNED").display());
    for name in ["post-checkout", "post-merge", "reference-transaction", "fsmonitor"] {
        let path = bare.join("hooks").join(name);
        fs::create_dir_all(path.parent().expect("hooks")).expect("made");
        fs::write(&path, &hook).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("set");
    }
    let command = format!("touch {}", world.path("PWNED").display());
    for key in ["core.fsmonitor", "core.sshCommand", "uploadpack.packObjectsHook"] {
        world.git_at(&bare, &["config", key, &command]);
    }
    assert_eq!(world.once().result, PassResult::Applied);
    assert!(!world.path("PWNED").exists());
}
