//! Whoever holds the server, or the wire, and not the keys.

use std::fs;

use crate::support::{Bench, text};

/// A reader that has synced once, from a directory that stands for any server.
fn synced() -> Bench {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    bench.mirror();
    bench
}

fn sync_is_refused(bench: &Bench, why: &str) {
    let before = fs::read(bench.path("reader/repos/main/database")).expect("a database");
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(said.contains(why), "{said}");
    let after = fs::read(bench.path("reader/repos/main/database")).expect("a database");
    assert!(before == after, "what was mirrored stands");
    bench.assert_mirrored();
}

#[test]
fn an_older_state_is_refused() {
    let bench = synced();
    let published = bench.path("published/main");
    let older = fs::read(published.join("snapshot.toml")).expect("a snapshot");
    bench.publish();
    bench.sync();
    fs::write(published.join("snapshot.toml"), older).expect("written");
    sync_is_refused(&bench, "the snapshot has version 1, version 2 was seen before");
    // Not even with an empty mirror: what was seen is remembered elsewhere.
    fs::remove_dir_all(bench.path("reader/repos/main")).expect("removed");
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(said.contains("version 2 was seen before"), "{said}");
}

#[test]
fn the_database_of_another_state_is_refused() {
    let bench = synced();
    let published = bench.path("published/main");
    let other = fs::read(published.join("database")).expect("a database");
    bench.layer("more", "1", "more");
    bench.publish();
    for entry in fs::read_dir(&published).expect("listed") {
        let path = entry.expect("an entry").path();
        if text(&path).contains("/database") {
            fs::write(path, &other).expect("written");
        }
    }
    sync_is_refused(&bench, "the database is not the one that the snapshot names");
}

#[test]
fn signatures_of_others_are_refused() {
    let bench = synced();
    let snapshot = bench.path("published/main/snapshot.toml");
    let changed = fs::read_to_string(&snapshot).expect("a snapshot");
    fs::write(&snapshot, changed.replace("version = 1", "version = 9")).expect("written");
    sync_is_refused(&bench, "0 of 1 signatures");
}

#[test]
fn documents_without_end_are_refused() {
    let bench = synced();
    let published = bench.path("published/main");
    fs::write(published.join("snapshot.toml"), vec![b'#'; 1 << 20]).expect("written");
    sync_is_refused(&bench, "it has more than 262144 bytes");
}

#[test]
fn a_url_needs_keys_or_says_that_it_has_none() {
    let bench = Bench::new();
    let url = bench.path("published/main");
    bench.configure_with(text(&url), "");
    let said = bench.refused(&["check", &bench.gitops()]);
    assert!(said.contains("a repository with a `url` needs the `keys` that sign it"), "{said}");
    bench.configure_with(text(&url), "unsigned = true\n");
    let said = bench.mirror();
    assert!(said.contains("2 layers mirrored"), "{said}");
    bench.assert_mirrored();
    bench.configure_with("https://alice:secret@host/main", "unsigned = true\n");
    let said = bench.refused(&["check", &bench.gitops()]);
    assert!(said.contains("say with `credentials` where they are"), "{said}");
    assert!(!said.contains("secret@"), "{said}");
}

/// Publishes without signatures, and with this in place of that in the database.
fn unsigned_with(bench: &Bench, from: &str, to: &str) {
    let database = bench.owner.database(&"main".parse().expect("a name")).expect("a database");
    let printed = database.print();
    assert!(printed.contains(from), "{printed}");
    let path = bench.path("published/main/database");
    fs::write(path, printed.replace(from, to)).expect("written");
    bench.configure_with(text(&bench.path("published/main")), "unsigned = true\n");
}

#[test]
fn a_database_that_lies_about_sizes_brings_nothing() {
    let bench = Bench::new();
    // Less than it is: limits count with that.
    unsigned_with(&bench, "Content-Bytes: 160000", "Content-Bytes: 16");
    let said = bench.refused(&["repo", "mirror", &bench.gitops(), "--max-bytes", "1000"]);
    assert!(said.contains("files of 160000 bytes, expected 16"), "{said}");
    assert!(!bench.unit("lib", "1:2").exists());
    // More than any layer has.
    unsigned_with(&bench, "Content-Bytes: 160000", "Content-Bytes: 18446744073709551615");
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(said.contains("a layer of 18446744073709551615 bytes; the limit is"), "{said}");
    bench.assert_nothing_half();
}

#[test]
fn what_a_repository_says_reaches_no_terminal_as_it_is() {
    let bench = Bench::new();
    let lie = "Content-Bytes: 160000\nWithdrawn: \u{1b}]0;owned\u{7} \u{202e}txt.exe";
    unsigned_with(&bench, "Content-Bytes: 160000", lie);
    bench.sync();
    let listed = bench.good(&bench.reader, &["layer", "list"]);
    assert!(listed.contains("withdrawn: \\u{1b}]0;owned\\u{7} \\u{202e}txt.exe"), "{listed}");
    // Programs get what it says.
    let listed = bench.good(&bench.reader, &["layer", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[1]["withdrawn"], "\u{1b}]0;owned\u{7} \u{202e}txt.exe");
}

#[test]
fn a_damaged_archive_never_appears() {
    let bench = Bench::new();
    bench.configure(text(&bench.path("published/main")), "");
    let archive = bench.archive("lib", "1:2");
    let good = fs::read(&archive).expect("an archive");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let another = fs::read(bench.archive("app", "1")).expect("an archive");
    for (what, bytes) in [
        ("flipped", flipped),
        ("cut", good[..good.len() - 7].to_vec()),
        ("empty", Vec::new()),
        ("of another unit", another),
    ] {
        fs::write(&archive, bytes).expect("written");
        let said = bench.refused(&["repo", "mirror", &bench.gitops()]);
        assert!(said.contains("failed main/lib 1:2"), "{what}: {said}");
        assert!(!bench.unit("lib", "1:2").exists(), "{what}");
        assert!(bench.unit("app", "1").exists(), "{what}: the other layer comes all the same");
        bench.assert_nothing_half();
    }
    fs::write(&archive, good).expect("written");
    bench.mirror();
    bench.assert_mirrored();
}

#[test]
fn a_mirror_is_changed_only_where_it_comes_from() {
    let bench = synced();
    for arguments in [
        &["repo", "index", "main"][..],
        &["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"],
    ] {
        let said = bench.refused(arguments);
        assert!(said.contains("the repository main is a mirror"), "{said}");
    }
    // And no repository of the store's own is overwritten.
    fs::remove_file(bench.path("reader/repos/main/mirror")).expect("removed");
    bench.publish();
    let said = bench.refused(&["repo", "sync", &bench.gitops()]);
    assert!(said.contains("the repository main is the store's own"), "{said}");
}

#[test]
fn a_layer_that_is_withdrawn_there_is_withdrawn_here() {
    let bench = synced();
    let withdraw = ["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"];
    bench.good(&bench.owner, &withdraw);
    bench.publish();
    bench.sync();
    let said = bench.refused(&["check", &bench.gitops()]);
    assert!(said.contains("CVE-2026-1"), "{said}");
}
