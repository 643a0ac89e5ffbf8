//! What is observed of all VAs: links, reports, run states.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use strata_core::links::VaTarget;
use strata_core::report::ServingState;
use strata_core::status::{ObservedVa, ReportView, RunState, VaStatus, is_fresh, va_status};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName, VaName};
use strata_machine::{MachineError, Machines};
use strata_store::{ObservedReport, Store, StoreError};

use crate::rollout::RolloutFile;

/// What this host's machines say of a VA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    pub name: VaName,
    pub run_state: Option<RunState>,
}

/// The VAs of a store.
#[derive(Debug)]
pub struct Fleet {
    /// In the order of their names; those without one last.
    pub vas: Vec<VaStatus>,
    /// What stands where a VA's link should and is none that Strata made.
    pub damage: Vec<String>,
}

/// All VAs of the store.
///
/// # Errors
/// The store or its machines cannot be read.
pub fn fleet(store: &Store) -> Result<Fleet, FleetError> {
    let machines = machines(store)?;
    let declared = declared(store);
    let mut observer = Observer::new(store);
    let links = store.va_links()?;
    let mut vas = Vec::new();
    for (mac, target) in links.targets {
        let mut observed = observer.observe(mac, target, machines.get(&mac))?;
        observed.name = observed.name.or_else(|| declared.get(&mac).cloned());
        vas.push(va_status(&observed));
    }
    vas.sort_by(|a, b| {
        let key = |status: &VaStatus| (status.name.is_none(), status.name.clone(), status.mac);
        key(a).cmp(&key(b))
    });
    let damage = links.foreign.iter().map(StoreError::to_string).collect();
    Ok(Fleet { vas, damage })
}

/// The names that the last commit gives to VAs, whichever host they run on.
pub fn declared(store: &Store) -> BTreeMap<MacAddr, VaName> {
    match RolloutFile::read(store) {
        Ok(file) => file.declared,
        Err(error) => {
            tracing::warn!(%error, "VAs that this host does not run have no names");
            BTreeMap::new()
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// The machines of the store by MAC address. One that cannot be read is told and
/// leaves its VA without a run state, never the others.
///
/// # Errors
/// The machines cannot be listed.
pub fn machines(store: &Store) -> Result<BTreeMap<MacAddr, MachineView>, MachineError> {
    let machines = Machines::open(store)?;
    let mut views = BTreeMap::new();
    for record in machines.records()? {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "the record of a VA cannot be read");
                continue;
            }
        };
        let run_state = match machines.run_state(&record) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::warn!(va = %record.name, %error, "the run state cannot be told");
                None
            }
        };
        views.insert(record.mac, MachineView { name: record.name, run_state });
    }
    Ok(views)
}

/// A ring's generation and when its link was moved.
type RingView = (Option<GenerationId>, Option<SystemTime>);

/// Looks at VAs of one store; each ring is looked at once.
#[derive(Debug)]
pub struct Observer<'s> {
    store: &'s Store,
    rings: BTreeMap<(CompositionName, RingName), RingView>,
    now: SystemTime,
    /// This host, as reports name theirs.
    host: String,
}

impl<'s> Observer<'s> {
    pub fn new(store: &'s Store) -> Self {
        Observer { store, rings: BTreeMap::new(), now: SystemTime::now(), host: host_name() }
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
        let report = report_view(self.store, mac, self.now);
        let serves = match &report {
            ReportView::Read { report, .. } => report.generation,
            ReportView::Missing | ReportView::Unreadable(_) => None,
        };
        // A VA whose own link was moved had no more time than since then.
        let moved = match serves.is_some() && serves == desired {
            true => moved,
            false => moved.max(self.store.va_moved_at(mac)?),
        };
        let run_state = machine.and_then(|machine| machine.run_state);
        Ok(ObservedVa {
            name: machine.map(|machine| machine.name.clone()),
            mac,
            target,
            desired,
            ring_age_ms: moved.map(|moved| age_ms(self.now, moved)),
            run_state: run_state.filter(|state| !self.runs_elsewhere(*state, &report)),
            report,
        })
    }

    /// A VA that is stopped on this host may be running on another one of the
    /// same store: then a report that is renewed comes from there.
    fn runs_elsewhere(&self, state: RunState, report: &ReportView) -> bool {
        match (state, report) {
            (RunState::Stopped, ReportView::Read { report, age_ms }) => {
                report.state == ServingState::Serving
                    && report.host != self.host
                    && is_fresh(report, *age_ms)
            }
            _ => false,
        }
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
        let generation = match self.store.ring(composition, ring) {
            Err(error) if error.is_foreign_link() => {
                tracing::warn!(%error, "the ring counts as one without a generation");
                None
            }
            generation => generation?,
        };
        let view = (generation, self.store.ring_moved_at(composition, ring)?);
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

/// This host, as reports name theirs.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
