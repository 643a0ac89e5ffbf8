//! The driver without a hypervisor: a VA is a mount, PID, UTS and IPC namespace
//! whose root is its VLFS.
//!
//! The VLFS daemon stays outside these namespaces (pivot_root(2) would move its
//! root onto its own mount, and it would wait for itself) and in a cgroup of its
//! own: suspending freezes the VA's processes first, which may be waiting for
//! the daemon, and then the daemon; resuming goes the other way round.
//!
//! Nothing here remembers anything: the cgroups and the mount table are the
//! state. Every operation starts from what they say, so that it ends right
//! whatever died before it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use strata_core::GenerationId;
use strata_core::status::RunState;

use crate::cgroup::{Cgroup, MemoryLimits};
use crate::error::{Context, MachineError};
use crate::machines::{ExecCommand, Network, Observation, Programs, StartRequest};
use crate::record::VaRecord;
use crate::{control, mounts, wait};

/// What SIGKILL may take to empty a cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// What the VLFS daemon may take to end after it was unmounted.
const DAEMON_DEADLINE: Duration = Duration::from_secs(10);
/// How long a mount may be busy before it is detached from the tree.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);
/// What a resumed VLFS may take to serve what its link names, before the VA's
/// processes go on regardless.
const SWAP_DEADLINE: Duration = Duration::from_secs(1);
/// What PID 1 may take to start the appliance's command.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A VA's group is `strata/<store>/va-<name>` below the hierarchy's mount point.
const HIERARCHY_DEPTH: usize = 3;
/// No reason for a failure is longer, in bytes.
const REASON_BYTES: u64 = 4 << 10;

pub(crate) struct NamespaceVa<'a> {
    record: &'a VaRecord,
    directory: PathBuf,
    store: &'a Path,
    /// Parent of the two; never has processes of its own.
    group: Cgroup,
    clients: Cgroup,
    daemon: Cgroup,
    /// Of the processes of `clients` too, where this host limits memory with version 1.
    memory: Option<Cgroup>,
}

impl<'a> NamespaceVa<'a> {
    /// `cgroup` and, where memory is limited elsewhere, `memory` are the store's groups.
    pub fn new(
        record: &'a VaRecord,
        directory: PathBuf,
        store: &'a Path,
        cgroup: &Cgroup,
        memory: Option<&Cgroup>,
    ) -> Self {
        let group = cgroup.child(&format!("va-{}", record.name));
        let (clients, daemon) = (group.child("clients"), group.child("vlfs"));
        let memory = memory.map(|memory| memory.child(&format!("va-{}", record.name)));
        NamespaceVa { record, directory, store, group, clients, daemon, memory }
    }

    /// Where the VLFS is mounted on the host.
    fn root(&self) -> PathBuf {
        self.directory.join("run/root")
    }

    pub fn run_state(&self) -> Result<RunState, MachineError> {
        let events = self.clients.events().at("read", self.clients.path())?;
        Ok(match (events.populated, events.frozen) {
            (false, _) => RunState::Stopped,
            (true, true) => RunState::Suspended,
            (true, false) => RunState::Running,
        })
    }

    pub fn observe(&self) -> Result<Observation, MachineError> {
        let state = self.run_state()?;
        let processes = self.clients.processes().at("read", self.clients.path())?;
        let daemon = self.daemon.processes().at("read", self.daemon.path())?;
        let events = self.daemon.events().at("read", self.daemon.path())?;
        let mount = mounts::on(&self.root()).at("find the mount", &self.root())?;
        let init = processes.iter().copied().find(|pid| is_first_process(*pid));
        let daemon_frozen = events.populated && events.frozen;
        Ok(Observation { state, init, processes, daemon, daemon_frozen, mount, inside: false })
    }

    pub fn start(&self, request: &StartRequest, programs: &Programs) -> Result<(), MachineError> {
        if !request.forwards.is_empty() {
            return Err(MachineError::NoForwards(self.record.name.clone()));
        }
        match self.run_state()? {
            RunState::Running => return Err(MachineError::Running(self.record.name.clone())),
            RunState::Suspended => return Err(MachineError::Suspended(self.record.name.clone())),
            RunState::Stopped => self.clear()?,
        }
        let started = self
            .mount(request, programs)
            .and_then(|()| self.start_first_process(request, programs));
        if let Err(error) = started {
            if let Err(left) = self.clear() {
                tracing::error!(va = %self.record.name, error = %left, "parts of a failed start are left");
            }
            return Err(error);
        }
        tracing::info!(va = %self.record.name, "VA started");
        Ok(())
    }

    /// Starts the VLFS daemon in its cgroup, outside the VA's namespaces.
    fn mount(&self, request: &StartRequest, programs: &Programs) -> Result<(), MachineError> {
        let root = self.root();
        let private = self.record.private_in(&self.directory);
        fs::create_dir_all(&root).at("create", &root)?;
        fs::create_dir_all(&private).at("create", &private)?;
        for cgroup in [&self.daemon, &self.clients] {
            // Once more, should another VA's end have just removed the parent.
            cgroup.create().or_else(|_| cgroup.create()).at("create", cgroup.path())?;
        }
        if let Some(bytes) = request.memory_bytes {
            self.limit_memory(bytes)?;
        }
        let log_path = self.directory.join("mount.log");
        let log = File::create(&log_path).at("create", &log_path)?;
        let mut command = Command::new(&programs.init);
        command.arg("in-cgroup").arg(self.daemon.path()).arg("--").arg(&programs.vlfs);
        command.arg("mount").arg("--store").arg(self.store);
        command.arg("--va").arg(self.record.mac.to_string()).arg("--private").arg(&private);
        if request.layer_scripts {
            command.arg("--scripts-in").arg(self.clients.path()).arg("--init").arg(&programs.init);
        }
        command.arg(&root).stdin(Stdio::null()).stdout(log.try_clone().at("open", &log_path)?);
        let mut child = command.stderr(log).spawn().at("run", &programs.init)?;
        let status = wait::child(&mut child, Instant::now() + request.deadline)
            .at("wait for", &programs.vlfs)?;
        let reason = match status {
            Some(status) if status.success() => match mounts::on(&root).at("find", &root)? {
                Some(_) => return Ok(()),
                None => "strata-vlfs ended well, but nothing is mounted".to_owned(),
            },
            Some(status) => match read_reason(&log_path) {
                reason if reason.is_empty() => format!("strata-vlfs ended with {status}"),
                reason => reason,
            },
            None => format!("strata-vlfs did not answer within {:?}", request.deadline),
        };
        Err(MachineError::NotMounted { name: self.record.name.clone(), reason })
    }

    fn limit_memory(&self, bytes: u64) -> Result<(), MachineError> {
        if let Some(memory) = &self.memory {
            memory.create().at("create", memory.path())?;
            let limits = MemoryLimits::Former(PathBuf::new());
            return memory.limit_memory(&limits, bytes).at("limit the memory of", memory.path());
        }
        let above: Vec<_> = self.group.path().ancestors().take(HIERARCHY_DEPTH + 1).collect();
        let hierarchy = above.last().copied().unwrap_or(Path::new("/"));
        if MemoryLimits::find(hierarchy).at("read", hierarchy)? != Some(MemoryLimits::Unified) {
            return Err(MachineError::NoMemoryLimits);
        }
        for group in above.iter().rev() {
            let group = Cgroup::at((*group).to_owned());
            group.delegate_memory().at("limit memory below", group.path())?;
        }
        self.clients
            .limit_memory(&MemoryLimits::Unified, bytes)
            .at("limit the memory of", self.clients.path())
    }

    /// A command that runs `image` of `strata-init`, with the VA's limits.
    fn limited(&self, image: &OwnedFd) -> Command {
        let mut command = Command::new(image_path(image));
        if let Some(memory) = self.memory.as_ref().filter(|memory| memory.path().exists()) {
            command.arg("--also").arg(memory.path());
        }
        command
    }

    /// Starts PID 1 of the VA; once scripts of the layers have run, it starts the
    /// appliance's command and answers.
    fn start_first_process(
        &self,
        request: &StartRequest,
        programs: &Programs,
    ) -> Result<(), MachineError> {
        let image = sealed_image(&programs.init)?;
        let (answer, answer_end) = io::pipe().at("make", Path::new("a pipe"))?;
        let (leave_end, leave) = io::pipe().at("make", Path::new("a pipe"))?;
        let mut command = self.limited(&image);
        let network = match request.network {
            Network::Host => "host",
            Network::Private => "private",
        };
        command.arg("start").arg(network).arg(self.clients.path()).arg(self.root());
        command.arg(self.record.name.as_str()).arg("--").args(&request.command);
        command.stdin(leave_end).stdout(answer_end).stderr(self.console()?);
        let deadline = Instant::now() + request.deadline;
        let mut child = command.spawn().at("run", &programs.init)?;
        // The command holds the other ends of the pipes open as long as it lives.
        drop(command);
        wait::child(&mut child, deadline).at("wait for", &programs.init)?;
        self.expect(&answer, "entered", request.deadline, deadline)?;
        self.await_scripts(deadline)?;
        drop(leave);
        // Scripts may have taken all of the time.
        let deadline = deadline.max(Instant::now() + ANSWER_DEADLINE);
        self.expect(&answer, "ready", request.deadline, deadline)
    }

    /// Waits for one line of PID 1's.
    fn expect(
        &self,
        mut answer: &PipeReader,
        wanted: &str,
        patience: Duration,
        deadline: Instant,
    ) -> Result<(), MachineError> {
        let mut text = String::new();
        if wait::ready(answer, PollFlags::IN, deadline).at("read", Path::new("an answer"))? {
            // One line is one write; what follows it is the end.
            let mut line = [0; 4096];
            let length = answer.read(&mut line).at("read", Path::new("an answer"))?;
            text = String::from_utf8_lossy(&line[..length]).into_owned();
        }
        let reason = match text.trim_end() {
            found if found == wanted => return Ok(()),
            "" => format!("its first process did not answer within {patience:?}"),
            other => other.strip_prefix("error: ").unwrap_or(other).to_owned(),
        };
        Err(MachineError::NotStarted { name: self.record.name.clone(), reason })
    }

    /// Gives scripts of the layers the time to run before the appliance's command.
    fn await_scripts(&self, deadline: Instant) -> Result<(), MachineError> {
        let Some(mount) = mounts::on(&self.root()).at("find the mount", &self.root())? else {
            return Ok(());
        };
        let done = wait::until(deadline, || -> Result<bool, MachineError> {
            match control::served(mount.device, deadline) {
                Ok(served) => Ok(!served.has_scripts_to_run()),
                Err(error) => {
                    tracing::debug!(va = %self.record.name, %error, "the VLFS does not say whether scripts run");
                    Ok(true)
                }
            }
        })?;
        if !done {
            tracing::warn!(va = %self.record.name, "the VA goes on although scripts of its layers still run");
        }
        Ok(())
    }

    /// What the VA's first process prints; that of the run before is kept beside it.
    fn console(&self) -> Result<File, MachineError> {
        let path = self.directory.join("console.log");
        let former = self.directory.join("console.log.1");
        match fs::rename(&path, &former) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("rename", &path);
            }
            Ok(()) | Err(_) => {}
        }
        File::options().create(true).append(true).open(&path).at("open", &path)
    }

    pub fn exec(
        &self,
        words: &[OsString],
        programs: &Programs,
    ) -> Result<ExecCommand, MachineError> {
        let observed = self.observe()?;
        let init = match (observed.state, observed.init) {
            (RunState::Running, Some(init)) => init,
            (RunState::Suspended, _) => {
                return Err(MachineError::Suspended(self.record.name.clone()));
            }
            (RunState::Stopped, _) | (_, None) => {
                return Err(MachineError::Stopped(self.record.name.clone()));
            }
        };
        let image = sealed_image(&programs.init)?;
        let mut command = self.limited(&image);
        command.arg("exec").arg(self.clients.path()).arg(init.to_string()).arg("--").args(words);
        Ok(ExecCommand { command, _image: image })
    }

    pub fn suspend(&self, patience: Duration) -> Result<(), MachineError> {
        if self.run_state()? == RunState::Stopped {
            return Err(MachineError::Stopped(self.record.name.clone()));
        }
        let deadline = Instant::now() + patience;
        let frozen = freeze(&self.clients, true, deadline)
            .and_then(|done| Ok(done && freeze(&self.daemon, true, deadline)?));
        match frozen {
            Ok(true) => {
                tracing::info!(va = %self.record.name, "VA suspended");
                Ok(())
            }
            other => {
                for cgroup in [&self.daemon, &self.clients] {
                    thaw(cgroup)?;
                }
                other?;
                Err(self.deadline("suspended", patience))
            }
        }
    }

    pub fn resume(
        &self,
        patience: Duration,
        desired: Option<&GenerationId>,
    ) -> Result<(), MachineError> {
        if self.run_state()? == RunState::Stopped {
            return Err(MachineError::Stopped(self.record.name.clone()));
        }
        let deadline = Instant::now() + patience;
        let was_suspended = self.clients.is_freezing().at("read", self.clients.path())?;
        if !freeze(&self.daemon, false, deadline)? {
            return Err(self.deadline("resumed", patience));
        }
        if was_suspended {
            self.await_generation(desired)?;
        }
        if !freeze(&self.clients, false, deadline)? {
            return Err(self.deadline("resumed", patience));
        }
        tracing::info!(va = %self.record.name, "VA resumed");
        Ok(())
    }

    /// Gives the VLFS the time to swap before a process of the VA runs on the
    /// layers of before (§4.4: updating is quicker than resuming).
    fn await_generation(&self, desired: Option<&GenerationId>) -> Result<(), MachineError> {
        let (Some(desired), Some(mount)) =
            (desired, mounts::on(&self.root()).at("find the mount", &self.root())?)
        else {
            return Ok(());
        };
        let desired = desired.to_string();
        let deadline = Instant::now() + SWAP_DEADLINE;
        let served = wait::until(deadline, || -> Result<bool, MachineError> {
            match control::served(mount.device, deadline) {
                Ok(served) => {
                    let looked = served.desired.as_ref() == Some(&desired);
                    // A refused swap will not come; the report says why.
                    let refused = looked && served.error.is_some();
                    // Scripts that run before it need the VA to go on.
                    let refused = refused || looked && served.has_scripts_to_run();
                    Ok(served.generation.as_ref() == Some(&desired) || refused)
                }
                Err(error) => {
                    tracing::debug!(va = %self.record.name, %error, "the VLFS does not say its generation");
                    Ok(true)
                }
            }
        })?;
        if !served {
            tracing::warn!(va = %self.record.name, %desired, "the VA goes on before its VLFS has swapped");
        }
        Ok(())
    }

    pub fn stop(&self, patience: Duration) -> Result<(), MachineError> {
        let observed = self.observe()?;
        let deadline = Instant::now() + patience;
        if let Some(init) = observed.init
            && !patience.is_zero()
        {
            self.ask_to_end(init)?;
            // A suspended VA goes on to end in good order: the signal first, so
            // that it is the first thing it sees.
            for cgroup in [&self.daemon, &self.clients] {
                thaw(cgroup)?;
            }
            let ended = self.clients.wait_for(|events| !events.populated, deadline);
            if !ended.at("wait for", self.clients.path())? {
                tracing::warn!(va = %self.record.name, ?patience, "the VA did not end by itself and is killed");
            }
        }
        self.clear()?;
        if observed.state != RunState::Stopped {
            tracing::info!(va = %self.record.name, "VA stopped");
        }
        Ok(())
    }

    fn ask_to_end(&self, init: u32) -> Result<(), MachineError> {
        let Some(pid) = i32::try_from(init).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let path = Path::new("the VA's first process");
        let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            process => process.at("open", path)?,
        };
        // The number could be another process's by now; the descriptor's cannot.
        if !self.clients.processes().at("read", self.clients.path())?.contains(&init) {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(&process, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).at("signal", path),
        }
    }

    /// Removes whatever there is of a run: processes, mount, daemon, cgroups,
    /// directories. Works from any state, at once.
    pub fn clear(&self) -> Result<(), MachineError> {
        // A killed process that waits for a frozen daemon would never go.
        thaw(&self.daemon)?;
        if !self.kill(&self.clients)? {
            // Stuck behind a daemon that does not answer: its end frees them.
            self.kill(&self.daemon)?;
            if !self.kill(&self.clients)? {
                let pids = self.clients.processes().at("read", self.clients.path())?;
                return Err(MachineError::Unkillable { name: self.record.name.clone(), pids });
            }
        }
        self.unmount()?;
        let deadline = Instant::now() + DAEMON_DEADLINE;
        let ended = self.daemon.wait_for(|events| !events.populated, deadline);
        if !ended.at("wait for", self.daemon.path())? {
            tracing::warn!(va = %self.record.name, "the VLFS daemon did not end after its mount and is killed");
            if !self.kill(&self.daemon)? {
                let pids = self.daemon.processes().at("read", self.daemon.path())?;
                return Err(MachineError::Unkillable { name: self.record.name.clone(), pids });
            }
        }
        // The group of a script lies in that of the clients.
        for cgroup in [&self.clients, &self.daemon, &self.group].into_iter().chain(&self.memory) {
            let ended = cgroup.end(Instant::now() + KILL_DEADLINE).at("end", cgroup.path())?;
            if !ended {
                let pids = cgroup.processes().at("read", cgroup.path())?;
                return Err(MachineError::Unkillable { name: self.record.name.clone(), pids });
            }
        }
        // A daemon that joined late, of a command that was killed, may have mounted it again.
        self.unmount()?;
        remove_empty_parents(&self.group);
        if let Some(memory) = &self.memory {
            remove_empty_parents(memory);
        }
        for name in ["run/root", "run"] {
            let path = self.directory.join(name);
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).at("remove", &path);
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Returns whether the group is empty.
    fn kill(&self, cgroup: &Cgroup) -> Result<bool, MachineError> {
        if !cgroup.events().at("read", cgroup.path())?.populated {
            return Ok(true);
        }
        cgroup.kill().at("kill", cgroup.path())?;
        let deadline = Instant::now() + KILL_DEADLINE;
        cgroup.wait_for(|events| !events.populated, deadline).at("wait for", cgroup.path())
    }

    fn unmount(&self) -> Result<(), MachineError> {
        let root = self.root();
        // Data directories. What does not go by itself goes with the root.
        for inner in mounts::below(&root).at("find the mount", &root)?.iter().rev() {
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
            if let Err(error) = rustix::mount::unmount(&inner.point, flags) {
                tracing::debug!(mount = %inner.point.display(), %error, "a data directory stays mounted");
            }
        }
        let patience = Instant::now() + BUSY_DEADLINE;
        while mounts::on(&root).at("find the mount", &root)?.is_some() {
            let gone = wait::until(patience, || {
                match rustix::mount::unmount(&root, UnmountFlags::NOFOLLOW) {
                    Err(Errno::BUSY) => Ok(false),
                    // Another one took it away.
                    Ok(()) | Err(Errno::INVAL) => Ok(true),
                    Err(error) => Err(error).at("unmount", &root),
                }
            })?;
            if !gone {
                tracing::warn!(va = %self.record.name, "the VA's root is in use on the host and is detached");
                let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                rustix::mount::unmount(&root, flags).at("unmount", &root)?;
            }
        }
        Ok(())
    }

    fn deadline(&self, wanted: &'static str, deadline: Duration) -> MachineError {
        MachineError::Deadline { name: self.record.name.clone(), wanted, deadline }
    }
}

/// The groups above are shared with other VAs: the last one removes them.
fn remove_empty_parents(group: &Cgroup) {
    for parent in group.path().ancestors().skip(1).take(HIERARCHY_DEPTH - 1) {
        if Cgroup::at(parent.to_owned()).remove().is_err() {
            return;
        }
    }
}

/// Freezes or thaws and waits for it. Returns whether it was done in time.
fn freeze(cgroup: &Cgroup, frozen: bool, deadline: Instant) -> Result<bool, MachineError> {
    cgroup.freeze(frozen).at(if frozen { "freeze" } else { "thaw" }, cgroup.path())?;
    cgroup.wait_for(|events| events.frozen == frozen, deadline).at("wait for", cgroup.path())
}

/// Starts to thaw what may not exist.
fn thaw(cgroup: &Cgroup) -> Result<(), MachineError> {
    match cgroup.freeze(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("thaw", cgroup.path()),
    }
}

/// Whether a process is PID 1 of a PID namespace below this one (`NSpid` of
/// proc_pid_status(5)).
fn is_first_process(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// A copy of a program that nobody can change, in memory: the VA's root can open
/// `/proc/1/exe`, which must not be a file of the host.
fn sealed_image(program: &Path) -> Result<OwnedFd, MachineError> {
    let mut source = File::open(program).at("open", program)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and need it not.
    let image = rustix::fs::memfd_create("strata-init", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("strata-init", flags))
        .at("copy", program)?;
    let mut image = File::from(image);
    io::copy(&mut source, &mut image).at("copy", program)?;
    image.flush().and_then(|()| image.rewind()).at("copy", program)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&image, seals).at("seal", program)?;
    Ok(image.into())
}

/// The child still has the descriptor when the kernel opens this path.
fn image_path(image: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", image.as_raw_fd()).into()
}

/// What a program printed before it failed.
fn read_reason(log: &Path) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|file| file.take(REASON_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
        Err(error) => format!("and its reason cannot be read: {error}"),
    }
}
