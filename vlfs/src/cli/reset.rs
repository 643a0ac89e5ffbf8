//! `strata-vlfs reset`: a fresh private layer, and what became of the old ones.

use std::path::PathBuf;

use clap::Args;
use strata_vlfs::private::PrivateError;
use strata_vlfs::reset;

use super::query::{print, print_json};
use super::{Output, hinted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata-vlfs reset /var/lib/va                       # not while it is mounted
  strata-vlfs mount --store /srv/strata --va 52:54:00:12:34:56 --private /var/lib/va \\
      --attach salvage /mnt                           # the old files at /mnt/salvage, read-only
  strata-vlfs reset --list /var/lib/va
  strata-vlfs reset --forget 2-20261123T034501Z /var/lib/va

The VA is as freshly provisioned afterwards; its old files are kept until they are forgotten, and
its data directories stay as they are.")]
pub struct Reset {
    /// The private directory.
    private: PathBuf,
    /// List the layers that former resets put aside, oldest first.
    #[arg(long)]
    list: bool,
    /// Remove one of them for good.
    #[arg(long, value_name = "NAME", conflicts_with = "list")]
    forget: Option<String>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Reset {
    pub fn run(&self) -> anyhow::Result<u8> {
        let private = std::path::absolute(&self.private)?;
        if self.list {
            let all = reset::list(&private)?;
            match self.output {
                Output::Json => print_json(&all)?,
                Output::Text => {
                    let line = |former: &reset::Former| {
                        format!("{} {}\n", former.name, former.path.display())
                    };
                    print(&all.iter().map(line).collect::<String>())?;
                }
            }
            return Ok(0);
        }
        if let Some(name) = &self.forget {
            reset::forget(&private, name).map_err(|error| {
                let hint = match error {
                    reset::ResetError::Attached(_) => "unmount it first: `findmnt -t fuse.strata`",
                    _ => "`strata-vlfs reset --list PRIVATE` lists them",
                };
                hinted(error.to_string(), hint)
            })?;
            return Ok(0);
        }
        let former = reset::reset(&private).map_err(|error| {
            let hint = match error {
                reset::ResetError::Private(PrivateError::Locked(_)) => "unmount it first",
                _ => "name the private directory of a VA",
            };
            hinted(error.to_string(), hint)
        })?;
        match self.output {
            Output::Json => print_json(&former)?,
            Output::Text => print(&format!("the old layer is {}\n", former.path.display()))?,
        }
        Ok(0)
    }
}
