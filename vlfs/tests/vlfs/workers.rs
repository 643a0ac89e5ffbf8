//! Who answers requests, and what they wait for.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Mount, wait_for};

fn gauges(mount: &Mount) -> serde_json::Value {
    let mut status: serde_json::Value = serde_json::from_str(&mount.status()).expect("JSON");
    status["gauges"].take()
}

/// A daemon that is stopped while this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Stopped {
        let pid = Pid::from_raw(process.cast_signed()).expect("a process id");
        kill_process(pid, Signal::STOP).expect("stopped");
        // Until its last thread has noticed, it may still answer.
        wait_for("all threads to stop", || {
            let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
            let mut stats = threads.map(|thread| {
                fs::read_to_string(thread.expect("a thread").path().join("stat")).expect("told")
            });
            stats.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T ")))
        });
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("it goes on");
    }
}

#[test]
fn requests_that_wait_for_a_disk_hold_nobody_up() {
    const READERS: usize = 20;
    // A disk that can be made to hang: another mount, whose daemon is stopped.
    let mut disk = Mount::new();
    disk.extra.push("--no-passthrough".to_owned());
    let names: Vec<_> = (0..READERS).map(|number| format!("file-{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), "content")).collect();
    let layer = disk.layer("layer", &files);
    disk.mount(&[&layer]);
    let mut mount = Mount::new();
    mount.extra.push("--no-passthrough".to_owned());
    mount.mount(&[&disk.path("")]);
    assert_eq!(gauges(&mount)["workers"], 8);

    let opened: Vec<_> =
        names.iter().map(|name| File::open(mount.path(name)).expect("opened")).collect();
    std::thread::scope(|scope| {
        let stopped = Stopped::new(disk.daemon());
        let read = |mut file: File| {
            let mut content = String::new();
            file.read_to_string(&mut content).map(|_| content)
        };
        let reading: Vec<_> =
            opened.into_iter().map(|file| scope.spawn(move || read(file))).collect();
        wait_for("a worker for each reader", || {
            gauges(&mount)["workers"].as_u64() > Some(READERS as u64)
        });
        let looked = scope.spawn(|| mount.path("absent").exists());
        wait_for("an answer to somebody else", || looked.is_finished());
        assert!(reading.iter().all(|reader| !reader.is_finished()), "they wait for the disk");
        drop(stopped);
        for reader in reading {
            assert_eq!(reader.join().expect("no panic").expect("read"), "content");
        }
    });
    mount.unmount();
    disk.unmount();
}

#[test]
fn idle_processors_are_kept_awake_while_requests_flow_and_the_status_says_so() {
    let mount = Mount::new();
    let layer = mount.layer("layer", &[("file", "")]);
    mount.mount(&[&layer]);
    let latency = || gauges(&mount)["idle_latency"].clone();
    if !Path::new("/dev/cpu_dma_latency").exists() {
        let state = latency()["state"].as_str().unwrap_or_default().to_owned();
        assert!(state.starts_with("off: /dev/cpu_dma_latency: "), "{state}");
        return;
    }
    assert_eq!(latency()["state"], "on");
    let asked = std::cell::Cell::new(0_u32);
    wait_for("a burst of requests", || {
        for _ in 0..1000 {
            asked.set(asked.get() + 1);
            assert!(!mount.path(&format!("absent-{}", asked.get())).exists());
        }
        latency()["times"].as_u64() > Some(0)
    });
    // Held no longer: the time does not grow any more.
    wait_for("the end of the burst", || {
        let before = latency();
        std::thread::yield_now();
        before["held_ms"].as_u64() > Some(0) && before == latency()
    });
    mount.unmount();
}

#[test]
fn processors_may_halt_where_that_is_asked_for() {
    let mut mount = Mount::new();
    let layer = mount.layer("layer", &[("file", "")]);
    let layer = layer.display().to_string();
    let (private, point) = (mount.private(), mount.path(""));
    let (private, point) = (private.display().to_string(), point.display().to_string());
    let wrong =
        ["mount", "--idle-latency", "often", "--layer", &layer, "--private", &private, &point];
    let refused = mount.run(&wrong);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("a number of microseconds, or `off`"), "{said}");

    mount.extra.push("--idle-latency=off".to_owned());
    mount.mount(&[Path::new(&layer)]);
    (0..100).for_each(|name| assert!(fs::metadata(mount.path(&format!("absent-{name}"))).is_err()));
    let latency = &gauges(&mount)["idle_latency"];
    assert_eq!((&latency["state"], &latency["times"]), (&"off: switched off".into(), &0.into()));
    mount.unmount();
}
