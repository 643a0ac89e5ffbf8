//! `ci/bench paper`: the paper's evaluation (§6) run again, on the distribution's packages.
//! It writes `docs/evaluation.md`. Run by the script, which builds and installs what is
//! needed.

mod appliances;
mod applications;
mod document;
mod http;
mod images;
mod management;
mod mirror;
mod plain;
mod provisioning;
mod site;
mod storage;
mod systems;
mod update;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use strata_tests::disk::{Disk, Format};
use strata_tests::goals::{Goals, scratch};
use strata_tests::workloads::Sources;

/// What the disk can take at most.
const DISK: u64 = 24 << 30;

pub struct Arguments {
    strata: PathBuf,
    /// Where downloaded packages are kept.
    packages: PathBuf,
    /// The C project that is built.
    sources: Sources,
    json: Option<PathBuf>,
    document: PathBuf,
    /// Only these parts.
    only: Option<Vec<String>>,
    quick: bool,
}

impl Arguments {
    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == part))
    }

    /// Writes a part's section into the document.
    fn write(&self, part: &str, text: &str, goals: &[serde_json::Value]) -> Result<()> {
        let section = document::section(text, goals, self.quick)?;
        document::write(&self.document, part, &section)
    }
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args_os().skip(1);
    let (mut strata, mut packages, mut json, mut document, mut only) =
        (None, None, None, None, None);
    let (mut libgit2, mut zlib) = (None, None);
    let mut quick = false;
    while let Some(argument) = given.next() {
        let name = argument.to_string_lossy().into_owned();
        if name == "--quick" {
            quick = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--strata" => strata = Some(PathBuf::from(value)),
            "--packages" => packages = Some(PathBuf::from(value)),
            "--libgit2" => libgit2 = Some(PathBuf::from(value)),
            "--zlib" => zlib = Some(PathBuf::from(value)),
            "--json" => json = Some(PathBuf::from(value)),
            "--document" => document = Some(PathBuf::from(value)),
            "--only" => {
                let parts = value.to_string_lossy();
                only = Some(parts.split(',').map(str::to_owned).collect::<Vec<_>>());
            }
            _ => bail!("unknown argument {name}"),
        }
    }
    let parts = document::SECTIONS.map(|(key, _)| key);
    if let Some(part) = only.iter().flatten().find(|part| !parts.contains(&part.as_str())) {
        bail!("--only {part}: the parts are {}", parts.join(", "));
    }
    Ok(Arguments {
        strata: strata.context("--strata FILE is missing")?,
        packages: packages.context("--packages DIR is missing")?,
        sources: Sources {
            libgit2: libgit2.context("--libgit2 DIR is missing")?,
            zlib: zlib.context("--zlib DIR is missing")?,
        },
        json,
        document: document.context("--document FILE is missing")?,
        only,
        quick,
    })
}

fn main() -> std::process::ExitCode {
    match bench() {
        Ok(true) => 0.into(),
        Ok(false) => 1.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            2.into()
        }
    }
}

/// Returns whether every goal holds.
fn bench() -> Result<bool> {
    let arguments = arguments()?;
    let mut goals = Goals::default();
    let directory = tempfile::Builder::new().prefix("strata-paper.").tempdir_in(scratch())?;
    let disk = Disk::make(directory.path(), DISK, Format::Ext4)?;
    management::measure(&arguments, disk.root(), &mut goals)?;
    applications::measure(&arguments, disk.root(), &mut goals)?;
    goals.progress("removing what was made");
    drop(disk);
    directory.close().context("the bench's directory stays")?;
    goals.finish(arguments.json.as_deref())
}
