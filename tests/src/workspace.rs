//! A test's own directory, store and processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::process::{finish, program};
use crate::{leaks, wait_until};

/// A temporary directory with a store in it, and everything that runs there.
pub struct Workspace {
    directory: TempDir,
    running: BTreeMap<String, Child>,
}

impl Workspace {
    /// A directory of its own for the test called `name`.
    ///
    /// # Panics
    /// No directory can be made, or the test does not run as root.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "mounts need root\n  hint: sudo ci/test");
        let directory = tempfile::Builder::new().prefix(&format!("strata-{name}-")).tempdir();
        let directory = directory.expect("a temporary directory");
        fs::create_dir(directory.path().join("logs")).expect("a new directory");
        Workspace { directory, running: BTreeMap::new() }
    }

    /// A path below the workspace.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(below)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// `strata`, with this workspace's store.
    #[track_caller]
    pub fn strata(&self) -> Command {
        let mut command = Command::new(program("strata"));
        command.env("STRATA_STORE", self.store()).env("NO_COLOR", "1");
        command
    }

    /// `strata-vlfs`, with this workspace's store.
    #[track_caller]
    pub fn vlfs(&self) -> Command {
        let mut command = Command::new(program("strata-vlfs"));
        command.env("STRATA_STORE", self.store()).env("NO_COLOR", "1");
        command
    }

    /// Writes files below the workspace, with the directories they need.
    #[track_caller]
    pub fn write(&self, directory: impl AsRef<Path>, files: &[(&str, &str)]) -> PathBuf {
        let directory = self.path(directory);
        fs::create_dir_all(&directory).expect("a new directory");
        for (path, text) in files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().expect("a path below the workspace"))
                .and_then(|()| fs::write(&path, text))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        directory
    }

    /// An empty store, by `strata init`.
    #[track_caller]
    pub fn init_store(&self) {
        finish(self.strata().arg("init").arg(self.store())).ok();
    }

    /// A software layer unit of these files, by `strata layer build`. `relations`
    /// are further options, as in `["--depends", "base (>= 1)"]`.
    #[track_caller]
    pub fn build_layer(
        &self,
        repository: &str,
        name: &str,
        version: &str,
        files: &[(&str, &str)],
        relations: &[&str],
    ) {
        let root = self.write(format!("layers/{name}-{version}"), files);
        let mut command = self.strata();
        command.args(["layer", "build", "--repo", repository, "--name", name]);
        command.args(["--version", version]).args(relations).arg("--root").arg(root);
        finish(&mut command).ok();
    }

    /// Starts a process that ends with the workspace at the latest. What it prints
    /// goes to `logs/<name>`, which is shown when the test fails.
    #[track_caller]
    pub fn spawn(&mut self, name: &str, command: &mut Command) -> u32 {
        use std::os::unix::process::CommandExt;
        let log = File::options().create(true).append(true).open(self.path("logs").join(name));
        let log = log.expect("a log file");
        let errors = log.try_clone().expect("a second handle");
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = child.id();
        let former = self.running.insert(name.to_owned(), child);
        assert!(former.is_none(), "a process called {name} was spawned before");
        pid
    }

    /// What the process called `name` has printed so far.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path("logs").join(name)).unwrap_or_default()
    }

    /// The id of a spawned process.
    #[track_caller]
    pub fn pid(&self, name: &str) -> u32 {
        self.running.get(name).expect("a process of this name was spawned").id()
    }

    /// Sends a signal to a spawned process and waits for its end; returns its code
    /// (-1 where a signal ended it).
    #[track_caller]
    pub fn stop(&mut self, name: &str, signal: Signal) -> i32 {
        let mut child = self.running.remove(name).expect("a process of this name was spawned");
        kill_process(Pid::from_child(&child), signal).expect("the process is a child");
        let status = child.wait().expect("the process is a child");
        status.code().unwrap_or(-1)
    }

    /// Ends the spawned processes in good order (SIGTERM) and checks that no mount
    /// and no process is left.
    ///
    /// # Panics
    /// Something is left after ten seconds.
    #[track_caller]
    pub fn finish(mut self) {
        let names: Vec<_> = self.running.keys().cloned().collect();
        for name in names {
            self.stop(&name, Signal::TERM);
        }
        let root = self.path("");
        wait_until("mounts and processes end", Duration::from_secs(10), || {
            leaks::everything(&root).is_empty()
        });
    }

    /// Logs, mounts and processes, on stderr.
    fn show(&self) {
        for entry in fs::read_dir(self.path("logs")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            eprintln!("--- log of {name}\n{}", self.log(&name));
        }
        eprintln!("--- left behind\n{}", leaks::everything(self.directory.path()).join("\n"));
    }

    /// The store's tree, on stderr. Nothing may be mounted there: a suspended VA's file
    /// system answers nobody.
    fn show_store(&self) {
        let mut find = Command::new("find");
        find.arg(self.store()).args(["-maxdepth", "5", "-not", "-path", "*/filesystem/*"]);
        eprintln!("--- store\n{}", finish(find.args(["-printf", "%P %y %l\n"])).stdout);
    }

    /// Ends every process and unmounts everything below the workspace. A failure
    /// here can only be told: another panic would hide the first.
    fn clear(&mut self) {
        for (name, mut child) in std::mem::take(&mut self.running) {
            let killed = kill_process_group(Pid::from_child(&child), Signal::KILL);
            if let Err(error) = child.wait() {
                eprintln!("{name}: {error} ({killed:?})");
            }
        }
        leaks::clear(self.directory.path(), &self.store());
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.show();
        }
        self.clear();
        if failed {
            self.show_store();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, mount};

    #[test]
    fn a_test_that_fails_leaves_nothing_behind() {
        let mut workspace = Workspace::new("failing");
        let root = workspace.path("");
        let point = workspace.write("mounted", &[]);
        mount("strata-test", &point, "tmpfs", MountFlags::empty(), None).expect("a mount");
        workspace.spawn("follower", Command::new("tail").args(["-f", "/dev/null"]));
        assert_eq!(leaks::mounts(&root), [point]);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _moved = workspace;
            panic!("as a failing test does");
        }));
        assert!(failed.is_err());
        assert_eq!(leaks::everything(&root), [""; 0]);
        assert!(!root.exists());
    }

    #[test]
    fn what_is_left_behind_fails_the_test() {
        let workspace = Workspace::new("leaking");
        let point = workspace.write("mounted", &[]);
        mount("strata-test", &point, "tmpfs", MountFlags::empty(), None).expect("a mount");
        let told = leaks::everything(&workspace.path(""));
        assert_eq!(told, [format!("mount {}", point.display())]);
    }
}
