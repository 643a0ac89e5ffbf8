//! What goes on between passes: rollouts, orders, pins, and links that somebody moved.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::{Keeper, PassError, PassReport, PassResult, now_ms};
use crate::rollout::RolloutError;

impl Keeper {
    /// Goes on with the rollouts. `None` where nothing was ever rolled out. Without a
    /// commit that can be taken, it looks after what stands: orders, pins, links of rings,
    /// and rings that fail.
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn step(&mut self, cancelled: &AtomicBool) -> Result<Option<PassReport>, PassError> {
        self.go_on(false, cancelled)
    }

    /// The same, and looks whether the links of VAs are where the commit that was taken
    /// wants them.
    ///
    /// # Errors
    /// As of [`Keeper::step`].
    pub fn step_with_links(
        &mut self,
        cancelled: &AtomicBool,
    ) -> Result<Option<PassReport>, PassError> {
        self.go_on(true, cancelled)
    }

    fn go_on(
        &mut self,
        look_at_links: bool,
        cancelled: &AtomicBool,
    ) -> Result<Option<PassReport>, PassError> {
        let accepted = self.accepted.clone();
        let taken = accepted.as_ref().map(|accepted| &accepted.taken);
        if taken.is_none() && self.state.mark().is_none() {
            return Ok(None);
        }
        // As in a pass: what the rings are led to is not collected before they are there.
        let _lease = self.store.lease()?;
        let begun = Instant::now();
        let before = self.store.writes();
        let mark = self.state.mark().map(|mark| mark.commit.clone());
        let commit = taken.map(|taken| taken.commit.clone()).or(mark).unwrap_or_default();
        let mut report = PassReport::new(&self.source, commit);
        let links = match accepted.as_ref().filter(|_| look_at_links) {
            Some(accepted) => self.look_at_links(accepted)?,
            None => Vec::new(),
        };
        let time = (now_ms(), cancelled);
        let mut stepped = self.rollouts.step(taken, false, &mut self.checks, time)?;
        let failed = stepped.failed.take();
        report.add(stepped);
        if let Some(accepted) = &accepted {
            self.link(accepted, links, &mut report)?;
        }
        report.result = match report.actions.is_empty() {
            true => PassResult::Unchanged,
            false => PassResult::Applied,
        };
        report.news |= !report.actions.is_empty();
        report.renames = self.store.writes().renames - before.renames;
        report.timings.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        failed.map_or(Ok(Some(report)), |error| Err(RolloutError::from(error).into()))
    }
}
