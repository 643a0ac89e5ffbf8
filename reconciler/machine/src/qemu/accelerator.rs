//! What executes a machine's instructions: the processor (KVM), or QEMU itself.
//!
//! That a host has `/dev/kvm` says little: nested and paravirtual ones take a machine
//! and never get a stock kernel up. So a kernel is booted to see, once after each boot
//! of the host: without a root file system it says so and gives up, and that is the
//! sign of life.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Context, MachineError};
use crate::qemu::QEMU;
use crate::wait;

/// A processor does it in one or two seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a kernel says that has come as far as looking for its root.
const SIGN_OF_LIFE: &[u8] = b"Kernel panic - not syncing: VFS";
/// No console of a trial is longer, in bytes.
const CONSOLE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    Software,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where a trial shows that it works.
    #[default]
    Auto,
    Kvm,
    Software,
}

/// Chooses by a trial with `kernel`, whose outcome is kept in `directory`, which is empty
/// after each boot of the host.
///
/// # Errors
/// The outcome cannot be read or kept.
pub fn choose(
    choice: AcceleratorChoice,
    kernel: &Path,
    directory: &Path,
) -> Result<Accelerator, MachineError> {
    match choice {
        AcceleratorChoice::Kvm => Ok(Accelerator::Kvm),
        AcceleratorChoice::Software => Ok(Accelerator::Software),
        AcceleratorChoice::Auto if !Path::new("/dev/kvm").exists() => Ok(Accelerator::Software),
        AcceleratorChoice::Auto => {
            let kept = directory.join("kvm");
            match fs::read(&kept) {
                Ok(outcome) if outcome == b"works\n" => return Ok(Accelerator::Kvm),
                Ok(_) => return Ok(Accelerator::Software),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at("read", &kept),
            }
            let works = try_out(kernel, &directory.join("kvm-trial.log"))?;
            tracing::info!(works, "tried KVM with a kernel");
            let outcome = if works { "works\n" } else { "does not work\n" };
            // Whoever reads it meanwhile finds nothing, or all of it.
            let new = directory.join(format!("kvm-{}", std::process::id()));
            fs::write(&new, outcome).at("write", &new)?;
            fs::rename(&new, &kept).at("rename", &new)?;
            Ok(if works { Accelerator::Kvm } else { Accelerator::Software })
        }
    }
}

/// Whether a kernel comes up under KVM.
fn try_out(kernel: &Path, console: &PathBuf) -> Result<bool, MachineError> {
    let log = File::create(console).at("create", console)?;
    let mut command = Command::new(QEMU);
    command.args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"]);
    command.arg(kernel).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    let mut child = command.spawn().at("run", Path::new(QEMU))?;
    let ended =
        wait::child(&mut child, Instant::now() + PATIENCE).at("wait for", Path::new(QEMU))?;
    let said = strata_store::read_limited(console, CONSOLE_BYTES)?;
    fs::remove_file(console).at("remove", console)?;
    let alive = said.windows(SIGN_OF_LIFE.len()).any(|window| window == SIGN_OF_LIFE);
    Ok(alive && ended.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_made_once_and_its_outcome_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let choose = |choice| choose(choice, Path::new("/no/kernel"), directory.path());
        assert_eq!(choose(AcceleratorChoice::Kvm).expect("chosen"), Accelerator::Kvm);
        assert_eq!(choose(AcceleratorChoice::Software).expect("chosen"), Accelerator::Software);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 0);
        if Path::new("/dev/kvm").exists() {
            for (outcome, accelerator) in
                [("works\n", Accelerator::Kvm), ("does not work\n", Accelerator::Software)]
            {
                fs::write(directory.path().join("kvm"), outcome).expect("written");
                assert_eq!(choose(AcceleratorChoice::Auto).expect("chosen"), accelerator);
            }
        }
    }
}
