use std::path::Path;

use strata_core::metadata::LayerKind;

use super::*;
use crate::private::Owner;
use crate::private::disk::Disk;

fn unit(layer: &str, version: &str) -> LayerSetEntry {
    LayerSetEntry {
        kind: LayerKind::Software,
        repository: "main".parse().expect("valid"),
        layer: layer.parse().expect("valid"),
        version: version.parse().expect("valid"),
        digest: strata_core::Digest::of(layer.as_bytes()),
    }
}

fn id(text: &str) -> GenerationId {
    strata_core::Digest::of(text.as_bytes())
}

fn integrated(unit: &LayerSetEntry, stage: Stage) -> Integrated {
    Integrated { unit: unit.clone(), scripts: Script::ALL.into_iter().collect(), stage }
}

fn running(unit: &LayerSetEntry, script: Script) -> Running {
    Running { unit: unit.clone(), script, at_ms: 1_767_225_600_000 }
}

fn sample() -> Journal {
    let (app, lib) = (unit("app", "2"), unit("lib", "1"));
    let mut journal = Journal { generation: Some(id("old")), ..Journal::default() };
    journal.units = vec![integrated(&lib, Stage::Installed), integrated(&app, Stage::Installing)];
    journal.begin(Some(id("old")), id("new"), Direction::Forward);
    journal.end(running(&app, Script::PreInstall), Outcome::Exit(3), "no\n".to_owned(), 20);
    journal.running = Some(running(&app, Script::PostInstall));
    journal
}

#[test]
fn golden() {
    let text = include_str!("../../../golden/scripts.json");
    assert_eq!(sample().print(), text);
    assert_eq!(Journal::parse(text.as_bytes()).expect("the golden file"), sample());
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(Journal::parse(newer.as_bytes()), Err(JournalError::Version(2))));
    let more = text.replacen("{", "{\"colour\":1,", 1);
    assert!(matches!(Journal::parse(more.as_bytes()), Err(JournalError::Damaged(_))));
}

fn open(path: &Path, disk: Disk) -> Private {
    Private::open_with(path, &Owner::AdHoc, disk).expect("a private directory")
}

#[test]
fn what_was_running_was_interrupted() {
    let directory = tempfile::tempdir().expect("made");
    let private = open(directory.path(), Disk::default());
    assert_eq!(Journal::load(private.root()).expect("read"), None);
    sample().save(&private).expect("written");
    let loaded = Journal::load(private.root()).expect("read").expect("there");
    assert_eq!(loaded.running, None);
    let last = loaded.records.last().expect("noted");
    assert_eq!((last.script, last.outcome), (Script::PostInstall, Outcome::Interrupted));
    assert!(last.open && loaded.failed_in_change().is_some());
}

/// A crash at each step leaves the old journal or the new one.
#[test]
fn a_crash_at_every_step_leaves_the_old_one_or_the_new_one() {
    let directory = tempfile::tempdir().expect("made");
    let old = Journal { generation: Some(id("old")), ..Journal::default() };
    let new = Journal { generation: Some(id("new")), ..old.clone() };
    let mut cut_short = 0;
    for step in 0.. {
        let path = directory.path().join(step.to_string());
        let private = open(&path, Disk::default());
        old.save(&private).expect("written");
        drop(private);
        // The steps of opening come first: as many as a disk that does not fail takes.
        let counted = open(&path, Disk::failing_at(u64::MAX));
        let before = counted.disk().steps();
        drop(counted);
        let private = open(&path, Disk::failing_at(before + step));
        let saved = new.save(&private);
        drop(private);
        let private = open(&path, Disk::default());
        let found = Journal::load(private.root()).expect("read").expect("there");
        assert!(found == old || found == new, "step {step}");
        match saved {
            Ok(()) => {
                assert_eq!(found, new);
                break;
            }
            Err(errno) => assert_eq!(errno, Errno::IO),
        }
        cut_short += 1;
    }
    assert!(cut_short >= 4, "{cut_short} steps");
}

#[test]
fn a_journal_that_is_no_file_or_too_large_is_refused() {
    let directory = tempfile::tempdir().expect("made");
    let private = open(directory.path(), Disk::default());
    let path = directory.path().join("scripts.json");
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("made");
    assert!(matches!(Journal::load(private.root()), Err(JournalError::Read(_))));
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(matches!(Journal::load(private.root()), Err(JournalError::Read(_))));
    std::fs::remove_dir(&path).expect("removed");
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(BYTES as u64 + 1).expect("sparse");
    assert!(matches!(Journal::load(private.root()), Err(JournalError::TooLarge)));
}

#[test]
fn failures_stand_until_their_unit_is_gone_or_somebody_decides() {
    let mut journal = sample();
    journal.running = None;
    journal.complete(id("new"));
    assert_eq!(journal.failures().count(), 1, "of this change");
    journal.begin(Some(id("new")), id("next"), Direction::Forward);
    journal.complete(id("next"));
    assert_eq!(journal.failures().count(), 1, "its unit is there");
    journal.units.pop();
    journal.complete(id("next"));
    assert_eq!(journal.failures().count(), 1, "a restart changes nothing");
    journal.begin(Some(id("next")), id("last"), Direction::Forward);
    journal.complete(id("last"));
    assert_eq!(journal.failures().count(), 0);

    let mut journal = sample();
    journal.refused =
        Some(Refused { generation: id("new"), back: id("old"), why: "it failed".to_owned() });
    let mut left = journal.clone();
    left.leave_refused();
    assert_eq!((left.failures().count(), &left.refused), (1, &None), "its unit is there");
    left.units.clear();
    left.leave_refused();
    assert_eq!(left.failures().count(), 0);
    assert_eq!(journal.retry(), (1, true));
    assert_eq!(journal.units[1].stage, Stage::Arriving);
    assert_eq!((journal.failures().count(), journal.refused), (0, None));
    let mut journal = sample();
    assert_eq!((journal.accept(), journal.accept()), (1, 0));
}

#[test]
fn records_are_bounded_and_failures_are_kept_longest() {
    let app = unit("app", "2");
    let mut journal = Journal::default();
    let flood = "x".repeat(1 << 20);
    journal.end(running(&app, Script::PreInstall), Outcome::TimeLimit, flood.clone(), 1);
    for _ in 0..2 * RECORDS {
        journal.end(running(&app, Script::PostInstall), Outcome::Succeeded, flood.clone(), 1);
    }
    assert_eq!(journal.records.len(), RECORDS);
    assert_eq!(journal.failures().count(), 1);
    for _ in 0..2 * RECORDS {
        journal.end(running(&app, Script::PostInstall), Outcome::Exit(1), flood.clone(), 1);
    }
    assert_eq!(journal.records.len(), RECORDS);
    assert!(journal.print().len() < BYTES / 2);
}
