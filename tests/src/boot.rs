//! A store for machines that boot into their VAs: the template `web` in two versions, and a
//! boot environment of a real kernel. Machines run in QEMU, without hardware support.

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

use crate::{Finished, Workspace, finish, program, wait_until};

pub const MAC: &str = "52:54:00:12:34:56";
pub const LABEL: &str = "va-525400123456";
/// A boot takes five seconds of processor time, of which there may be little.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A file that `ci/setup` or `ci/static` puts below the target directory.
pub fn prepared(path: &str, by: &str) -> PathBuf {
    let target = program("strata").ancestors().nth(2).expect("<target>/<profile>").to_owned();
    let path = target.join(path);
    assert!(path.is_file(), "{} is missing\n  hint: {by}", path.display());
    path
}

/// A store with the template `web` in two versions, and a boot environment.
pub struct Fleet {
    pub workspace: Workspace,
}

impl Fleet {
    pub fn new(name: &str, program: (&str, &str)) -> Self {
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
    pub fn roll_out(&self, version: &str) -> GenerationId {
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

    pub fn provision(&self) {
        let mut command = self.workspace.strata();
        command.args(["va", "provision", "--template", "web", "--mac", MAC, "web"]);
        finish(&mut command).ok();
    }

    /// A private disk, as the host makes it.
    pub fn disk(&self, name: &str, label: &str) -> PathBuf {
        let path = self.workspace.path(name);
        let disk = fs::File::create_new(&path).expect("a new disk");
        disk.set_len(64 << 20).expect("a sparse file");
        finish(Command::new("mkfs.ext4").args(["-q", "-L", label]).arg(&path)).ok();
        path
    }

    /// Switches a machine on. `options` are for the boot environment.
    pub fn switch_on(&mut self, name: &'static str, disk: &Path, options: &str) -> Machine {
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
    pub fn await_console(&self, machine: &Machine, text: &str) {
        wait_until(text, PATIENCE, || self.workspace.log(machine.name).contains(text));
    }

    /// Waits until the machine has switched itself off.
    #[track_caller]
    pub fn await_end(&mut self, machine: Machine) {
        let pid = self.workspace.pid(machine.name);
        wait_until("the machine is off", PATIENCE, || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z'))
        });
        let code = self.workspace.stop(machine.name, rustix::process::Signal::TERM);
        assert_eq!(code, 0, "{}", self.workspace.log(machine.name));
    }

    /// `strata va` with these words.
    pub fn va(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words))
    }

    /// The same, to be run otherwise.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.strata();
        command.env("STRATA_VIRTIOFSD", prepared("tools/bin/virtiofsd", "ci/setup"));
        command.arg("va").args(words);
        command
    }

    /// What `strata va status web` says.
    pub fn status(&self) -> Value {
        let text = self.va(&["status", "web", "--output", "json"]).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    /// The last report of a machine that was switched on by hand.
    pub fn report(&self) -> Value {
        let text = fs::read(self.workspace.path("reports").join(MAC)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }
}

/// A machine that was switched on by hand.
pub struct Machine {
    name: &'static str,
    control: PathBuf,
}

impl Machine {
    /// Presses Ctrl-Alt-Del.
    pub fn ask_to_end(&self) {
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

/// A file of a disk that no machine has, without mounting it.
pub fn file_of(disk: &Path, path: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    finish(debugfs.arg("-R").arg(format!("cat {path}")).arg(disk)).ok()
}

/// A port of the loopback interface that nobody has.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    listener.expect("a free port").port()
}

/// What the web server of a machine has under a path, or why that is not known.
pub fn page(port: u16, path: &str) -> String {
    let mut answer = String::new();
    let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut socket| {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(socket, "GET /{path} HTTP/1.0\r\n\r\n")?;
        socket.read_to_string(&mut answer)
    });
    match asked {
        Ok(_) => answer.split_once("\r\n\r\n").map_or("", |parts| parts.1).to_owned(),
        Err(error) => error.to_string(),
    }
}
