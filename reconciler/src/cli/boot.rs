//! `strata boot`: what machines without a system of their own boot from.

mod serve;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use strata_import::boot::{self, BootError, BootRequest, Environment, KernelSource};
use strata_store::durable::Disk;

use super::{Failure, Outcome, OutputArgs, OutputFormat, print_json, print_text, quantity};

/// Where a store keeps its boot environments.
const DIRECTORY: &str = "boot";

/// Make, list and serve what machines boot from
#[derive(Debug, Args)]
pub struct BootArgs {
    #[command(subcommand)]
    command: BootCommand,
}

#[derive(Debug, Subcommand)]
enum BootCommand {
    Build(BuildArgs),
    List(ListArgs),
    Serve(serve::ServeArgs),
}

pub fn run(args: &BootArgs) -> Result<Outcome, Failure> {
    match &args.command {
        BootCommand::Build(args) => build(args),
        BootCommand::List(args) => list(args),
        BootCommand::Serve(args) => serve::run(args),
    }
}

/// Where environments are.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// The store
    #[arg(long, env = "STRATA_STORE", value_name = "STORE")]
    store: Option<PathBuf>,
    /// Where boot environments are kept [default: boot in the store]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

impl PlaceArgs {
    fn directory(&self) -> Result<PathBuf, Failure> {
        if let Some(directory) = &self.output_dir {
            return std::path::absolute(directory).map_err(Failure::new);
        }
        let store = self.store.as_deref().ok_or_else(|| {
            Failure::new("there is no place for boot environments")
                .hint("name the store with --store or STRATA_STORE, or give --output-dir DIR")
        })?;
        Ok(strata_store::Store::open(store)?.root().join(DIRECTORY))
    }
}

/// Make a boot environment: a kernel, and an initramfs that finds a machine's VA
///
/// The kernel is taken from a Debian package or from a directory with boot/ and lib/modules/
/// (an unpacked package, or / itself). The initramfs holds strata-init, strata-vlfs and the kernel
/// modules that a machine needs before its root file system is there. The same kernel and
/// programs give the same bytes; `current` leads to the latest.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  apt-get download linux-image-6.1.0-41-amd64
  strata boot build --kernel linux-image-6.1.0-41-amd64_*.deb
  strata boot build --kernel / --release \"$(uname -r)\" --module e1000e

Both programs must be linked statically; so they are built (target/x86_64-unknown-linux-gnu/debug):
  RUSTFLAGS='-C target-feature=+crt-static -C strip=symbols' \\
    cargo build --target x86_64-unknown-linux-gnu -p strata-init -p strata-vlfs

A machine boots BOOT/current/kernel and BOOT/current/initramfs with at least
strata.store=9p:TAG or virtiofs:TAG on its kernel command line.")]
struct BuildArgs {
    /// A Debian package, or a directory; may be given again where the modules are elsewhere
    #[arg(long = "kernel", value_name = "PACKAGE.deb|DIR", required = true)]
    kernels: Vec<PathBuf>,
    /// Which kernel, where there are several [default: the only one]
    #[arg(long, value_name = "RELEASE")]
    release: Option<String>,
    /// A kernel module beside those that every machine may need; may be given again
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// strata-init, linked statically [default: the one beside strata]
    #[arg(long, value_name = "FILE", env = "STRATA_STATIC_INIT")]
    init: Option<PathBuf>,
    /// strata-vlfs, linked statically [default: the one beside strata]
    #[arg(long, value_name = "FILE", env = "STRATA_STATIC_VLFS")]
    vlfs: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn build(args: &BuildArgs) -> Result<Outcome, Failure> {
    let directory = args.place.directory()?;
    let request = BootRequest {
        kernels: args.kernels.iter().map(|path| KernelSource::at(path)).collect(),
        release: args.release.clone(),
        init: beside(args.init.as_deref(), "strata-init")?,
        vlfs: beside(args.vlfs.as_deref(), "strata-vlfs")?,
        modules: args.modules.clone(),
    };
    let built = boot::build(&request, &directory, &Disk::default()).map_err(failure)?;
    match args.output.output {
        OutputFormat::Json => print_json(&built)?,
        OutputFormat::Text => print_text(&text(&[built]))?,
    }
    Ok(Outcome::Done)
}

/// The program that was named, or the one in the directory of this one.
fn beside(named: Option<&Path>, name: &str) -> Result<PathBuf, Failure> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => Ok(std::env::current_exe().map_err(Failure::new)?.with_file_name(name)),
    }
}

/// List boot environments
#[derive(Debug, Args)]
#[command(after_help = "Example: strata boot list

One that is not current can be removed when no machine boots from it any more, or is suspended to disk on it: rm -r its directory.")]
struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let found = boot::list(&args.place.directory()?).map_err(failure)?;
    match args.output.output {
        OutputFormat::Json => print_json(&found)?,
        OutputFormat::Text => print_text(&text(&found))?,
    }
    Ok(Outcome::Done)
}

fn text(environments: &[Environment]) -> String {
    let line = |environment: &Environment| {
        let description = &environment.description;
        format!(
            "{}{} kernel {} initramfs {} ({})\n",
            environment.name,
            if environment.current { " (current)" } else { "" },
            HumanBytes(description.kernel.bytes),
            HumanBytes(description.initramfs.bytes),
            quantity(description.modules.len(), "module"),
        )
    };
    environments.iter().map(line).collect()
}

/// Adds what to do about it.
fn failure(error: BootError) -> Failure {
    let hint = match &error {
        BootError::Dynamic { .. } | BootError::NoProgram { .. } => Some(
            "build it with RUSTFLAGS='-C target-feature=+crt-static' (strata boot build --help shows how) and name it with --init or --vlfs".to_owned(),
        ),
        BootError::OtherProcessor { .. } => {
            Some("build the programs for the processor of the kernel".to_owned())
        }
        BootError::NoKernel(_) => Some(
            "name a package that holds boot/vmlinuz-RELEASE (apt-get download linux-image-RELEASE), or a directory".to_owned(),
        ),
        BootError::SeveralKernels(_) | BootError::OtherKernels { .. } => {
            Some("choose one of them with --release".to_owned())
        }
        BootError::Lacks { .. } | BootError::NoModule { .. } | BootError::Dependency { .. } => Some(
            "take a kernel that has it (Debian: linux-image-amd64), or give the package of its modules with another --kernel".to_owned(),
        ),
        BootError::Store(strata_store::StoreError::Io { source, .. })
        | BootError::Read { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Some("name a file that is there".to_owned())
        }
        BootError::Read { .. }
        | BootError::Package { .. }
        | BootError::Directory(_)
        | BootError::TooLarge { .. }
        | BootError::TooManyNames { .. }
        | BootError::Module { .. }
        | BootError::ModuleBytes { .. }
        | BootError::Elf { .. }
        | BootError::Write { .. }
        | BootError::Description { .. }
        | BootError::Store(_) => None,
    };
    let failure = Failure::new(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
