//! Content against the manifest when a layer's file is first opened in a mount.
//!
//! For who does not trust the disk that the layers lie on: a file whose content
//! differs is never served (`EIO`), is logged once, and is named in `status` and
//! in the report. What passed once is not read again, so a change after that is
//! not seen; what failed stays refused until the next mount. Plain directories
//! have no digests and are not checked.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use rustix::io::Errno;
use strata_core::Digest;

use crate::backing;
use crate::layer::Layer;
use crate::tree::{Entry, Kind};

/// Files whose outcome is remembered; beyond it all are forgotten and checked anew.
const REMEMBERED: usize = 4 << 20;
/// Damaged files that are named; their number is not bounded by it.
const NAMED: usize = 64;

#[derive(Debug, Default)]
pub struct FirstOpen {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By layer unit and entry: whether the content is right.
    outcomes: HashMap<(Digest, u32), bool>,
    /// `repo/layer version: /path`.
    damaged: BTreeSet<String>,
    damaged_count: usize,
}

impl FirstOpen {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while held")
    }

    /// Whether the file may be opened without a look at its content.
    pub fn passed(&self, layer: &Layer, entry: u32) -> bool {
        let Some(unit) = layer.digest else { return true };
        self.seen().outcomes.get(&(unit, entry)).copied().unwrap_or(false)
    }

    /// Reads the file at `path`, which stands at `entry`, number `number` of the
    /// layer, unless that was done before. No lock may be held.
    ///
    /// # Errors
    /// `EIO`: its content is not the manifest's.
    pub fn check(
        &self,
        layer: &Layer,
        entry: &Entry<'_>,
        number: u32,
        path: &[u8],
    ) -> Result<(), Errno> {
        let Some(unit) = layer.digest else { return Ok(()) };
        let Kind::Regular { digest: Some(expected) } = entry.kind else { return Ok(()) };
        let known = self.seen().outcomes.get(&(unit, number)).copied();
        if let Some(right) = known {
            return if right { Ok(()) } else { Err(Errno::IO) };
        }
        let found = layer.open(path).and_then(|file| backing::digest(&file));
        let right = found.is_ok_and(|found| found == expected);
        let mut seen = self.seen();
        if seen.outcomes.len() >= REMEMBERED {
            seen.outcomes.clear();
        }
        let first = seen.outcomes.insert((unit, number), right).is_none();
        if right {
            return Ok(());
        }
        if first {
            let path = String::from_utf8_lossy(path).into_owned();
            tracing::error!(layer = %layer.name, path, "the content is not the manifest's: refused");
            seen.damaged_count += 1;
            if seen.damaged.len() < NAMED {
                seen.damaged.insert(format!("{}: /{path}", layer.name));
            }
        }
        Err(Errno::IO)
    }

    /// The damaged files, at most [`NAMED`] of them, and how many there are.
    pub fn damaged(&self) -> (Vec<String>, usize) {
        let seen = self.seen();
        (seen.damaged.iter().cloned().collect(), seen.damaged_count)
    }

    /// What a report says of it; `None` where nothing is damaged.
    pub fn error(&self) -> Option<String> {
        let seen = self.seen();
        let first = seen.damaged.first()?;
        Some(match seen.damaged_count {
            1 => format!("a file of a layer is damaged and refused: {first}"),
            count => format!("{count} files of layers are damaged and refused, among them {first}"),
        })
    }
}
