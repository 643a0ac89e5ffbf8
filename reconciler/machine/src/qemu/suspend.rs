//! Suspending a machine in memory and to disk, and resuming it.
//!
//! To disk: the machine is stopped, its state written beside the record ([`saved`]), and
//! QEMU ended. A machine can be taken back at any step until its state has its name.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;
use strata_core::status::RunState;

use crate::error::{Context, MachineError};
use crate::machines::Programs;
use crate::qemu::hardware::Hardware;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::qemu::shares::Transport;
use crate::qemu::{ANSWER_DEADLINE, QEMU, QemuVa, saved};
use crate::wait;

impl QemuVa<'_> {
    pub fn suspend(&self, patience: Duration) -> Result<(), MachineError> {
        if saved::exists(&self.directory) {
            return Ok(());
        }
        self.tell("stop", RunState::Suspended, patience)?;
        tracing::info!(va = %self.record.name, "machine suspended");
        Ok(())
    }

    pub fn suspend_to_disk(&self, patience: Duration) -> Result<(), MachineError> {
        if saved::exists(&self.directory) {
            // Who saved it may have died before it ended QEMU.
            return self.clear();
        }
        let before = self.run_state()?;
        if before == RunState::Stopped {
            return Err(MachineError::Stopped(self.record.name.clone()));
        }
        let mut hardware = Hardware::read(&self.directory)?;
        if hardware.transport != Transport::Virtiofs {
            return Err(MachineError::NotToDisk(self.record.name.clone()));
        }
        let deadline = Instant::now() + patience;
        let mut qmp = self.control(deadline)?;
        let saved = qmp.machine_type().map_err(MachineError::from).and_then(|machine| {
            hardware.machine = machine;
            self.save(&mut qmp, hardware)
        });
        if let Err(error) = saved {
            drop(qmp);
            self.take_back(before);
            return Err(match error {
                MachineError::Qmp(QmpError::Deadline(_)) => MachineError::Deadline {
                    name: self.record.name.clone(),
                    wanted: "saved",
                    deadline: patience,
                },
                error => error,
            });
        }
        tracing::info!(va = %self.record.name, "machine suspended to disk");
        // Its state is on disk: what is left of it may be killed.
        self.clear()
    }

    fn save(&self, qmp: &mut Qmp, hardware: Hardware) -> Result<(), MachineError> {
        // Who tried it before may have died.
        qmp.cancel_migration()?;
        if qmp.has_migrated()? {
            // QEMU hands a machine over once in a row.
            qmp.call("cont", &json!({}))?;
        }
        qmp.call("stop", &json!({}))?;
        saved::begin(&self.directory)?;
        let file = format!("file:{}", saved::new_state(&self.own).display());
        qmp.migrate(&file)?;
        qmp.await_migration()?;
        let disk = self.record.private_in(&self.directory);
        std::fs::File::open(&disk).and_then(|disk| disk.sync_all()).at("sync", &disk)?;
        saved::complete(self.store, &self.directory, hardware)
    }

    /// Lets a machine that could not be saved be as it was.
    fn take_back(&self, before: RunState) {
        if saved::exists(&self.directory) {
            return;
        }
        let taken = self.control(Instant::now() + ANSWER_DEADLINE).and_then(|mut qmp| {
            qmp.cancel_migration()?;
            match before {
                RunState::Running => qmp.call("cont", &json!({})).map(drop),
                RunState::Suspended | RunState::Stopped => Ok(()),
            }
        });
        if let Err(error) = taken {
            tracing::error!(va = %self.record.name, %error, "the machine that was not saved stands still");
        }
        if let Err(error) = saved::sweep(&self.directory) {
            tracing::error!(va = %self.record.name, %error, "parts of a saved state are left");
        }
    }

    pub fn resume(&self, patience: Duration, programs: &Programs) -> Result<(), MachineError> {
        if saved::exists(&self.directory) {
            return self.load(patience, programs);
        }
        if self.run_state()? == RunState::Stopped {
            return Err(MachineError::Stopped(self.record.name.clone()));
        }
        // Somebody who saved it may have died meanwhile.
        self.control(Instant::now() + ANSWER_DEADLINE)?.cancel_migration()?;
        self.tell("cont", RunState::Running, patience)?;
        saved::sweep(&self.directory)?;
        tracing::info!(va = %self.record.name, "machine resumed");
        Ok(())
    }

    /// Makes the machine of its saved state, and lets it go on.
    fn load(&self, patience: Duration, programs: &Programs) -> Result<(), MachineError> {
        let deadline = Instant::now() + patience;
        let mut hardware = saved::hardware(&self.directory)?;
        hardware.state_bytes = None;
        // Whatever is there has not run since the state was saved.
        self.clear()?;
        let loaded = self
            .switch_on(&hardware, programs, true)
            .and_then(|mut child| self.await_state(&mut child, patience, deadline))
            .and_then(|()| hardware.write(self.store, &self.directory));
        if let Err(error) = loaded {
            if let Err(left) = self.clear() {
                tracing::error!(va = %self.record.name, error = %left, "parts of a failed resume are left");
            }
            return Err(error);
        }
        // From here on the disk may change, which the state on it does not know.
        saved::consume(self.store, &self.directory)?;
        self.tell("cont", RunState::Running, patience)?;
        tracing::info!(va = %self.record.name, "machine resumed from disk");
        Ok(())
    }

    fn await_state(
        &self,
        child: &mut Child,
        patience: Duration,
        deadline: Instant,
    ) -> Result<(), MachineError> {
        let late = || MachineError::Deadline {
            name: self.record.name.clone(),
            wanted: "resumed",
            deadline: patience,
        };
        let (mut status, mut control) = (None, None);
        let there = wait::until(deadline, || -> Result<bool, MachineError> {
            status = child.try_wait().at("wait for", QEMU.as_ref())?;
            match self.control(deadline) {
                Ok(qmp) => control = Some(qmp),
                // It does not listen yet.
                Err(QmpError::Io { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(status.is_some() || control.is_some())
        })?;
        if let Some(status) = status {
            return Err(self.ended(status, None));
        }
        let Some(mut qmp) = control.filter(|_| there) else { return Err(late()) };
        let file = format!("file:{}", saved::state(&self.own).display());
        let loaded = qmp
            .call("migrate-incoming", &json!({ "uri": file }))
            .and_then(|_nothing| qmp.await_migration());
        match loaded {
            Ok(()) => Ok(()),
            Err(QmpError::Deadline(_)) => Err(late()),
            // QEMU ends where it cannot load a state, and its log says why.
            Err(error) => match wait::child(child, Instant::now() + ANSWER_DEADLINE) {
                Ok(Some(status)) => Err(self.ended(status, None)),
                Ok(None) | Err(_) => Err(error.into()),
            },
        }
    }

    /// Stops a machine that is suspended to disk: only by giving up what it had in memory.
    pub(super) fn give_up(&self, patience: Duration) -> Result<(), MachineError> {
        if !patience.is_zero() {
            return Err(MachineError::SuspendedToDisk(self.record.name.clone()));
        }
        self.clear()?;
        saved::consume(self.store, &self.directory)?;
        tracing::info!(va = %self.record.name, "machine stopped, its saved state given up");
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
}
