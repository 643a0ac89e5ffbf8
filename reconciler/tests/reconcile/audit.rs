//! The audit log of a real store: what it holds, crashes, tampering, many writers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use strata::audit::{AuditLog, Position, Reader, verify};
use strata_core::audit::{Record, Who};
use strata_core::event::{Event, EventRecord};
use strata_store::Store;
use strata_store::durable::Disk;

use crate::support::{World, mac, name};

fn operator(name: &str) -> Who {
    Who { operator: Some(name.to_owned()), ..Who::default() }
}

fn silent(number: u32) -> Event {
    Event::VaSilent { mac: mac(number), days: 31 }
}

fn all(store: &Arc<Store>) -> Vec<Record> {
    let mut reader = Reader::new(store.clone(), Position::default());
    let mut records = Vec::new();
    while let Some(record) = reader.next().expect("readable") {
        records.push(record);
    }
    records
}

fn segment(store: &Store, number: u32) -> PathBuf {
    store.state("audit").join(format!("{number:08}.log"))
}

/// A store with a log of `count` records in segments of 2 KiB.
fn logged(count: u32) -> (tempfile::TempDir, Arc<Store>) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::init(directory.path()).expect("a store"));
    let log = AuditLog::new(store.clone()).with_segment_bytes(2 << 10);
    for number in 0..count {
        log.note(&operator("ann"), silent(number)).expect("written");
    }
    (directory, store)
}

#[test]
fn a_pass_tells_who_what_and_how_long() {
    let world = World::new();
    world.write(
        "appliances.toml",
        "[[appliance]]\nname = \"web-1\"\nmac = \"02:00:00:00:00:01\"\nldf = \"templates/web\"\nring = \"everyone\"\n",
    );
    let commit = world.push("declares a VA");
    world.once();
    let records = all(&world.store);
    let kinds: Vec<_> = records.iter().map(|record| record.event.kind()).collect();
    for kind in ["ring-moved", "rollout-done", "va-linked", "commit-applied"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    for record in &records {
        assert_eq!(record.who.commit.as_deref(), Some(commit.as_str()), "{record:?}");
        assert_eq!(record.who.author.as_deref(), Some("Ann <ann@example.org>"));
    }
    let moved = records.iter().find_map(|record| match &record.event {
        Event::RingMoved { composition, ring, from: None, to }
            if (composition.as_str(), ring.as_str()) == ("web", "everyone") =>
        {
            Some(*to)
        }
        _ => None,
    });
    assert_eq!(moved, world.ring("web", "everyone"));
    let before = world.snapshot();
    world.once();
    world.assert_unchanged(&before);
    world.write("templates/web.ldf", "main/nothing 1\n");
    let bad = world.push("names what is not there");
    world.once();
    let last = all(&world.store).pop().expect("a record");
    assert!(
        matches!(&last.event, Event::CommitRefused { commit, problems, .. } if *commit == bad && !problems.is_empty()),
        "{last:?}"
    );
    let verified = verify(&world.store, None).expect("readable");
    assert_eq!((verified.broken, verified.first), (None, Some(1)));
}

#[test]
fn nothing_moves_that_cannot_be_told() {
    let world = World::new();
    world.once();
    let rings = world.rings();
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("an update");
    let audit = world.store.state("audit");
    let aside = world.store.state("aside");
    fs::rename(&audit, &aside).expect("moved");
    fs::write(&audit, "in the way").expect("written");
    let error = world.reconciler().pass(&false.into()).expect_err("the log is not there");
    assert!(error.to_string().contains("audit log"), "{error}");
    assert_eq!(world.rings(), rings);
    fs::remove_file(&audit).expect("removed");
    fs::rename(&aside, &audit).expect("moved back");
    world.once();
    assert_ne!(world.rings(), rings);
    assert_eq!(verify(&world.store, None).expect("readable").broken, None);
}

#[test]
fn rotation_keeps_the_chain_and_a_reader_crosses_it() {
    let (_directory, store) = logged(40);
    let verified = verify(&store, None).expect("readable");
    assert!(verified.segments > 3, "{verified:?}");
    assert_eq!((verified.records, verified.broken), (40, None));
    let numbers: Vec<_> = all(&store).iter().map(|record| record.seq).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    // An older segment may be moved away, the newest may not follow a gap.
    let again = verify(&store, verified.head).expect("readable");
    assert_eq!(again.contains, Some(true));
    fs::remove_file(segment(&store, 1)).expect("removed");
    let rest = verify(&store, None).expect("readable");
    assert!(rest.broken.is_none() && rest.first > Some(1), "{rest:?}");
    fs::remove_file(segment(&store, 3)).expect("removed");
    let broken = verify(&store, None).expect("readable").broken.expect("a gap");
    assert_eq!((broken.file.as_str(), broken.line), ("state/audit/00000004.log", 1));
}

#[test]
fn every_tampering_names_its_record() {
    let tamper = |change: &dyn Fn(Vec<String>) -> Vec<String>| {
        let (_directory, store) = logged(5);
        let path = segment(&store, 1);
        let text = fs::read_to_string(&path).expect("read");
        let lines = change(text.lines().map(str::to_owned).collect());
        fs::write(&path, lines.join("\n") + "\n").expect("written");
        verify(&store, None).expect("readable").broken.map(|broken| (broken.line, broken.seq))
    };
    assert_eq!(tamper(&|lines| lines), None);
    // Line 1 is the header, so record n stands in line n + 1.
    let edited = |mut lines: Vec<String>| {
        lines[3] = lines[3].replace("\"days\":31", "\"days\":1");
        lines
    };
    assert_eq!(tamper(&edited), Some((4, 3)));
    let removed = |mut lines: Vec<String>| {
        lines.remove(3);
        lines
    };
    assert_eq!(tamper(&removed), Some((4, 3)));
    let exchanged = |mut lines: Vec<String>| {
        lines.swap(2, 3);
        lines
    };
    assert_eq!(tamper(&exchanged), Some((3, 2)));
    let header = |mut lines: Vec<String>| {
        lines[0] = lines[0].replace("\"first\":1", "\"first\":2");
        lines
    };
    assert_eq!(tamper(&header), Some((1, 1)));
    // Who also makes the hash of the changed line fit breaks the next one.
    let forged = |mut lines: Vec<String>| {
        let previous = lines[2][..64].parse().expect("a hash");
        let json = lines[3][65..].replace("\"days\":31", "\"days\":1");
        let hash = strata_core::audit::link(&previous, json.as_bytes());
        lines[3] = format!("{hash} {json}");
        lines
    };
    assert_eq!(tamper(&forged), Some((5, 4)));
    // An end that is cut off is only seen by who kept the hash.
    let (_directory, store) = logged(5);
    let head = verify(&store, None).expect("readable").head;
    let text = fs::read_to_string(segment(&store, 1)).expect("read");
    let cut: Vec<_> = text.lines().take(4).collect();
    fs::write(segment(&store, 1), cut.join("\n") + "\n").expect("written");
    let verified = verify(&store, head).expect("readable");
    assert_eq!((verified.broken, verified.contains), (None, Some(false)));
}

#[test]
fn what_a_crash_tore_stays_and_is_told() {
    let (_directory, store) = logged(3);
    let path = segment(&store, 1);
    let mut text = fs::read(&path).expect("read");
    let torn = &text[text.len() - 150..text.len() - 100].to_vec();
    text.extend_from_slice(torn);
    fs::write(&path, &text).expect("written");
    let verified = verify(&store, None).expect("readable");
    assert_eq!((verified.torn_end, verified.broken), (true, None));
    let log = AuditLog::new(store.clone());
    log.note(&operator("ann"), silent(4)).expect("written");
    log.note(&operator("ann"), silent(5)).expect("written");
    assert_eq!(fs::read(&path).expect("read"), text, "what was there is as it was");
    let verified = verify(&store, None).expect("readable");
    assert_eq!((verified.segments, verified.torn_bytes), (2, 50));
    assert_eq!((verified.records, verified.torn_end, verified.broken), (5, false, None));
    assert_eq!(all(&store).len(), 5);
    // What was torn may not be changed afterwards either.
    *text.last_mut().expect("torn") ^= 1;
    fs::write(&path, &text).expect("written");
    assert!(verify(&store, None).expect("readable").broken.is_some());
}

#[test]
fn however_long_the_last_records_are_the_next_follows_them() {
    let (_directory, store) = logged(3);
    // Each time by another process, which knows the log from its end alone.
    let note = |event| AuditLog::new(store.clone()).note(&operator("ann"), event).expect("written");
    let long = |length| Event::CommandBegun { command: "x".repeat(length) };
    for length in [100, 10_000, 16_000, 20_000, 900_000, 100, 1_000_000, 5] {
        note(long(length));
        note(silent(1));
    }
    let verified = verify(&store, None).expect("readable");
    assert_eq!((verified.broken, verified.torn_end), (None, false));
    assert_eq!((verified.records, verified.segments), (19, 1));
    assert_eq!(all(&store).last().expect("one").seq, 19);
}

#[test]
fn stopped_at_every_step_it_goes_on() {
    for step in 0.. {
        let (directory, store) = logged(3);
        let failing = Store::open_with(directory.path(), Disk::failing_at(step)).expect("opened");
        let log = AuditLog::new(Arc::new(failing)).with_segment_bytes(1);
        let events: Vec<_> = (10..13).map(|n| EventRecord::new(7, silent(n))).collect();
        let written = log.tell(&operator("ann"), &events);
        AuditLog::new(store.clone()).note(&operator("ann"), silent(99)).expect("goes on");
        let verified = verify(&store, None).expect("readable");
        assert_eq!((verified.broken, verified.torn_end), (None, false), "step {step}");
        let records = all(&store);
        assert!(
            matches!(records.last().expect("one").event, Event::VaSilent { mac: m, .. } if m == mac(99))
        );
        if written.is_ok() {
            assert_eq!(records.len(), 7);
            assert!(step > 10, "{step} steps");
            return;
        }
    }
}

#[test]
fn many_writers_make_one_chain() {
    let (directory, store) = logged(1);
    let write = |who: &'static str| {
        let store = Arc::new(Store::open(directory.path()).expect("a store"));
        std::thread::spawn(move || {
            let log = AuditLog::new(store).with_segment_bytes(4 << 10);
            (0..50).for_each(|n| log.note(&operator(who), silent(n)).expect("written"));
        })
    };
    let writers: Vec<_> = ["ann", "bea", "cleo", "dora"].map(write).into_iter().collect();
    writers.into_iter().for_each(|writer| writer.join().expect("ends"));
    let verified = verify(&store, None).expect("readable");
    assert_eq!((verified.records, verified.broken), (201, None));
}

/// One sync for all: a step that names a whole fleet stays quick.
#[test]
fn a_record_for_each_of_100_000_vas_takes_few_syncs() {
    let (_directory, store) = logged(1);
    let log = AuditLog::new(store.clone());
    let link = |number| Event::VaLinked {
        name: name(&format!("va-{number}")),
        mac: mac(number),
        from: None,
        to: "web/everyone".to_owned(),
    };
    let events: Vec<_> = (0..100_000).map(|n| EventRecord::new(7, link(n))).collect();
    let before = store.disk().steps();
    log.tell(&operator("ann"), &events).expect("written");
    assert!(store.disk().steps() - before < 50, "{} steps", store.disk().steps() - before);
    let verified = verify(&store, None).expect("readable");
    assert_eq!((verified.records, verified.broken), (100_001, None));
}

#[test]
fn a_record_that_is_too_long_is_cut_and_nothing_stops() {
    let (_directory, store) = logged(1);
    let log = AuditLog::new(store.clone());
    log.note(&operator("ann"), Event::PassFailed { message: "x".repeat(2 << 20) }).expect("cut");
    let last = all(&store).pop().expect("a record");
    assert!(matches!(last.event, Event::PassFailed { message } if message.ends_with('…')));
}

/// Runs the program on a world's store. Returns its exit status and what it printed.
fn strata(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .env("STRATA_STORE", world.store.root())
        .env("SUDO_USER", "ann")
        .output()
        .expect("runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn no_secret_of_a_command_line_gets_into_the_log() {
    let world = World::new();
    world.once();
    let provision = ["va", "provision", "--template", "web", "--ring", "everyone", "w1"];
    assert_eq!(strata(&world, &provision).0, Some(0));
    // It does not run, so this fails, and says why.
    assert_eq!(strata(&world, &["va", "exec", "w1", "--", "mysql", "-ps3cret"]).0, Some(2));
    let build = ["layer", "build", "--name", "x", "--version", "1", "--"];
    let shell = ["sh", "-c", "exit 3", "s3cret", "TOKEN=s3cret"];
    assert_eq!(strata(&world, &[&build[..], &shell[..]].concat()).0, Some(2));
    assert_eq!(strata(&world, &[&build[..], &["/no/such s3cret"]].concat()).0, Some(2));
    let url = "https://ann:s3cret@example.org/x.deb?token=s3cret";
    assert_eq!(strata(&world, &["layer", "import", url]).0, Some(2));
    // Nor by whatever else is told.
    let message = format!("git could not fetch {url}: no answer");
    AuditLog::new(world.store.clone())
        .note(&operator("ann"), Event::PassFailed { message })
        .expect("written");
    let text = fs::read_to_string(segment(&world.store, 1)).expect("read");
    assert!(!text.contains("s3cret"), "{text}");
    for part in [
        "\"va exec w1 -- mysql (1 argument, not kept)\"",
        "\"layer build --name x --version 1 -- sh (4 arguments, not kept)\"",
        "layer build --name x --version 1 -- (a program)",
        "layer import https://example.org/x.deb?…",
        "git could not fetch https://example.org/x.deb?…: no answer",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(verify(&world.store, None).expect("readable").broken, None);
}

#[test]
fn commands_are_told_and_the_log_is_listed() {
    let world = World::new();
    world.once();
    let strata = |arguments: &[&str]| strata(&world, arguments);
    assert_eq!(
        strata(&["va", "provision", "--template", "web", "--ring", "everyone", "w1"]).0,
        Some(0)
    );
    assert_eq!(strata(&["va", "pin", "w1", "--reason", "a look"]).0, Some(0));
    assert_eq!(strata(&["va", "unpin", "nobody"]).0, Some(2));
    // None runs here; that somebody asked is told all the same.
    assert_eq!(strata(&["reconcile", "now", "--wait"]).0, Some(2));
    let (status, text) = strata(&["audit", "list", "--operator", "ann"]);
    assert_eq!(status, Some(0));
    for part in [
        "runs: va provision --template web",
        "va-pinned",
        "a look",
        "exit status 2: va unpin nobody",
        "runs: reconcile now --wait",
        "exit status 2: reconcile now --wait: no reconciler runs",
        "[ann]",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let (_, text) = strata(&["audit", "list", "--va", "w1", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let kinds: Vec<_> =
        listed["records"].as_array().expect("records").iter().map(|r| &r["event"]).collect();
    assert_eq!(
        kinds,
        ["command-begun", "command-ended", "command-begun", "va-pinned", "command-ended"]
    );
    let (status, text) = strata(&["audit", "verify"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("whole: "), "{text}");
    let path = segment(&world.store, 1);
    let changed = fs::read_to_string(&path).expect("read").replace("a look", "nothing");
    fs::write(&path, changed).expect("written");
    let (status, text) = strata(&["audit", "verify"]);
    assert_eq!(status, Some(1));
    assert!(text.starts_with("broken at record "), "{text}");
    let (status, text) = strata(&["events", "--kind", "ring-moved", "--template", "web"]);
    assert_eq!(status, Some(0));
    assert_eq!(text.lines().count(), 3, "a heading and two rings:\n{text}");
}
