//! A mount of plain directories that goes away with the test.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_strata-vlfs");
/// How long anything that a test waits for may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Mount {
    pub directory: tempfile::TempDir,
    pub extra: Vec<String>,
}

/// Waits for a condition, with a deadline.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

impl Mount {
    pub fn new() -> Mount {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "these tests mount: run them as root, with `modprobe fuse` done"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["mnt", "layers"] {
            std::fs::create_dir(directory.path().join(name)).expect("made");
        }
        Mount { directory, extra: Vec::new() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("mnt").join(below)
    }

    pub fn private(&self) -> PathBuf {
        self.directory.path().join("private")
    }

    /// A layer directory with files: path, content. A path that ends in `/` is a directory.
    pub fn layer(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let layer = self.directory.path().join("layers").join(name);
        std::fs::create_dir_all(&layer).expect("made");
        for (path, content) in files {
            let path_in = layer.join(path);
            if path.ends_with('/') {
                std::fs::create_dir_all(path_in).expect("made");
                continue;
            }
            std::fs::create_dir_all(path_in.parent().expect("below the layer")).expect("made");
            std::fs::write(path_in, content).expect("written");
        }
        layer
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).output().expect("the program runs")
    }

    fn layered(&self, first: &[&str], layers: &[&Path]) -> Vec<String> {
        let mut arguments: Vec<String> = first.iter().map(|s| (*s).to_owned()).collect();
        for layer in layers {
            arguments.extend(["--layer".to_owned(), layer.display().to_string()]);
        }
        arguments
    }

    pub fn mount(&self, layers: &[&Path]) {
        let private = self.private().display().to_string();
        let mut arguments = self.layered(&["mount", "--private", &private], layers);
        arguments.extend(self.extra.clone());
        arguments.push(self.path("").display().to_string());
        let done = Command::new(PROGRAM).args(&arguments).output().expect("the program runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn swap(&self, layers: &[&Path]) {
        let mount_point = self.path("").display().to_string();
        let arguments = self.layered(&["swap", &mount_point], layers);
        let done = Command::new(PROGRAM).args(&arguments).output().expect("the program runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn status(&self) -> String {
        let done = self.run(&["status", &self.path("").display().to_string(), "--output", "json"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("JSON")
    }

    pub fn daemon(&self) -> u32 {
        let status: serde_json::Value = serde_json::from_str(&self.status()).expect("JSON");
        u32::try_from(status["pid"].as_u64().expect("a number")).expect("a process id")
    }

    pub fn revert(&self, below: &str) {
        let done = self.run(&["revert", &self.path(below).display().to_string()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// The lines of `diff`, without the layer units.
    pub fn diff(&self) -> Vec<String> {
        let done = self.run(&["diff", &self.private().display().to_string()]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let plain = |line: &str| line.split(" [").next().unwrap_or(line).to_owned();
        text.lines().map(plain).collect()
    }

    pub fn unmount(&self) {
        let daemon = self.daemon();
        let done =
            Command::new("umount").arg("-R").arg(self.path("")).output().expect("umount runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        wait_for("the daemon's end", || !Path::new(&format!("/proc/{daemon}/fd/0")).exists());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.private().join("vlfs.log"));
            eprintln!("--- the daemon's log\n{}", log.unwrap_or_default());
        }
        // Gone already where the test unmounted itself.
        let _output = Command::new("umount").arg("-l").arg(self.path("")).output();
    }
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("listed");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub fn ino(path: impl AsRef<Path>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).expect("described").ino()
}

/// A shared mapping of a whole file, used through `/proc/self/mem`: that needs
/// no unsafe access of ours.
pub struct Mapping {
    address: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    /// The file must be open for writing too, and not be empty.
    pub fn writable(file: &File) -> Mapping {
        Mapping::with(file, ProtFlags::READ | ProtFlags::WRITE)
    }

    pub fn new(file: &File) -> Mapping {
        Mapping::with(file, ProtFlags::READ)
    }

    #[allow(unsafe_code, reason = "mmap has no safe form")]
    fn with(file: &File, protection: ProtFlags) -> Mapping {
        let length = usize::try_from(file.metadata().expect("described").len()).expect("small");
        let anywhere = std::ptr::null_mut();
        // SAFETY: the kernel chooses the address; nothing else uses the mapping.
        let address =
            unsafe { rustix::mm::mmap(anywhere, length, protection, MapFlags::SHARED, file, 0) };
        Mapping { address: address.expect("mapped"), length }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let memory = File::open("/proc/self/mem").expect("opened");
        let mut bytes = vec![0; self.length];
        memory.read_exact_at(&mut bytes, self.address as u64).expect("read");
        bytes
    }

    /// Writes at the start of the mapping.
    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.length);
        let memory = File::options().write(true).open("/proc/self/mem").expect("opened");
        memory.write_all_at(bytes, self.address as u64).expect("written");
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code, reason = "munmap has no safe form")]
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it exists.
        unsafe { rustix::mm::munmap(self.address, self.length) }.expect("unmapped");
    }
}

/// How many cases a property is tried on: `usually`, or what `STRATA_CASES` says.
pub fn cases(usually: u32) -> u32 {
    match std::env::var("STRATA_CASES") {
        Ok(cases) => cases.parse().expect("STRATA_CASES is a number"),
        Err(_) => usually,
    }
}
