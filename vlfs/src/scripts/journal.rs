//! What has run: one file of the private directory, `scripts.json`, written whole.
//!
//! A step is noted before its script runs, and its end after it; what was noted and
//! has no end was interrupted. The file lies in the private layer's directory because
//! what scripts did lies in the private layer: a reset moves both aside.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use strata_core::GenerationId;
use strata_core::generation::LayerSetEntry;
use strata_core::scripts::Script;
use strata_core::scripts::outcome::{Outcome, ScriptFailure, tail};
use strata_core::scripts::plan::{Integrated, Stage};

use crate::backing;
use crate::private::{Private, write_all};

/// Name of the file in the private directory.
pub const FILE: &[u8] = b"scripts.json";
pub const VERSION: u32 = 1;
/// Bytes of the file.
const BYTES: usize = 8 << 20;
/// Ended scripts that it keeps.
const RECORDS: usize = 64;
/// Bytes of output that it keeps of a script that failed, and of one that did not.
const FAILED_OUTPUT_BYTES: usize = 16 << 10;
const OUTPUT_BYTES: usize = 1 << 10;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal of scripts cannot be read: {0}")]
    Read(Errno),
    #[error("the journal of scripts has more than {BYTES} bytes")]
    TooLarge,
    #[error("the journal of scripts is of version {0}, this program knows version {VERSION}")]
    Version(u32),
    #[error("the journal of scripts is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// Which way the layers change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Forward,
    /// A script failed: to the layers of before.
    Back,
}

/// A change of the layers whose scripts are not all run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub from: Option<GenerationId>,
    pub to: GenerationId,
    pub direction: Direction,
    /// Counts changes; clocks may jump.
    pub number: u64,
}

/// A generation that was gone back from, and is not tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    pub generation: GenerationId,
    /// What is served instead.
    pub back: GenerationId,
    pub why: String,
}

/// A script that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    pub unit: LayerSetEntry,
    pub script: Script,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// A script that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub unit: LayerSetEntry,
    pub script: Script,
    pub outcome: Outcome,
    /// The end of what it printed.
    pub output: String,
    /// When it began.
    pub at_ms: u64,
    pub took_ms: u64,
    /// The number of the change that it belongs to.
    pub change: u64,
    /// A failure that still stands.
    pub open: bool,
}

impl Record {
    pub fn failure(&self) -> ScriptFailure {
        ScriptFailure {
            layer: self.unit.to_string(),
            script: self.script,
            outcome: self.outcome,
            output: self.output.clone(),
            at_ms: self.at_ms,
        }
    }
}

/// Everything that is remembered about scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    pub version: u32,
    /// The generation that was last integrated to its end.
    pub generation: Option<GenerationId>,
    pub change: Option<Change>,
    /// The number of the last change.
    pub changes: u64,
    pub refused: Option<Refused>,
    /// In the order of integration, those that leave last.
    pub units: Vec<Integrated>,
    pub running: Option<Running>,
    /// Oldest first.
    pub records: Vec<Record>,
}

impl Default for Journal {
    fn default() -> Self {
        Journal {
            version: VERSION,
            generation: None,
            change: None,
            changes: 0,
            refused: None,
            units: Vec::new(),
            running: None,
            records: Vec::new(),
        }
    }
}

impl Journal {
    /// # Errors
    /// It is of another version, or damaged.
    pub fn parse(text: &[u8]) -> Result<Journal, JournalError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if text.len() > BYTES {
            return Err(JournalError::TooLarge);
        }
        let Versioned { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(JournalError::Version(version));
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// The JSON text, one line.
    ///
    /// # Panics
    /// Never: plain fields serialise.
    pub fn print(&self) -> String {
        let mut text = serde_json::to_string(self).expect("plain fields serialise");
        text.push('\n');
        text
    }

    /// Reads the journal of a private directory; `None` where there is none. What was
    /// running when it was written counts as interrupted.
    ///
    /// # Errors
    /// It cannot be read or makes no sense.
    pub fn load(private: impl AsFd) -> Result<Option<Journal>, JournalError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match backing::open_beneath(private, FILE, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(JournalError::Read)?,
        };
        let text = read(&file)?;
        let mut journal = Journal::parse(&text)?;
        if let Some(running) = journal.running.take() {
            journal.end(running, Outcome::Interrupted, String::new(), 0);
        }
        Ok(Some(journal))
    }

    /// Writes it: the old one or the new one is there after a crash.
    ///
    /// # Errors
    /// The private disk fails.
    pub fn save(&self, private: &Private) -> Result<(), Errno> {
        let (disk, work) = (private.disk(), private.next_name());
        let written = (|| {
            let flags = OFlags::WRONLY | OFlags::EXCL;
            let file = disk.create(&private.work, &work, flags, Mode::from_raw_mode(0o600))?;
            write_all(disk, &file, self.print().as_bytes())?;
            disk.sync(&file)?;
            let (from, to) = ((&private.work, &work[..]), (private.root(), FILE));
            disk.rename(from, to, RenameFlags::empty())?;
            disk.sync(private.root())
        })();
        if written.is_err() {
            private.discard(&work);
        }
        written
    }

    /// Begins a change of the layers.
    pub fn begin(&mut self, from: Option<GenerationId>, to: GenerationId, direction: Direction) {
        self.changes += 1;
        self.change = Some(Change { from, to, direction, number: self.changes });
    }

    /// Notes how a script ended. Of too many, the oldest whose failure does not stand go.
    pub fn end(&mut self, running: Running, outcome: Outcome, output: String, took_ms: u64) {
        let open = outcome != Outcome::Succeeded;
        let output = tail(&output, if open { FAILED_OUTPUT_BYTES } else { OUTPUT_BYTES });
        let (output, change) = (output.to_owned(), self.changes);
        let Running { unit, script, at_ms } = running;
        self.records.push(Record { unit, script, outcome, output, at_ms, took_ms, change, open });
        while self.records.len() > RECORDS {
            let settled = self.records.iter().position(|record| !record.open);
            self.records.remove(settled.unwrap_or(0));
        }
    }

    /// The failures that stand, oldest first.
    pub fn failures(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.iter().filter(|record| record.open)
    }

    /// The first failure of the change under way.
    pub fn failed_in_change(&self) -> Option<&Record> {
        let number = self.change.as_ref()?.number;
        self.failures().find(|record| record.change == number)
    }

    /// The end of a change: failures stand if they are of it, of a unit that stays, or
    /// the reason for which a generation is not served.
    pub fn complete(&mut self, generation: GenerationId) {
        let number = self.change.take().map(|change| change.number);
        let same = self.generation == Some(generation) && number.is_none();
        self.generation = Some(generation);
        let held = same || self.refused.is_some();
        for record in &mut self.records {
            let stays = self.units.iter().any(|known| known.unit == record.unit);
            record.open &= held || stays || Some(record.change) == number;
        }
    }

    /// The link names another generation than the one gone back from: why it was gone back
    /// from is over, what concerns units that are there is not.
    pub fn leave_refused(&mut self) {
        self.refused = None;
        for record in &mut self.records {
            record.open &= self.units.iter().any(|known| known.unit == record.unit);
        }
    }

    /// Forgets that scripts failed, without running anything.
    pub fn accept(&mut self) -> usize {
        let open = self.failures().count();
        for record in &mut self.records {
            record.open = false;
        }
        open
    }

    /// Lets what failed run again: what installs units that are there, and a generation
    /// that was gone back from. Returns how many scripts, and whether there is such a generation.
    pub fn retry(&mut self) -> (usize, bool) {
        let mut again = 0;
        let failed: Vec<_> =
            self.failures().map(|record| (record.unit.clone(), record.script)).collect();
        for (unit, script) in failed {
            let Some(known) = self.units.iter_mut().find(|known| known.unit == unit) else {
                continue;
            };
            let stage = match script {
                Script::PreInstall => Stage::Arriving,
                Script::PostInstall if known.stage == Stage::Installed => Stage::Installing,
                Script::PostInstall | Script::PreRemove | Script::PostRemove => continue,
            };
            known.stage = stage;
            again += 1;
        }
        self.accept();
        (again, self.refused.take().is_some())
    }
}

fn read(file: &OwnedFd) -> Result<Vec<u8>, JournalError> {
    let stat = rustix::fs::fstat(file).map_err(JournalError::Read)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(JournalError::Read(Errno::INVAL));
    }
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > BYTES as u64 {
        return Err(JournalError::TooLarge);
    }
    let mut text = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        match rustix::io::pread(file, &mut buffer, text.len() as u64) {
            Ok(0) => return Ok(text),
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(JournalError::Read(errno)),
        }
        if text.len() > BYTES {
            return Err(JournalError::TooLarge);
        }
    }
}

#[cfg(test)]
mod tests;
