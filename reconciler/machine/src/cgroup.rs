//! Control groups (v2): who belongs to a VA, freezing and killing.
//!
//! Wherever the host mounts the hierarchy (`/sys/fs/cgroup`, or `unified` below
//! it on hosts with the hybrid layout), a VA has two groups,
//! `strata/<store>/va-<name>/{clients,vlfs}`: the VA's processes and its VLFS
//! daemon. They are apart because a process that waits for a frozen daemon
//! cannot be frozen. No controller is switched on but that of memory, where a VA's
//! is limited.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, Signal};

use crate::{mounts, wait};

/// The mount point of this host's cgroup v2 hierarchy; `None` where there is none.
///
/// # Errors
/// `/proc` is not there.
pub fn hierarchy() -> io::Result<Option<PathBuf>> {
    let mount = mounts::all()?.into_iter().find(|mount| mount.kind == "cgroup2");
    Ok(mount.map(|mount| mount.point))
}

/// How often one looks for processes that have joined a group that ends.
const END_STEP: Duration = Duration::from_millis(5);

/// What `cgroup.events` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events {
    /// It has live processes.
    pub populated: bool,
    /// All of them are frozen.
    pub frozen: bool,
}

/// A control group, which may or may not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn at(path: PathBuf) -> Self {
        Cgroup { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn child(&self, name: &str) -> Cgroup {
        Cgroup { path: self.path.join(name) }
    }

    /// Makes it and its parents.
    ///
    /// # Errors
    /// The hierarchy is mounted read-only, or the caller is not root.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)
    }

    /// Ends it: its processes are killed, frozen or not, and it is removed with the
    /// groups in it, which have none in them. A process that was about to join it, of a
    /// command that was killed meanwhile, is killed too, or finds it gone. Returns whether
    /// all this was done before the deadline.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn end(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            if self.events()?.populated {
                // Those who join it from now on are not killed by this.
                self.kill()?;
                let soon = deadline.min(Instant::now() + END_STEP);
                let empty = self.wait_for(|events| !events.populated, soon)?;
                if !empty && Instant::now() >= deadline {
                    return Ok(false);
                }
                continue;
            }
            match self.remove_with_inner() {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                result => return result.map(|()| true),
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(END_STEP);
        }
    }

    fn remove_with_inner(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => return absent_is(Err(error), ()),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                absent_is(fs::remove_dir(entry.path()), ())?;
            }
        }
        self.remove()
    }

    /// Removes it, which must have no processes and no groups below it. It is no
    /// error that it does not exist.
    ///
    /// # Errors
    /// It is in use.
    pub fn remove(&self) -> io::Result<()> {
        absent_is(fs::remove_dir(&self.path), ())
    }

    /// The state; that of an empty group where it does not exist.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn events(&self) -> io::Result<Events> {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(text) => Ok(parse_events(&text)),
            Err(error) => absent_is(Err(error), Events::default()),
        }
    }

    /// Process ids in it, as the caller's namespace numbers them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let text = match fs::read_to_string(self.path.join("cgroup.procs")) {
            Ok(text) => text,
            Err(error) => return absent_is(Err(error), Vec::new()),
        };
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Starts to freeze or thaw; [`Cgroup::wait_for`] tells when it is done.
    ///
    /// # Errors
    /// It does not exist.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether it has been told to freeze, done or not.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_freezing(&self) -> io::Result<bool> {
        match fs::read_to_string(self.path.join("cgroup.freeze")) {
            Ok(text) => Ok(text.trim() == "1"),
            Err(error) => absent_is(Err(error), false),
        }
    }

    /// Waits until `wanted` holds of the state. Returns whether it came to hold
    /// before the deadline. A group that does not exist is empty.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn wait_for(&self, wanted: impl Fn(Events) -> bool, deadline: Instant) -> io::Result<bool> {
        let mut file = match File::open(self.path.join("cgroup.events")) {
            Ok(file) => file,
            Err(error) => return absent_is(Err(error), wanted(Events::default())),
        };
        loop {
            let mut text = String::new();
            file.rewind()?;
            match file.read_to_string(&mut text) {
                Ok(_) => {}
                // Removed by another command meanwhile.
                Err(error) => return absent_is(Err(error), wanted(Events::default())),
            }
            if wanted(parse_events(&text)) {
                return Ok(true);
            }
            if !wait::ready(&file, PollFlags::PRI, deadline)? {
                return Ok(false);
            }
        }
    }

    /// Kills every process in it, frozen or not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.kill_one_by_one(),
            result => result,
        }
    }

    /// For kernels before 5.14, which have no `cgroup.kill`.
    fn kill_one_by_one(&self) -> io::Result<()> {
        for pid in self.processes()? {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// How this host limits the memory of a group's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryLimits {
    /// The controller of the version 2 hierarchy.
    Unified,
    /// That of version 1, mounted here (hosts with the hybrid layout): processes join
    /// a second group, in this hierarchy.
    Former(PathBuf),
}

impl MemoryLimits {
    /// What there is on this host, whose version 2 hierarchy is mounted on `hierarchy`.
    ///
    /// # Errors
    /// `/proc` or the hierarchy cannot be read.
    pub fn find(hierarchy: &Path) -> io::Result<Option<Self>> {
        let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers"))?;
        if controllers.split_whitespace().any(|controller| controller == "memory") {
            return Ok(Some(MemoryLimits::Unified));
        }
        let former = mounts::all()?.into_iter().find(|mount| {
            mount.kind == "cgroup" && mount.point.join("memory.limit_in_bytes").exists()
        });
        Ok(former.map(|mount| MemoryLimits::Former(mount.point)))
    }
}

impl Cgroup {
    /// Switches the memory controller on for the groups below it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delegate_memory(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.subtree_control"), "+memory")
    }

    /// Limits the memory of its processes together.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit_memory(&self, limits: &MemoryLimits, bytes: u64) -> io::Result<()> {
        let name = match limits {
            MemoryLimits::Unified => "memory.max",
            MemoryLimits::Former(_) => "memory.limit_in_bytes",
        };
        fs::write(self.path.join(name), bytes.to_string())
    }
}

const NO_DEVICE: i32 = rustix::io::Errno::NODEV.raw_os_error();

fn absent_is<T>(result: io::Result<T>, absent: T) -> io::Result<T> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(NO_DEVICE) =>
        {
            Ok(absent)
        }
        result => result,
    }
}

fn parse_events(text: &str) -> Events {
    let is = |word: &str| text.lines().any(|line| line == word);
    Events { populated: is("populated 1"), frozen: is("frozen 1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let running = Events { populated: true, frozen: false };
        assert_eq!(parse_events("populated 1\nfrozen 0\n"), running);
        assert_eq!(
            parse_events("populated 0\nfrozen 1\n"),
            Events { populated: false, frozen: true }
        );
        assert_eq!(parse_events(""), Events::default());
    }

    #[test]
    fn a_group_that_does_not_exist_is_empty() {
        let cgroup = Cgroup::at("/nonexistent/strata".into());
        assert_eq!(cgroup.events().expect("no error"), Events::default());
        assert_eq!(cgroup.processes().expect("no error"), Vec::<u32>::new());
        assert!(cgroup.wait_for(|events| !events.populated, Instant::now()).expect("no error"));
        cgroup.remove().expect("no error");
        assert!(cgroup.end(Instant::now()).expect("no error"));
    }

    /// Of a command that was killed while it started them.
    #[test]
    fn who_joins_late_is_ended_too() {
        use std::process::Command;
        let hierarchy = hierarchy().expect("readable").expect("cgroup v2");
        for round in 0..5 {
            let group = Cgroup::at(hierarchy.join(format!("late-{}-{round}", std::process::id())));
            group.create().expect("made");
            let inner = group.child("inner");
            inner.create().expect("made");
            let joining = "echo 0 >\"$0/cgroup.procs\" && exec sleep 600";
            let late = |_| {
                let mut command = Command::new("sh");
                command.args(["-c", joining]).arg(inner.path()).spawn().expect("started")
            };
            let late: Vec<_> = (0..10).map(late).collect();
            let ended = group.end(Instant::now() + Duration::from_secs(30)).expect("no error");
            let gone = !group.path().exists();
            for mut child in late {
                let deadline = Instant::now() + Duration::from_secs(30);
                let status = wait::child(&mut child, deadline).expect("waited for");
                assert!(status.is_some_and(|status| !status.success()), "{status:?}");
            }
            assert!(ended && gone);
        }
    }
}
