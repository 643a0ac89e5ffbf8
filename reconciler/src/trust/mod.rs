//! Whether new commits may be believed: every one between the high-water mark and the
//! head is signed by somebody who is listed.
//!
//! All commits that are reachable from the head and not from the mark count, those
//! that a merge brings in included, so that nobody's unsigned work comes in behind a
//! signed merge. What is at or below the mark was believed before; without a mark, what
//! is at or below the anchor, and without an anchor nothing.
//!
//! Where the lists are files of the repository, those of the *last trusted commit*
//! count: along the first parents from the mark to the head, each commit and all that
//! it brings in is checked against the lists of the trusted commit before it. So a
//! commit that adds a signer is signed by one who was listed already, whoever was
//! removed can bring in nothing more, and a branch that left before a removal is
//! checked against the lists of what it is merged into.
//!
//! This module decides nothing about the order of commits: that a branch only goes
//! forward is for [`crate::pass`].

mod signature;
mod signers;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use git2::{ErrorCode, ObjectType, Oid, Repository, Sort};
use strata_core::Digest;

use crate::child::ChildError;
use crate::commit_tree;
use signature::SignatureError;
use signers::{Lists, Signers};

/// New commits that are checked in one pass; more need a newer anchor.
const NEW_COMMITS: usize = 10_000;
/// Bytes of one commit or tag object.
const OBJECT_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the list of signers {path}: {why}")]
    List { path: PathBuf, why: String },
    #[error("the keyring of the signers: {why}")]
    Keyring { why: String },
    #[error("{path}: {source}")]
    Scratch { path: PathBuf, source: std::io::Error },
    #[error("cannot check a signature: {0}")]
    Child(#[from] ChildError),
    #[error("the history cannot be read: {0}")]
    History(#[from] git2::Error),
}

/// Where the lists of signers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignerLists {
    /// Files outside the repository, read anew in each check.
    Files { ssh: Option<PathBuf>, ssh_revoked: Option<PathBuf>, openpgp: Option<PathBuf> },
    /// Files of the last trusted commit, by their paths in it.
    Commit { ssh: Option<String>, ssh_revoked: Option<String>, openpgp: Option<String> },
}

/// Which commits are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub lists: SignerLists,
    /// A commit that is believed unsigned, with all before it, where there is no
    /// high-water mark yet.
    pub anchor: Option<Oid>,
}

/// A commit that may be brought in, and a tag that leads to it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'c> {
    pub head: Oid,
    /// The name and the object of the tag that is followed, where one is.
    pub tag: Option<(&'c str, Oid)>,
    /// The high-water mark.
    pub mark: Option<Oid>,
}

/// Whether a candidate is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With the signer of the head, where it was new.
    Trusted {
        signer: Option<String>,
    },
    Untrusted {
        message: String,
    },
}

/// Checks candidates and remembers which commits it found good.
#[derive(Debug)]
pub struct Checker {
    trust: Trust,
    /// Who signed what was found good, by the lists that it was held against.
    good: HashMap<(Digest, Oid), String>,
}

/// Why the walk ended early.
enum Stop {
    Untrusted(String),
    Failed(TrustError),
}

impl<E: Into<TrustError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

impl Checker {
    pub fn new(trust: Trust) -> Self {
        Checker { trust, good: HashMap::new() }
    }

    /// Checks every new commit of a candidate, and its tag.
    ///
    /// # Errors
    /// The check could not be made.
    pub fn check(
        &mut self,
        repository: &Repository,
        candidate: Candidate<'_>,
        cancelled: &AtomicBool,
    ) -> Result<Verdict, TrustError> {
        let mut walk = Walk { checker: self, repository, cancelled };
        match walk.run(candidate) {
            Ok(signer) => Ok(Verdict::Trusted { signer }),
            Err(Stop::Untrusted(message)) => Ok(Verdict::Untrusted { message }),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

struct Walk<'w> {
    checker: &'w mut Checker,
    repository: &'w Repository,
    cancelled: &'w AtomicBool,
}

impl Walk<'_> {
    fn run(&mut self, candidate: Candidate<'_>) -> Result<Option<String>, Stop> {
        let Candidate { head, tag, mark } = candidate;
        if mark == Some(head) {
            return Ok(None);
        }
        let base = mark.or(self.checker.trust.anchor);
        if mark.is_none()
            && let Some(anchor) = base
            && head != anchor
            && !self.repository.graph_descendant_of(head, anchor).unwrap_or(false)
        {
            return Err(Stop::Untrusted(format!("{head} does not follow the anchor {anchor}")));
        }
        let mut lists = self.first_lists(base)?;
        let mut new = self.new_commits(head, base)?;
        let mut signer = None;
        let mut follows_base = false;
        for commit in self.first_parents(head, &new)? {
            let mut brought_in = vec![commit];
            new.remove(&commit);
            let mut found = None;
            while let Some(id) = brought_in.pop() {
                let by = self.check_commit(id, &lists)?;
                if id == commit {
                    found = Some(by);
                }
                for parent in self.repository.find_commit(id)?.parent_ids() {
                    follows_base |= Some(parent) == base;
                    if new.remove(&parent) {
                        brought_in.push(parent);
                    }
                }
            }
            signer = found;
            if commit == head {
                break;
            }
            // Lists of a commit that does not follow the base may be older than its.
            if follows_base {
                lists = self.lists_after(commit, lists)?;
            }
        }
        if let Some((name, object)) = tag {
            self.check_tag(name, object, &lists)?;
        }
        // A head without lists would be the last that can be followed.
        self.lists_after(head, lists)?;
        Ok(signer)
    }

    fn first_lists(&self, base: Option<Oid>) -> Result<Rc<Signers>, Stop> {
        let SignerLists::Files { ssh, ssh_revoked, openpgp } = &self.checker.trust.lists else {
            let base = base.ok_or_else(|| {
                Stop::Untrusted(
                    "no commit is trusted yet that could list signers: name an anchor".into(),
                )
            })?;
            return self.lists_in(base);
        };
        let read = |path: &Option<PathBuf>| path.as_deref().map(signers::read_list).transpose();
        let lists =
            Lists { ssh: read(ssh)?, ssh_revoked: read(ssh_revoked)?, openpgp: read(openpgp)? };
        Ok(Rc::new(lists.unfold()?))
    }

    /// The lists that count once `commit` is trusted.
    fn lists_after(&self, commit: Oid, before: Rc<Signers>) -> Result<Rc<Signers>, Stop> {
        match &self.checker.trust.lists {
            SignerLists::Files { .. } => Ok(before),
            SignerLists::Commit { .. } => self.lists_in(commit),
        }
    }

    /// The lists that a commit holds.
    fn lists_in(&self, commit: Oid) -> Result<Rc<Signers>, Stop> {
        let SignerLists::Commit { ssh, ssh_revoked, openpgp } = &self.checker.trust.lists else {
            unreachable!("asked only where the lists are in commits")
        };
        let tree = self.repository.find_commit(commit)?.tree()?;
        let read = |path: &Option<String>| -> Result<Option<Vec<u8>>, Stop> {
            let Some(path) = path else { return Ok(None) };
            let entry = match tree.get_path(Path::new(path)) {
                Ok(entry) => entry,
                Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let (length, kind) = self.repository.odb()?.read_header(entry.id())?;
            let regular = kind == ObjectType::Blob && entry.filemode() & 0o170_000 == 0o100_000;
            if !regular || length > signers::LIST_BYTES {
                return Err(Stop::Untrusted(format!(
                    "{path} of the commit {commit} is no file of at most {} bytes",
                    signers::LIST_BYTES
                )));
            }
            Ok(Some(self.repository.find_blob(entry.id())?.content().to_vec()))
        };
        let lists =
            Lists { ssh: read(ssh)?, ssh_revoked: read(ssh_revoked)?, openpgp: read(openpgp)? };
        if lists.is_empty() {
            return Err(Stop::Untrusted(format!(
                "the commit {commit} lists no signer, so nothing could follow it"
            )));
        }
        match lists.unfold() {
            Ok(signers) => Ok(Rc::new(signers)),
            Err(TrustError::Keyring { why }) => Err(Stop::Untrusted(format!(
                "the keyring of the commit {commit} cannot be read: {why}"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// All that is reachable from the head and not from the base.
    fn new_commits(&self, head: Oid, base: Option<Oid>) -> Result<HashSet<Oid>, Stop> {
        let mut walk = self.repository.revwalk()?;
        walk.set_sorting(Sort::TOPOLOGICAL)?;
        walk.push(head)?;
        if let Some(base) = base {
            // A base that is lost hides nothing: all is checked.
            match walk.hide(base) {
                Err(error) if error.code() != ErrorCode::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let mut new = HashSet::new();
        for id in walk {
            if new.len() == NEW_COMMITS {
                return Err(Stop::Untrusted(format!(
                    "more than {NEW_COMMITS} new commits would have to be checked: name an anchor"
                )));
            }
            new.insert(id?);
        }
        Ok(new)
    }

    /// The new commits from the first to the head, along first parents.
    fn first_parents(&self, head: Oid, new: &HashSet<Oid>) -> Result<Vec<Oid>, Stop> {
        let mut chain = Vec::new();
        let mut next = Some(head).filter(|id| new.contains(id));
        while let Some(id) = next {
            chain.push(id);
            let parent = self.repository.find_commit(id)?.parent_ids().next();
            next = parent.filter(|id| new.contains(id));
        }
        chain.reverse();
        Ok(chain)
    }

    fn check_commit(&mut self, id: Oid, signers: &Signers) -> Result<String, Stop> {
        let object = self.object(id, ObjectType::Commit)?;
        // Who says that he made it; its signature is what would prove it.
        let author = commit_tree::author(self.repository, id);
        let by = author.map(|author| format!(" by {author}")).unwrap_or_default();
        let what = format!("the commit {id}{by}");
        self.check_object(&what, id, signature::of_commit(&object), signers)
    }

    fn check_tag(&mut self, name: &str, id: Oid, signers: &Signers) -> Result<String, Stop> {
        let what = format!("the tag {name}");
        let kind = self.repository.odb()?.read_header(id)?.1;
        if kind != ObjectType::Tag {
            return self.check_object(&what, id, Err(SignatureError::Lightweight), signers);
        }
        let object = self.object(id, ObjectType::Tag)?;
        self.check_object(&what, id, signature::of_tag(&object, name), signers)
    }

    fn check_object(
        &mut self,
        what: &str,
        id: Oid,
        signed: Result<signature::Signed, SignatureError>,
        signers: &Signers,
    ) -> Result<String, Stop> {
        let refused = |why: String| Stop::Untrusted(format!("{what} is not to be trusted: {why}"));
        let signed = signed.map_err(|error| refused(error.to_string()))?;
        let key = (signers.digest(), id);
        if let Some(by) = self.checker.good.get(&key) {
            return Ok(by.clone());
        }
        let by = signers.check(&signed, self.cancelled)?.map_err(refused)?;
        if self.checker.good.len() > 2 * NEW_COMMITS {
            self.checker.good.clear();
        }
        self.checker.good.insert(key, by.clone());
        Ok(by)
    }

    /// An object, whole.
    fn object(&self, id: Oid, kind: ObjectType) -> Result<Vec<u8>, Stop> {
        let database = self.repository.odb()?;
        let (length, found) = database.read_header(id)?;
        if found != kind || length > OBJECT_BYTES {
            return Err(Stop::Untrusted(format!(
                "{id} is no {kind} of at most {OBJECT_BYTES} bytes"
            )));
        }
        Ok(database.read(id)?.data().to_vec())
    }
}
