//! Revert commits, made of objects alone: no work tree, no index file, no branch.
//!
//! They stand on the quarantined commit, so that a merge brings them onto whatever came
//! later, and are made of nothing but the record of the rollback: made again, they have
//! the same ids.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use git2::{Commit, Delta, Oid, Repository, Signature, Time, Tree};
use strata_core::desired::DesiredState;
use strata_core::printable::is_unprintable;
use strata_core::{CompositionName, MacAddr, RingName, VaName};

use super::Author;
use crate::commit_tree::{self, ReadError};

/// Commits between the last good one and the quarantined one.
const COMMITS: usize = 10_000;
/// Characters of what somebody else wrote, in the message.
const TEXT: usize = 300;

/// What failed, and how.
#[derive(Debug, Clone)]
pub struct Failed {
    pub composition: CompositionName,
    pub ring: Option<RingName>,
    /// The quarantined commit.
    pub bad: Oid,
    /// The last commit that was good everywhere.
    pub good: Oid,
    pub reason: String,
    pub unhealthy: Vec<(Option<VaName>, MacAddr, String)>,
    pub at_ms: u64,
}

/// The revert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub head: Oid,
    /// The commits that it reverts, newest first.
    pub reverted: Vec<Oid>,
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("an object is missing or damaged: {0}")]
    Git(#[from] git2::Error),
    #[error("the commit {commit}: {source}")]
    Read { commit: Oid, source: ReadError },
    #[error(
        "the quarantined commit does not follow {0}, the last good one, in at most {COMMITS} steps"
    )]
    NoWay(Oid),
    #[error("{commit} cannot be reverted by itself: {} changed since", .paths.join(", "))]
    Conflict { commit: Oid, paths: Vec<String> },
    #[error("there is nothing to revert: what failed came from elsewhere than the commits")]
    Nothing,
}

/// Makes one commit for each that brought what failed, the newest first.
///
/// # Errors
/// See [`CommitError`]; objects that were written then are nobody's.
pub fn make(
    repository: &Repository,
    failed: &Failed,
    author: &Author,
) -> Result<Made, CommitError> {
    let between = between(repository, failed)?;
    let files = Files::of(repository, failed)?;
    let mut chosen = Vec::new();
    for id in &between {
        if files.are_changed_by(repository, &repository.find_commit(*id)?)? {
            chosen.push(*id);
        }
    }
    // Then it was something that counts for all: strata.toml.
    let chosen = if chosen.is_empty() { between } else { chosen };
    let seconds = i64::try_from(failed.at_ms / 1000).unwrap_or_default();
    let signature = Signature::new(&author.name, &author.email, &Time::new(seconds, 0))?;
    let mut made = Made { head: failed.bad, reverted: Vec::new() };
    for id in chosen {
        let (commit, tip) = (repository.find_commit(id)?, repository.find_commit(made.head)?);
        // Of a merge, what it brought to the branch that is followed.
        let mainline = u32::from(commit.parent_count() > 1);
        let mut index = repository.revert_commit(&commit, &tip, mainline, None)?;
        if index.has_conflicts() {
            let mut paths = BTreeSet::new();
            for conflict in index.conflicts()? {
                let conflict = conflict?;
                let sides = [conflict.our, conflict.their, conflict.ancestor];
                let entry = sides.into_iter().flatten().next();
                paths.extend(entry.map(|entry| shown(&String::from_utf8_lossy(&entry.path))));
            }
            return Err(CommitError::Conflict { commit: id, paths: paths.into_iter().collect() });
        }
        let tree = index.write_tree_to(repository)?;
        if tree == tip.tree_id() {
            continue;
        }
        let (tree, message) = (repository.find_tree(tree)?, message(&commit, failed));
        made.head = repository.commit(None, &signature, &signature, &message, &tree, &[&tip])?;
        made.reverted.push(id);
    }
    if made.reverted.is_empty() { Err(CommitError::Nothing) } else { Ok(made) }
}

/// The commits of the followed branch after the last good one, newest first.
fn between(repository: &Repository, failed: &Failed) -> Result<Vec<Oid>, CommitError> {
    let (mut found, mut at) = (Vec::new(), failed.bad);
    while at != failed.good {
        let parent = repository.find_commit(at)?.parent_ids().next();
        match parent.filter(|_| found.len() < COMMITS) {
            Some(parent) => {
                found.push(at);
                at = parent;
            }
            None => return Err(CommitError::NoWay(failed.good)),
        }
    }
    Ok(found)
}

/// The files that make a composition: its own, and those of all that it references.
struct Files {
    /// Their paths without an ending, as in `templates/web`.
    stems: BTreeSet<String>,
}

impl Files {
    /// As of the quarantined commit and of the last good one: a reference may have gone.
    fn of(repository: &Repository, failed: &Failed) -> Result<Self, CommitError> {
        let mut files = Files { stems: BTreeSet::new() };
        for commit in [failed.bad, failed.good] {
            let tree = commit_tree::read(repository, commit)
                .map_err(|source| CommitError::Read { commit, source })?;
            files.add(&DesiredState::read(&tree).0, &failed.composition);
        }
        Ok(files)
    }

    fn add(&mut self, desired: &DesiredState, composition: &CompositionName) {
        let (mut seen, mut pending) = (BTreeSet::new(), vec![composition]);
        while let Some(name) = pending.pop() {
            let Some(definition) = desired.definitions.get(name) else { continue };
            if !seen.insert(name) {
                continue;
            }
            let stem = definition.file.strip_suffix(".ldf").unwrap_or(&definition.file);
            self.stems.insert(stem.to_owned());
            pending.extend(definition.ldf.references().map(|(_, reference)| &reference.name));
        }
    }

    fn has(&self, path: &[u8]) -> bool {
        self.stems.iter().any(|stem| {
            let rest = path.strip_prefix(stem.as_bytes());
            // Its tree, or a file beside it, as web.modes is.
            rest.is_some_and(|rest| {
                rest.first() == Some(&b'/')
                    || (rest.first() == Some(&b'.') && !rest.contains(&b'/'))
            })
        })
    }

    fn are_changed_by(
        &self,
        repository: &Repository,
        commit: &Commit<'_>,
    ) -> Result<bool, CommitError> {
        let before: Option<Tree<'_>> = match commit.parent_count() {
            0 => None,
            _ => Some(commit.parent(0)?.tree()?),
        };
        let diff = repository.diff_tree_to_tree(before.as_ref(), Some(&commit.tree()?), None)?;
        let mut deltas = diff.deltas().filter(|delta| delta.status() != Delta::Unmodified);
        Ok(deltas.any(|delta| {
            let sides = [delta.old_file(), delta.new_file()];
            sides.iter().any(|side| side.path_bytes().is_some_and(|path| self.has(path)))
        }))
    }
}

/// The message that git would give it, and why it is there.
fn message(commit: &Commit<'_>, failed: &Failed) -> String {
    let subject = String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()).into_owned();
    let Failed { composition, ring, bad, good, reason, unhealthy, .. } = failed;
    let mut text =
        format!("Revert \"{}\"\n\nThis reverts commit {}.\n\n", shown(&subject), commit.id());
    let _infallible = writeln!(text, "Strata rolled {composition} back: {}", shown(reason));
    let _infallible = match ring {
        Some(ring) => writeln!(text, "\nTemplate: {composition}\nRing: {ring}"),
        None => writeln!(text, "\nTemplate: {composition}"),
    };
    if !unhealthy.is_empty() {
        text.push_str("Unhealthy VAs:\n");
    }
    for (name, mac, reason) in unhealthy {
        let name = name.as_ref().map_or_else(|| mac.to_string(), |name| format!("{name} ({mac})"));
        let _infallible = writeln!(text, "  {name}: {}", shown(reason));
    }
    let _infallible = writeln!(
        text,
        "\n{good} was good everywhere. {bad} is quarantined\nfor {composition} until a commit changes what it is made of."
    );
    text
}

/// What somebody else wrote, as one short line.
fn shown(text: &str) -> String {
    let line = text.chars().map(|c| if is_unprintable(c) { ' ' } else { c });
    line.take(TEXT).collect()
}

#[cfg(test)]
mod tests;
