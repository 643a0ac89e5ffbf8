//! `ci/bench layers` and `ci/proof`: the resolver against its goals and against
//! apt and dpkg, on the archive that this machine's apt knows. Run by the
//! scripts, which build and install what is needed.

mod apt;
mod bench;
mod compare;
mod conversion;
mod dependencies;
mod resolutions;
mod versions;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use strata_tests::goals::scratch;
use strata_tests::{archive, resolution};

struct Arguments {
    what: String,
    strata: Option<PathBuf>,
    json: Option<PathBuf>,
    packages: Option<PathBuf>,
    count: Option<usize>,
    seed: u64,
    quick: bool,
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args_os().skip(1);
    let what = given.next().context("what: bench, dependencies, resolutions or versions?")?;
    let mut arguments = Arguments {
        what: what.to_string_lossy().into_owned(),
        strata: None,
        json: None,
        packages: None,
        count: None,
        seed: 1,
        quick: false,
    };
    while let Some(argument) = given.next() {
        let name = argument.to_string_lossy().into_owned();
        if name == "--quick" {
            arguments.quick = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name} needs a value"))?;
        let number = || value.to_string_lossy().parse::<u64>().context(name.clone());
        match name.as_str() {
            "--strata" => arguments.strata = Some(PathBuf::from(value)),
            "--json" => arguments.json = Some(PathBuf::from(value)),
            "--packages" => arguments.packages = Some(PathBuf::from(value)),
            "--count" => arguments.count = Some(number()? as usize),
            "--seed" => arguments.seed = number()?,
            _ => bail!("unknown argument {name}"),
        }
    }
    Ok(arguments)
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(true) => 0.into(),
        Ok(false) => 1.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            2.into()
        }
    }
}

/// Returns whether everything holds.
fn run() -> Result<bool> {
    let arguments = arguments()?;
    if arguments.what == "versions" {
        return versions::compare(arguments.count.unwrap_or(5000), arguments.seed);
    }
    let work = tempfile::Builder::new().prefix("strata-layers.").tempdir_in(scratch())?;
    let store = work.path().join("store");
    let database = make_store(&store)?;
    let json = arguments.json.as_deref();
    match arguments.what.as_str() {
        "resolutions" => {
            let (universe, _) = resolution::load(&database)?;
            let count = arguments.count.unwrap_or(200);
            resolutions::compare(&universe, work.path(), count, arguments.seed, json)
        }
        "dependencies" => {
            let strata = arguments.strata.context("--strata FILE is missing")?;
            let packages = arguments.packages.context("--packages DIR is missing")?;
            let proof = dependencies::Proof { strata, work: work.path(), database, packages };
            proof.compare(arguments.count.unwrap_or(50), arguments.seed, json)
        }
        "bench" => {
            let strata = arguments.strata.context("--strata FILE is missing")?;
            let packages = arguments.packages.context("--packages DIR is missing")?;
            let bench =
                bench::Bench { strata, work: work.path(), store, database, quick: arguments.quick };
            bench.run(&packages, json)
        }
        other => bail!("{other} is none of bench, dependencies, resolutions and versions"),
    }
}

/// A store with the archive's database and nothing else. Returns the database.
fn make_store(store: &Path) -> Result<PathBuf> {
    let directory = store.join("repos").join(archive::REPOSITORY);
    std::fs::create_dir_all(&directory)?;
    std::fs::write(store.join("format"), "strata-store 1\n")?;
    let database = archive::database()?;
    eprintln!("{} units in the indexes of apt", database.len());
    let path = directory.join("database");
    std::fs::write(&path, database.print())?;
    Ok(path)
}
