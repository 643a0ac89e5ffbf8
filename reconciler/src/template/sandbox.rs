//! The build VA: a namespace VA of a store aside, without network.
//!
//! The store aside has the real store's repositories, to be read, and a generation, a VA
//! and a private layer of its own, all in one scratch directory. The VA has a mount, PID,
//! UTS, IPC and network namespace; nothing of the host is in its tree; its memory and its
//! time are limited (the space on the scratch disk is not). Whatever is left of a build
//! that was killed, the next build in the same scratch directory removes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use strata_core::generation::Generation;
use strata_core::manifest::Timestamp;
use strata_core::{GenerationId, RingName, VaName};
use strata_import::rooted::Rooted;
use strata_machine::{
    AcceleratorChoice, Driver, Machines, Network, Programs, ProvisionRequest, StartRequest,
    TransportChoice,
};
use strata_store::Store;

use super::{BuildError, Inputs, Options};
use crate::private_view::{self, PrivateView};

const PREFIX: &str = "strata-build-";
const VA: &str = "build";
/// What is shown of the output of a step that failed.
const SHOWN_BYTES: u64 = 8 << 10;

/// A running build VA.
#[derive(Debug)]
pub struct Sandbox {
    scratch: Scratch,
    store: Store,
    programs: Programs,
    generation: GenerationId,
    epoch: Timestamp,
    patience: Duration,
    deadline: Instant,
    log: File,
}

/// A scratch directory that is locked while its build lives.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    _lock: File,
}

/// What a build changed: a read-only view of the whole tree, and the changed paths.
#[derive(Debug)]
pub struct Changes {
    // In this order: the view is in the scratch directory.
    pub seen: PrivateView,
    _scratch: Scratch,
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io { path, source }
}

impl Sandbox {
    /// Composes the layers and starts the VA.
    ///
    /// # Errors
    /// The VA does not come up.
    pub fn start(
        store: &Store,
        programs: &Programs,
        inputs: &Inputs,
        options: &Options,
        epoch: Timestamp,
        deadline: Instant,
    ) -> Result<Self, BuildError> {
        sweep(&options.scratch)?;
        let scratch = Scratch::make(&options.scratch)?;
        let aside = store.init_aside(&scratch.path.join("store"))?;
        let ldf: String = inputs
            .all()
            .map(|entry| format!("{}/{} {}\n", entry.repository, entry.layer, entry.version))
            .collect();
        let composition = inputs.composition.clone();
        let generation = Generation::new(composition, inputs.all().cloned().collect(), ldf)?;
        let (id, _) = aside.seal_generation(&generation, "a template build")?;
        let ring = RingName::new(VA)?;
        aside.move_ring(generation.composition(), &ring, &id)?;
        let machines = Machines::open(&aside)?;
        let request = ProvisionRequest {
            composition: generation.composition().clone(),
            ring: Some(ring),
            mac: None,
            name: Some(VaName::new(VA)?),
            count: None,
            driver: Driver::Namespace,
            private: None,
        };
        machines.provision(&request, &mut |_, _| ())?;
        let start = StartRequest {
            // Without one the services of the layers would run.
            command: ["/bin/sh", "-c", "while :; do sleep 3600; done"].map(OsString::from).into(),
            network: Network::Private,
            forwards: Vec::new(),
            memory_bytes: Some(options.memory_bytes),
            accelerator: AcceleratorChoice::Auto,
            transport: TransportChoice::Auto,
            // They run in each appliance; what they wrote here would be in all of them before.
            layer_scripts: false,
            deadline: deadline.saturating_duration_since(Instant::now()),
        };
        let log_path = scratch.path.join("build.log");
        let log = File::options().create(true).append(true).read(true).open(&log_path);
        let log = log.map_err(at(&log_path))?;
        let sandbox = Sandbox {
            scratch,
            store: aside,
            programs: programs.clone(),
            generation: id,
            epoch,
            patience: options.deadline,
            deadline,
            log,
        };
        Machines::open(&sandbox.store)?.start(&VaName::new(VA)?, &start, programs)?;
        Ok(sandbox)
    }

    /// The VA's tree, as its file system shows it.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn tree(&self) -> Result<Rooted, BuildError> {
        Ok(Rooted::open(&self.store.machines().join(VA).join("run/root"))?)
    }

    /// Runs a command in the VA to its end, with the environment of a maintainer script.
    ///
    /// # Errors
    /// It fails, or the build's time is over.
    pub fn run(
        &self,
        what: &str,
        environment: &[(&str, &str)],
        words: &[&str],
    ) -> Result<String, BuildError> {
        self.run_fed(what, environment, words, Stdio::null())
    }

    /// As [`Sandbox::run`], with something to read.
    ///
    /// # Errors
    /// As of [`Sandbox::run`].
    pub fn run_fed(
        &self,
        what: &str,
        environment: &[(&str, &str)],
        words: &[&str],
        input: Stdio,
    ) -> Result<String, BuildError> {
        // The modes of what scripts make are not to depend on who builds.
        let mut command: Vec<OsString> =
            ["/bin/sh", "-c", "umask 022; exec \"$@\"", "sh", "/usr/bin/env"]
                .map(OsString::from)
                .into();
        let epoch = self.epoch.seconds.to_string();
        let common = [
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            ("LC_ALL", "C.UTF-8"),
            ("TZ", "UTC"),
            ("SOURCE_DATE_EPOCH", epoch.as_str()),
            // Tables of hashes come out in the same order each time.
            ("PERL_HASH_SEED", "0"),
            ("PYTHONHASHSEED", "0"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        for (name, value) in common.iter().chain(environment) {
            command.push(format!("{name}={value}").into());
        }
        command.extend(words.iter().map(OsString::from));
        let (log, start) = self.log_from_here()?;
        let machines = Machines::open(&self.store)?;
        let mut command = machines.exec(&VaName::new(VA)?, &command, &self.programs)?;
        let copy = |log: &File| log.try_clone().map_err(at(&self.scratch.path));
        command.command().stdin(input).stdout(copy(&log)?).stderr(copy(&log)?);
        let status = command.status_before(self.deadline).map_err(at(&self.programs.init))?;
        let output = self.logged(start)?;
        match status {
            Some(status) if status.success() => Ok(output),
            Some(status) => {
                let (what, status) = (what.to_owned(), status.to_string());
                Err(BuildError::Failed { what, status, output })
            }
            None => Err(BuildError::Deadline(self.patience, what.to_owned())),
        }
    }

    fn log_from_here(&self) -> Result<(File, u64), BuildError> {
        let mut log = self.log.try_clone().map_err(at(&self.scratch.path))?;
        let start = log.seek(SeekFrom::End(0)).map_err(at(&self.scratch.path))?;
        Ok((log, start))
    }

    /// The end of what was logged since.
    fn logged(&self, start: u64) -> Result<String, BuildError> {
        let mut log = self.log.try_clone().map_err(at(&self.scratch.path))?;
        let read = |log: &mut File| -> std::io::Result<Vec<u8>> {
            let end = log.seek(SeekFrom::End(0))?;
            log.seek(SeekFrom::Start(start.max(end.saturating_sub(SHOWN_BYTES))))?;
            let mut text = Vec::new();
            log.take(SHOWN_BYTES).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read(&mut log).map_err(at(&self.scratch.path))?;
        let printable = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
        Ok(String::from_utf8_lossy(&text).trim_end().chars().map(printable).collect())
    }

    /// Ends the VA and everything that runs in it, and mounts what it left, read-only.
    ///
    /// # Errors
    /// The VA does not end, or its changes cannot be read.
    pub fn stop(self) -> Result<Changes, BuildError> {
        Machines::open(&self.store)?.stop(&VaName::new(VA)?, Duration::ZERO)?;
        let private = self.store.machines().join(VA).join("private");
        let view = self.scratch.path.join("view");
        std::fs::create_dir(&view).map_err(at(&view))?;
        let (vlfs, root) = (&self.programs.vlfs, self.store.root());
        let seen = PrivateView::open(vlfs, root, &private, self.generation, &view)?;
        Ok(Changes { seen, _scratch: self.scratch })
    }
}

impl Scratch {
    fn make(parent: &Path) -> Result<Self, BuildError> {
        std::fs::create_dir_all(parent).map_err(at(parent))?;
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent);
        let path = directory.map_err(at(parent))?.keep();
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| at(&lock_path)(errno.into()))?;
        Ok(Scratch { path, _lock: lock })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "parts of a build are left");
        }
    }
}

/// Ends what runs in a scratch directory and removes it.
fn clear(path: &Path) -> Result<(), BuildError> {
    private_view::unmount(&path.join("view"))?;
    // One that was not made whole has no machine either.
    if let Ok(store) = Store::open(&path.join("store")) {
        let machines = Machines::open(&store)?;
        if machines.directory(&VaName::new(VA)?).join("va.json").exists() {
            machines.stop(&VaName::new(VA)?, Duration::ZERO)?;
        }
    }
    std::fs::remove_dir_all(path).map_err(at(path))
}

/// Removes what killed builds left.
fn sweep(parent: &Path) -> Result<(), BuildError> {
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at(parent))?,
    };
    for entry in entries {
        let path = entry.map_err(at(parent))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        // The directory above may be everybody's: what is not ours is left alone.
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            continue;
        }
        // One without a lock is being made at this moment.
        let Ok(lock) = File::open(path.join("lock")) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = clear(&path)
        {
            tracing::warn!(path = %path.display(), %error, "parts of a killed build are left");
        }
    }
    Ok(())
}
