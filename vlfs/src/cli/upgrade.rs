//! `strata-vlfs upgrade`, and what the program that takes over is started with.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use strata_vlfs::control::{self, Answer, Request};
use strata_vlfs::{daemon, takeover};

use super::query::{print, print_json, socket};
use super::{Output, hinted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata-vlfs upgrade /mnt                                    # to the program that you run
  strata-vlfs upgrade /mnt --binary /usr/local/bin/strata-vlfs

No operation on the mount fails meanwhile; those that come in between wait for a moment. A program
that does not know the state of the running one is refused, and the running one goes on.
It needs Linux 6.9 or later.")]
pub struct Upgrade {
    /// Where the file system is mounted.
    mount_point: PathBuf,
    /// The program that takes over [default: this one].
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Upgrade {
    pub fn run(&self) -> anyhow::Result<u8> {
        let binary = match &self.binary {
            Some(binary) => std::fs::canonicalize(binary)
                .with_context(|| binary.display().to_string())
                .map_err(|error| hinted(daemon::told(&error), "name a program that is there"))?,
            None => std::env::current_exe().context("where is this program?")?,
        };
        let socket = socket(&self.mount_point)?;
        let answer = control::ask(&socket, &Request::Upgrade { binary })?;
        let Answer::Upgraded { pid, version } = &answer else {
            return Err(anyhow!("unexpected answer {answer:?}"));
        };
        match self.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print(&format!("process {pid} now runs version {version}\n"))?,
        }
        Ok(0)
    }
}

/// Started by a running daemon in its own place; not for people.
#[derive(Debug, Args)]
pub struct TakeOver {
    /// Say which state this program knows.
    #[arg(long, conflicts_with = "state")]
    check: bool,
    /// The descriptor with the state.
    #[arg(long, required_unless_present = "check")]
    state: Option<i32>,
    /// For who lists processes.
    mount_point: Option<PathBuf>,
}

impl TakeOver {
    pub fn run(&self) -> anyhow::Result<u8> {
        let Some(state) = self.state else {
            print(&format!("{}\n", takeover::promise()))?;
            return Ok(0);
        };
        super::mount::init_log();
        let served = daemon::take_over(state);
        if let Err(error) = &served {
            let failure = daemon::told(error);
            tracing::error!("{failure}");
        }
        served.map(|()| 0)
    }
}
