//! `strata layer import --from apt` against a signed archive of the test's own.
//! Needs root (layers keep owners), apt, dpkg, gnupg and gpgv.

mod archive;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use archive::{Archive, Fault, run, text};

/// A server with a library and an essential base; the library has two versions.
fn archive() -> Archive {
    let archive = Archive::set_up();
    archive.package("base", "1", "Essential: yes\n", 10);
    archive.package("libtls", "1.0-1", "", 100_000);
    archive.package("libtls", "1.1-1", "", 200_000);
    archive.package("webserver", "1:2.4-1", "Depends: libtls (>= 1.0), libold | base\n", 300_000);
    archive.package("unrelated", "1", "", 10);
    archive.publish();
    archive
}

const CLOSURE: [&str; 3] = ["base 1", "libtls 1.1-1", "webserver 1:2.4-1"];

#[test]
fn a_closure_is_imported_once() {
    let archive = archive();
    let dry = archive.good(&["--dry-run", "webserver"]);
    assert!(dry.contains("would import main/libtls 1.1-1") && dry.contains("3 packages"), "{dry}");
    assert!(archive.server.requests("pool/").is_empty(), "a dry run fetches no package");
    let printed = archive.good(&["webserver"]);
    assert!(printed.contains("imported main/webserver 1:2.4-1"), "{printed}");
    assert_eq!(archive.layers(), CLOSURE);
    let metadata = archive.path("store/repos/main/libtls_1.1-1/metadata");
    let metadata = fs::read_to_string(metadata).expect("the unit's metadata");
    for line in
        ["System: deb\n", "Section: net\n", "Origin: Tests\n", "Archive: Tests-Security/sid\n"]
    {
        assert!(metadata.contains(line), "{metadata}");
    }
    let fetched = archive.server.requests("pool/").len();
    let again = archive.good(&["webserver", "--output", "json"]);
    assert_eq!(again.matches("\"present\"").count(), 3, "{again}");
    assert_eq!(archive.server.requests("pool/").len(), fetched, "nothing is fetched again");
    archive.good(&["libtls=1.0-1", "--no-depends"]);
    assert!(archive.layers().contains(&"libtls 1.0-1".to_owned()));
    let kept = fs::read_dir(archive.path("packages/archives")).expect("the cache");
    let kept: Vec<_> = kept.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn what_is_not_there_is_said() {
    let archive = archive();
    assert!(archive.bad(&["nothing"]).contains("no source of apt has the package nothing\nhint: "));
    let error = archive.bad(&["libtls=9"]);
    assert!(error.contains("there is 1.1-1, 1.0-1"), "{error}");
    let error = archive.bad(&["webserver", "--max-download", "1000"]);
    assert!(error.contains("the limit is") && error.contains("--max-download"), "{error}");
    assert!(archive.bad(&["web server"]).contains("name=version"));
}

#[test]
fn nothing_is_taken_from_a_release_that_is_not_trusted() {
    let archive = archive();
    let refused = |why: &str| {
        let error = archive.bad(&["webserver"]);
        assert!(error.contains(why) && error.contains("hint: "), "{why}: {error}");
        assert!(archive.server.requests("Packages").is_empty(), "{why}: no index is fetched");
    };
    archive.make_key("other@example.org", "other.asc");
    archive.sign("other@example.org");
    refused("is not trusted here");
    let inline = archive.path("archive/dists/sid/InRelease");
    archive.sign("archive@example.org");
    let signed = fs::read_to_string(&inline).expect("read");
    fs::write(&inline, signed.replace("Suite: unstable", "Suite: tampered")).expect("written");
    refused("is bad");
    // What stands around the signed text is not read.
    fs::write(&inline, format!("Suite: x\nSHA256:\n\n{signed}")).expect("written");
    archive.good(&["--dry-run", "webserver"]);
    fs::write(&inline, fs::read(archive.path("archive/dists/sid/Release")).expect("read"))
        .expect("written");
    let error = archive.bad(&["webserver"]);
    assert!(error.contains("is not signed by a key that is trusted"), "{error}");
}

#[test]
fn names_and_passwords_are_those_of_apt() {
    let archive = archive();
    // alice:Secret1
    archive.server.demand("Basic YWxpY2U6U2VjcmV0MQ==");
    let error = archive.bad(&["--dry-run", "webserver"]);
    assert!(error.contains("the server answers 401") && error.contains("auth.conf.d"), "{error}");
    let file = archive.path("apt/etc/auth.conf.d/test.conf");
    fs::create_dir_all(file.parent().expect("a parent")).expect("made");
    let port =
        archive.server.url().trim_end_matches('/').rsplit_once(':').expect("a port").1.to_owned();
    let login = "login alice password Secret1";
    // A machine without a protocol is one of https: no password goes in the clear by mistake.
    for machine in ["127.0.0.1".to_owned(), "http://127.0.0.1:1".to_owned()] {
        fs::write(&file, format!("machine {machine} {login}\n")).expect("written");
        let error = archive.bad(&["--dry-run", "webserver"]);
        assert!(error.contains("the server answers 401"), "{error}");
    }
    fs::write(&file, format!("machine http://127.0.0.1:{port}/ {login}\n")).expect("written");
    archive.good(&["webserver"]);
    assert_eq!(archive.layers(), CLOSURE);
    fs::write(&file, "machine\n").expect("written");
    let error = archive.bad(&["webserver"]);
    assert!(error.contains("test.conf: `machine` is the last word"), "{error}");
}

#[test]
fn preferences_that_are_not_looked_at_are_told() {
    let archive = archive();
    let note = || {
        let output = archive.import(&["--dry-run", "webserver"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let file = archive.path("apt/etc/preferences.d/pins");
    fs::create_dir_all(file.parent().expect("a parent")).expect("made");
    fs::write(&file, "# nothing yet\n").expect("written");
    assert_eq!(note(), "");
    fs::write(&file, "Package: libtls\nPin: version 1.0*\nPin-Priority: 900\n").expect("written");
    let said = note();
    assert!(said.contains("preferences.d/pins") && said.contains("NAME=VERSION"), "{said}");
}

#[test]
fn old_and_future_states_are_refused() {
    let archive = archive();
    archive.publish_dated("now -9 days", "now -2 days");
    let error = archive.bad(&["webserver"]);
    assert!(error.contains("was valid until 48 h ago") || error.contains("2 days ago"), "{error}");
    archive.source("Check-Valid-Until: no\n");
    archive.good(&["--dry-run", "webserver"]);
    archive.source("");
    archive.publish_dated("now +3 days", "now +7 days");
    let error = archive.bad(&["webserver"]);
    assert!(error.contains("ahead of this machine's clock"), "{error}");
}

#[test]
fn tampered_files_are_refused_and_the_others_are_imported() {
    let archive = archive();
    let deb = archive.path("archive/pool/libtls_1.1-1_amd64.deb");
    let mut bytes = fs::read(&deb).expect("read");
    bytes[150_000] ^= 1;
    fs::write(&deb, bytes).expect("written");
    let error = archive.bad(&["webserver"]);
    assert!(
        error.contains("the signed index says") && error.contains("1 of 3 packages"),
        "{error}"
    );
    assert_eq!(archive.layers(), ["base 1", "webserver 1:2.4-1"]);
    let index = archive.path("archive/dists/sid/main/binary-amd64/Packages.gz");
    let mut bytes = fs::read(&index).expect("read");
    bytes[100] ^= 1;
    fs::write(&index, bytes).expect("written");
    fs::remove_dir_all(archive.path("packages")).expect("the cache");
    let error = archive.bad(&["webserver"]);
    assert!(error.contains("Packages.gz") && error.contains("the signed index says"), "{error}");
}

#[test]
fn what_is_cut_off_is_resumed() {
    let archive = archive();
    archive.server.fault("pool/webserver_1:2.4-1_amd64.deb", Fault::Cut(3));
    archive.server.fault("pool/libtls_1.1-1_amd64.deb", Fault::Unavailable(1));
    archive.good(&["webserver"]);
    assert_eq!(archive.layers(), CLOSURE);
    let starts = archive.server.requests("webserver");
    assert_eq!(starts.len(), 4, "{starts:?}");
    assert!(starts.is_sorted() && starts[1] > 100_000, "each goes on where it was: {starts:?}");
    assert_eq!(archive.server.requests("libtls"), [0, 0]);
}

#[test]
fn a_killed_import_leaves_a_valid_repository_and_goes_on() {
    let archive = archive();
    archive.server.fault("pool/webserver_1:2.4-1_amd64.deb", Fault::Slow);
    let mut child =
        archive.import_command(&["webserver"]).stdout(Stdio::null()).spawn().expect("strata runs");
    let cached = archive.path("packages/archives");
    let begun = Instant::now();
    let arrived = || {
        let mut sizes = fs::read_dir(&cached).into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            (name.contains("webserver") && name.ends_with(".part"))
                .then(|| entry.metadata().map_or(0, |m| m.len()))
        });
        sizes.any(|size| size > 20_000)
    };
    while !arrived() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing arrives");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    archive.server.heal();
    archive.good(&["webserver"]);
    assert_eq!(archive.layers(), CLOSURE);
    let starts = archive.server.requests("webserver");
    assert!(starts.len() == 2 && starts[1] > 20_000, "{starts:?}");
}

#[test]
fn imports_at_once_are_safe() {
    let archive = archive();
    let children: Vec<_> = ["main", "main", "other", "third"]
        .map(|repository| {
            let mut command =
                archive.import_command(&["webserver", "unrelated", "--repo", repository]);
            command.stdout(Stdio::null()).spawn().expect("strata runs")
        })
        .into();
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
    for repository in ["main", "other", "third"] {
        assert_eq!(
            archive.layers_of(repository),
            ["base 1", "libtls 1.1-1", "unrelated 1", "webserver 1:2.4-1"]
        );
    }
    let mut left: Vec<_> = fs::read_dir(archive.path("packages")).expect("the cache").collect();
    left.extend(fs::read_dir(archive.path("packages/archives")).expect("the packages"));
    let left: Vec<_> = left.into_iter().map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left.len(), 2, "the cache has two directories and no package: {left:?}");
}

#[test]
fn other_forms_of_sources_are_understood() {
    let archive = archive();
    archive.sign_detached();
    let root = archive.path("archive");
    let binary = archive.path("archive.gpg");
    run(Command::new("gpg")
        .args(["--batch", "--yes", "--dearmor", "-o"])
        .arg(&binary)
        .arg(archive.path("archive.asc")));
    archive.source_line(&format!(
        "deb [signed-by={}] file:{} sid main\n",
        text(&binary),
        text(&root)
    ));
    archive.good(&["webserver"]);
    assert_eq!(archive.layers(), CLOSURE);
    assert!(archive.server.requests("").is_empty(), "a local source asks no server");
}
