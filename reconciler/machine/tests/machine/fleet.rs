//! A store, a tiny appliance and a guard that nothing is left.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use strata_core::generation::Generation;
use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_machine::{
    AcceleratorChoice, Driver, Machines, Network, Programs, ProvisionRequest, StartRequest,
    TransportChoice,
};
use strata_store::{Store, VaTarget};
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// The programs of the tiny appliance, copied from the host with their libraries.
const PROGRAMS: [&str; 9] =
    ["sh", "sleep", "cat", "ls", "mkdir", "readlink", "hostname", "mknod", "tail"];

/// Mounts an overlay of `$TINY_ROOT` and stays until it is unmounted.
const STAND_IN: &str = r#"#!/bin/sh
set -e
[ "$1" = mount ] || exit 2
while [ $# -gt 1 ]; do
    case $1 in
        --private) private=$2; shift;;
        --va) mac=$2; shift;;
    esac
    shift
done
[ -e "$FAKE/refuse-$mac" ] && { echo "error: the layer main/x 1 is damaged" >&2; exit 2; }
mkdir -p "$private/upper" "$private/work"
echo "strata-private 1" >"$private/format"
mount -t overlay -o "lowerdir=$FAKE/root,upperdir=$private/upper,workdir=$private/work" strata "$1"
root=$1
setsid sh -c "while grep -q \" $root \" /proc/self/mountinfo; do sleep 0.02; done" \
    >/dev/null 2>&1 </dev/null &
"#;

pub fn composition() -> CompositionName {
    CompositionName::new("web-server").expect("valid")
}

pub fn va(name: &str) -> VaName {
    VaName::new(name).expect("valid")
}

pub fn start_request(command: Vec<OsString>) -> StartRequest {
    StartRequest {
        command,
        network: Network::Host,
        forwards: Vec::new(),
        memory_bytes: None,
        accelerator: AcceleratorChoice::Auto,
        transport: TransportChoice::Auto,
        layer_scripts: true,
        deadline: DEADLINE,
    }
}

pub fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// One VA, by name.
pub fn request(name: &str) -> ProvisionRequest {
    ProvisionRequest {
        composition: composition(),
        ring: None,
        mac: None,
        name: Some(va(name)),
        count: None,
        driver: Driver::Namespace,
        private: None,
    }
}

/// A store on which one template has been rolled out.
pub struct Fleet {
    pub store: Store,
    directory: TempDir,
}

impl Fleet {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        Self::within(&std::env::temp_dir())
    }

    /// One whose store is below `parent`.
    pub fn within(parent: &Path) -> Self {
        let directory = TempDir::new_in(parent).expect("a temporary directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let generation = Generation::new(composition(), Vec::new(), String::new()).expect("empty");
        let (id, _) = store.seal_generation(&generation, "test").expect("sealed");
        let ring = RingName::new("everyone").expect("valid");
        store.move_ring(&composition(), &ring, &id).expect("moved");
        fs::create_dir(directory.path().join("fake")).expect("made");
        Fleet { store, directory }
    }

    pub fn machines(&self) -> Machines<'_> {
        Machines::open(&self.store).expect("machines")
    }

    /// The stand-in and the `strata-init` of this build.
    pub fn programs(&self) -> Programs {
        let vlfs = self.directory.path().join("strata-vlfs");
        if !vlfs.exists() {
            let text = STAND_IN.replace("$FAKE", &self.fake().to_string_lossy());
            fs::write(&vlfs, text).expect("written");
            fs::set_permissions(&vlfs, fs::Permissions::from_mode(0o755)).expect("executable");
            let root = self.fake().join("root");
            run(Command::new("cp").arg("-a").arg(&*TINY_ROOT.1).arg(root));
        }
        Programs { vlfs, init: built("strata-init"), virtiofsd: None }
    }

    /// Where the stand-in finds its root and its orders.
    pub fn fake(&self) -> PathBuf {
        self.directory.path().join("fake")
    }

    /// Points a VA's link at the one of a batch of its ring.
    pub fn batch(&self, mac: MacAddr) {
        let generation = self.store.desired(mac).expect("read").expect("linked");
        let staged = RingName::new("everyone+next").expect("valid");
        self.store.move_ring(&composition(), &staged, &generation).expect("moved");
        let target = VaTarget::Ring { composition: composition(), ring: staged };
        self.store.move_va(mac, &target).expect("moved");
    }

    pub fn provision(&self, name: &str) {
        self.machines().provision(&request(name), &mut |_, _| ()).expect("provisioned");
    }

    pub fn start(&self, name: &str, command: &[&str]) {
        let request = start_request(words(command));
        self.machines().start(&va(name), &request, &self.programs()).expect("started");
    }

    /// What a shell command in the VA prints, and how it ends.
    pub fn sh(&self, name: &str, script: &str) -> Output {
        let command = words(&["sh", "-c", script]);
        let machines = self.machines();
        let mut command = machines.exec(&va(name), &command, &self.programs()).expect("running");
        command.command().output().expect("strata-init runs")
    }

    pub fn sh_stdout(&self, name: &str, script: &str) -> String {
        let output = self.sh(name, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    pub fn console(&self, name: &str) -> String {
        let path = self.machines().directory(&va(name)).join("console.log");
        fs::read_to_string(path).expect("a console")
    }

    /// Cgroups of this store's VAs, mounts below it, and processes in either.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let path = self.directory.path().to_string_lossy();
        left.extend(mountinfo.lines().filter(|line| line.contains(&*path)).map(str::to_owned));
        for process in fs::read_dir("/proc").expect("readable") {
            let command_line = process.expect("readable").path().join("cmdline");
            let text = fs::read(&command_line).unwrap_or_default();
            if String::from_utf8_lossy(&text).contains(&*path) {
                left.push(command_line.display().to_string());
            }
        }
        let stat = rustix::fs::stat(self.store.machines()).expect("a store");
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let hierarchy = strata_machine::cgroup::hierarchy().expect("/proc").expect("cgroup v2");
        let cgroup = hierarchy.join(format!("strata/{major}-{minor}-{}", stat.st_ino));
        left.extend(cgroup.exists().then(|| cgroup.display().to_string()));
        left
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let machines = self.machines();
        for name in machines.names().unwrap_or_default() {
            if let Err(error) = machines.stop(&name, Duration::ZERO) {
                eprintln!("{name} is left: {error}");
            }
        }
        let left = self.leftovers();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.parent().and_then(Path::parent).expect("target/<profile>/deps").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build -p {name}` first", path.display());
    path
}

static TINY_ROOT: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path().join("root");
    for name in ["usr/bin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("linked");
    }
    for name in PROGRAMS {
        let program = ["/usr/bin", "/bin"].map(|path| Path::new(path).join(name));
        let program = program.iter().find(|path| path.exists()).expect("coreutils are there");
        fs::copy(program, root.join("usr/bin").join(name)).expect("copied");
        let output = Command::new("ldd").arg(program).output().expect("ldd of libc-bin");
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if let Some(path) = word.strip_prefix('/') {
                let target = root.join(path);
                fs::create_dir_all(target.parent().expect("a parent")).expect("made");
                fs::copy(word, target).expect("copied");
            }
        }
    }
    (directory, root)
});

fn run(command: &mut Command) {
    let status = command.status().expect("the program is there");
    assert!(status.success(), "{command:?}: {status}");
}
