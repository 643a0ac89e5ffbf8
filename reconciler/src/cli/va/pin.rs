//! `strata va pin` and `strata va unpin`.

use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use strata_core::audit::Who;
use strata_core::event::Event;
use strata_core::links::VaTarget;
use strata_core::rollout::policy::{Span, base_ring};
use strata_core::{GenerationId, RingName, VaName};
use strata_store::Store;

use crate::audit::AuditLog;
use crate::cli::known;
use crate::cli::rollout::{caller, given_reason, reconciler_runs, submit};
use crate::cli::{Failure, Outcome, StoreArgs, print_bytes};
use crate::rollout::RolloutFile;
use crate::rollout::pins::{self, Pin, PinError, Unpinned};
use crate::rollout::request::{Ask, Request};
use crate::state::{milliseconds, time_text};

/// Digits of a generation's id that name it.
const BEGINNING: usize = 4;

/// Hold a VA at one generation, whatever its ring does
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va pin web-03 --generation 1f2e3d4c --reason 'debugging the cache' --expires 4h
  strata va pin web-03 --reason 'stays as it is'

When the pin expires the VA follows its ring again, as after `strata va unpin`. `strata status` shows it as pinned.")]
pub struct PinArgs {
    name: VaName,
    /// The generation, or the beginning of its id; without it the one of the VA's link.
    #[arg(long, value_name = "ID", value_parser = beginning)]
    generation: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT", value_parser = given_reason)]
    reason: String,
    /// For how long, as in 90s, 2h or 3d; for ever where it is left out.
    #[arg(long, value_name = "SPAN", value_parser = lasting)]
    expires: Option<Span>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Let a pinned VA follow its ring again
#[derive(Debug, Args)]
#[command(after_help = "Example: strata va unpin web-03

A VA that git gave to another template or ring meanwhile goes there, as others do that a
commit moves. One whose ring is frozen, or has its window closed, keeps its generation
until then. Exit status 1: no reconciler has looked at it yet.")]
pub struct UnpinArgs {
    name: VaName,
    /// The ring that it belongs to, where the record of the pin was lost.
    #[arg(long, value_name = "RING")]
    ring: Option<RingName>,
    #[command(flatten)]
    store: StoreArgs,
}

/// The beginning of a generation's id, long enough to say something.
fn beginning(text: &str) -> Result<String, String> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() >= BEGINNING && text.bytes().all(hex) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "an id begins with at least {BEGINNING} of the digits 0 to 9 and a to f; `strata get generations` lists them"
        )),
    }
}

/// A time span in which something can happen.
fn lasting(text: &str) -> Result<Span, String> {
    match text.parse::<Span>() {
        Ok(Span { ms: 0 }) => Err("a pin that ends at once holds nothing".to_owned()),
        span => span.map_err(|error| error.to_string()),
    }
}

pub fn pin(args: &PinArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let mac = known::va_named(&store, &args.name)?;
    let generation = match &args.generation {
        Some(text) => find(&store, text)?,
        None => store.desired(mac)?.ok_or_else(|| {
            Failure::new("the VA's ring has no generation yet").hint("name one with --generation")
        })?,
    };
    let now_ms = milliseconds(SystemTime::now());
    let expires = args.expires.map(|span| now_ms.saturating_add(span.ms));
    let told = (args.reason.clone(), caller(), now_ms);
    let pin = pins::pin(&store, mac, generation, expires, told)?;
    let (reason, expires_at_ms) = (args.reason.clone(), expires);
    let store = Arc::new(store);
    tell(store.clone(), Event::VaPinned { mac, generation, reason, expires_at_ms })?;
    let until = expires.map(|at_ms| format!(" until {}", time_text(at_ms))).unwrap_or_default();
    let text = format!("{} pinned to {}{until}\n", args.name, pin.generation.short());
    print_bytes(text.as_bytes())?;
    if expires.is_some() {
        look_in_time(&store)?;
    }
    if empties_a_gate(&store, &pin)? {
        eprintln!(
            "note: no other VA of {} follows {}, so it has none while this one is pinned: its gate and soak time are passed over",
            pin.composition, pin.ring
        );
    }
    Ok(Outcome::Done)
}

pub fn unpin(args: &UnpinArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let mac = known::va_named(&store, &args.name)?;
    let Unpinned { to, gone } = pins::unpin(&store, mac, args.ring.as_ref(), &caller())?;
    if gone {
        tell(Arc::new(store), Event::VaUnpinned { mac, expired: false })?;
        print_bytes(format!("{} follows {to} again\n", args.name).as_bytes())?;
        return Ok(Outcome::Done);
    }
    // What the reconciler does it also tells.
    let request = Request::new(caller(), String::new(), Ask::LookAfterPins);
    let outcome = submit(&store, &request)?;
    let text = match store.va_target(mac)? {
        Some(VaTarget::Pinned { .. }) => format!(
            "the pin of {} has ended; it follows {to} when it may: strata reconcile now says what it waits for\n",
            args.name
        ),
        _ => format!("{} follows {to}\n", args.name),
    };
    print_bytes(text.as_bytes())?;
    Ok(outcome)
}

/// Whether a ring with a gate has no VA left that could fail it.
fn empties_a_gate(store: &Store, pin: &Pin) -> Result<bool, Failure> {
    let policy = RolloutFile::read(store)?.remembered_policy();
    if policy.ring(&pin.ring).is_none_or(|ring| ring.gate.is_none()) {
        return Ok(false);
    }
    let follows = |target: &VaTarget| {
        matches!(target, VaTarget::Ring { composition, ring }
            if *composition == pin.composition && base_ring(ring).0 == pin.ring)
    };
    Ok(!store.va_links()?.targets.values().any(follows))
}

/// Says in the audit log what came of the command.
pub(super) fn tell(store: Arc<Store>, event: Event) -> Result<(), Failure> {
    let who = Who { operator: Some(caller()), ..Who::default() };
    Ok(AuditLog::new(store).note(&who, event)?)
}

/// A reconciler that runs would not look at the pin before its next pass; one that starts
/// later looks by itself.
fn look_in_time(store: &Store) -> Result<(), Failure> {
    if reconciler_runs(store)? {
        Request::new(caller(), String::new(), Ask::LookAfterPins).submit(store)?;
    }
    Ok(())
}

/// The generation whose id begins so.
fn find(store: &Store, text: &str) -> Result<GenerationId, Failure> {
    let all = store.generations()?;
    let found: Vec<_> = all.iter().filter(|id| id.to_string().starts_with(text)).collect();
    match found.as_slice() {
        [id] => Ok(**id),
        [] => Err(Failure::new(format!("the store has no generation {text}"))
            .hint("see the column ACTIVE of `strata status`, or generations/ in the store")),
        _ => {
            Err(Failure::new(format!("{text} may be several generations"))
                .hint("write more of the id"))
        }
    }
}

impl From<PinError> for Failure {
    fn from(error: PinError) -> Self {
        let hint = match &error {
            PinError::Store(_) => None,
            PinError::Rollouts(_) => Some("see `strata rollout status`"),
            PinError::NoLink => Some("provision it again: strata va provision"),
            PinError::Lost(_) => Some("say where it belongs: strata va unpin NAME --ring RING"),
            PinError::NoRing { .. } => Some("see `strata get rings`"),
            PinError::NotPinned => Some("see `strata status`: the ring of a pinned VA is (pinned)"),
            PinError::Other { .. } => Some("choose a generation of the VA's own template"),
        };
        match (error, hint) {
            (PinError::Store(error), _) => error.into(),
            (error, Some(hint)) => Failure::new(error).hint(hint),
            (error, None) => Failure::new(error),
        }
    }
}
