//! Plain appliances: a full root each, made by the distribution's own tools, whose
//! processes run in namespaces and are suspended by the kernel's freezer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use strata_tests::commands::run;

use crate::appliances::{APPLIANCES, TOOL};
use crate::mirror::Mirror;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(200);
/// The longer pause, where no time is taken.
const LONG_PAUSE: Duration = Duration::from_millis(5);
/// What mmdebstrap leaves for dpkg when it is told not to wait for the disk.
const UNSAFE: &str = "etc/dpkg/dpkg.cfg.d/99mmdebstrap";

/// The roots of all appliances below `directory`, named as they are.
pub fn make_roots(directory: &Path, mirror: &Mirror, progress: impl Fn(&str)) -> Result<()> {
    fs::create_dir_all(directory)?;
    progress("the base of plain appliances");
    let base = directory.join("base");
    let sources = mirror.sources();
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--mode=root", "--variant=apt", "--dpkgopt=force-unsafe-io"]);
    make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Sandbox::User \"root\""]);
    make.arg("--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr");
    // Its index stays, so that an update later fetches only what changed.
    make.arg("--skip=cleanup/apt");
    make.arg("stable").arg(&base).args(sources.lines());
    run(&mut make)?;
    // No package starts a service when it is configured.
    let policy = base.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    run(Command::new("chmod").arg("755").arg(&policy))?;
    for appliance in &APPLIANCES {
        progress(&format!("a plain {}", appliance.name));
        let root = directory.join(appliance.name);
        copy(&base, &root)?;
        let va = PlainVa::start(&root)?;
        va.run(&["apt-get", "-qy", "--no-install-recommends", "install", appliance.package])?;
        va.run(&["apt-get", "clean"])?;
        va.run(&["apt-get", "-qq", "update"])?;
        va.end()?;
        // From here on the disk is waited for, as in any appliance.
        let unsafe_io = root.join(UNSAFE);
        if unsafe_io.exists() {
            fs::remove_file(&unsafe_io)?;
        }
        ensure!(root.join("usr/bin").join(TOOL).exists(), "{} has no {TOOL}", appliance.name);
    }
    Ok(fs::remove_dir_all(&base)?)
}

/// Copies a tree with owners, times, devices and all.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}

/// A started plain appliance; ended when it is dropped.
pub struct PlainVa {
    child: Child,
    /// The first process inside, as the host numbers it.
    init: u32,
    cgroup: PathBuf,
}

impl PlainVa {
    /// Starts namespaces on a root, with one process that sleeps.
    pub fn start(root: &Path) -> Result<PlainVa> {
        let cgroup = hierarchy()?.join(format!("strata-paper-{}", std::process::id()));
        fs::create_dir(&cgroup).with_context(|| cgroup.display().to_string())?;
        let child = in_group(&cgroup)
            .args(["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"])
            .arg(format!("--root={}", root.display()))
            .args(["--mount-proc", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("unshare")?;
        let mut va = PlainVa { child, init: 0, cgroup };
        let end = Instant::now() + PATIENCE;
        while va.init == 0 {
            ensure!(Instant::now() < end, "a plain appliance does not start");
            std::thread::sleep(LONG_PAUSE);
            let processes = fs::read_to_string(va.cgroup.join("cgroup.procs"))?;
            let sleeps = |pid: &&str| {
                // A process that is gone sleeps no more.
                let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim() == "sleep")
            };
            va.init = processes.lines().find(sleeps).map_or(Ok(0), str::parse)?;
        }
        Ok(va)
    }

    pub fn suspend(&self) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.freeze"), "1")?;
        self.wait_for("frozen 1")
    }

    pub fn resume(&self) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.freeze"), "0")?;
        self.wait_for("frozen 0")
    }

    /// Runs a program inside to its end.
    pub fn run(&self, program: &[&str]) -> Result<()> {
        let mut command = in_group(&self.cgroup);
        command.args(["nsenter", "--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--uts", "--ipc", "--root", "--wdns=/"]);
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
        command.arg("DEBIAN_FRONTEND=noninteractive").args(program);
        run(&mut command)
    }

    pub fn end(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.kill"), "1")?;
        self.child.wait()?;
        self.wait_for("populated 0")?;
        Ok(fs::remove_dir(&self.cgroup)?)
    }

    fn wait_for(&self, state: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let events = self.cgroup.join("cgroup.events");
        while !fs::read_to_string(&events)?.lines().any(|line| line == state) {
            ensure!(Instant::now() < end, "a plain appliance is not {state}");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for PlainVa {
    fn drop(&mut self) {
        if self.cgroup.exists()
            && let Err(error) = self.take_down()
        {
            eprintln!("warning: {} stays: {error:#}", self.cgroup.display());
        }
    }
}

/// A command that joins the group before it begins.
fn in_group(cgroup: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup);
    command
}

/// Where the host mounts the control groups of version 2.
fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&"cgroup2"));
    let found = found.and_then(|fields| fields.get(1).map(PathBuf::from));
    found.context("no control groups of version 2 are mounted")
}
