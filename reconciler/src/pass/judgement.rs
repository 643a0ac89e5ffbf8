//! What a commit that may be brought in says, and whether it can be taken: it is read,
//! its layers are mirrored, and the whole is checked against the repositories.
//!
//! A verdict holds until the commit or something that it depends on changes, so that an
//! idle pass reads nothing. Nothing here moves anything in the store.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use git2::Oid;
use strata_core::check::{CheckResult, check_desired};
use strata_core::configuration::{CONFIGURATION_FILE, Configuration};
use strata_core::desired::DesiredState;
use strata_core::diagnostic::Diagnostic;
use strata_core::health_checks::{self, HealthCheck};
use strata_core::plan::{DeclaredVa, Desired};
use strata_core::source::{SourceContent, SourceTree};
use strata_core::{CompositionName, Severity};

use super::{Inspector, Known, PassError};
use crate::apply::Materials;
use crate::commit_tree::{self, ReadError};
use crate::library::{self, Stamps};
use crate::mirror::Mirror;
use crate::probe::CheckList;
use crate::repositories::{self, mirrors};
use crate::rollout::Taken;
use crate::state::{RefusalReason, TestingState};
use crate::traces::spans::{self, Origin, span};
use crate::trust;

/// A commit that was read and checked against the repositories as they then were.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) commit: Oid,
    /// The testing commit that was looked at, and what came of it.
    pub(super) seen: Option<Oid>,
    pub(super) testing: Option<TestingState>,
    pub(super) stamps: Stamps,
    pub(super) configuration: Configuration,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) verdict: Verdict,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Taken(Arc<Accepted>),
    Refused { reason: RefusalReason, message: String },
}

/// What a commit that was taken wants, and what it brings for it.
#[derive(Debug)]
pub struct Accepted {
    pub(super) taken: Taken,
    pub(super) materials: Materials,
    pub(super) checks: Arc<CheckList>,
}

impl Inspector {
    /// Reads and checks the commit, unless that was done and nothing it depends
    /// on has changed since.
    pub(super) fn check(
        &mut self,
        known: &Known,
        commit: Oid,
        cancelled: &AtomicBool,
    ) -> Result<(), PassError> {
        let seen = self.testing_head(commit)?;
        if let Some(checked) = &self.checked
            && checked.commit == commit
            && checked.seen == seen
            && !self.library.is_expired(repositories::now())
            && !self.mirrors.is_due(&checked.configuration)
            && library::stamps(&self.store, &checked.configuration)? == checked.stamps
        {
            return Ok(());
        }
        self.checked = None;
        let (testing, checked) = self.judge_with_testing(known, commit, seen, cancelled)?;
        self.checked = Some(Checked { seen, testing, ..checked });
        Ok(())
    }

    /// The last commit that was taken, as the mirror has it: after a restart the head
    /// may be one that was refused, or out of reach. `None` where it cannot be taken any
    /// more: then nothing goes on until a commit can, and what stands is looked after
    /// by what the rollouts remember.
    ///
    /// # Errors
    /// The mirror or the store cannot be used.
    pub fn recall(
        &mut self,
        known: &Known,
        cancelled: &AtomicBool,
    ) -> Result<Option<Arc<Accepted>>, PassError> {
        let Some(commit) = known.mark else { return Ok(None) };
        let span = span!(parent: None, "recall", %commit);
        self.origin = Origin::of(&span);
        let checked = spans::step(&span, || self.judge(commit, known.testing, cancelled))?;
        let accepted = match &checked.verdict {
            Verdict::Taken(accepted) => Some(accepted.clone()),
            Verdict::Refused { message, .. } => {
                tracing::warn!(%commit, message, "the last commit cannot be taken any more");
                None
            }
        };
        if self.source.testing().is_none() {
            // The pass that follows finds the same.
            self.checked = Some(checked);
        }
        Ok(accepted)
    }

    /// Checks a commit with the chosen definitions of the testing branch in place of its
    /// own. One that cannot be taken holds nobody else up: then those of the testing
    /// commit that was used last stay, or else the commit's own count.
    fn judge_with_testing(
        &mut self,
        known: &Known,
        commit: Oid,
        seen: Option<Oid>,
        cancelled: &AtomicBool,
    ) -> Result<(Option<TestingState>, Checked), PassError> {
        if self.source.testing().is_none() {
            return Ok((None, self.judge(commit, None, cancelled)?));
        }
        let former = seen.and(known.testing).filter(|former| Some(*former) != seen);
        let mut refused = None;
        for testing in [seen, former].into_iter().flatten() {
            let why = match self.trusted_testing(commit, testing, cancelled)? {
                trust::Verdict::Untrusted { message } => message,
                trust::Verdict::Trusted { .. } => {
                    let checked = self.judge(commit, Some(testing), cancelled)?;
                    match &checked.verdict {
                        Verdict::Taken(_) => {
                            let commit = Some(testing.to_string());
                            return Ok((Some(TestingState { commit, refused }), checked));
                        }
                        Verdict::Refused { message, .. } => {
                            let first = checked
                                .diagnostics
                                .iter()
                                .find(|diagnostic| diagnostic.severity == Severity::Error);
                            let first = first.map(|first| format!(": {first}")).unwrap_or_default();
                            format!("{testing}: with it {message}{first}")
                        }
                    }
                }
            };
            tracing::warn!(%testing, why, "the testing branch is not used");
            refused.get_or_insert(why);
        }
        let checked = self.judge(commit, None, cancelled)?;
        Ok((Some(TestingState { commit: None, refused }), checked))
    }

    /// Reads and checks a commit, with the chosen definitions of `testing`.
    fn judge(
        &mut self,
        commit: Oid,
        testing: Option<Oid>,
        cancelled: &AtomicBool,
    ) -> Result<Checked, PassError> {
        let read = spans::step(&span!("read", %commit), || {
            let tree = self.read_with_testing(commit, testing, cancelled)?;
            Ok::<_, PassError>((DesiredState::read(&tree), policy_text(&tree)))
        });
        let ((desired, mut diagnostics), policy_text) = match read {
            Ok(read) => read,
            Err(PassError::Read { source, .. }) => return Ok(unreadable(commit, &source)),
            Err(error) => return Err(error),
        };
        let configuration = desired.configuration.clone();
        let wanted = mirrors::wanted(&desired);
        let unmirrored = spans::step(&span!("mirror"), || {
            self.mirrors.bring(&self.store, &configuration, &wanted, cancelled)
        })?;
        let not_mirrored = unmirrored.iter().find(|fault| fault.severity == Severity::Error);
        let not_mirrored = not_mirrored.map(|fault| fault.message.clone());
        diagnostics.extend(unmirrored);
        let _span = span!("check", definitions = desired.definitions.len()).entered();
        let (stamps, faults) = self.library.refresh(&self.store, &configuration)?;
        diagnostics.extend(faults);
        let empty = desired.definitions.is_empty();
        let manifests = self.library.manifests(&self.store);
        let result = check_desired(desired, diagnostics, self.library.universe(), &manifests);
        self.library.forget_unused();
        let verdict = if empty {
            let reason = RefusalReason::Empty;
            let message = "the commit holds no layer definition file at all".to_owned();
            Verdict::Refused { reason, message }
        } else if result.accepted() {
            let (desired, materials) = desired_and_materials(&result);
            let policy = configuration.rollout.clone();
            let checks = Arc::new(check_list(&result.desired));
            let who = self.who(commit)?;
            let (commit, origin) = (commit.to_string(), self.origin.clone());
            let digest = |(name, checks): (&CompositionName, &Vec<HealthCheck>)| {
                (name.clone(), health_checks::digest(checks))
            };
            let taken = Taken {
                commit,
                who,
                origin,
                desired,
                checks: checks.checks.iter().map(digest).collect(),
                policy,
                policy_text,
            };
            Verdict::Taken(Arc::new(Accepted { taken, materials, checks }))
        } else if let Some(message) = not_mirrored {
            Verdict::Refused { reason: RefusalReason::Mirror, message }
        } else {
            let error = |found: &&Diagnostic| found.severity == Severity::Error;
            let count = result.diagnostics.iter().filter(error).count();
            let message = match count {
                1 => "the commit has 1 error".to_owned(),
                _ => format!("the commit has {count} errors"),
            };
            Verdict::Refused { reason: RefusalReason::Invalid, message }
        };
        let diagnostics = result.diagnostics;
        let (seen, testing) = (None, None);
        Ok(Checked { commit, seen, testing, stamps, configuration, diagnostics, verdict })
    }

    /// Reads a commit, with the chosen definitions of `testing` in place of its own.
    fn read_with_testing(
        &mut self,
        commit: Oid,
        testing: Option<Oid>,
        cancelled: &AtomicBool,
    ) -> Result<SourceTree, PassError> {
        let mut tree = self.read(commit, cancelled)?;
        let (Some(id), Some(testing)) = (testing, self.source.testing().cloned()) else {
            return Ok(tree);
        };
        let other = self.read(id, cancelled)?;
        for path in testing.definitions() {
            tree.take_definition(&other, path).map_err(|source| PassError::Read {
                commit: id.to_string(),
                source: source.into(),
            })?;
        }
        Ok(tree)
    }

    /// Reads the commit; where an object is missing or damaged, once more from a
    /// mirror that was made anew.
    fn read(&mut self, commit: Oid, cancelled: &AtomicBool) -> Result<SourceTree, PassError> {
        let read = |mirror: &Mirror| -> Result<SourceTree, PassError> {
            let repository = mirror.repository()?;
            commit_tree::read(&repository, commit)
                .map_err(|source| PassError::Read { commit: commit.to_string(), source })
        };
        match read(&self.mirror) {
            Err(PassError::Read { source, .. })
                if source.is_damage()
                    && !self.mirror.is_complete_for(commit)
                    && self.rebuilt_for != Some(commit) =>
            {
                tracing::warn!(error = %source, "the mirror is damaged and made anew");
                self.rebuilt_for = Some(commit);
                self.mirror.fetch_anew(self.options.fetch_limits(), cancelled)?;
                read(&self.mirror)
            }
            other => other,
        }
    }
}

/// The file that the policy stands in; empty where the commit has none.
fn policy_text(tree: &SourceTree) -> String {
    match tree.get(CONFIGURATION_FILE).map(|file| &file.content) {
        Some(SourceContent::Regular { bytes, .. }) => String::from_utf8_lossy(bytes).into_owned(),
        Some(SourceContent::Symlink { .. } | SourceContent::Submodule) | None => String::new(),
    }
}

fn unreadable(commit: Oid, error: &ReadError) -> Checked {
    Checked {
        commit,
        seen: None,
        testing: None,
        stamps: Stamps::new(),
        configuration: Configuration::default(),
        diagnostics: Vec::new(),
        verdict: Verdict::Refused { reason: RefusalReason::Unreadable, message: error.to_string() },
    }
}

fn desired_and_materials(result: &CheckResult) -> (Desired, Materials) {
    let mut materials = Materials::default();
    let mut desired =
        Desired { rings: result.desired.configuration.rings.clone(), ..Desired::default() };
    for (name, generation) in &result.compositions {
        let id = generation.id();
        desired.compositions.insert(name.clone(), id);
        materials.generations.insert(id, generation.clone());
    }
    for definition in result.desired.definitions.values() {
        if let Some(tree) = &definition.tree {
            desired.layers.push(tree.entry());
            materials.trees.insert(tree.unit().digest, tree.clone());
        }
    }
    for (name, declared) in &result.desired.appliances {
        let va = DeclaredVa {
            name: name.clone(),
            composition: declared.composition.clone(),
            ring: declared.ring.clone(),
        };
        desired.appliances.insert(declared.mac, va);
    }
    (desired, materials)
}

fn check_list(desired: &DesiredState) -> CheckList {
    let mut list = CheckList { checks: desired.health_checks(), ..CheckList::default() };
    for (name, declared) in &desired.appliances {
        let mut labels = declared.labels.clone();
        labels.insert("name".to_owned(), name.to_string());
        list.labels.insert(declared.mac, labels);
    }
    list
}
