//! Machines that are suspended to disk, over virtiofs (§4.4): nothing of them is left on the
//! host, and when they are resumed they go on where they were, on the layers that they
//! should have by then.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use strata_tests::boot::{Fleet, MAC, PATIENCE, free_port, page};
use strata_tests::{leaks, wait_until};

/// Serves what it has in memory: which boot this is, what the file held that it opened before
/// an update, and what it finds in the store, which it mounts once more as its root can.
const SERVICE: &str = r#"#!/usr/bin/busybox sh
b=/usr/bin/busybox
$b ip addr add 10.0.2.15/24 dev eth0 && $b ip link set eth0 up
$b mkdir -p /run/www /run/store
$b mount -t virtiofs store /run/store
for d in machines reports state; do $b ls /run/store/$d; done >/run/www/seen 2>/dev/null
$b touch /run/store/repos/mine 2>/dev/null && echo written >>/run/www/seen
$b umount /run/store
$b mkdir -p /run/reports && $b mount -t virtiofs reports /run/reports
$b mknod /run/reports/device c 1 3 2>/dev/null && echo device >>/run/www/seen
$b cp /usr/bin/busybox /run/reports/setuid && $b chmod 4755 /run/reports/setuid
$b umount /run/reports
exec 3</etc/version
$b cat /proc/sys/kernel/random/boot_id >/run/www/boot
$b httpd -p 80 -h /run/www
while :; do
    $b cat /etc/version >/run/www/new && $b mv /run/www/new /run/www/version
    $b date +%s >/run/www/new && $b mv /run/www/new /run/www/time
    [ -e /run/www/held ] || ! $b grep -q 2 /etc/version || $b cat <&3 >/run/www/held
    $b sleep 0.1
done
"#;

#[test]
fn a_machine_is_suspended_to_disk_updated_and_resumed() {
    let fleet = Fleet::new("suspend", ("etc/strata/services/one", SERVICE));
    let first = fleet.roll_out("1").to_string();
    fleet.va(&["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"]).ok();
    let port = free_port();
    let forward = format!("{port}:80");
    let start = ["start", "--timeout", "120", "--accelerator", "software", "--network", "private"];
    let start = [&start[..], &["--transport", "virtiofs", "--forward", &forward, "web"]].concat();
    fleet.va(&start).ok();
    wait_until("it serves a page", PATIENCE, || page(port, "version") == "1");
    let boot = page(port, "boot");
    // Its root sees nothing of other VAs and of the host's, and writes nothing there.
    assert_eq!(page(port, "seen"), "");
    let store = fleet.workspace.store();
    let left = fs::metadata(store.join("reports").join(MAC).join("setuid")).expect("made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&left), 65534, "it is nobody's");

    assert_eq!(fleet.va(&["suspend", "--to-disk", "web"]).ok(), "web is suspended to disk\n");
    let status = fleet.status();
    assert_eq!((&status["state"], &status["suspended_to"]), (&"suspended".into(), &"disk".into()));
    assert!(fleet.va(&["list"]).ok().contains("suspended (to disk)"));
    assert_eq!(leaks::everything(&fleet.workspace.path("")), [""; 0]);
    fleet.va(&["suspend", "--to-disk", "web"]).ok();
    fleet.va(&["suspend", "web"]).ok();
    for (refused, hint) in [
        (&start[..], "hint: resume it first: strata va resume web"),
        (&["destroy", "--yes", "web"], "hint: resume it first"),
        (&["rename", "web", "other"], "hint: resume it first"),
        (&["stop", "web"], "strata va stop --timeout 0 web"),
    ] {
        let told = fleet.va(refused).exits(2).stderr;
        assert!(told.contains("the VA web is suspended") && told.contains(hint), "{told}");
    }

    // Longer than its clock may be wrong by.
    let suspended = Instant::now();
    wait_until("time passes", PATIENCE, || suspended.elapsed() > Duration::from_secs(5));

    // What it had open and in memory is there again, and it serves the update.
    let second = fleet.roll_out("2").to_string();
    assert_eq!(fleet.status()["reported"], first);
    assert_eq!(fleet.va(&["resume", "web"]).ok(), "web is running\n");
    // Who asks the machine slows it down; its report asks nothing of it.
    let took = wait_until("it serves the update", PATIENCE, || reported(&store) == second);
    assert!(took < Duration::from_secs(2), "{took:?}");
    wait_until("its programs see the update", PATIENCE, || page(port, "version") == "2");
    assert_eq!(page(port, "boot"), boot, "it was not booted");
    wait_until("the held file is read", PATIENCE, || page(port, "held") == "1");
    // Its clock is its host's again.
    wait_until("its clock is right", PATIENCE, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        page(port, "time").trim().parse().is_ok_and(|time: u64| now.abs_diff(time) <= 3)
    });
    assert_eq!(fleet.status()["reported"], second);
    assert!(!store.join("machines/web/suspended").exists());

    // From memory to disk; and what it had in memory is given up.
    fleet.va(&["suspend", "web"]).ok();
    assert_eq!(fleet.status()["suspended_to"], "memory");
    fleet.va(&["suspend", "--to-disk", "web"]).ok();
    fleet.va(&["resume", "web"]).ok();
    wait_until("it serves its page", PATIENCE, || page(port, "boot") == boot);
    fleet.va(&["suspend", "--to-disk", "web"]).ok();
    fleet.va(&["stop", "--timeout", "0", "web"]).ok();
    assert_eq!(fleet.status()["state"], "stopped");
    assert!(!store.join("machines/web/suspended").exists());
    assert_eq!(leaks::everything(&fleet.workspace.path("")), [""; 0]);
    fleet.va(&["destroy", "--yes", "web"]).ok();
    fleet.workspace.finish();
}

/// The generation of the machine's last report.
fn reported(store: &Path) -> String {
    let report = store.join("reports").join(MAC).join(MAC);
    let report = fs::read(report).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let generation = report.as_ref().and_then(|report: &Value| report["generation"].as_str());
    generation.unwrap_or_default().to_owned()
}
