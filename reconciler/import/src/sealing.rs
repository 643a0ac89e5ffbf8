//! What of a build's changes becomes the configuration layer, and with which times.
//!
//! A layer is shared by all appliances of a template and must come out the same from
//! the same inputs, so three kinds of files are no part of it:
//!
//! - **secrets and identities**, which each appliance must have of its own: host keys,
//!   the machine's id, seeds;
//! - **traces of the run**: logs, backups, locks, caches that are made anew when they
//!   are missing;
//! - **data**: whatever lies in the template's data directories.
//!
//! Times after `epoch`, the newest time in the layers that the build started from, become
//! `epoch`, as `SOURCE_DATE_EPOCH` has it (reproducible-builds.org).

use strata_core::data_paths::DataPaths;
use strata_core::manifest::Timestamp;

use crate::tree::Selected;
use crate::writer::Attributes;

/// What becomes of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Kept,
    /// It must be there, and has nothing to say.
    Emptied,
    LeftOut,
}

/// Directories of which nothing is kept but themselves.
const SCRATCH: [&str; 9] = [
    "tmp",
    "var/tmp",
    "run",
    "proc",
    "sys",
    "dev",
    "var/lib/dpkg/updates",
    "var/lib/dpkg/tmp.ci",
    "var/cache/apt",
];
/// Files that are made anew, or must not be shared.
const LEFT_OUT: [&str; 23] = [
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/mtab",
    "etc/passwd-",
    "etc/shadow-",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/subgid-",
    "etc/subuid-",
    "usr/lib/sysimage/rpm/.rpm.lock",
    "usr/lib/sysimage/rpm/rpmdb.sqlite-shm",
    "usr/sbin/policy-rc.d",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/rpm/.rpm.lock",
    "var/lib/rpm/rpmdb.sqlite-shm",
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
    "var/log/alternatives.log",
];

/// What becomes of the regular file, link or other object at `path` (relative).
pub fn fate(path: &[u8], data: &DataPaths) -> Fate {
    let Ok(text) = std::str::from_utf8(path) else { return Fate::Kept };
    let below =
        |directory: &str| text.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    let in_data = data.iter().any(|directory| below(directory.relative()));
    let host_key = text.starts_with("etc/ssh/ssh_host_") && text.contains("_key");
    let backup = text.ends_with("-old")
        && (below("var/lib/dpkg") || below("var/cache/debconf") || below("var/lib/ucf"));
    if in_data
        || host_key
        || backup
        || SCRATCH.iter().any(|directory| below(directory))
        || LEFT_OUT.contains(&text)
        || ["var/log/dpkg.log", "var/log/apt/", "var/log/bootstrap.log"]
            .iter()
            .any(|log| text.starts_with(log))
    {
        return Fate::LeftOut;
    }
    // Programs expect them, with the owners that the scripts gave them.
    if below("var/log") || text == "etc/machine-id" {
        return Fate::Emptied;
    }
    Fate::Kept
}

/// The paths of a build that are to be sealed.
pub fn select(paths: impl IntoIterator<Item = Vec<u8>>, data: &DataPaths) -> Vec<Selected> {
    let selected = paths.into_iter().filter_map(|path| match fate(&path, data) {
        Fate::LeftOut => None,
        fate => Some(Selected { path, emptied: fate == Fate::Emptied }),
    });
    selected.collect()
}

/// No time is later than `epoch`.
pub fn clamp(attributes: &mut Attributes, epoch: Timestamp) {
    if attributes.mtime > epoch {
        attributes.mtime = epoch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_traces_and_data_are_left_out() {
        let data =
            DataPaths::new([("/var/lib/mysql").parse().expect("a path")].into()).expect("one path");
        let cases = [
            ("etc/ssh/ssh_host_rsa_key", Fate::LeftOut),
            ("etc/ssh/ssh_host_rsa_key.pub", Fate::LeftOut),
            ("etc/ssh/sshd_config", Fate::Kept),
            ("etc/machine-id", Fate::Emptied),
            ("var/lib/mysql", Fate::Kept),
            ("var/lib/mysql/ibdata1", Fate::LeftOut),
            ("var/lib/mysql-files/x", Fate::Kept),
            ("tmp/x", Fate::LeftOut),
            ("tmp", Fate::Kept),
            ("var/log/apache2", Fate::Emptied),
            ("var/log/dpkg.log", Fate::LeftOut),
            ("var/lib/dpkg/status", Fate::Kept),
            ("var/lib/dpkg/status-old", Fate::LeftOut),
            ("etc/passwd-", Fate::LeftOut),
            ("etc/passwd", Fate::Kept),
        ];
        for (path, wanted) in cases {
            assert_eq!(fate(path.as_bytes(), &data), wanted, "{path}");
        }
    }

    #[test]
    fn only_later_times_are_changed() {
        let epoch = Timestamp { seconds: 100, nanoseconds: 5 };
        for (mtime, wanted) in [((99, 9), (99, 9)), ((100, 6), (100, 5)), ((200, 0), (100, 5))] {
            let mtime = Timestamp { seconds: mtime.0, nanoseconds: mtime.1 };
            let mut attributes = Attributes { mtime, ..Attributes::default() };
            clamp(&mut attributes, epoch);
            let found = attributes.mtime;
            assert_eq!((found.seconds, found.nanoseconds), wanted);
        }
    }
}
