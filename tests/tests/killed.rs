//! A machine and the commands that work on it, killed at any moment: afterwards the VA starts or
//! is resumed, its disk is whole, and what its appliance had synced is there.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use strata_tests::boot::{Fleet, MAC, PATIENCE};
use strata_tests::{finish, leaks, wait_until};

/// Counts what it has synced, across boots.
const SERVICE: &str = r#"#!/usr/bin/busybox sh
b=/usr/bin/busybox
n=$($b cat /var/count || echo 0)
echo "SERVICE: begins at $n with version $($b cat /etc/version), boot $($b cat /proc/sys/kernel/random/boot_id)"
while :; do
    n=$((n + 1))
    echo $n >/var/new && $b mv /var/new /var/count && $b sync && echo "SERVICE: synced $n"
    $b sleep 0.05
done
"#;

const START: [&str; 8] =
    ["start", "--timeout", "120", "--accelerator", "software", "--transport", "virtiofs", "web"];

struct Machine {
    fleet: Fleet,
    /// The highest number that it said it had synced.
    synced: u64,
}

impl Machine {
    /// The last number behind `words` on the console.
    fn last(&self, words: &str) -> Option<u64> {
        let console = self.fleet.va(&["logs", "web"]).ok();
        let last = console.lines().filter_map(|line| line.split_once(words)).next_back();
        last.and_then(|(_, rest)| rest.split([' ', '\r']).next()?.parse().ok())
    }

    /// What it says it has synced now.
    fn count(&self) -> u64 {
        self.last("SERVICE: synced ").unwrap_or_default()
    }

    /// Waits until it has synced something more.
    #[track_caller]
    fn goes_on(&mut self) {
        let before = self.count();
        wait_until("it goes on", PATIENCE, || self.count() > before);
        self.synced = self.count();
    }

    /// Starts it, and finds what it had synced.
    #[track_caller]
    fn starts_again(&mut self, version: &str) {
        assert_eq!(self.fleet.status()["state"], "stopped");
        self.disk_is_whole();
        self.fleet.va(&START).ok();
        wait_until("it runs", PATIENCE, || self.last("SERVICE: begins at ").is_some());
        let begins = self.last("SERVICE: begins at ").expect("a number");
        assert!(begins >= self.synced, "{begins}, and {} was synced", self.synced);
        let console = self.fleet.va(&["logs", "web"]).ok();
        assert!(console.contains(&format!("with version {version},")), "{console}");
        self.goes_on();
    }

    /// Its journal makes its disk whole, seen from outside.
    #[track_caller]
    fn disk_is_whole(&self) {
        let copy = self.fleet.workspace.path("copy");
        let mut cp = Command::new("cp");
        let disk = self.fleet.workspace.store().join("machines/web/disk.img");
        finish(cp.arg("--sparse=always").arg(disk).arg(&copy)).ok();
        let checked = finish(Command::new("e2fsck").args(["-f", "-p"]).arg(&copy));
        assert!(checked.code <= 1, "{checked:?}");
        finish(Command::new("e2fsck").args(["-f", "-n"]).arg(&copy)).ok();
    }

    /// What QEMU has used; of the five seconds that a boot takes, for example.
    fn processor_time(&self) -> Duration {
        let pid = &self.fleet.status()["processes"][0];
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
        let mut ticks = || fields.next().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        Duration::from_millis((ticks() + ticks()) * 10)
    }

    #[track_caller]
    fn qemu(&self) -> Pid {
        let pid = self.fleet.status()["processes"][0].as_i64().expect("a process");
        Pid::from_raw(pid.try_into().expect("a process id")).expect("a process id")
    }

    /// Kills QEMU.
    #[track_caller]
    fn kill(&mut self) {
        self.synced = self.count();
        kill_process(self.qemu(), Signal::KILL).expect("it runs");
        wait_until("it is off", PATIENCE, || self.fleet.status()["state"] != "running");
    }

    /// Begins a command.
    fn command(&self, words: &[&str]) -> Child {
        let mut command = self.fleet.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("started")
    }

    /// Begins a command, and kills it, or with it QEMU alone, at a moment, if it has not ended before.
    fn kill_when(&self, words: &[&str], qemu: Option<Pid>, moment: impl Fn() -> bool) {
        let mut child = self.command(words);
        let deadline = Instant::now() + PATIENCE;
        while !moment() && child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "{words:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        match qemu {
            // It may have been ended just now.
            Some(pid) => drop(kill_process(pid, Signal::KILL)),
            None => child.kill().expect("a child"),
        }
        child.wait().expect("ended");
    }

    /// Whoever was killed: it is in memory or on disk, the same boot, and goes on.
    #[track_caller]
    fn is_resumed(&mut self, boot: &str, moment: &str) {
        let status = self.fleet.status();
        assert_ne!(status["state"], "stopped", "{moment}");
        self.fleet.va(&["resume", "web"]).ok();
        assert_eq!(self.fleet.status()["state"], "running", "{moment}");
        self.goes_on();
        assert_eq!(self.boot(), boot, "{moment}");
        for left in ["suspended", "suspended.new", "suspended.old"] {
            assert!(!self.fleet.workspace.store().join("machines/web").join(left).exists());
        }
    }

    fn boot(&self) -> String {
        let console = self.fleet.va(&["logs", "web"]).ok();
        let boots = console.lines().filter_map(|line| line.split_once(", boot "));
        boots.map(|(_, boot)| boot.trim().to_owned()).next_back().unwrap_or_default()
    }
}

fn has_bytes(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() >= bytes)
}

#[test]
fn a_machine_is_killed_at_any_moment() {
    let fleet = Fleet::new("killed", ("etc/strata/services/one", SERVICE));
    fleet.roll_out("1");
    fleet.va(&["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"]).ok();
    let directory = fleet.workspace.store().join("machines/web");
    let mut machine = Machine { fleet, synced: 0 };

    // While it boots. Of two starts at once, one starts it.
    let mut starts = [machine.command(&START), machine.command(&START)];
    wait_until("it boots", PATIENCE, || machine.processor_time() > Duration::from_secs(2));
    machine.kill();
    let codes = starts.each_mut().map(|start| start.wait().expect("ended").code());
    assert!(codes.contains(&Some(2)), "{codes:?}");
    if codes.contains(&Some(0)) {
        // The second one came after the first had failed.
        machine.kill();
    }
    machine.starts_again("1");

    // While it runs, and while it is updated.
    machine.kill();
    machine.starts_again("1");
    machine.fleet.roll_out("2");
    machine.kill();
    machine.starts_again("2");

    // A command that saves it: nothing is lost, wherever it stands.
    let (new, saved) = (directory.join("suspended.new"), directory.join("suspended"));
    let boot = machine.boot();
    let suspend = ["suspend", "--to-disk", "web"];
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("begun", &|| new.exists()),
        ("half written", &|| has_bytes(&new.join("state"), 32 << 20)),
        ("all but named", &|| new.join("hardware.json").exists()),
        ("named", &|| saved.exists()),
    ];
    for (name, moment) in moments {
        machine.kill_when(&suspend, None, moment);
        machine.is_resumed(&boot, name);
    }
    // A command that resumes it, and QEMU while it is resumed.
    let root = machine.fleet.workspace.path("");
    let qemu = || leaks::processes(&root).iter().any(|(_, line)| line.contains("-incoming"));
    let moments: [(&str, &dyn Fn() -> bool); 2] =
        [("loading", &qemu), ("about to run", &|| !saved.exists())];
    for (name, moment) in moments {
        machine.fleet.va(&suspend).ok();
        machine.kill_when(&["resume", "web"], None, moment);
        machine.is_resumed(&boot, name);
    }

    // QEMU while it is saved: a machine that was switched off, if it was not saved by then.
    machine.synced = machine.count();
    machine.kill_when(&suspend, Some(machine.qemu()), || has_bytes(&new.join("state"), 1));
    assert!(!new.exists());
    if saved.exists() {
        machine.is_resumed(&boot, "QEMU");
    } else {
        machine.starts_again("2");
    }

    machine.fleet.va(&["stop", "--timeout", "60", "web"]).ok();
    machine.disk_is_whole();
    machine.fleet.workspace.finish();
}
