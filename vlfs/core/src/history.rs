//! The history of a template or a VA: a fold over the audit log's records.
//!
//! The log may tell a decision twice, when a crash came between telling and doing it; the
//! history has it once. What was told before the log begins is not known.

use serde::Serialize;

use crate::audit::Record;
use crate::digest::GenerationId;
use crate::event::Event;
use crate::names::{CompositionName, MacAddr, RingName};

/// How something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    UnderWay,
    Done,
    Halted,
    RolledBack,
    /// Another one came before it was done.
    Superseded,
    /// It does not serve it although it had the time, or failed.
    Failed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::UnderWay => "under-way",
            Outcome::Done => "done",
            Outcome::Halted => "halted",
            Outcome::RolledBack => "rolled-back",
            Outcome::Superseded => "superseded",
            Outcome::Failed => "failed",
        }
    }
}

/// How a VA came to a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Its template was rolled out.
    Rollout,
    /// Its ring was moved.
    Ring,
    /// It was moved with some others of its ring.
    Batch,
    Pin,
}

impl Way {
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Rollout => "rollout",
            Way::Ring => "ring",
            Way::Batch => "batch",
            Way::Pin => "pin",
        }
    }
}

/// One generation that a template or a VA came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub at_ms: u64,
    pub generation: GenerationId,
    pub way: Way,
    pub commit: Option<String>,
    pub author: Option<String>,
    pub signer: Option<String>,
    /// The operator whose order it was.
    pub operator: Option<String>,
    pub outcome: Outcome,
    /// Why, of what did not go well.
    pub reason: Option<String>,
    /// When the outcome was known.
    pub ended_at_ms: Option<u64>,
}

impl Entry {
    fn new(record: &Record, generation: GenerationId, way: Way) -> Self {
        let who = record.who.clone();
        Entry {
            at_ms: record.at_ms,
            generation,
            way,
            commit: who.commit,
            author: who.author,
            signer: who.signer,
            operator: who.operator,
            outcome: Outcome::UnderWay,
            reason: None,
            ended_at_ms: None,
        }
    }

    fn end(&mut self, record: &Record, outcome: Outcome, reason: Option<&str>) {
        self.outcome = outcome;
        self.reason = reason.map(str::to_owned);
        self.ended_at_ms = (outcome != Outcome::UnderWay).then_some(record.at_ms);
    }
}

/// Whose history is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Template(CompositionName),
    Va {
        mac: MacAddr,
        /// The ring it follows now, or did before it was pinned.
        ring: Option<(CompositionName, RingName)>,
    },
}

/// Takes records in the order of the log.
#[derive(Debug)]
pub struct History {
    subject: Subject,
    entries: Vec<Entry>,
    /// Where the VA's ring went last, whether the VA followed it or not.
    ring_at: Option<GenerationId>,
}

impl History {
    pub fn new(subject: Subject) -> Self {
        History { subject, entries: Vec::new(), ring_at: None }
    }

    /// Oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn take(&mut self, record: &Record) {
        match self.subject.clone() {
            Subject::Template(name) => {
                if record.event.composition() == Some(&name) {
                    self.template(record);
                }
            }
            Subject::Va { mac, ring } => self.va(record, mac, ring.as_ref()),
        }
    }

    fn template(&mut self, record: &Record) {
        match &record.event {
            Event::RolloutStarted { generation, .. } => {
                self.begin(Entry::new(record, *generation, Way::Rollout));
            }
            Event::RolloutDone { generation, .. } => {
                self.settle(record, *generation, Outcome::Done, None);
            }
            Event::RolloutHalted { generation, reason, .. } => {
                self.settle(record, *generation, Outcome::Halted, Some(reason));
            }
            Event::RolledBack { generation, reason, .. } => {
                self.settle(record, *generation, Outcome::RolledBack, Some(reason));
            }
            Event::Resumed { .. } => {
                if let Some(last) = self.entries.last_mut()
                    && matches!(last.outcome, Outcome::Halted | Outcome::RolledBack)
                {
                    last.end(record, Outcome::UnderWay, None);
                }
            }
            _ => {}
        }
    }

    fn va(&mut self, record: &Record, mac: MacAddr, own: Option<&(CompositionName, RingName)>) {
        let is_own = own.is_some_and(|(composition, ring)| {
            record.event.composition() == Some(composition)
                && record.event.ring().is_none_or(|found| found == ring)
        });
        let pinned = self
            .entries
            .last()
            .is_some_and(|last| last.way == Way::Pin && last.outcome != Outcome::Superseded);
        if let (true, Event::RingMoved { to, .. }) = (is_own, &record.event) {
            self.ring_at = Some(*to);
        }
        match &record.event {
            Event::RingMoved { to, .. } if is_own && !pinned => {
                self.begin(Entry::new(record, *to, Way::Ring));
            }
            Event::BatchMoved { to, vas, .. } if vas.contains(&mac) => {
                self.begin(Entry::new(record, *to, Way::Batch));
            }
            Event::VaPinned { mac: found, generation, .. } if *found == mac => {
                self.begin(Entry::new(record, *generation, Way::Pin));
            }
            Event::VaUnpinned { mac: found, .. } if *found == mac => {
                let last = self.entries.last_mut().filter(|last| last.way == Way::Pin);
                let Some(last) = last else { return };
                last.end(record, Outcome::Superseded, None);
                let was = last.generation;
                if let Some(now) = self.ring_at.filter(|now| *now != was) {
                    self.begin(Entry::new(record, now, Way::Ring));
                }
            }
            Event::RingVerified { generation, .. } if is_own => {
                self.end(record, *generation, Outcome::Done, None);
            }
            Event::VaRecovered { mac: found, active: Some(active), .. } if *found == mac => {
                self.end(record, *active, Outcome::Done, None);
            }
            Event::VaTroubled { mac: found, desired: Some(desired), reason, .. }
                if *found == mac =>
            {
                self.end(record, *desired, Outcome::Failed, reason.as_deref());
            }
            Event::RolledBack { generation, reason, .. } if is_own => {
                self.end(record, *generation, Outcome::RolledBack, Some(reason));
            }
            _ => {}
        }
    }

    /// A new entry, unless the last one says the same.
    fn begin(&mut self, entry: Entry) {
        if let Some(last) = self.entries.last_mut() {
            let again = last.generation == entry.generation
                && matches!(last.outcome, Outcome::UnderWay | Outcome::Done | Outcome::Failed)
                // A commit that wants what is there already begins nothing.
                && (last.way != Way::Pin) == (entry.way != Way::Pin)
                && (last.outcome != Outcome::Done || entry.way != Way::Rollout);
            if again {
                return;
            }
            if matches!(last.outcome, Outcome::UnderWay | Outcome::Halted) {
                last.outcome = Outcome::Superseded;
                last.ended_at_ms = Some(entry.at_ms);
            }
        }
        self.entries.push(entry);
    }

    /// How a rollout ended, also one whose start was not told: a template's first one
    /// has none, and the log may begin in the middle.
    fn settle(
        &mut self,
        record: &Record,
        generation: GenerationId,
        outcome: Outcome,
        reason: Option<&str>,
    ) {
        if self.entries.last().is_none_or(|last| last.generation != generation) {
            self.begin(Entry::new(record, generation, Way::Rollout));
        }
        self.end(record, generation, outcome, reason);
    }

    fn end(
        &mut self,
        record: &Record,
        generation: GenerationId,
        outcome: Outcome,
        reason: Option<&str>,
    ) {
        if let Some(last) = self.entries.last_mut()
            && last.generation == generation
            && last.outcome != outcome
        {
            last.end(record, outcome, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{VERSION, Who};
    use crate::digest::Digest;
    use crate::status::SyncState;

    fn web() -> CompositionName {
        "web".parse().expect("valid")
    }

    fn ring(name: &str) -> RingName {
        name.parse().expect("valid")
    }

    fn mac(n: u8) -> MacAddr {
        MacAddr::locally_administered([2, 0, 0, 0, 0, n])
    }

    fn id(name: &str) -> GenerationId {
        Digest::of(name.as_bytes())
    }

    fn fold(subject: Subject, events: Vec<Event>) -> Vec<(GenerationId, Way, Outcome)> {
        let mut history = History::new(subject);
        for (seq, event) in (1..).zip(events) {
            let who = Who { commit: Some(format!("c{seq}")), ..Who::default() };
            let (at_ms, host) = (seq * 10, String::new());
            history.take(&Record { version: VERSION, seq, at_ms, host, who, event });
        }
        history.entries().iter().map(|e| (e.generation, e.way, e.outcome)).collect()
    }

    fn started(name: &str) -> Event {
        let (composition, generation) = (web(), id(name));
        Event::RolloutStarted { composition, generation, commit: name.to_owned() }
    }

    fn done(name: &str) -> Event {
        let (composition, generation) = (web(), id(name));
        Event::RolloutDone { composition, generation, commit: name.to_owned() }
    }

    fn moved(ring_name: &str, to: &str) -> Event {
        let (composition, ring) = (web(), ring(ring_name));
        Event::RingMoved { composition, ring, from: None, to: id(to) }
    }

    #[test]
    fn a_templates_rollouts_and_how_they_ended() {
        let back = Event::RolledBack {
            composition: web(),
            ring: None,
            generation: id("bad"),
            commit: "bad".to_owned(),
            reason: "ill".to_owned(),
            unhealthy: Vec::new(),
        };
        let events = vec![
            done("first"),
            started("a"),
            started("a"),
            done("a"),
            started("b"),
            started("c"),
            done("c"),
            started("bad"),
            back,
            started("a"),
            Event::RolloutStarted {
                composition: "sql".parse().expect("valid"),
                generation: id("x"),
                commit: "x".to_owned(),
            },
        ];
        let found = fold(Subject::Template(web()), events);
        let way = Way::Rollout;
        assert_eq!(
            found,
            [
                (id("first"), way, Outcome::Done),
                (id("a"), way, Outcome::Done),
                (id("b"), way, Outcome::Superseded),
                (id("c"), way, Outcome::Done),
                (id("bad"), way, Outcome::RolledBack),
                (id("a"), way, Outcome::UnderWay),
            ]
        );
    }

    #[test]
    fn a_vas_generations() {
        let subject = Subject::Va { mac: mac(1), ring: Some((web(), ring("everyone"))) };
        let verified = |generation: &str, vas| Event::RingVerified {
            composition: web(),
            ring: ring("everyone"),
            generation: id(generation),
            vas,
            took_ms: 5,
        };
        let batch = |to: &str, vas: &[u8]| Event::BatchMoved {
            composition: web(),
            ring: ring("everyone"),
            to: id(to),
            vas: vas.iter().copied().map(mac).collect(),
        };
        let pinned = Event::VaPinned {
            mac: mac(1),
            generation: id("b"),
            reason: "a look".to_owned(),
            expires_at_ms: None,
        };
        let troubled = Event::VaTroubled {
            mac: mac(1),
            name: None,
            composition: web(),
            state: SyncState::Failed,
            reason: Some("refused".to_owned()),
            desired: Some(id("d")),
            active: Some(id("b")),
        };
        let events = vec![
            moved("canary", "a"),
            moved("everyone", "a"),
            verified("a", 3),
            batch("b", &[2]),
            batch("b", &[1, 3]),
            moved("everyone", "b"),
            verified("b", 3),
            pinned,
            moved("everyone", "c"),
            Event::VaUnpinned { mac: mac(1), expired: true },
            moved("everyone", "d"),
            troubled,
        ];
        assert_eq!(
            fold(subject, events),
            [
                (id("a"), Way::Ring, Outcome::Done),
                (id("b"), Way::Batch, Outcome::Done),
                (id("b"), Way::Pin, Outcome::Superseded),
                (id("c"), Way::Ring, Outcome::Superseded),
                (id("d"), Way::Ring, Outcome::Failed),
            ]
        );
    }
}
