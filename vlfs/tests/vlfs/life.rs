//! What a daemon says of itself, how it dies, and life as the root file system.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::fixture::{Mount, PROGRAM, read, wait_for};
use crate::store::{Va, mac};

fn status(mount: &Mount) -> serde_json::Value {
    serde_json::from_str(&mount.status()).expect("JSON")
}

/// A process that says `ready` and then waits for its standard input to end.
fn waiting(command: &mut Command) -> Child {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("it runs");
    writeln!(child.stdin.as_mut().expect("a pipe"), "ready").expect("told");
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("a pipe");
    BufReader::new(out).read_line(&mut line).expect("answered");
    assert_eq!(line, "ready\n");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().expect("ended");
}

#[test]
fn status_names_who_holds_a_layer_that_is_gone_and_what_the_daemon_costs() {
    let mount = Mount::new();
    let old = mount.layer("old", &[("text", "old")]);
    fs::copy("/bin/cat", old.join("program")).expect("copied");
    let new = mount.layer("new", &[("other", "new")]);
    mount.mount(&[&old]);
    let mut open = Command::new("sh");
    open.arg("-c").arg("exec 5<text; cat").current_dir(mount.path(""));
    let (open, running) = (waiting(&mut open), waiting(&mut Command::new(mount.path("program"))));
    mount.swap(&[&new]);
    let found = status(&mount);
    let held = &found["held_layers"][0];
    assert_eq!(held["name"], old.display().to_string(), "{found}");
    let pids: Vec<_> = held["processes"].as_array().expect("a list").iter().collect();
    for pid in [open.id(), running.id()] {
        assert!(pids.iter().any(|process| process["pid"] == pid), "{pid} in {held}");
    }
    let gauges = &found["gauges"];
    for name in ["lookup", "open", "getattr"] {
        assert!(gauges["requests"][name].as_u64() > Some(0), "{name} in {gauges}");
    }
    assert!(gauges["memory"]["resident"].as_u64() > Some(1 << 20), "{gauges}");
    assert!(gauges["descriptors"].as_u64() > Some(5), "{gauges}");
    // Without CAP_SYS_RESOURCE the kernel keeps what it was.
    let permitted = Command::new("sh")
        .args(["-c", "echo -1000 >/proc/self/oom_score_adj"])
        .stderr(Stdio::null())
        .status()
        .expect("sh runs");
    let expected = if permitted.success() { -1000 } else { 0 };
    assert_eq!(gauges["oom_score_adj"], expected, "{gauges}");
    end(open);
    end(running);
    wait_for("the layer's end", || mount.status().contains("\"held_layers\": []"));
    mount.unmount();
}

#[test]
fn a_report_that_cannot_be_written_shows_in_the_status() {
    let mut va = Va::new();
    let reports = va.mount.directory.path().join("reports");
    fs::create_dir(&reports).expect("made");
    va.mount.extra = vec!["--reports".to_owned(), reports.display().to_string()];
    let unit = va.unit("library", "1", "lib", "one");
    va.roll_out(vec![unit]);
    va.mount.extra.extend(["--report-interval".to_owned(), "1".to_owned()]);
    va.mount();
    assert!(status(&va.mount)["error"].is_null());
    fs::remove_dir_all(&reports).expect("removed");
    let error = || status(&va.mount)["error"].as_str().unwrap_or_default().to_owned();
    wait_for("the error", || error().contains("the report cannot be written"));
    fs::create_dir(&reports).expect("made");
    wait_for("the end of the error", || status(&va.mount)["error"].is_null());
    va.mount.unmount();
}

#[test]
fn a_flood_of_control_connections_is_refused_and_does_no_harm() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(mount.path(""), "user.strata.control", &mut value[..])
        .expect("the root answers");
    let socket = PathBuf::from(String::from_utf8(value[..length].to_vec()).expect("text"));
    let connect = || UnixStream::connect(&socket).expect("connected");
    let idle: Vec<_> = (0..16).map(|_| connect()).collect();
    let mut answer = String::new();
    connect().read_to_string(&mut answer).expect("told and closed");
    assert!(answer.contains("connections are open already"), "{answer}");
    assert_eq!(read(mount.path("a")), "a");
    drop(idle);
    let ask = || mount.run(&["status", &mount.path("").display().to_string()]).status.success();
    wait_for("an answer", ask);
    mount.unmount();
}

#[test]
fn a_daemon_that_is_killed_leaves_errors_and_no_hang() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("a", "a"), ("d/b", "b")]);
    mount.mount(&[&layer]);
    let daemon = mount.daemon();
    let held = fs::File::options().append(true).open(mount.path("a")).expect("opened");
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon).expect("small")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    wait_for("its end", || !Path::new(&format!("/proc/{daemon}/fd/0")).exists());
    let not_connected = Some(rustix::io::Errno::NOTCONN.raw_os_error());
    let error = |result: std::io::Result<()>| result.expect_err("an error").raw_os_error();
    // What is asked at that very moment is aborted (`ECONNABORTED`).
    wait_for("the connection's end", || {
        error(fs::read(mount.path("d/b")).map(drop)) == not_connected
    });
    assert_eq!(error(fs::read(mount.path("d/b")).map(drop)), not_connected);
    assert_eq!(error(fs::read_dir(mount.path("")).map(drop)), not_connected);
    assert_eq!(error(fs::write(mount.path("new"), "x")), not_connected);
    assert_eq!(error(held.set_len(0)), not_connected);
    drop(held);
    let done = Command::new("umount").arg(mount.path("")).status().expect("umount runs");
    assert!(done.success());
}

fn terminate(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("small")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told to end");
}

#[test]
fn a_daemon_that_is_told_to_end_unmounts_nothing_but_its_own() {
    let (mount, over) = (Mount::new(), Mount::new());
    let layer = mount.layer("one", &[("a", "a")]);
    mount.mount(&[&layer]);
    let below = mount.daemon();
    let log = || read(mount.private().join("vlfs.log"));
    let told = || log().matches("another is mounted over it").count();
    let point = mount.path("").display().to_string();

    let tmpfs = ["-t", "tmpfs", "strata-test", &point];
    assert!(Command::new("mount").args(tmpfs).status().expect("mount runs").success());
    fs::write(mount.path("kept"), "kept").expect("written");
    terminate(below);
    wait_for("the refusal", || told() == 1);
    assert_eq!(read(mount.path("kept")), "kept");
    assert!(Command::new("umount").arg(&point).status().expect("umount runs").success());
    assert_eq!(read(mount.path("a")), "a", "it goes on");

    // Another mount of this kind is another one all the same.
    let private = over.private().display().to_string();
    let other = over.layer("two", &[("b", "b")]).display().to_string();
    let done = mount.run(&["mount", "--private", &private, "--layer", &other, &point]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let above = mount.daemon();
    terminate(below);
    wait_for("the refusal", || told() == 2);
    assert_eq!(read(mount.path("b")), "b");
    terminate(above);
    wait_for("the end of the upper one", || !Path::new(&format!("/proc/{above}/fd/0")).exists());
    assert_eq!(read(mount.path("a")), "a");
    terminate(below);
    wait_for("the end of the lower one", || !Path::new(&format!("/proc/{below}/fd/0")).exists());
    assert_eq!(fs::read_dir(mount.path("")).expect("listed").count(), 0);
}

/// Some programs of this machine with the libraries they load, by path.
fn with_libraries(programs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (program, path) in programs {
        files.insert((*path).to_owned(), fs::read(program).expect("read"));
        let listed = Command::new("ldd").arg(program).output().expect("ldd runs");
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            if let Some(library) = word.strip_prefix('/') {
                files.insert(library.to_owned(), fs::read(word).expect("read"));
            }
        }
    }
    files
}

#[test]
fn it_lives_as_the_root_file_system() {
    let va = Va::new();
    let mut files = with_libraries(&[
        ("/bin/sh", "bin/sh"),
        ("/bin/cat", "bin/cat"),
        ("/bin/umount", "bin/umount"),
        (PROGRAM, "bin/strata-vlfs"),
    ]);
    for directory in ["proc", "run", "old"] {
        files.insert(format!("{directory}/.keep"), Vec::new());
    }
    let files: Vec<_> = files.into_iter().map(|(path, content)| (path, content, 0o755)).collect();
    let system = va.unit_of("system", "1", &files);
    let first = va.unit("library", "1", "version", "one");
    va.roll_out(vec![first, system.clone()]);
    let inside = "umount -l /old && echo pivoted
        until test \"$(cat /version)\" = two; do :; done; echo swapped
        strata-vlfs upgrade / && strata-vlfs status / >/shown && echo upgraded
        echo written >/new && cat /new /version; echo
        until test \"$(cat /version)\" = three; do :; done; echo swapped again";
    let outside = format!(
        "set -e; mount --make-rprivate /
        {PROGRAM} mount --va {mac} --poll-ms 20 --store {store} --private {private} {root}
        mount --rbind /proc {root}/proc; mount --rbind /run {root}/run
        cd {root}; pivot_root . old; exec /bin/sh -c '{inside}'",
        mac = mac(),
        store = va.store.root().display(),
        private = va.mount.private().display(),
        root = va.path("").display(),
    );
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120", "unshare", "--mount", "sh", "-c", &outside]);
    let mut shell =
        command.stdout(Stdio::piped()).env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin").spawn();
    let shell = shell.as_mut().expect("it runs");
    let mut lines = BufReader::new(shell.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().map(|line| line.expect("text")).unwrap_or_default();
    assert_eq!(next(), "pivoted");
    let second = va.unit("library", "2", "version", "two");
    va.roll_out(vec![second, system.clone()]);
    assert_eq!(next(), "swapped");
    let upgraded = next();
    assert!(upgraded.contains("now runs version"), "{upgraded}");
    assert_eq!([next(), next(), next()], ["upgraded", "written", "two"]);
    let third = va.unit("library", "3", "version", "three");
    va.roll_out(vec![third, system]);
    assert_eq!(next(), "swapped again");
    assert!(shell.wait().expect("ended").success());
    let report = va.report().expect("written");
    assert_eq!(report.error, None);
    // It holds its mount namespace, and that its mount: nobody can unmount a root.
    let pid = rustix::process::Pid::from_raw(i32::try_from(report.pid).expect("small"));
    let pid = pid.expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    wait_for("its end", || !Path::new(&format!("/proc/{}/fd/0", report.pid)).exists());
}
