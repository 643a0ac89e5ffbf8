//! What a manifest tells by itself.

use std::collections::HashSet;

use strata_core::manifest::{Entry, Kind, Manifest, parent_path};
use strata_store::StoreError;

use super::{Code, Finding, Severity};
use crate::infer::providers::Providers;
use crate::member::shown;
use crate::usr_merge::{ALIASES, is_merge_link, merged, resolve};

/// What the root of a system has (FHS 3.0, chapter 3, and what Linux adds).
const TOP: [&str; 17] = [
    "boot",
    "dev",
    "efi",
    "etc",
    "home",
    "lost+found",
    "media",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
];
/// What an appliance has something of its own at: a layer's files there are never seen.
const MOUNTED_OVER: [&str; 4] = ["dev", "proc", "run", "sys"];
/// What belongs to those who run the system.
const NOT_FOR_LAYERS: [&str; 8] =
    ["home", "media", "mnt", "root", "tmp", "usr/local", "var/local", "var/tmp"];
/// Where links lead that are only there while the system runs.
const RUNTIME: [&str; 6] = ["dev", "proc", "run", "sys", "var/run", "var/lock"];

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const FOR_ALL_TO_WRITE: u32 = 0o002;
const TO_RUN: u32 = 0o111;

/// Whether `path` is below a directory (or is it).
fn is_in(path: &[u8], directory: &str) -> bool {
    path.strip_prefix(directory.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// What is found of places and permissions.
pub fn findings(manifest: &Manifest) -> Vec<Finding> {
    let parents: HashSet<&[u8]> =
        manifest.entries().iter().filter_map(|entry| parent_path(&entry.path)).collect();
    let mut found = Vec::new();
    for entry in manifest.entries() {
        found.extend(place(entry, &parents));
        permissions(entry, &mut found);
    }
    found
}

fn place(entry: &Entry, parents: &HashSet<&[u8]>) -> Option<Finding> {
    let path = entry.path.as_slice();
    let top = path.split(|byte| *byte == b'/').next().filter(|top| !top.is_empty())?;
    let error = |code, reason: String| Some(Finding::at(Severity::Error, code, path, reason));
    if let Some(alias) = ALIASES.iter().find(|alias| alias.as_bytes() == top) {
        let merge = matches!(&entry.kind, Kind::Symlink { target } if is_merge_link(path, target));
        // Directories are told with what is in them.
        if merge || entry.kind == Kind::Directory && parents.contains(path) {
            return None;
        }
        let reason = format!("/{alias} is a link to /usr/{alias}: put it below that");
        return error(Code::UnmergedUsr, reason);
    }
    if entry.kind == Kind::Directory && parents.contains(path) {
        return None;
    }
    if let Some(mounted) =
        MOUNTED_OVER.iter().find(|top| is_in(path, top) && path.len() > top.len())
    {
        let reason = format!("an appliance has its own /{mounted}: this is never seen there");
        return error(Code::OutsideHierarchy, reason);
    }
    let warning =
        |reason: String| Some(Finding::at(Severity::Warning, Code::OutsideHierarchy, path, reason));
    if entry.kind != Kind::Directory {
        if let Some(theirs) = NOT_FOR_LAYERS.iter().find(|place| is_in(path, place)) {
            return warning(format!("/{theirs} is for those who run the system, not for layers"));
        }
        if path == top {
            return warning("it lies in the root directory".to_owned());
        }
    }
    if !TOP.iter().any(|known| known.as_bytes() == top) {
        return warning(format!("/{} is no directory of the file system hierarchy", shown(top)));
    }
    None
}

fn permissions(entry: &Entry, found: &mut Vec<Finding>) {
    let is_file = matches!(entry.kind, Kind::Regular { .. });
    let is_directory = entry.kind == Kind::Directory;
    let mode = entry.mode & 0o7777;
    let mut add = |severity, code, reason: String| {
        found.push(Finding::at(severity, code, &entry.path, reason));
    };
    let writable = mode & FOR_ALL_TO_WRITE != 0;
    match entry.kind {
        Kind::Directory if writable && mode & STICKY == 0 => {
            let reason = "everybody may write, and remove what others put there";
            add(Severity::Error, Code::WorldWritable, format!("mode {mode:04o}: {reason}"));
        }
        Kind::Regular { .. } | Kind::Fifo | Kind::Socket if writable => {
            add(
                Severity::Error,
                Code::WorldWritable,
                format!("mode {mode:04o}: everybody may write"),
            );
        }
        _ => {}
    }
    if is_file && mode & SETUID != 0 {
        let reason = format!("mode {mode:04o}: whoever runs it is the user {}", entry.uid);
        add(Severity::Warning, Code::Setuid, reason);
    }
    // Without the right to run it, the bit once meant mandatory locks.
    if is_file && mode & SETGID != 0 && mode & TO_RUN != 0 {
        let reason = format!("mode {mode:04o}: whoever runs it is of the group {}", entry.gid);
        add(Severity::Warning, Code::Setgid, reason);
    }
    if !is_directory && entry.xattrs.contains_key(b"security.capability".as_slice()) {
        let reason = "whoever runs it gets the capabilities that are attached to it";
        add(Severity::Warning, Code::Capability, reason.to_owned());
    }
}

/// What is found of symbolic links.
///
/// # Errors
/// Another layer's manifest cannot be read.
pub fn links(manifest: &Manifest, providers: &Providers<'_>) -> Result<Vec<Finding>, StoreError> {
    let own: HashSet<Vec<u8>> =
        manifest.entries().iter().map(|entry| merged(&entry.path)).collect();
    let linked: HashSet<Vec<u8>> = manifest
        .entries()
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Symlink { .. }))
        .map(|entry| merged(&entry.path))
        .collect();
    let mut found = Vec::new();
    for entry in manifest.entries() {
        let Kind::Symlink { target } = &entry.kind else { continue };
        if is_merge_link(&entry.path, target) {
            continue;
        }
        let path = entry.path.as_slice();
        let absolute = target.first() == Some(&b'/');
        let Some(resolved) = resolve(path, target) else {
            let reason = format!("{} leads above the root of the layer", shown(target));
            found.push(Finding::at(Severity::Error, Code::LinkOutOfTree, path, reason));
            continue;
        };
        let resolved = merged(&resolved);
        // What lies behind another link is not found by its name.
        let behind = ancestors(&resolved).any(|above| linked.contains(above));
        if own.contains(&resolved) || resolved.is_empty() || behind {
            continue;
        }
        if RUNTIME.iter().any(|place| is_in(&resolved, place)) {
            continue;
        }
        let owner = providers.of_path(&resolved)?;
        let owner = owner.map(|owner| format!("{}/{}", owner.repository, owner.metadata.layer));
        let (code, reason) = match (absolute, owner) {
            (true, Some(owner)) => {
                (Code::AbsoluteLink, format!("it leads to {}, which {owner} has", shown(target)))
            }
            (true, None) => (
                Code::AbsoluteLink,
                format!("it leads to {}, which no layer here has", shown(target)),
            ),
            (false, Some(_)) => continue,
            (false, None) => (
                Code::DanglingLink,
                format!("it leads to {}, which no layer here has", shown(target)),
            ),
        };
        found.push(Finding::at(Severity::Warning, code, path, reason));
    }
    Ok(found)
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent_path(path), |above| parent_path(above))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use strata_core::digest::Digest;
    use strata_core::manifest::Timestamp;

    fn entry(path: &str, mode: u32, kind: Kind) -> Entry {
        let (path, xattrs) = (path.into(), BTreeMap::new());
        let mtime = Timestamp::default();
        Entry { path, kind, mode, uid: 0, gid: 8, mtime, link_count: 1, xattrs }
    }

    fn file(path: &str, mode: u32) -> Entry {
        entry(path, mode, Kind::Regular { size: 0, digest: Digest::of(b"") })
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path, 0o777, Kind::Symlink { target: target.into() })
    }

    /// The entries, and the directories above them.
    fn manifest(entries: Vec<Entry>) -> Manifest {
        let mut all: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        for entry in entries {
            for above in ancestors(&entry.path.clone()) {
                let text = std::str::from_utf8(above).expect("UTF-8");
                let directory = super::tests::entry(text, 0o755, Kind::Directory);
                all.entry(above.to_vec()).or_insert(directory);
            }
            all.insert(entry.path.clone(), entry);
        }
        Manifest::new(all.into_values().collect()).expect("a tree")
    }

    fn told(entry: Entry) -> Vec<(&'static str, &'static str)> {
        findings(&manifest(vec![entry]))
            .into_iter()
            .map(|finding| (finding.severity.as_str(), finding.code.as_str()))
            .collect()
    }

    #[test]
    fn places() {
        for (path, wanted) in [
            ("usr/bin/x", None),
            ("etc/x", None),
            ("opt/x/y", None),
            ("srv/x", None),
            ("bin/x", Some(("error", "unmerged-usr"))),
            ("lib64/x", Some(("error", "unmerged-usr"))),
            ("run/x", Some(("error", "outside-hierarchy"))),
            ("usr/local/bin/x", Some(("warning", "outside-hierarchy"))),
            ("home/me/x", Some(("warning", "outside-hierarchy"))),
            ("x", Some(("warning", "outside-hierarchy"))),
            ("data/x", Some(("warning", "outside-hierarchy"))),
        ] {
            assert_eq!(told(file(path, 0o644)), Vec::from_iter(wanted), "{path}");
        }
        for path in ["run", "home", "usr/local", "tmp"] {
            assert_eq!(told(entry(path, 0o755, Kind::Directory)), [], "{path}");
        }
        assert_eq!(told(link("bin", "usr/bin")), []);
        assert_eq!(told(entry("lib", 0o755, Kind::Directory)), [("error", "unmerged-usr")]);
    }

    #[test]
    fn modes() {
        for (mode, wanted) in [
            (0o755, None),
            (0o666, Some(("error", "world-writable"))),
            (0o4755, Some(("warning", "setuid"))),
            (0o2755, Some(("warning", "setgid"))),
            (0o2644, None),
        ] {
            assert_eq!(told(file("usr/bin/x", mode)), Vec::from_iter(wanted), "{mode:o}");
        }
        let directory = |mode| told(entry("var/x", mode, Kind::Directory));
        assert_eq!((directory(0o1777), directory(0o2775)), (vec![], vec![]));
        assert_eq!(directory(0o777), [("error", "world-writable")]);
        let mut capable = file("usr/bin/x", 0o755);
        capable.xattrs.insert(b"security.capability".to_vec(), vec![1]);
        assert_eq!(told(capable), [("warning", "capability")]);
        assert_eq!(told(link("usr/bin/x", "y")), [], "a link's mode means nothing");
    }

    #[test]
    fn codes_are_read_as_they_are_written() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        assert!("sticky".parse::<Code>().is_err());
    }
}
