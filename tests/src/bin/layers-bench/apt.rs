//! What apt would install on an empty system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// apt with no package installed. It reads the machine's sources and indexes.
pub struct Apt {
    options: Vec<String>,
}

/// What apt answers.
pub struct Answer {
    /// Name to version of what would be installed; `None` where apt says that
    /// there is no solution.
    pub installed: Option<BTreeMap<String, String>>,
    pub took: Duration,
}

impl Apt {
    /// `cached` keeps what apt makes of its indexes below `scratch`; else every
    /// run makes it anew.
    pub fn new(scratch: &Path, cached: bool) -> Result<Self> {
        let status = scratch.join("status");
        std::fs::write(&status, "").with_context(|| status.display().to_string())?;
        let cache = |name: &str| match cached {
            true => scratch.join(name),
            false => PathBuf::new(),
        };
        let options = [
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache::pkgcache={}", cache("pkgcache.bin").display()),
            format!("Dir::Cache::srcpkgcache={}", cache("srcpkgcache.bin").display()),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Get::Show-User-Simulation-Note=false".to_owned(),
        ];
        Ok(Apt { options: options.into() })
    }

    pub fn simulate(&self, packages: &[&str]) -> Result<Answer> {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").args(["-q", "-s", "install"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(packages);
        let started = Instant::now();
        let output = command.output().context("run apt-get")?;
        let took = started.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            let installed = text.lines().filter_map(installation).collect();
            return Ok(Answer { installed: Some(installed), took });
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        if !text.contains("unmet dependencies") && !errors.contains("unmet dependencies") {
            bail!("apt-get -s install {}: {errors}", packages.join(" "));
        }
        Ok(Answer { installed: None, took })
    }
}

/// `Inst name (version …)`.
fn installation(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let version = rest.split(' ').next()?;
    Some((name.to_owned(), version.to_owned()))
}
