//! Switching a machine on.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use strata_core::report::ServingState;
use strata_core::status::RunState;
use strata_store::ObservedReport;

use crate::error::{Context, MachineError};
use crate::machines::{Programs, StartRequest};
use crate::qemu::accelerator::Accelerator;
use crate::qemu::command::{self, Machine, Shares};
use crate::qemu::hardware::{self, Hardware};
use crate::qemu::shares::{Share, Transport};
use crate::qemu::{CONSOLE, QEMU, QemuVa, SOCKETS, accelerator, disk, shares};

/// What of a store is not shown to machines.
const HIDDEN: [&str; 3] = ["machines", "reports", "state"];
/// A sparse file: so much can be written to it.
const DISK_BYTES: u64 = 16 << 30;
/// How often a machine's report is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// No reason for a failure is longer, in bytes.
const REASON_BYTES: usize = 64 << 10;

impl QemuVa<'_> {
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
        let result = self.hardware(request, programs).and_then(|hardware| {
            self.put_console_aside()?;
            let child = self.switch_on(&hardware, programs, false)?;
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

    /// What a new machine is made of.
    fn hardware(
        &self,
        request: &StartRequest,
        programs: &Programs,
    ) -> Result<Hardware, MachineError> {
        let environment = hardware::current_environment(self.store)?;
        let transport = shares::choose(request.transport, programs.virtiofsd.as_deref())?;
        let sockets = self.sockets.control.parent().unwrap_or(Path::new(SOCKETS));
        fs::create_dir_all(sockets).at("create", sockets)?;
        let mut hardware = Hardware::new(Accelerator::Software, transport, environment);
        let kernel = hardware.environment_in(self.store).join("kernel");
        hardware.accelerator =
            accelerator::choose(request.accelerator, &kernel, Path::new(SOCKETS))?;
        if let Some(bytes) = request.memory_bytes {
            hardware.memory_mib = bytes >> 20;
        }
        hardware.network = request.network;
        hardware.forwards.clone_from(&request.forwards);
        disk::make(&self.record.private_in(&self.directory), self.record.mac, DISK_BYTES)?;
        hardware.write(self.store, &self.directory)?;
        Ok(hardware)
    }

    /// Runs QEMU, and the daemons of its shares. An `incoming` machine stands still until a
    /// saved state is loaded into it.
    pub(super) fn switch_on(
        &self,
        hardware: &Hardware,
        programs: &Programs,
        incoming: bool,
    ) -> Result<Child, MachineError> {
        let environment = hardware.environment_in(self.store);
        if !environment.is_dir() {
            return Err(MachineError::NoBootEnvironment(environment));
        }
        let reports = self.store.reports().join(self.record.mac.to_string());
        for directory in [&reports, &self.own, &self.own_reports] {
            fs::create_dir_all(directory).at("create", directory)?;
        }
        for group in [&self.machine, &self.shares] {
            group.create().or_else(|_| group.create()).at("create", group.path())?;
        }
        let log = self.log();
        let log = File::options().create(true).append(true).open(&log).at("open", &log)?;
        log.set_len(0).at("empty", &self.log())?;
        let shares = match hardware.transport {
            Transport::NinePea => {
                Shares::NinePea { store: self.store.root(), reports: &self.own_reports }
            }
            Transport::Virtiofs => {
                self.share(&reports, programs, &log)?;
                let (store, reports) = (&self.sockets.store, &self.sockets.reports);
                Shares::Virtiofs { store, reports }
            }
        };
        let machine = Machine {
            name: &self.record.name,
            mac: self.record.mac,
            kernel: &environment.join("kernel"),
            initramfs: &environment.join("initramfs"),
            shares,
            disk: &self.record.private_in(&self.own),
            console: &self.own.join(CONSOLE),
            console_socket: &self.sockets.console,
            control: &self.sockets.control,
            machine_type: &hardware.machine,
            memory_mib: hardware.memory_mib,
            network: hardware.network,
            forwards: &hardware.forwards,
            accelerator: hardware.accelerator,
            incoming,
        };
        let kept = [(&*self.directory, &*self.own), (&*reports, &*self.own_reports)];
        let group = self.machine.path();
        let mut qemu = shares::concealing(&programs.init, group, &kept, &self.hidden())?;
        qemu.arg("--").arg(QEMU);
        qemu.args(command::arguments(&machine)).stdin(Stdio::null()).process_group(0);
        qemu.stdout(log.try_clone().at("open", &self.log())?).stderr(log);
        qemu.spawn().at("run", &programs.init)
    }

    fn hidden(&self) -> [PathBuf; 3] {
        HIDDEN.map(|name| self.store.root().join(name))
    }

    /// Runs the daemons of the shares.
    fn share(&self, reports: &Path, programs: &Programs, log: &File) -> Result<(), MachineError> {
        let missing = || MachineError::NoVirtiofs("it is not installed".to_owned());
        let daemon = programs.virtiofsd.as_deref().ok_or_else(missing)?;
        let (init, group) = (programs.init.as_path(), self.shares.path());
        let share = |directory, socket| Share { init, daemon, group, directory, socket, log };
        share(self.store.root(), &self.sockets.store).show(&self.hidden())?;
        share(reports, &self.sockets.reports).lend()
    }

    pub(super) fn log(&self) -> PathBuf {
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

    /// The error for a machine that has ended before it did what it should.
    pub(super) fn ended(&self, status: ExitStatus, told: Option<String>) -> MachineError {
        let said = strata_store::read_limited(&self.log(), REASON_BYTES).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let reason = match told.unwrap_or(said).as_str() {
            "" => format!("the machine has ended ({status})"),
            reason => format!("the machine has ended ({status}): {reason}"),
        };
        MachineError::NotStarted { name: self.record.name.clone(), reason }
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
                return Err(self.ended(status, told));
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
}
