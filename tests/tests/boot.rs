//! Machines that boot into their VAs (§4.3): a real kernel in a real QEMU, without
//! hardware support, on a store of the host shown over 9p. What the machine says
//! on its console is what is waited for.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::{
    CompositionName, GenerationId, LayerName, LayerVersion, RepositoryName, RingName,
};
use strata_store::Store;
use strata_tests::{Workspace, finish, program, wait_until};

const MAC: &str = "52:54:00:12:34:56";
const LABEL: &str = "va-525400123456";
/// A boot takes five seconds of processor time, of which there may be little.
const PATIENCE: Duration = Duration::from_secs(120);

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
while :; do $b sleep 0.1; done
"#;

/// A file that `ci/setup` or `ci/static` puts below the target directory.
fn prepared(path: &str, by: &str) -> PathBuf {
    let target = program("strata").ancestors().nth(2).expect("<target>/<profile>").to_owned();
    let path = target.join(path);
    assert!(path.is_file(), "{} is missing\n  hint: {by}", path.display());
    path
}

/// A store with the template `web` in two versions, and a boot environment.
struct Fleet {
    workspace: Workspace,
}

impl Fleet {
    fn new(name: &str, program: (&str, &str)) -> Self {
        let workspace = Workspace::new(name);
        workspace.init_store();
        let busybox = prepared("ci/debs/busybox.deb", "ci/setup");
        finish(workspace.strata().args(["layer", "import", "--repo", "main"]).arg(busybox)).ok();
        for version in ["1", "2"] {
            let (path, text) = program;
            let root = workspace.write(
                format!("app-{version}"),
                &[("etc/version", version), ("var/lib/x", ""), (path, text)],
            );
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).expect("set");
            let mut command = workspace.strata();
            command.args(["layer", "build", "--repo", "main", "--name", "app", "--version"]);
            finish(command.arg(version).arg("--root").arg(root)).ok();
        }
        let mut build = workspace.strata();
        build.args(["boot", "build", "--kernel"]).arg(prepared("ci/debs/kernel.deb", "ci/setup"));
        build.arg("--init").arg(prepared("static/strata-init", "ci/static"));
        finish(build.arg("--vlfs").arg(prepared("static/strata-vlfs", "ci/static"))).ok();
        fs::create_dir(workspace.path("reports")).expect("made");
        Fleet { workspace }
    }

    /// Rolls a version out, as the reconciler does.
    fn roll_out(&self, version: &str) -> GenerationId {
        let store = Store::open(&self.workspace.store()).expect("a store");
        let repository = RepositoryName::new("main").expect("valid");
        let database = store.database(&repository).expect("a database");
        let busybox = LayerName::new("busybox-static").expect("valid");
        let app = LayerName::new("app").expect("valid");
        let wanted = LayerVersion::new(version).expect("valid");
        let units = database.units().filter(|unit| {
            let metadata = &unit.metadata;
            metadata.layer == busybox || metadata.layer == app && metadata.version == wanted
        });
        let entries: Vec<_> = units
            .map(|unit| LayerSetEntry {
                kind: unit.metadata.kind,
                repository: repository.clone(),
                layer: unit.metadata.layer.clone(),
                version: unit.metadata.version.clone(),
                digest: unit.digest,
            })
            .collect();
        assert_eq!(entries.len(), 2);
        let lines: String = entries
            .iter()
            .map(|entry| format!("main/{} {}\n", entry.layer, entry.version))
            .collect();
        let web = CompositionName::new("web").expect("valid");
        let generation = Generation::new(web.clone(), entries, lines).expect("two layers");
        let (id, _) = store.seal_generation(&generation, "test").expect("sealed");
        store.move_ring(&web, &RingName::new("everyone").expect("valid"), &id).expect("moved");
        id
    }

    fn provision(&self) {
        let mut command = self.workspace.strata();
        command.args(["va", "provision", "--template", "web", "--mac", MAC, "web"]);
        finish(&mut command).ok();
    }

    /// A private disk, as the host makes it.
    fn disk(&self, name: &str, label: &str) -> PathBuf {
        let path = self.workspace.path(name);
        let disk = fs::File::create_new(&path).expect("a new disk");
        disk.set_len(64 << 20).expect("a sparse file");
        finish(Command::new("mkfs.ext4").args(["-q", "-L", label]).arg(&path)).ok();
        path
    }

    /// Switches a machine on. `options` are for the boot environment.
    fn switch_on(&mut self, name: &'static str, disk: &Path, options: &str) -> Machine {
        let current = self.workspace.store().join("boot/current");
        let control = self.workspace.path(format!("{name}.qmp"));
        let line = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check nokaslr mitigations=off \
             strata.store=9p:store strata.reports=9p:reports {options}"
        );
        let share = |path: PathBuf, tag: &str, rest: &str| {
            format!("local,path={},mount_tag={tag},{rest}", path.display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]);
        qemu.args(["-m", "512", "-nodefaults", "-no-reboot", "-display", "none"]);
        qemu.args(["-serial", "stdio", "-append", &line, "-qmp"]);
        qemu.arg(format!("unix:{},server=on,wait=off", control.display()));
        qemu.arg("-kernel").arg(current.join("kernel"));
        qemu.arg("-initrd").arg(current.join("initramfs"));
        let store = "security_model=passthrough,readonly=on";
        qemu.arg("-virtfs").arg(share(self.workspace.store(), "store", store));
        let reports = self.workspace.path("reports");
        qemu.arg("-virtfs").arg(share(reports, "reports", "security_model=mapped-xattr"));
        qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw", disk.display()));
        qemu.args(["-netdev", "user,id=net,restrict=on", "-device"]);
        qemu.arg(format!("virtio-net-pci,netdev=net,mac={MAC},romfile="));
        self.workspace.spawn(name, &mut qemu);
        Machine { name, control }
    }

    #[track_caller]
    fn await_console(&self, machine: &Machine, text: &str) {
        wait_until(text, PATIENCE, || self.workspace.log(machine.name).contains(text));
    }

    /// Waits until the machine has switched itself off.
    #[track_caller]
    fn await_end(&mut self, machine: Machine) {
        let pid = self.workspace.pid(machine.name);
        wait_until("the machine is off", PATIENCE, || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z'))
        });
        let code = self.workspace.stop(machine.name, rustix::process::Signal::TERM);
        assert_eq!(code, 0, "{}", self.workspace.log(machine.name));
    }

    fn report(&self) -> Value {
        let text = fs::read(self.workspace.path("reports").join(MAC)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }
}

struct Machine {
    name: &'static str,
    control: PathBuf,
}

impl Machine {
    /// Presses Ctrl-Alt-Del.
    fn ask_to_end(&self) {
        let mut socket = UnixStream::connect(&self.control).expect("QEMU listens");
        let mut answers = BufReader::new(socket.try_clone().expect("a second handle")).lines();
        let keys = ["ctrl", "alt", "delete"]
            .map(|key| format!(r#"{{"type":"qcode","data":"{key}"}}"#))
            .join(",");
        for command in [
            r#"{"execute":"qmp_capabilities"}"#.to_owned(),
            format!(r#"{{"execute":"send-key","arguments":{{"keys":[{keys}]}}}}"#),
        ] {
            writeln!(socket, "{command}").expect("QEMU reads");
            let answer = answers.find(|line| {
                line.as_ref().is_ok_and(|line| line.contains("return") || line.contains("error"))
            });
            let answer = answer.expect("an answer").expect("text");
            assert!(answer.contains("return"), "{answer}");
        }
    }
}

/// What the machine's web server says its version is.
fn page(port: u16) -> String {
    let mut answer = String::new();
    let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut socket| {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /version HTTP/1.0\r\n\r\n")?;
        socket.read_to_string(&mut answer)
    });
    match asked {
        Ok(_) => answer.rsplit("\r\n").next().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    }
}

fn va(fleet: &Fleet, words: &[&str]) -> strata_tests::Finished {
    finish(fleet.workspace.strata().arg("va").args(words))
}

fn status(fleet: &Fleet) -> Value {
    let text = va(fleet, &["status", "web", "--output", "json"]).ok();
    serde_json::from_str(&text).expect("JSON")
}

/// A file of a disk that no machine has, without mounting it.
fn file_of(disk: &Path, path: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    finish(debugfs.arg("-R").arg(format!("cat {path}")).arg(disk)).ok()
}

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
    va(&fleet, &provision).ok();
    assert_eq!(status(&fleet)["state"], "stopped");
    let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let forward = format!("{port}:80");
    let start = [
        "start",
        "--timeout",
        "120",
        "--accelerator",
        "software",
        "--network",
        "private",
        "--forward",
        &forward,
        "web",
    ];
    assert_eq!(va(&fleet, &start).ok(), "web is running\n");
    assert_eq!(status(&fleet)["state"], "running");
    assert_eq!(status(&fleet)["reported"], first);
    wait_until("it serves a page", PATIENCE, || page(port) == "1");
    let again = va(&fleet, &start).exits(2).stderr;
    assert!(again.contains("the VA web is running"), "{again}");
    let inside = va(&fleet, &["exec", "web", "ls"]).exits(2).stderr;
    assert!(inside.contains("hint: use its network"), "{inside}");
    let drift = va(&fleet, &["drift", "--watch", "**", "web"]).exits(2).stderr;
    assert!(drift.contains("machines/web/disk.img"), "{drift}");

    // QEMU sees the store without what concerns other VAs, and so does the machine's root.
    let pid = status(&fleet)["processes"][0].as_u64().expect("a process");
    let seen = |name: &str| {
        let store = fleet.workspace.store();
        let path = format!("/proc/{pid}/root{}", store.join(name).display());
        fs::read_dir(path).expect("a directory").count()
    };
    assert_eq!(["machines", "reports", "state"].map(seen), [0; 3]);
    assert!(seen("repos") > 0 && seen("va") > 0);

    // An update reaches a suspended machine when it goes on (§4.4).
    va(&fleet, &["suspend", "web"]).ok();
    assert_eq!(status(&fleet)["state"], "suspended");
    let second = fleet.roll_out("2").to_string();
    assert_eq!(status(&fleet)["reported"], first);
    va(&fleet, &["resume", "web"]).ok();
    wait_until("the update is there", PATIENCE, || status(&fleet)["reported"] == second);
    wait_until("it serves the update", PATIENCE, || page(port) == "2");

    // It ends in order, with what its service did last.
    va(&fleet, &["stop", "--timeout", "60", "web"]).ok();
    assert_eq!(status(&fleet)["state"], "stopped");
    let console = va(&fleet, &["logs", "web"]).ok();
    assert!(console.contains("SERVICE: 1, process 2"), "{console}");
    assert!(console.contains("the appliance has ended (exit status: 0)"), "{console}");
    let disk = fleet.workspace.store().join("machines/web/disk.img");
    assert_eq!(file_of(&disk, "/private/upper/var/end"), "ended\n");

    let copied = va(&fleet, &["clone", "--private", "web", "other"]).exits(2).stderr;
    assert!(copied.contains("it is a machine's disk"), "{copied}");
    va(&fleet, &["clone", "web", "other"]).ok();
    let other = fs::read_to_string(fleet.workspace.store().join("machines/other/va.json"));
    assert!(other.expect("a record").contains(r#""driver":"qemu""#));

    // Whatever executes its instructions; and a second machine does not get its disk.
    va(&fleet, &["start", "--timeout", "120", "web"]).ok();
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
    let running = va(&fleet, &["destroy", "--yes", "web"]).exits(2).stderr;
    assert!(running.contains("the VA web is running"), "{running}");
    va(&fleet, &["stop", "--timeout", "0", "web"]).ok();
    assert_eq!(status(&fleet)["state"], "stopped");
    va(&fleet, &["destroy", "--yes", "web"]).ok();
    for gone in ["machines/web".to_owned(), format!("reports/{MAC}"), format!("va/{MAC}")] {
        assert!(fleet.workspace.store().join(&gone).symlink_metadata().is_err(), "{gone}");
    }
    fleet.workspace.finish();
}

#[test]
fn a_machine_that_cannot_come_up_says_why() {
    let fleet = Fleet::new("unable", ("etc/strata/services/one", SERVICE));
    fleet.roll_out("1");
    let provision = ["provision", "--template", "web", "--driver", "qemu", "--mac", MAC, "web"];
    va(&fleet, &provision).ok();
    fs::remove_file(fleet.workspace.store().join("boot/current")).expect("removed");
    let start = ["start", "--timeout", "20", "--accelerator", "software", "web"];
    let none = va(&fleet, &start).exits(2).stderr;
    assert!(none.contains("hint: make it: strata boot build"), "{none}");
    assert_eq!(status(&fleet)["state"], "stopped");
    let command = va(&fleet, &["start", "web", "--", "ls"]).exits(2).stderr;
    assert!(command.contains("takes no command"), "{command}");
    fleet.workspace.finish();
}
