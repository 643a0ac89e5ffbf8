//! Sitting at a machine's serial console. What it shows is in its `console.log` all the
//! same; one at a time can type.

use std::fs::File;
use std::os::unix::net::UnixStream;

use rustix::fs::FlockOperation;
use strata_core::VaName;
use strata_core::status::RunState;

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::record::Driver;

/// A place at a console, until it is dropped.
#[derive(Debug)]
pub struct Console {
    pub stream: UnixStream,
    _hold: File,
}

impl Machines<'_> {
    /// Takes the place at a machine's console.
    ///
    /// # Errors
    /// The VA is no machine, does not run, or somebody has the place.
    pub fn sit_at_console(&self, name: &VaName) -> Result<Console, MachineError> {
        let record = self.record(name)?;
        if record.driver != Driver::Qemu {
            return Err(MachineError::NoConsole(name.clone()));
        }
        match self.run_state(&record)? {
            RunState::Running => {}
            RunState::Suspended => return Err(MachineError::Suspended(name.clone())),
            RunState::Stopped => return Err(MachineError::Stopped(name.clone())),
        }
        let path = self.directory(name).join("console.log");
        let hold = File::open(&path).at("open", &path)?;
        match rustix::fs::flock(&hold, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(MachineError::ConsoleTaken(name.clone()));
            }
            taken => taken.at("lock", &path)?,
        }
        let socket = self.qemu(&record)?.console().to_owned();
        let stream = UnixStream::connect(&socket).at("connect to", &socket)?;
        Ok(Console { stream, _hold: hold })
    }
}
