//! Which commit a pass may bring in: from which remote, whether the history only goes
//! forward, whether all that is new is signed, and what the testing branch adds.

use std::sync::atomic::AtomicBool;

use git2::Oid;

use super::{Inspector, Known, PassError, PassReport};
use crate::mirror::{Advance, Fetched};
use crate::state::{Fallback, RefusalReason};
use crate::trust::{self, Candidate};

impl Inspector {
    /// The commit to bring in, of what was fetched, and what to tell where a remote other
    /// than the first had to be used. Such a one may be behind: then what was applied
    /// stays wanted.
    pub(super) fn choose(
        &self,
        known: &Known,
        fetched: &Fetched,
    ) -> Result<(Oid, Option<Fallback>), PassError> {
        let Fetched { commit, remote, failures, .. } = fetched;
        if *remote == 0 {
            return Ok((*commit, None));
        }
        let mut fallback = Fallback {
            remote: self.source.remotes()[*remote].to_string(),
            failures: failures.clone(),
            behind: false,
        };
        if let Some(mark) = known.mark
            && self.mirror.advance(*commit, mark)? == Advance::FastForward
        {
            fallback.behind = true;
            return Ok((mark, Some(fallback)));
        }
        Ok((*commit, Some(fallback)))
    }

    /// Whether the commit may be brought in. What stands against it is in the report.
    pub(super) fn may_follow(
        &mut self,
        known: &Known,
        (commit, tag): (Oid, Option<&(String, Oid)>),
        report: &mut PassReport,
        cancelled: &AtomicBool,
    ) -> Result<bool, PassError> {
        if let Some(message) = self.rewritten(known, commit, cancelled)? {
            report.refuse(RefusalReason::Rewritten, message);
            return Ok(false);
        }
        match self.trusted(known, commit, tag, cancelled)? {
            trust::Verdict::Trusted { signer } => {
                report.signer.clone_from(&signer);
                self.who.signer = signer;
                Ok(true)
            }
            trust::Verdict::Untrusted { message } => {
                report.refuse(RefusalReason::Untrusted, message);
                Ok(false)
            }
        }
    }

    /// Why the commit may not follow the last one that was applied.
    fn rewritten(
        &mut self,
        known: &Known,
        commit: Oid,
        cancelled: &AtomicBool,
    ) -> Result<Option<String>, PassError> {
        let Some(former) = known.mark else { return Ok(None) };
        let mut advance = self.mirror.advance(former, commit)?;
        if advance == Advance::Unknown && !self.mirror.is_complete_for(commit) {
            tracing::warn!(%former, "the mirror is incomplete and made anew");
            self.mirror.fetch_anew(self.options.fetch_limits(), cancelled)?;
            advance = self.mirror.advance(former, commit)?;
        }
        match advance {
            Advance::Same | Advance::FastForward => Ok(None),
            Advance::Rewritten | Advance::Unknown if self.options.allow_rewrite => {
                tracing::warn!(%former, "a rewritten branch is taken as allowed");
                Ok(None)
            }
            Advance::Rewritten | Advance::Unknown => Ok(Some(format!(
                "the history was rewritten or goes back: {former} was applied and is not among the ancestors of {commit}"
            ))),
        }
    }

    /// Whether the commit and all that it newly brings in are signed as they must be.
    fn trusted(
        &mut self,
        known: &Known,
        head: Oid,
        tag: Option<&(String, Oid)>,
        cancelled: &AtomicBool,
    ) -> Result<trust::Verdict, PassError> {
        let Some(checker) = &mut self.trust else {
            return Ok(trust::Verdict::Trusted { signer: None });
        };
        let tag = tag.map(|(name, object)| (name.as_str(), *object));
        let candidate = Candidate { head, tag, mark: known.mark };
        Ok(checker.check(&self.mirror.repository()?, candidate, cancelled)?)
    }

    /// The commit of the testing branch, as far as it has anything that `commit` lacks.
    pub(super) fn testing_head(&self, commit: Oid) -> Result<Option<Oid>, PassError> {
        let Some(testing) = self.mirror.testing()? else { return Ok(None) };
        let merged =
            matches!(self.mirror.advance(testing, commit)?, Advance::Same | Advance::FastForward);
        Ok(Some(testing).filter(|_| !merged))
    }

    /// Whether all that the testing branch has beyond the commit is signed as it must be.
    pub(super) fn trusted_testing(
        &mut self,
        commit: Oid,
        testing: Oid,
        cancelled: &AtomicBool,
    ) -> Result<trust::Verdict, PassError> {
        let Some(checker) = &mut self.trust else {
            return Ok(trust::Verdict::Trusted { signer: None });
        };
        let candidate = Candidate { head: testing, tag: None, mark: Some(commit) };
        Ok(checker.check(&self.mirror.repository()?, candidate, cancelled)?)
    }
}
