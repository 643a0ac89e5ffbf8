//! `strata store gc`.

use std::fs;

use crate::support::{Bench, mac, text};

const AT_ONCE: [&str; 7] = ["store", "gc", "--apply", "--grace-hours", "0", "--generations", "0"];

/// Three generations of one layer; the ring is on the last, and the first two
/// versions are withdrawn.
fn three() -> (Bench, [strata_core::GenerationId; 3]) {
    let bench = Bench::new();
    let ids = ["1", "2", "3"].map(|version| {
        bench.layer("main", "app", version, &[("usr/bin/app", version)]);
        let id = bench.generation(&[("app", version)]);
        bench.roll_out(&id);
        id
    });
    for version in ["1", "2"] {
        bench.good(&["layer", "withdraw", "main/app", version, "--reason", "CVE-2026-1"]);
    }
    (bench, ids)
}

#[test]
fn a_dry_run_comes_first_and_the_ring_keeps_what_it_is_on() {
    let (bench, ids) = three();
    let dry = bench.good(&["store", "gc", "--grace-hours", "0", "--generations", "0"]);
    assert!(dry.contains("unit main/app 1: withdrawn\n"), "{dry}");
    assert!(dry.contains("2 generations and 2 layer units"), "{dry}");
    assert_eq!(bench.store.generations().expect("a list").len(), 3, "nothing was removed");
    let young = bench.good(&["store", "gc", "--apply"]);
    assert!(young.starts_with("nothing to remove; 3 generations"), "{young}");
    bench.good(&AT_ONCE);
    assert_eq!(bench.store.generations().expect("a list"), [ids[2]]);
    assert!(bench.unit("main", "app", "3").exists());
    assert!(!bench.unit("main", "app", "1").exists());
    let listed = bench.good(&["layer", "list"]);
    assert_eq!(listed.lines().count(), 1, "{listed}");
    bench.good(&["repo", "verify", "main"]);
    let again = bench.good(&AT_ONCE);
    assert_eq!(again, "nothing to remove; 1 generation and 1 layer unit stay\n");
}

#[test]
fn a_withdrawn_unit_that_was_collected_comes_back_withdrawn() {
    let (bench, _) = three();
    bench.good(&AT_ONCE);
    let gone = bench.bad(&["layer", "show", "main/app", "1"]);
    assert!(gone.contains("was withdrawn, and garbage collection took it: CVE-2026-1\n"), "{gone}");
    let root = bench.path("roots/main/app-1");
    let build = ["layer", "build", "--name", "app", "--version", "1", "--root", text(&root)];
    let again = bench.strata(&build);
    assert!(again.status.success(), "{again:?}");
    let said = String::from_utf8(again.stderr).expect("UTF-8");
    let note = "note: main/app 1 is withdrawn, nothing new may use it: CVE-2026-1\n";
    assert!(said.contains(note) && said.contains("hint: "), "{said}");
    assert!(said.contains("strata layer restore main/app 1\n"), "{said}");
    let listed = bench.good(&["layer", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["layers"].as_array().or(listed.as_array()).expect("a list").len(), 2);
    let shown = bench.good(&["layer", "show", "main/app", "1"]);
    assert!(shown.contains("Withdrawn: CVE-2026-1\n"), "{shown}");
    bench.good(&["repo", "verify", "main"]);
    assert_eq!(
        bench.good(&["layer", "restore", "main/app", "1"]),
        "restored main/app 1\n",
        "it may be used again"
    );
    let gone = bench.good(&["layer", "restore", "main/app", "2"]);
    assert!(gone.starts_with("restored main/app 2\n") && gone.contains("not in the rep"), "{gone}");
    assert!(bench.bad(&["layer", "restore", "main/app", "2"]).contains("has no unit app 2"));
    let root = bench.path("roots/main/app-2");
    let build = ["layer", "build", "--name", "app", "--version", "2", "--root", text(&root)];
    let said = String::from_utf8(bench.strata(&build).stderr).expect("UTF-8");
    assert_eq!(said, "", "it was restored while it was not there");
}

#[test]
fn what_a_suspended_va_reports_stays_with_all_its_layers() {
    let (bench, ids) = three();
    bench.report(ids[0]);
    bench.good(&AT_ONCE);
    let kept: std::collections::BTreeSet<_> =
        bench.store.generations().expect("a list").into_iter().collect();
    assert_eq!(kept, [ids[0], ids[2]].into());
    let generation = bench.store.generation(&ids[0]).expect("whole");
    bench.store.open_unit(&generation.layers()[0]).expect("its layer is there");
}

#[test]
fn a_report_that_cannot_be_read_keeps_every_generation() {
    let (bench, _) = three();
    let path = bench.store.reports().join(mac().to_string());
    for lie in ["", "{}", "\u{0}\u{1}"] {
        fs::write(&path, lie).expect("written");
        let told = bench.good(&AT_ONCE);
        assert!(told.contains("unsure: the report of 52:54:00:00:00:01"), "{told}");
        assert_eq!(bench.store.generations().expect("a list").len(), 3);
    }
    fs::remove_file(&path).expect("removed");
    assert!(bench.good(&AT_ONCE).contains("removed 2 generations and 2 layer units"));
}

#[test]
fn data_that_private_files_borrow_stays() {
    let (bench, _) = three();
    let borrowed = bench.path("store/machines/web-01/private/borrowed/main/app_1");
    fs::create_dir_all(borrowed).expect("as the file system of the VA makes it");
    bench.good(&AT_ONCE);
    assert!(bench.unit("main", "app", "1").exists());
    assert!(!bench.unit("main", "app", "2").exists());
}

#[test]
fn a_pass_of_the_reconciler_and_a_collection_exclude_each_other() {
    let (bench, _) = three();
    let lease = bench.store.lease().expect("as a pass takes it");
    let patience = std::time::Duration::from_millis(1);
    assert!(bench.store.collector_lock(patience).is_err());
    let second = bench.store.lease().expect("passes do not exclude each other");
    drop((lease, second));
    bench.store.collector_lock(patience).expect("free again");
}
