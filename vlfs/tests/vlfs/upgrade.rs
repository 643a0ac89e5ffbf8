//! Another program takes over a mount that is in use.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fixture::{Mount, PROGRAM, ino, names, read, wait_for};
use crate::store::Va;

fn upgrade(mount: &Mount) {
    let mount_point = mount.path("").display().to_string();
    let done = mount.run(&["upgrade", &mount_point, "--binary", PROGRAM]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Reads, writes, lists, renames and removes until told to stop; nothing may fail.
fn load(mount: &Mount, number: usize, stop: &AtomicBool, rounds: &AtomicU64) {
    let own = mount.path(&format!("own{number}"));
    fs::create_dir(&own).expect("made");
    let mut round = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let name = own.join(format!("file{}", round % 7));
        let content = format!("{number} {round}");
        fs::write(&name, &content).expect("written");
        assert_eq!(fs::read_to_string(&name).expect("read"), content);
        fs::rename(&name, own.join("renamed")).expect("renamed");
        assert_eq!(names(&own).len(), 1);
        fs::remove_file(own.join("renamed")).expect("removed");
        assert_eq!(read(mount.path(&format!("lower/file{}", round % 50))), "lower");
        assert!(fs::metadata(mount.path(&format!("absent{round}"))).is_err());
        round += 1;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

fn twenty_upgrades_under_load(extra: &[&str]) {
    let mut mount = Mount::new();
    mount.extra = extra.iter().map(|s| (*s).to_owned()).collect();
    let lower: Vec<_> = (0..50).map(|n| (format!("lower/file{n}"), "lower")).collect();
    let lower: Vec<_> = lower.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    let layer = mount.layer("one", &lower);
    fs::write(layer.join("long"), "x".repeat(100_000)).expect("written");
    mount.mount(&[&layer]);
    let daemon = mount.daemon();

    let made = File::options().read(true).write(true).create_new(true).open(mount.path("u"));
    let mut unlinked = made.expect("made");
    unlinked.write_all(b"no name any more").expect("written");
    fs::remove_file(mount.path("u")).expect("removed");
    let lower_gone = File::open(mount.path("lower/file49")).expect("opened");
    fs::remove_file(mount.path("lower/file49")).expect("removed");
    fs::write(mount.path("lower/file49"), "lower").expect("made anew");
    let reading = File::open(mount.path("long")).expect("opened");
    let mut appending =
        File::options().append(true).create(true).open(mount.path("log")).expect("made");
    fs::create_dir(mount.path("cwd")).expect("made");
    let mut inside = Command::new("sh")
        .args(["-c", "while read line; do echo \"$line\" >file && cat file; done"])
        .current_dir(mount.path("cwd"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sh runs");
    let (mut to, from) = (inside.stdin.take().expect("a pipe"), inside.stdout.take());
    let mut from = std::io::BufReader::new(from.expect("a pipe"));
    let number = ino(mount.path("lower/file0"));
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (mount, stop, rounds) = (&mount, &stop, &rounds);
            scope.spawn(move || load(mount, thread, stop, rounds));
        }
        for round in 0..20_u64 {
            let before = rounds.load(Ordering::Relaxed);
            upgrade(&mount);
            wait_for("work between two upgrades", || {
                rounds.load(Ordering::Relaxed) > before + 3 || stop.load(Ordering::Relaxed)
            });
            writeln!(appending, "{round}").expect("appended");
            let mut block = [0; 100];
            reading.read_exact_at(&mut block, round * 5000).expect("read");
            assert_eq!(block, [b'x'; 100]);
            writeln!(to, "round {round}").expect("told");
            let mut line = String::new();
            std::io::BufRead::read_line(&mut from, &mut line).expect("answered");
            assert_eq!(line, format!("round {round}\n"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(to);
    assert!(inside.wait().expect("ended").success());
    unlinked.seek(SeekFrom::Start(0)).expect("sought");
    let mut text = String::new();
    unlinked.read_to_string(&mut text).expect("read");
    assert_eq!(
        (text.as_str(), unlinked.metadata().expect("described").nlink()),
        ("no name any more", 0)
    );
    let mut block = [0; 5];
    lower_gone.read_exact_at(&mut block, 0).expect("read");
    assert_eq!(&block, b"lower");
    assert_eq!(read(mount.path("log")).lines().count(), 20);
    assert_eq!(ino(mount.path("lower/file0")), number);
    assert_eq!(mount.daemon(), daemon, "the same process");
    drop((unlinked, lower_gone, reading, appending));
    let descriptors = fs::read_dir(format!("/proc/{daemon}/fd")).expect("listed").count();
    assert!(descriptors < 200, "{descriptors} descriptors: some leak");
    mount.unmount();
    let log = read(mount.private().join("vlfs.log"));
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn twenty_upgrades_under_load_fail_nothing() {
    twenty_upgrades_under_load(&[]);
}

#[test]
fn twenty_upgrades_under_load_fail_nothing_without_passthrough() {
    twenty_upgrades_under_load(&["--no-passthrough"]);
}

#[test]
fn a_program_that_does_not_take_over_is_refused_and_the_old_one_goes_on() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let held = File::open(mount.path("a")).expect("opened");
    let mount_point = mount.path("").display().to_string();
    let script = mount.directory.path().join("liar");
    fs::write(&script, "#!/bin/sh\necho strata-vlfs takes over state 999\n").expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("set");
    for wrong in ["/bin/true", "/etc/passwd", script.to_str().expect("text")] {
        let refused = mount.run(&["upgrade", &mount_point, "--binary", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        let asked = fs::canonicalize(wrong).expect("it is there");
        let told = format!("error: {} does not take over", asked.display());
        assert!(error.starts_with(&told), "{error}");
        assert_eq!(read(mount.path("a")), "a", "{wrong}");
    }
    drop(held);
    mount.unmount();
}

/// It knows the promise by heart, and then fails: errors, no hang.
#[test]
fn a_program_that_fails_after_it_took_over_leaves_errors_and_no_hang() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let daemon = mount.daemon();
    let source = mount.directory.path().join("liar.c");
    let program = mount.directory.path().join("liar");
    let promise = strata_vlfs::takeover::promise();
    let code = format!(
        "#include <stdio.h>\nint main(int n, char **a) {{\
        if (n == 3) {{ puts(\"{promise}\"); return 0; }} return 3; }}"
    );
    fs::write(&source, code).expect("written");
    let built = Command::new("cc").arg(&source).arg("-o").arg(&program).status().expect("cc runs");
    assert!(built.success());
    let mount_point = mount.path("").display().to_string();
    let failed = mount.run(&["upgrade", &mount_point, "--binary", program.to_str().expect("text")]);
    assert_eq!(failed.status.code(), Some(2));
    wait_for("the end of the process", || !Path::new(&format!("/proc/{daemon}/exe")).exists());
    // Its descriptors go after its program: a request in between is aborted.
    wait_for("the end of the connection", || {
        let error = fs::read(mount.path("a")).expect_err("nobody answers");
        error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
    });
}

#[test]
fn a_vas_mount_goes_on_following_its_link() {
    let va = Va::new();
    let first = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![first]);
    va.mount();
    let held = File::open(va.path("lib")).expect("opened");
    upgrade(&va.mount);
    let second = va.unit("library", "2", "lib", "two");
    let id = va.roll_out(vec![second]);
    wait_for("the swap", || va.report().is_some_and(|report| report.generation == Some(id)));
    assert_eq!(read(va.path("lib")), "two");
    upgrade(&va.mount);
    let status: serde_json::Value = serde_json::from_str(&va.mount.status()).expect("JSON");
    assert_eq!(status["held_layers"][0]["name"], "main/library 1", "{status}");
    let mut block = [0; 3];
    held.read_exact_at(&mut block, 0).expect("read");
    assert_eq!(&block, b"one");
    drop(held);
    assert_eq!(read(va.path("lib")), "two");
    va.mount.unmount();
}

fn refused_upgrade(mount: &Mount) -> String {
    let mount_point = mount.path("").display().to_string();
    let refused = mount.run(&["upgrade", &mount_point, "--binary", PROGRAM]);
    assert_eq!(refused.status.code(), Some(2));
    String::from_utf8_lossy(&refused.stderr).into_owned()
}

#[test]
fn what_is_not_there_refuses_the_upgrade_and_the_old_program_goes_on() {
    let va = Va::new();
    let unit = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![unit]);
    va.mount();
    let away = va.mount.directory.path().join("away");
    let unit = va.store.root().join("repos/main/library_1");
    assert!(unit.exists(), "{}", unit.display());
    for gone in [va.store.root().to_owned(), unit] {
        fs::rename(&gone, &away).expect("moved away");
        let error = refused_upgrade(&va.mount);
        assert!(error.contains("what is to be taken over is not there"), "{error}");
        fs::write(va.path("new"), "written").expect("the old program goes on");
        assert_eq!(read(va.path("new")), "written");
        fs::rename(&away, &gone).expect("moved back");
        upgrade(&va.mount);
        assert_eq!(read(va.path("lib")), "one");
    }
    va.mount.unmount();
}

#[test]
fn a_private_directory_that_was_moved_is_taken_over_where_it_is() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    fs::write(mount.path("own"), "before").expect("written");
    let moved = mount.directory.path().join("moved");
    fs::rename(mount.private(), &moved).expect("moved");
    upgrade(&mount);
    assert!(!mount.private().exists(), "no other private directory is made");
    assert_eq!(read(mount.path("own")), "before");
    fs::write(mount.path("d/b"), "after").expect("written");
    assert_eq!(read(moved.join("upper/d/b")), "after");
    fs::rename(&moved, mount.private()).expect("moved back");
    // Without its lock nobody knows whose it is.
    fs::remove_file(mount.private().join("lock")).expect("removed");
    assert!(refused_upgrade(&mount).contains("its lock"));
    assert_eq!(read(mount.path("own")), "before");
    mount.unmount();
}
