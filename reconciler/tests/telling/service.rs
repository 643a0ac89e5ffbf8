//! The reconciler as a service: metrics, health, reload, systemd's messages, its unit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use strata_store::Store;

use crate::sink::{Http, wait_until};

const SOON: Duration = Duration::from_secs(20);

struct Service {
    child: Child,
    directory: tempfile::TempDir,
    listen: SocketAddr,
    notify: UnixDatagram,
}

impl Drop for Service {
    fn drop(&mut self) {
        // Harmless where it has ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn git(directory: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"];
    let output = Command::new("git").args(identity).args(arguments).current_dir(directory).output();
    let output = output.expect("git: apt-get install git");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

impl Service {
    /// A reconciler of an empty store; `configuration` goes after the listener's.
    fn start(configuration: &str, drop_in: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        Store::init(&path.join("store")).expect("a store");
        std::fs::create_dir_all(path.join("fleet/templates")).expect("made");
        std::fs::write(path.join("fleet/strata.toml"), "[[repository]]\nname = \"main\"\n")
            .expect("written");
        git(&path.join("fleet"), &["init", "-q", "-b", "main"]);
        git(&path.join("fleet"), &["add", "-A"]);
        git(&path.join("fleet"), &["commit", "-q", "-m", "first"]);
        // The port is free again for the program to take.
        let listen =
            TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound");
        std::fs::create_dir(path.join("strata.toml.d")).expect("made");
        let text = format!("[listen]\nmetrics = \"{listen}\"\n{configuration}");
        std::fs::write(path.join("strata.toml"), text).expect("written");
        std::fs::write(path.join("strata.toml.d/10.toml"), drop_in).expect("written");
        let notify = UnixDatagram::bind(path.join("notify")).expect("a socket");
        notify.set_read_timeout(Some(SOON)).expect("set");
        let child = Command::new(env!("CARGO_BIN_EXE_strata"))
            .arg("reconcile")
            .arg("--store")
            .arg(path.join("store"))
            .arg("--source")
            .arg(path.join("fleet"))
            .arg("--config")
            .arg(path.join("strata.toml"))
            .env("NOTIFY_SOCKET", path.join("notify"))
            .env("WATCHDOG_USEC", "2000000")
            .env_remove("WATCHDOG_PID")
            .env_remove("STRATA_LOG")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path.join("log")).expect("a log"))
            .spawn()
            .expect("starts");
        Service { child, directory, listen, notify }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("alive");
    }

    /// The next message to systemd that says something of `about`.
    fn said(&self, about: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let count = self.notify.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("no message of {about}: {error}\n{}", self.log());
            });
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.contains(about) {
                return text;
            }
        }
    }

    fn get(&self, path: &str) -> (u16, String) {
        request(self.listen, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
}

fn request(address: SocketAddr, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("listens");
    stream.set_read_timeout(Some(SOON)).expect("set");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

#[test]
fn metrics_health_and_what_systemd_hears() {
    let service = Service::start("", "");
    assert!(service.said("READY=1").contains("READY=1"));
    wait_until("ready", SOON, || service.get("/readyz").0 == 200);
    assert_eq!(service.get("/healthz"), (200, "ok\n".to_owned()));
    let ready: serde_json::Value = serde_json::from_str(&service.get("/readyz").1).expect("JSON");
    assert_eq!(ready["ready"], true);
    assert_eq!(ready["conditions"][0]["type"], "Ready");
    assert_eq!(ready["conditions"][0]["reason"], "Refused", "an empty commit is refused: {ready}");
    let (status, page) = service.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "strata_passes_total{result=\"refused\"} 1",
        "strata_condition{condition=\"Stalled\"} 1",
        "strata_pass_duration_seconds_count{phase=\"total\"} 1",
        "strata_stage_duration_seconds_count{stage=\"detected\"} 1",
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
    assert_eq!(service.get("/nothing").0, 404);
    let long = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(request(service.listen, &long).0, 431, "headers have a limit");
    assert!(service.said("WATCHDOG=1").contains("WATCHDOG=1"), "it is fed");
    service.signal(Signal::TERM);
    assert!(service.said("STOPPING=1").contains("STOPPING=1"));
}

#[test]
fn a_new_configuration_is_taken_and_a_bad_one_refused() {
    let (first, second) = (Http::new(), Http::new());
    let entry = |server: &Http| {
        format!(
            "[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nimportance = \"info\"\nevents = [\"reconciler\", \"pass-failed\"]\n",
            server.url("/")
        )
    };
    let service = Service::start("", &entry(&first));
    service.said("READY=1");
    wait_until("ready", SOON, || service.get("/readyz").0 == 200);
    let drop_in = service.path("strata.toml.d/10.toml");
    std::fs::write(&drop_in, "\n\n[[notify]]\nsurprise = 1\n").expect("written");
    service.signal(Signal::HUP);
    assert!(service.said("RELOADING=1").contains("MONOTONIC_USEC="));
    service.said("READY=1");
    wait_until("it is refused", SOON, || service.log().contains("the configuration was not taken"));
    let log = service.log();
    assert!(log.contains("10.toml:4") || log.contains("10.toml:3"), "with file and line: {log}");
    // The one before holds: its receiver is told of the next thing.
    std::fs::write(&drop_in, entry(&second)).expect("written");
    service.signal(Signal::HUP);
    wait_until("the new one is told", SOON, || {
        second.seen().iter().any(|r| r.json()["record"]["change"] == "reloaded")
    });
    assert_eq!(service.get("/healthz").0, 200, "it went on all the time");
}

#[test]
fn a_bad_configuration_does_not_start() {
    let mut service = Service::start("surprise = 1\n", "");
    let mut status = None;
    wait_until("it ends", SOON, || {
        status = service.child.try_wait().expect("waited");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(2));
    let log = service.log();
    assert!(log.contains("strata.toml:3") && log.contains("surprise"), "{log}");
}

/// The unit is one that systemd reads without a word, and is as locked up as it says.
#[test]
fn the_unit_is_in_order_and_locked_up() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/strata-reconcile.service");
    let directory = tempfile::tempdir().expect("a directory");
    let text = std::fs::read_to_string(&unit).expect("a unit");
    assert!(!text.contains("--source"), "it would hide the [source] of the settings");
    // What is not installed here is no fault of the unit.
    let here = text.replace("/usr/bin/strata", env!("CARGO_BIN_EXE_strata"));
    let here = here.replace("Documentation=man:strata-reconcile(1)\n", "");
    let copy = directory.path().join("strata-reconcile.service");
    std::fs::write(&copy, here).expect("written");
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&copy).output();
        let output = output.expect("systemd-analyze: apt-get install systemd");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (good, said) = analyze(&["verify", "--man=no"]);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("strata-reconcile")).collect();
    assert!(good && ours.is_empty(), "{said}");
    let (good, said) = analyze(&["security", "--offline=true", "--threshold=26"]);
    assert!(good, "more exposed than 2.6:\n{said}");
    let (good, _) = analyze(&["security", "--offline=true", "--threshold=10"]);
    assert!(!good, "the check can fail");
}
