//! What a command installs below a directory of its own: `strata layer build -- COMMAND`.
//!
//! The directory is gone when [`Installed`] is dropped, after success, failure and an
//! interrupt alike. A kill that nobody can catch (SIGKILL) leaves it below TMPDIR; the
//! command dies with this program in any case.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::TempDir;

use crate::child::{self, ChildError};
use crate::cli::Failure;

/// The variable that install targets put before every path (GNU Coding Standards 7.2.4).
const DESTDIR: &str = "DESTDIR";

pub struct Installed {
    root: PathBuf,
    scratch: TempDir,
}

impl Installed {
    /// Runs the command, which is not empty.
    ///
    /// # Errors
    /// It cannot be run, fails, installs nothing, or is interrupted.
    pub fn by(command: &[OsString]) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::new("there is no command after --"));
        };
        // Its arguments may hold a secret, and messages end up in logs.
        let shown = program.to_string_lossy();
        let installed = Installed::empty().map_err(|error| {
            Failure::new(format!("a directory for what `{shown}` installs: {error}"))
                .hint("set TMPDIR to a directory with room")
        })?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, interrupted.clone())
                .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
        }
        let mut command = Command::new(program);
        command.args(arguments).env(DESTDIR, &installed.root);
        let status =
            child::run_passing_on(&mut command, &interrupted).map_err(|error| match error {
                ChildError::Cancelled { .. } => {
                    Failure::new(format!("interrupted while `{shown}` ran; no layer was made"))
                }
                ChildError::Start { .. } => Failure::new(error)
                    .hint("the words after -- are a program and its arguments; use sh -c '…' for a line of shell"),
                error => Failure::new(error),
            })?;
        if !status.success() {
            return Err(Failure::new(format!("`{shown}` failed ({status}); no layer was made"))
                .hint("what it printed stands above"));
        }
        if installed.is_empty()? {
            return Err(Failure::new(format!("`{shown}` installed nothing below ${DESTDIR}"))
                .hint("does its install target honour DESTDIR? else install into a directory and name that with --root"));
        }
        Ok(installed)
    }

    fn empty() -> std::io::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("strata-build.").tempdir()?;
        // The layer's root is for everybody; what is above it, for its owner alone.
        let root = scratch.path().join("root");
        std::fs::create_dir(&root)?;
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))?;
        Ok(Installed { root: root.canonicalize()?, scratch })
    }

    fn is_empty(&self) -> Result<bool, Failure> {
        let entries = std::fs::read_dir(&self.root)
            .map_err(|error| Failure::new(format!("{}: {error}", self.root.display())))?;
        Ok(entries.take(1).count() == 0)
    }

    /// Where the files are.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(self.scratch.path()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = self.scratch.path().display();
                tracing::warn!(%path, %error, "what a command installed stays");
            }
        }
    }
}
