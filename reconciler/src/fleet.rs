//! What is observed of all VAs: links, reports, run states.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use strata_core::links::VaTarget;
use strata_core::status::{ObservedVa, ReportView, RunState};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName, VaName};
use strata_store::{ObservedReport, Store, StoreError};

/// What this host's machines say of a VA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    pub name: VaName,
    pub run_state: Option<RunState>,
}

/// A ring's generation and when its link was moved.
type RingView = (Option<GenerationId>, Option<SystemTime>);

/// Looks at VAs of one store; each ring is looked at once.
#[derive(Debug)]
pub struct Observer<'s> {
    store: &'s Store,
    rings: BTreeMap<(CompositionName, RingName), RingView>,
    now: SystemTime,
}

impl<'s> Observer<'s> {
    pub fn new(store: &'s Store) -> Self {
        Observer { store, rings: BTreeMap::new(), now: SystemTime::now() }
    }

    /// All that is known of one VA.
    ///
    /// # Errors
    /// A ring's link cannot be read. A report that is none is an observation.
    pub fn observe(
        &mut self,
        mac: MacAddr,
        target: VaTarget,
        machine: Option<&MachineView>,
    ) -> Result<ObservedVa, StoreError> {
        let (desired, moved) = match &target {
            VaTarget::Pinned { generation, .. } => (Some(*generation), None),
            VaTarget::Ring { composition, ring } => self.ring(composition, ring)?,
        };
        Ok(ObservedVa {
            name: machine.map(|machine| machine.name.clone()),
            mac,
            target,
            desired,
            ring_age_ms: moved.map(|moved| age_ms(self.now, moved)),
            report: report_view(self.store, mac, self.now),
            run_state: machine.and_then(|machine| machine.run_state),
        })
    }

    fn ring(
        &mut self,
        composition: &CompositionName,
        ring: &RingName,
    ) -> Result<RingView, StoreError> {
        let key = (composition.clone(), ring.clone());
        if let Some(view) = self.rings.get(&key) {
            return Ok(*view);
        }
        let view =
            (self.store.ring(composition, ring)?, self.store.ring_moved_at(composition, ring)?);
        self.rings.insert(key, view);
        Ok(view)
    }
}

/// A VA's report with its age: by the store's clock and by the VA's own, whichever
/// makes it older.
pub fn report_view(store: &Store, mac: MacAddr, now: SystemTime) -> ReportView {
    match store.observed_report(mac) {
        Ok(None) => ReportView::Missing,
        Ok(Some(ObservedReport { report, modified })) => {
            let now_ms = age_ms(now, UNIX_EPOCH);
            let own = now_ms.saturating_sub(report.written_at_ms);
            let age_ms = age_ms(now, modified).max(own);
            ReportView::Read { report: Box::new(report), age_ms }
        }
        Err(error) => ReportView::Unreadable(error.to_string()),
    }
}

/// Milliseconds from `then` to `now`; 0 where `then` lies ahead.
fn age_ms(now: SystemTime, then: SystemTime) -> u64 {
    let age = now.duration_since(then).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
