//! Commits and sources that are refused: nothing moves, and the reason is told.

use std::net::TcpListener;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use strata::audit::{Position, Reader};
use strata::pass::{Options, PassError, PassReport, PassResult};
use strata::source::Source;
use strata::state::{ReconcileState, RefusalReason};
use strata_core::event::Event;

use crate::support::{World, name};

/// A world on which a good commit was applied, with its ring links.
fn applied() -> (World, Vec<String>) {
    let world = World::new();
    world.once();
    let rings = world.rings();
    (world, rings)
}

/// One pass that must refuse, twice: the second finds the same and writes nothing.
fn refused(world: &World, reason: RefusalReason, rings: &[String]) -> PassReport {
    let report = world.once();
    assert_eq!((report.result, report.refusal), (PassResult::Refused, Some(reason)), "{report:?}");
    assert_eq!(world.rings(), rings, "nothing was moved");
    let state = ReconcileState::read(&world.store).expect("readable").expect("written");
    let refusal = state.refused.expect("told in the state");
    assert_eq!((refusal.reason, refusal.commit.as_str()), (reason, report.commit.as_str()));
    let before = world.snapshot();
    assert_eq!(world.once().result, PassResult::Refused);
    world.assert_unchanged(&before);
    report
}

#[test]
fn a_commit_with_faults_is_refused_with_all_of_them() {
    let (world, rings) = applied();
    world.write("templates/web.ldf", "main/app 3\nmain/base 1\n");
    world.write("templates/sql.ldf", "no-slash 1\n");
    world.write("templates/new.ldf", "main/base 1\n");
    world.push("bad");
    let report = refused(&world, RefusalReason::Invalid, &rings);
    let files: Vec<_> = report.diagnostics.iter().map(|d| (d.file.as_str(), d.line)).collect();
    assert!(files.contains(&("templates/web.ldf", 1)), "{files:?}");
    assert!(files.contains(&("templates/sql.ldf", 1)), "{files:?}");
    world.git(&["revert", "--no-edit", "HEAD"]);
    world.git(&["push", "-q", "origin", "HEAD:main"]);
    assert_eq!(world.once().result, PassResult::Unchanged);
    let state = ReconcileState::read(&world.store).expect("readable").expect("written");
    assert_eq!(state.refused, None);
}

/// What was refused for want of a layer is taken once the layer is there.
#[test]
fn a_refused_commit_is_looked_at_again_when_a_repository_changes() {
    let (world, rings) = applied();
    world.write("templates/web.ldf", "main/app 3\nmain/base 1\n");
    world.push("ahead of the import");
    let mut reconciler = world.reconciler();
    let never = AtomicBool::new(false);
    assert_eq!(reconciler.pass(&never).expect("a pass").result, PassResult::Refused);
    assert_eq!(world.rings(), rings);
    world.build_layer("app", "3");
    assert_eq!(reconciler.pass(&never).expect("a pass").result, PassResult::Applied);
}

#[test]
fn an_empty_source_is_refused() {
    let (world, rings) = applied();
    world.git(&["rm", "-rq", "."]);
    world.push("oops");
    let report = refused(&world, RefusalReason::Empty, &rings);
    assert!(report.message.expect("told").contains("no layer definition"));
}

#[test]
fn a_rewritten_branch_is_refused_unless_allowed() {
    let (world, rings) = applied();
    let first = world.head();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.git(&["commit", "-qa", "--amend", "-m", "rewritten"]);
    world.git(&["push", "-qf", "origin", "HEAD:main"]);
    let report = refused(&world, RefusalReason::Rewritten, &rings);
    assert!(report.message.expect("told").contains(&first));
    let mut reconciler = world.opened(|| Options { allow_rewrite: true, ..Options::default() });
    let report = reconciler.pass(&AtomicBool::new(false)).expect("a pass");
    assert_eq!(report.result, PassResult::Applied);
    drop(reconciler);
    assert_eq!(world.once().result, PassResult::Unchanged, "the new history is the mark now");
}

/// An old commit cannot be played back, whatever happened to the mirror.
#[test]
fn going_back_is_a_rewrite_too() {
    let (world, _) = applied();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    world.once();
    let rings = world.rings();
    world.git(&["reset", "-q", "--hard", "HEAD~1"]);
    world.git(&["push", "-qf", "origin", "HEAD:main"]);
    std::fs::remove_dir_all(world.store.state("mirror.git")).expect("removed");
    refused(&world, RefusalReason::Rewritten, &rings);
}

#[test]
fn entries_with_forbidden_names_are_refused() {
    for bad in [&b".."[..], b".", b".git", b".GIT"] {
        let (world, rings) = applied();
        let blob = world.hash_object("blob", b"main/base 1\n");
        let inner = world.raw_tree(&[("100644", bad, &blob)]);
        world.push_raw(&[("40000", b"templates", &inner)]);
        // Git's own check may refuse the objects before the tree is read.
        match world.reconciler().pass(&AtomicBool::new(false)) {
            Ok(report) => assert_eq!(report.refusal, Some(RefusalReason::Unreadable)),
            Err(error) => assert!(matches!(error, PassError::Mirror(_)), "{error}"),
        }
        assert_eq!(world.rings(), rings);
    }
}

#[test]
fn names_that_are_not_utf_8_are_refused() {
    let (world, rings) = applied();
    let blob = world.hash_object("blob", b"main/base 1\n");
    let inner = world.raw_tree(&[("100644", b"a\xff.ldf", &blob)]);
    world.push_raw(&[("40000", b"templates", &inner)]);
    refused(&world, RefusalReason::Unreadable, &rings);
}

#[test]
fn submodules_and_links_in_place_of_files_are_refused_by_name() {
    let (world, rings) = applied();
    let configuration = world.hash_object("blob", b"[[repository]]\nname = \"main\"\n");
    let ldf = world.hash_object("blob", b"main/base 1\n");
    let target = world.hash_object("blob", b"/etc/passwd");
    let commit = world.head();
    let web = world.raw_tree(&[("160000", b"module", &commit)]);
    let templates = world.raw_tree(&[
        ("120000", b"sql.ldf", &target),
        ("100644", b"web.ldf", &ldf),
        ("40000", b"web", &web),
    ]);
    world.push_raw(&[
        ("100644", b"strata.toml", &configuration),
        ("40000", b"templates", &templates),
    ]);
    let report = refused(&world, RefusalReason::Invalid, &rings);
    let files: Vec<_> = report.diagnostics.iter().map(|d| d.file.as_str()).collect();
    assert!(files.contains(&"templates/sql.ldf"), "{files:?}");
    assert!(files.contains(&"templates/web/module"), "{files:?}");
}

#[test]
fn a_symbolic_link_in_a_configuration_tree_is_kept_and_never_followed() {
    let (world, _) = applied();
    std::fs::create_dir_all(world.path("work/templates/web/etc")).expect("made");
    std::os::unix::fs::symlink("/etc/passwd", world.path("work/templates/web/etc/link"))
        .expect("linked");
    world.push("a link");
    assert_eq!(world.once().result, PassResult::Applied);
    let generation = world.ring("web", "everyone").expect("moved");
    let generation = world.store.generation(&generation).expect("sealed");
    let unit = world.store.open_unit(generation.layers().last().expect("layers")).expect("sound");
    let link = std::fs::read_link(unit.path.join("filesystem/etc/link")).expect("a link");
    assert_eq!(link, std::path::Path::new("/etc/passwd"));
}

#[test]
fn a_huge_definition_is_refused() {
    let (world, rings) = applied();
    world.write("templates/web.ldf", &"#".repeat(2 << 20));
    world.push("huge");
    refused(&world, RefusalReason::Invalid, &rings);
}

#[test]
fn a_damaged_source_moves_nothing_and_is_told() {
    let (world, rings) = applied();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    let good = world.head();
    world.git_at(&world.path("fleet.git"), &["repack", "-adq"]);
    let packs = world.path("fleet.git/objects/pack");
    let mut damaged = 0;
    for entry in std::fs::read_dir(packs).expect("packs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            let mut bytes = std::fs::read(&path).expect("read");
            let length = bytes.len();
            for byte in &mut bytes[length / 3..2 * length / 3] {
                *byte ^= 0x55;
            }
            std::fs::remove_file(&path).expect("removed");
            std::fs::write(&path, bytes).expect("written");
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let error = world.reconciler().pass(&AtomicBool::new(false)).expect_err("told");
    assert!(matches!(error, PassError::Mirror(_)), "{error}");
    assert_eq!(world.rings(), rings);
    let state = ReconcileState::read(&world.store).expect("readable").expect("written");
    assert!(state.failing.is_some());
    let before = world.snapshot();
    world.reconciler().pass(&AtomicBool::new(false)).expect_err("still");
    let state = world.snapshot();
    let file = world.store.state("reconcile.json");
    assert_eq!(state[&file], before[&file], "the same failure is not written again");
    assert_eq!(world.head(), good);
}

#[test]
fn a_remote_that_never_answers_is_given_up_at_the_deadline() {
    let (world, rings) = applied();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let source = Source::parse(&format!("https://127.0.0.1:{port}/fleet.git"), "main");
    let options = || Options { fetch_deadline: Duration::from_secs(1), ..Options::default() };
    let mut reconciler = world.opened_from(&source.expect("a source"), options);
    let begun = Instant::now();
    let error = reconciler.pass(&AtomicBool::new(false)).expect_err("no answer");
    assert!(error.to_string().contains("had not ended after 1 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(world.rings(), rings);
}

#[test]
fn a_missing_branch_is_told() {
    let (world, _) = applied();
    let path = world.path("fleet.git");
    let source = Source::parse(path.to_str().expect("UTF-8"), "production").expect("a source");
    let mut reconciler = world.opened_from(&source, Options::default);
    let error = reconciler.pass(&AtomicBool::new(false)).expect_err("no branch");
    assert!(error.to_string().contains("production"), "{error}");
}

/// Also over a restart, and where the commit is the one of before.
#[test]
fn that_passes_work_again_is_told_once() {
    let (world, _) = applied();
    let (here, away) = (world.path("fleet.git"), world.path("away.git"));
    let never = AtomicBool::new(false);
    let kinds = || {
        let mut reader = Reader::new(world.store.clone(), Position::default());
        let mut kinds = Vec::new();
        while let Some(record) = reader.next().expect("readable") {
            kinds.push(record.event.kind());
        }
        kinds.into_iter().filter(|kind| kind.starts_with("pass-")).collect::<Vec<_>>()
    };
    for round in 1..=2 {
        let mut reconciler = world.reconciler();
        std::fs::rename(&here, &away).expect("moved away");
        for _ in 0..3 {
            reconciler.pass(&never).expect_err("nothing is there");
        }
        drop(reconciler);
        std::fs::rename(&away, &here).expect("moved back");
        let report = world.once();
        assert!(report.news, "{report:?}");
        let [event] = &report.events[..] else { panic!("it is told: {report:?}") };
        let Event::PassRecovered { message, .. } = &event.event else { panic!("{event:?}") };
        assert!(message.contains("fleet.git"), "{message}");
        assert_eq!(world.once().events, []);
        assert_eq!(kinds(), ["pass-failed", "pass-recovered"].repeat(round));
    }
}

#[test]
fn one_reconciler_a_store() {
    let (world, _) = applied();
    let first = world.reconciler();
    let error = world.reconciler_with(Options::default()).expect_err("locked");
    let holder = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(first);
    world.reconciler();
}

#[test]
fn a_withdrawn_layer_refuses_what_is_new() {
    let (world, rings) = applied();
    let mut writer = world.store.write_repository(&name("main")).expect("a writer");
    let why = Some("CVE-2026-1".to_owned());
    writer.set_withdrawn(&name("app"), &name("2"), why).expect("withdrawn");
    writer.commit().expect("committed");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    let report = refused(&world, RefusalReason::Invalid, &rings);
    assert!(report.diagnostics.iter().any(|d| d.message.contains("CVE-2026-1")), "{report:?}");
}
