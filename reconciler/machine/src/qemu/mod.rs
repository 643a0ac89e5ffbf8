//! The driver with a hypervisor: a VA is a virtual machine that boots into its VLFS
//! (`docs/boot.md`).
//!
//! QEMU runs in a control group of its own: that it has processes is that the VA is
//! not stopped, and what it does is asked over its control socket. Nothing else is
//! remembered. The store is shown to the machine without what concerns other VAs, which
//! is hidden from QEMU itself (`strata-init conceal`). What the machine serves, it says in its report, which it writes into
//! a directory that it alone has (`reports/<mac>/` of the store).

mod accelerator;
mod command;
mod disk;
mod qmp;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use strata_core::report::ServingState;
use strata_core::status::RunState;
use strata_store::{ObservedReport, Store};

use crate::cgroup::Cgroup;
use crate::error::{Context, MachineError};
use crate::machines::{Observation, Programs, StartRequest};
use crate::record::VaRecord;
use crate::wait;

pub use accelerator::AcceleratorChoice;
use command::Machine;
pub use qmp::QmpError;
use qmp::{Activity, Qmp};

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Control sockets: their paths must be short, whatever the store's is.
const SOCKETS: &str = "/run/strata/machines";
/// What of a store is not shown to machines.
const HIDDEN: [&str; 3] = ["machines", "reports", "state"];
/// Where a store has what machines boot from.
const ENVIRONMENT: &str = "boot/current";
/// What a machine has where nothing else is asked for.
const MEMORY_MIB: u64 = 512;
const CONSOLE: &str = "console.log";
/// A sparse file: so much can be written to it.
const DISK_BYTES: u64 = 16 << 30;
/// What QEMU may take to answer a question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// What SIGKILL may take to empty a control group.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How often a machine's report is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// No reason for a failure is longer, in bytes.
const REASON_BYTES: usize = 64 << 10;

pub(crate) struct QemuVa<'a> {
    record: &'a VaRecord,
    directory: PathBuf,
    store: &'a Store,
    group: Cgroup,
    socket: PathBuf,
    /// Where QEMU sees what it needs of what is hidden: the VA's own directory, and the one
    /// that its report goes into.
    own: PathBuf,
    own_reports: PathBuf,
}

impl<'a> QemuVa<'a> {
    /// `cgroup` is the store's, whose name tells stores apart.
    pub fn new(
        record: &'a VaRecord,
        directory: PathBuf,
        store: &'a Store,
        cgroup: &Cgroup,
    ) -> Self {
        let key = cgroup.path().file_name().unwrap_or_default();
        let beside = |what| Path::new(SOCKETS).join(key).join(format!("{}{what}", record.mac));
        let (socket, own, own_reports) = (beside(".qmp"), beside(".own"), beside(".reports"));
        let group = cgroup.child(&format!("va-{}", record.name)).child("machine");
        QemuVa { record, directory, store, group, socket, own, own_reports }
    }

    pub fn run_state(&self) -> Result<RunState, MachineError> {
        let events = self.group.events().at("read", self.group.path())?;
        if !events.populated {
            return Ok(RunState::Stopped);
        }
        let asked =
            self.control(Instant::now() + ANSWER_DEADLINE).and_then(|mut qmp| qmp.activity());
        match asked {
            Ok(Activity::Paused) => Ok(RunState::Suspended),
            Ok(Activity::Running | Activity::Broken) => Ok(RunState::Running),
            Err(error) => {
                // It has just begun, or is about to end.
                tracing::debug!(va = %self.record.name, %error, "the machine does not say what it does");
                Ok(RunState::Running)
            }
        }
    }

    pub fn observe(&self) -> Result<Observation, MachineError> {
        let state = self.run_state()?;
        let processes = self.group.processes().at("read", self.group.path())?;
        let (init, daemon, daemon_frozen, mount) = (None, Vec::new(), false, None);
        Ok(Observation { state, init, processes, daemon, daemon_frozen, mount, inside: true })
    }

    fn control(&self, deadline: Instant) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.socket, deadline)
    }

    pub fn start(&self, request: &StartRequest, programs: &Programs) -> Result<(), MachineError> {
        if !request.command.is_empty() {
            return Err(MachineError::NoCommand(self.record.name.clone()));
        }
        match self.run_state()? {
            RunState::Running => return Err(MachineError::Running(self.record.name.clone())),
            RunState::Suspended => return Err(MachineError::Suspended(self.record.name.clone())),
            RunState::Stopped => self.clear()?,
        }
        let deadline = Instant::now() + request.deadline;
        // No machine is there to renew it: any other one is the new machine's.
        let former = self.store.observed_report(self.record.mac).ok().flatten();
        let result = self.switch_on(request, programs).and_then(|child| {
            self.await_appliance(child, former.as_ref(), request.deadline, deadline)
        });
        if let Err(error) = result {
            if let Err(left) = self.clear() {
                tracing::error!(va = %self.record.name, error = %left, "parts of a failed start are left");
            }
            return Err(error);
        }
        tracing::info!(va = %self.record.name, "machine started");
        Ok(())
    }

    fn switch_on(
        &self,
        request: &StartRequest,
        programs: &Programs,
    ) -> Result<Child, MachineError> {
        // Under its own name: `current` may lead to another one meanwhile.
        let environment = self.store.root().join(ENVIRONMENT);
        let environment = fs::canonicalize(&environment)
            .map_err(|_| MachineError::NoBootEnvironment(environment.clone()))?;
        let disk = self.record.private_in(&self.directory);
        disk::make(&disk, self.record.mac, DISK_BYTES)?;
        let reports = self.store.reports().join(self.record.mac.to_string());
        for directory in [&reports, &self.own, &self.own_reports] {
            fs::create_dir_all(directory).at("create", directory)?;
        }
        let kernel = environment.join("kernel");
        let accelerator = accelerator::choose(request.accelerator, &kernel, Path::new(SOCKETS))?;
        self.group.create().or_else(|_| self.group.create()).at("create", self.group.path())?;
        self.put_console_aside()?;
        let machine = Machine {
            name: &self.record.name,
            mac: self.record.mac,
            kernel: &kernel,
            initramfs: &environment.join("initramfs"),
            store: self.store.root(),
            reports: &self.own_reports,
            disk: &self.record.private_in(&self.own),
            console: &self.own.join(CONSOLE),
            control: &self.socket,
            memory_mib: request.memory_bytes.map_or(MEMORY_MIB, |bytes| bytes >> 20),
            network: request.network,
            forwards: &request.forwards,
            accelerator,
        };
        let log = self.log();
        let log = File::create(&log).at("create", &log)?;
        let mut qemu = Command::new(&programs.init);
        qemu.arg("conceal").arg(self.group.path());
        qemu.arg("keep").arg(&self.directory).arg(&self.own);
        qemu.arg("keep").arg(&reports).arg(&self.own_reports);
        for name in HIDDEN {
            qemu.arg("hide").arg(self.store.root().join(name));
        }
        qemu.arg("--").arg(QEMU);
        qemu.args(command::arguments(&machine)).stdin(Stdio::null()).process_group(0);
        qemu.stdout(log.try_clone().at("open", &self.log())?).stderr(log);
        qemu.spawn().at("run", &programs.init)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// Keeps the console of the run before beside the new one.
    fn put_console_aside(&self) -> Result<(), MachineError> {
        let path = self.directory.join(CONSOLE);
        match fs::rename(&path, self.directory.join("console.log.1")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).at("rename", &path)
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Waits until the machine says that it serves its generation.
    fn await_appliance(
        &self,
        mut child: Child,
        former: Option<&ObservedReport>,
        patience: Duration,
        deadline: Instant,
    ) -> Result<(), MachineError> {
        let failed = |reason| MachineError::NotStarted { name: self.record.name.clone(), reason };
        let mut told = None;
        loop {
            if let Some(status) = child.try_wait().at("wait for", Path::new(QEMU))? {
                let said = strata_store::read_limited(&self.log(), REASON_BYTES)?;
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                let reason = told.unwrap_or(said);
                return Err(failed(match reason.as_str() {
                    "" => format!("the machine has ended ({status})"),
                    reason => format!("the machine has ended ({status}): {reason}"),
                }));
            }
            match self.store.observed_report(self.record.mac) {
                Ok(Some(seen)) if former != Some(&seen) => match seen.report.state {
                    ServingState::Serving => return Ok(()),
                    ServingState::Failed => told = seen.report.error,
                    ServingState::Stopped => {}
                },
                Ok(_) => {}
                Err(error) => told = Some(error.to_string()),
            }
            if Instant::now() >= deadline {
                let waited = format!("it did not say within {patience:?} that it serves");
                return Err(failed(
                    told.map_or(waited.clone(), |told| format!("{waited}: {told}")),
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    pub fn suspend(&self, patience: Duration) -> Result<(), MachineError> {
        self.tell("stop", RunState::Suspended, patience)?;
        tracing::info!(va = %self.record.name, "machine suspended");
        Ok(())
    }

    pub fn resume(&self, patience: Duration) -> Result<(), MachineError> {
        self.tell("cont", RunState::Running, patience)?;
        tracing::info!(va = %self.record.name, "machine resumed");
        Ok(())
    }

    fn tell(
        &self,
        command: &str,
        wanted: RunState,
        patience: Duration,
    ) -> Result<(), MachineError> {
        if self.run_state()? == RunState::Stopped {
            return Err(MachineError::Stopped(self.record.name.clone()));
        }
        let deadline = Instant::now() + patience;
        self.control(deadline).and_then(|mut qmp| qmp.call(command, &json!({})))?;
        let reached = wait::until(deadline, || Ok::<_, MachineError>(self.run_state()? == wanted))?;
        if reached {
            return Ok(());
        }
        let wanted = if wanted == RunState::Suspended { "suspended" } else { "resumed" };
        Err(MachineError::Deadline { name: self.record.name.clone(), wanted, deadline: patience })
    }

    pub fn stop(&self, patience: Duration) -> Result<(), MachineError> {
        let state = self.run_state()?;
        let deadline = Instant::now() + patience;
        if state != RunState::Stopped && !patience.is_zero() {
            let asked = self.control(Instant::now() + ANSWER_DEADLINE).and_then(|mut qmp| {
                if state == RunState::Suspended {
                    qmp.call("cont", &json!({}))?;
                }
                qmp.ask_to_end()
            });
            match asked {
                Ok(()) => {
                    let ended = self.group.wait_for(|events| !events.populated, deadline);
                    if !ended.at("wait for", self.group.path())? {
                        tracing::warn!(va = %self.record.name, ?patience, "the machine did not end by itself and is killed");
                    }
                }
                Err(error) => {
                    tracing::warn!(va = %self.record.name, %error, "the machine cannot be asked to end and is killed");
                }
            }
        }
        self.clear()?;
        if state != RunState::Stopped {
            tracing::info!(va = %self.record.name, "machine stopped");
        }
        Ok(())
    }

    /// Removes whatever there is of a run. Works from any state, at once.
    pub fn clear(&self) -> Result<(), MachineError> {
        if self.group.events().at("read", self.group.path())?.populated {
            self.group.kill().at("kill", self.group.path())?;
            let deadline = Instant::now() + KILL_DEADLINE;
            let gone = self.group.wait_for(|events| !events.populated, deadline);
            if !gone.at("wait for", self.group.path())? {
                let pids = self.group.processes().at("read", self.group.path())?;
                return Err(MachineError::Unkillable { name: self.record.name.clone(), pids });
            }
        }
        let removed = wait::until(Instant::now() + KILL_DEADLINE, || match self.group.remove() {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(false),
            result => result.map(|()| true).at("remove", self.group.path()),
        })?;
        if !removed {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(busy).at("remove", self.group.path());
        }
        // The groups and the directory above are shared: the last one removes them.
        for parent in self.group.path().ancestors().skip(1).take(3) {
            if Cgroup::at(parent.to_owned()).remove().is_err() {
                break;
            }
        }
        for (removed, path) in [
            (fs::remove_file(&self.socket), &self.socket),
            // Only QEMU saw what was in them.
            (fs::remove_dir(&self.own), &self.own),
            (fs::remove_dir(&self.own_reports), &self.own_reports),
        ] {
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).at("remove", path);
                }
                Ok(()) | Err(_) => {}
            }
        }
        // So is their directory: who has a machine keeps it.
        let _others = self.socket.parent().map(fs::remove_dir);
        Ok(())
    }
}
