//! What an appliance says of itself that is to run: two directories of its tree.
//!
//! ```text
//! /etc/strata/start/<name>      run to its end at each start, in the order of the names
//! /etc/strata/services/<name>   started after them, and again whenever it ends
//! ```
//!
//! Both hold executable files, programs or scripts, so that nothing is parsed here and
//! templates that are composed have the services of all. Names that start with a dot
//! and files that are not executable are passed over.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Context, InitError};

pub const START: &str = "/etc/strata/start";
pub const SERVICES: &str = "/etc/strata/services";
/// A service that ends sooner after its start waits longer before the next one.
const SOON: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The executable files of a directory, by name; none where there is no directory.
///
/// # Errors
/// The directory cannot be read.
pub fn programs(directory: &Path) -> Result<Vec<PathBuf>, InitError> {
    let shown = directory.to_string_lossy();
    let listed = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.context("list", &shown)?,
    };
    let mut names = Vec::<OsString>::new();
    for entry in listed {
        names.push(entry.context("list", &shown)?.file_name());
    }
    names.sort();
    let executable = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let visible = names.into_iter().filter(|name| !name.as_encoded_bytes().starts_with(b"."));
    Ok(visible.map(|name| directory.join(name)).filter(executable).collect())
}

/// When a service is started again: at once after a long life, ever later after short ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    wait: Duration,
}

impl Patience {
    pub fn new() -> Self {
        Patience { wait: SHORTEST_WAIT }
    }

    /// What to wait after a service that lived so long has ended.
    pub fn after(&mut self, life: Duration) -> Duration {
        if life >= SOON {
            self.wait = SHORTEST_WAIT;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        wait
    }
}

/// A service: running, or waiting for its next start.
#[derive(Debug)]
pub struct Service {
    pub program: PathBuf,
    pub state: State,
    pub patience: Patience,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running { pid: rustix::process::Pid, since: Instant },
    Waiting { until: Instant },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_ends_soon_waits_ever_longer() {
        let mut patience = Patience::new();
        let soon = Duration::from_secs(1);
        let waits: Vec<_> = (0..9).map(|_| patience.after(soon).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        assert_eq!(patience.after(SOON), SHORTEST_WAIT);
        assert_eq!(patience.after(soon), SHORTEST_WAIT * 2);
    }

    #[test]
    fn only_executable_files_are_programs() {
        let directory = std::env::temp_dir().join(format!("strata-init-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("a-directory")).expect("made");
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("README", 0o644), (".c", 0o755)] {
            let path = directory.join(name);
            std::fs::write(&path, "").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        }
        let found = programs(&directory).expect("listed");
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(found, [directory.join("10-a"), directory.join("20-b")]);
        assert!(programs(&directory).expect("no error").is_empty());
    }
}
