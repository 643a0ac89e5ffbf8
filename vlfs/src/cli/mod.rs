//! The command line: parse, do, print. Data to stdout, the rest to stderr.

mod diff;
mod mount;
mod query;
mod reset;
mod scripts;
mod upgrade;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use strata_core::data_paths::DataPath;
use strata_vlfs::data::binding;

/// Exit status of a difference or a failed check.
const DIFFERENT: u8 = 1;
const FAILED: u8 = 2;

/// Mount and manage virtual layered file systems.
#[derive(Debug, Parser)]
#[command(
    name = "strata-vlfs",
    version,
    after_help = "Examples:
  strata-vlfs mount --store /srv/strata --va 52:54:00:12:34:56 --private /var/lib/va /mnt
  strata-vlfs mount --layer /layers/upper --layer /layers/lower --private /tmp/private /mnt
  strata-vlfs status /mnt
  strata-vlfs swap /mnt --layer /layers/newer --layer /layers/lower
  strata-vlfs diff /mnt
  strata-vlfs verify /mnt
  strata-vlfs revert /mnt/etc/motd
  umount /mnt

Exit status: 0 done or no difference, 1 difference, 2 error."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a VA's file system from a store, or plain directories as a union.
    Mount(Box<mount::Mount>),
    /// Show what a mount serves.
    #[command(after_help = "Example: strata-vlfs status /mnt --output json | jq .generation

It has a deadline: a mount whose daemon is suspended is an error, exit status 2.")]
    Status {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Replace the layers of a mount of plain directories, at once for all its users.
    #[command(after_help = "Example:
  strata-vlfs swap /mnt --layer /layers/newer --layer /layers/lower

The layers given are all that the mount has afterwards. What cannot be opened leaves the old ones.")]
    Swap {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        #[command(flatten)]
        layers: mount::Layers,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Drop the private copy or the white-out of files: show the originals again.
    #[command(after_help = "Example: strata-vlfs revert /mnt/etc/motd

Only root and a file's owner may; it works inside a VA, too. The private copy is lost.
With --recursive a directory's every copy and white-out goes, a mount point's too; what no layer
has stays.")]
    Revert {
        /// Revert directories with all below them.
        #[arg(long, short = 'r')]
        recursive: bool,
        /// Paths in a mounted file system; a deleted one is named as it was.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// List what the private layer holds against the layers.
    Diff(diff::Diff),
    /// Give a VA a fresh private layer; the old one is kept.
    Reset(reset::Reset),
    /// Show what layers' scripts did in a VA, and decide about those that failed.
    Scripts(scripts::Scripts),
    /// Let another program serve a mount, without unmounting it.
    Upgrade(upgrade::Upgrade),
    #[command(hide = true)]
    TakeOver(upgrade::TakeOver),
    /// Check the layers of a mount or a generation against their manifests.
    Verify(verify::Verify),
    /// Mount data directories: started by the daemon of a mount.
    #[command(name = strata_vlfs::data::binding::COMMAND, hide = true)]
    BindData {
        #[arg(long, value_name = "DIR")]
        private: PathBuf,
        #[arg(long)]
        read_only: bool,
        mount_point: PathBuf,
        #[arg(required = true)]
        paths: Vec<DataPath>,
    },
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example: strata-vlfs completions bash > /etc/bash_completion.d/strata-vlfs"
    )]
    Completions { shell: clap_complete::Shell },
}

/// An error with what to do about it.
#[derive(Debug)]
struct Hinted {
    message: String,
    hint: &'static str,
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

fn hinted(message: impl Into<String>, hint: &'static str) -> anyhow::Error {
    anyhow::Error::new(Hinted { message: message.into(), hint })
}

/// Runs the program.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn report(error: &anyhow::Error) {
    say(&format!("error: {}", strata_vlfs::daemon::told(error)));
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        say(&format!("hint: {}", hinted.hint));
    }
}

/// Writes a line to stderr. Where that fails there is nobody to tell, and a daemon goes on.
fn say(line: &str) {
    use std::io::Write as _;
    let _nobody_listens = writeln!(std::io::stderr(), "{line}");
}

fn dispatch(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Mount(mount) => mount.run(),
        Command::Status { mount_point, output } => query::status(&mount_point, output),
        Command::Swap { mount_point, layers, output } => query::swap(&mount_point, &layers, output),
        Command::Revert { recursive, paths } => query::revert(&paths, recursive),
        Command::Diff(diff) => diff.run(),
        Command::Reset(reset) => reset.run(),
        Command::Scripts(scripts) => scripts.run(),
        Command::Upgrade(upgrade) => upgrade.run(),
        Command::TakeOver(take_over) => take_over.run(),
        Command::Verify(verify) => verify.run(),
        Command::BindData { private, read_only, mount_point, paths } => {
            binding::bind(&private, &mount_point, &paths, read_only)?;
            Ok(0)
        }
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "strata-vlfs", &mut std::io::stdout());
            Ok(0)
        }
    }
}
