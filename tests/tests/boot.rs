//! Machines that boot into their VAs (§4.3): a real kernel in a real QEMU, without
//! hardware support, on a store of the host shown over 9p. What the machine says
//! on its console is what is waited for.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use strata_tests::boot::{Fleet, LABEL, MAC, PATIENCE, file_of, free_port, page};
use strata_tests::{finish, wait_until};

/// The first program of an appliance that is only this.
const INIT: &str = r#"#!/usr/bin/busybox sh
b=/usr/bin/busybox
boots=$(($($b cat /var/boots || echo 0) + 1))
echo $boots > /var/boots
echo "APPLIANCE: boot $boots of version $($b cat /etc/version) as $($b hostname), process $$"
$b grep -c /strata /proc/mounts | $b sed 's/^/APPLIANCE: mounts of the host: /'
exec 3< /etc/version
until $b grep -q 2 /etc/version; do $b sleep 0.1; done
echo "APPLIANCE: now version $($b cat /etc/version), held $($b cat <&3)"
$b sync
$b poweroff -f
"#;

/// What an appliance without a first program runs.
const SERVICE: &str = r#"#!/usr/bin/busybox sh
b=/usr/bin/busybox
trap 'echo "SERVICE: ends"; echo ended > /var/end; exit 0' TERM
$b ip addr add 10.0.2.15/24 dev eth0 && $b ip link set eth0 up
$b httpd -p 80 -h /etc
echo "SERVICE: $($b cat /etc/version), process $$"
while read -r words; do echo "SERVICE: heard $words"; done </dev/ttyS0 &
while :; do $b sleep 0.1; done
"#;

#[test]
fn a_machine_boots_into_its_va_is_updated_and_boots_again() {
    let mut fleet = Fleet::new("boot", ("sbin/init", INIT));
    let first = fleet.roll_out("1").to_string();
    fleet.provision();
    let disk = fleet.disk("disk", LABEL);

    let machine = fleet.switch_on("first", &disk, "strata.hostname=web-03");
    fleet.await_console(&machine, "APPLIANCE: boot 1 of version 1 as web-03, process 1");
    fleet.await_console(&machine, "APPLIANCE: mounts of the host: 0");
    assert_eq!(fleet.report()["state"], "serving");
    assert_eq!(fleet.report()["generation"], first);
    let second = fleet.roll_out("2").to_string();
    // What was open keeps its bytes (§5.5).
    fleet.await_console(&machine, "APPLIANCE: now version 2, held 1");
    fleet.await_end(machine);

    // What it wrote is on its own disk, and nowhere in the store.
    assert_eq!(file_of(&disk, "/private/upper/var/boots"), "1\n");
    let machine = fleet.switch_on("second", &disk, "");
    fleet.await_console(&machine, "APPLIANCE: boot 2 of version 2");
    fleet.await_end(machine);
    assert_eq!(fleet.report()["generation"], second);
    assert_eq!(file_of(&disk, "/private/upper/var/boots"), "2\n");
    fleet.workspace.finish();
}

#[test]
fn a_machine_tells_what_is_missing_and_goes_on_when_it_is_there() {
    let mut fleet = Fleet::new("waiting", ("etc/strata/services/one", SERVICE));
    fleet.roll_out("1");
    let disk = fleet.disk("disk", LABEL);

    // Nobody has provisioned its VA yet.
    let machine = fleet.switch_on("unknown", &disk, "");
    fleet.await_console(&machine, "the store has no generation for 52:54:00:12:34:56 (eth0)");
    wait_until("the report says so", PATIENCE, || fleet.report()["state"] == "failed");
    fleet.provision();
    // No first program, hence its services, with process ids of their own.
    fleet.await_console(&machine, "SERVICE: 1, process 2");
    assert_eq!(fleet.report()["state"], "serving");
    machine.ask_to_end();
    fleet.await_console(&machine, "SERVICE: ends");
    fleet.await_end(machine);
    assert_eq!(file_of(&disk, "/private/upper/var/end"), "ended\n");

    // The disk of another VA is not touched.
    let other = fleet.disk("other", "va-525400000001");
    let before = fs::read(&other).expect("a disk");
    let machine = fleet.switch_on("foreign", &other, "strata.give-up=2");
    fleet.await_console(&machine, "the disk vda is no private disk of 52:54:00:12:34:56");
    fleet.await_console(&machine, "giving up");
    fleet.await_end(machine);
    assert!(fs::read(&other).expect("a disk") == before);
    let error = fleet.report()["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("\"va-525400000001\""), "{error}");

    // A disk with the right label and another VA's private directory is refused by the VLFS.
    let owner = fleet.workspace.write("owner", &[("owner", "52:54:00:00:00:01\n")]).join("owner");
    let script = format!("cd /private\nrm owner\nwrite {} owner\n", owner.display());
    let script = fleet.workspace.write("owner", &[("script", &script)]).join("script");
    finish(Command::new("debugfs").args(["-w", "-f"]).arg(script).arg(&disk)).ok();
    assert_eq!(file_of(&disk, "/private/owner"), "52:54:00:00:00:01\n");
    let machine = fleet.switch_on("owned", &disk, "strata.give-up=2");
    fleet.await_console(&machine, "belongs to 52:54:00:00:00:01");
    fleet.await_end(machine);

    let machine = fleet.switch_on("misspelt", &disk, "strata.rings=canary");
    fleet.await_console(&machine, "\"strata.rings=canary\" is no option of Strata");
    fleet.await_end(machine);
    fleet.workspace.finish();
}

#[test]
fn a_machine_lives_by_the_commands_of_any_va() {
    let fleet = Fleet::new("qemu", ("etc/strata/services/one", SERVICE));
    let first = fleet.roll_out("1").to_string();
    let provision = ["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"];
    fleet.va(&provision).ok();
    assert_eq!(fleet.status()["state"], "stopped");
    // Another VA of the host, whose file system is there before the machine is.
    fleet.va(&["provision", "--template", "web", "beside"]).ok();
    fleet.va(&["start", "beside", "--", "/usr/bin/busybox", "sleep", "1000"]).ok();
    let port = free_port();
    let forward = format!("{port}:80");
    let start = [
        "start",
        "--timeout",
        "120",
        "--accelerator",
        "software",
        "--transport",
        "9p",
        "--network",
        "private",
        "--forward",
        &forward,
        "web",
    ];
    assert_eq!(fleet.va(&start).ok(), "web is running\n");
    assert_eq!(fleet.status()["state"], "running");
    assert_eq!(fleet.status()["reported"], first);
    wait_until("it serves a page", PATIENCE, || page(port, "version") == "1");
    let again = fleet.va(&start).exits(2).stderr;
    assert!(again.contains("the VA web is running"), "{again}");
    let inside = fleet.va(&["exec", "web", "ls"]).exits(2).stderr;
    assert!(inside.contains("hint: use its network"), "{inside}");
    let drift = fleet.va(&["drift", "--watch", "**", "web"]).exits(2).stderr;
    assert!(drift.contains("machines/web/disk.img"), "{drift}");

    sit_at_console(&fleet);

    // QEMU sees the store without what concerns other VAs, and so does the machine's root.
    let pid = fleet.status()["processes"][0].as_u64().expect("a process");
    let seen = |name: &str| {
        let store = fleet.workspace.store();
        let path = format!("/proc/{pid}/root{}", store.join(name).display());
        fs::read_dir(path).expect("a directory").count()
    };
    assert_eq!(["machines", "reports", "state"].map(seen), [0; 3]);
    assert!(seen("repos") > 0 && seen("va") > 0);
    // It holds no file system of another VA, which ends without it.
    let held = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it runs");
    assert!(!held.contains("fuse.strata"), "{held}");
    let stopped = fleet.va(&["stop", "beside"]).exits(0).stderr;
    assert!(!stopped.contains("killed"), "{stopped}");

    // Over 9p what is open does not leave QEMU; the machine goes on.
    let kept = fleet.va(&["suspend", "--to-disk", "web"]).exits(2).stderr;
    assert!(kept.contains("over 9p") && kept.contains("hint: stop it"), "{kept}");
    assert_eq!(fleet.status()["state"], "running");

    // An update reaches a suspended machine when it goes on (§4.4).
    fleet.va(&["suspend", "web"]).ok();
    assert_eq!(fleet.status()["state"], "suspended");
    assert_eq!(fleet.status()["suspended_to"], "memory");
    let second = fleet.roll_out("2").to_string();
    assert_eq!(fleet.status()["reported"], first);
    fleet.va(&["resume", "web"]).ok();
    wait_until("the update is there", PATIENCE, || fleet.status()["reported"] == second);
    wait_until("it serves the update", PATIENCE, || page(port, "version") == "2");

    // It ends in order, with what its service did last.
    fleet.va(&["stop", "--timeout", "60", "web"]).ok();
    assert_eq!(fleet.status()["state"], "stopped");
    let console = fleet.va(&["logs", "web"]).ok();
    assert!(console.contains("SERVICE: 1, process 2"), "{console}");
    assert!(console.contains("the appliance has ended (exit status: 0)"), "{console}");
    let disk = fleet.workspace.store().join("machines/web/disk.img");
    assert_eq!(file_of(&disk, "/private/upper/var/end"), "ended\n");

    let copied = fleet.va(&["clone", "--private", "web", "other"]).exits(2).stderr;
    assert!(copied.contains("it is a machine's disk"), "{copied}");
    fleet.va(&["clone", "web", "other"]).ok();
    let other = fs::read_to_string(fleet.workspace.store().join("machines/other/va.json"));
    assert!(other.expect("a record").contains(r#""driver":"qemu""#));

    // Whatever executes its instructions; and a second machine does not get its disk.
    fleet.va(&["start", "--timeout", "120", "web"]).ok();
    let image = format!("file={},format=raw", disk.display());
    let mut other = Command::new("timeout");
    other.args([
        "20",
        "qemu-system-x86_64",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-drive",
        &image,
    ]);
    let refused = finish(&mut other).exits(1).stderr;
    assert!(refused.contains("lock"), "{refused}");
    let running = fleet.va(&["destroy", "--yes", "web"]).exits(2).stderr;
    assert!(running.contains("the VA web is running"), "{running}");
    fleet.va(&["stop", "--timeout", "0", "web"]).ok();
    assert_eq!(fleet.status()["state"], "stopped");
    fleet.va(&["destroy", "--yes", "web"]).ok();
    for gone in ["machines/web".to_owned(), format!("reports/{MAC}"), format!("va/{MAC}")] {
        assert!(fleet.workspace.store().join(&gone).symlink_metadata().is_err(), "{gone}");
    }
    fleet.workspace.finish();
}

/// Whoever sits at the machine's console types and sees what it shows, and leaves it as it is.
fn sit_at_console(fleet: &Fleet) {
    let strata = fleet.workspace.strata();
    let console = || {
        let mut command = Command::new(strata.get_program());
        command.env("STRATA_STORE", fleet.workspace.store()).args(["va", "console", "web"]);
        command
    };
    let shown = |text| fleet.va(&["logs", "web"]).ok().contains(text);
    let mut piped = console().stdin(Stdio::piped()).spawn().expect("started");
    piped.stdin.take().expect("a pipe").write_all(b"one\r").expect("written");
    assert!(piped.wait().expect("ended").success());
    wait_until("what was typed is heard", PATIENCE, || shown("SERVICE: heard one"));

    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let keyboard = openpt(flags).expect("a terminal");
    unlockpt(&keyboard).expect("unlocked");
    let path = ptsname(&keyboard, Vec::new()).expect("its name").into_string().expect("UTF-8");
    let terminal = fs::File::options().read(true).write(true).open(path).expect("opened");
    let same = || Stdio::from(terminal.try_clone().expect("a second handle"));
    let before = tcgetattr(&terminal).expect("a terminal");
    let mut typist =
        console().stdin(same()).stdout(same()).stderr(same()).spawn().expect("started");
    let mut keyboard = fs::File::from(keyboard);
    let mut screen = String::new();
    let mut read_until = |keyboard: &mut fs::File, text: &str| {
        let mut buffer = [0; 1024];
        while !screen.contains(text) {
            let timeout = Timespec { tv_sec: 120, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&*keyboard, PollFlags::IN)], Some(&timeout));
            assert_eq!(ready, Ok(1), "{text}: {screen}");
            let length = keyboard.read(&mut buffer).expect("the terminal is open");
            screen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    read_until(&mut keyboard, "Ctrl-] leaves it");
    keyboard.write_all(b"two\r").expect("typed");
    read_until(&mut keyboard, "SERVICE: heard two");
    let taken = fleet.va(&["console", "web"]).exits(2).stderr;
    assert!(taken.contains("somebody is at the console"), "{taken}");
    keyboard.write_all(&[0x1d]).expect("typed");
    read_until(&mut keyboard, "left the console of web");
    assert!(typist.wait().expect("ended").success());
    let after = tcgetattr(&terminal).expect("a terminal");
    assert_eq!((before.local_modes, before.input_modes), (after.local_modes, after.input_modes));
    assert_eq!(fleet.status()["state"], "running");
    assert!(shown("SERVICE: heard two"));
}

#[test]
fn a_machine_that_cannot_come_up_says_why() {
    let fleet = Fleet::new("unable", ("etc/strata/services/one", SERVICE));
    fleet.roll_out("1");
    let provision = ["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"];
    fleet.va(&provision).ok();
    fs::remove_file(fleet.workspace.store().join("boot/current")).expect("removed");
    let start = ["start", "--timeout", "20", "--accelerator", "software", "web"];
    let none = fleet.va(&start).exits(2).stderr;
    assert!(none.contains("hint: make it: strata boot build"), "{none}");
    assert_eq!(fleet.status()["state"], "stopped");
    let console = fleet.va(&["console", "web"]).exits(2).stderr;
    assert!(console.contains("the VA web is stopped"), "{console}");
    fleet.va(&["provision", "--template", "web", "light"]).ok();
    let console = fleet.va(&["console", "light"]).exits(2).stderr;
    assert!(console.contains("hint: run a shell in it"), "{console}");
    let command = fleet.va(&["start", "web", "--", "ls"]).exits(2).stderr;
    assert!(command.contains("takes no command"), "{command}");
    fleet.workspace.finish();
}
