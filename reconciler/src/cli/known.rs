//! The names that a command is given: those of templates and VAs that the store knows.
//!
//! A misspelt name is an error: a command that waits for a rollout of a template that
//! is not there would wait for nothing, and find all well.

use std::collections::BTreeSet;

use strata_core::rollout::policy::base_ring;
use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_machine::{MachineError, Machines};
use strata_store::{Store, VaTarget};

use super::Failure;
use crate::rollout::RolloutFile;

/// The hint where there is nothing to name.
pub const NO_COMMIT: &str = "no commit was applied yet: see strata status";
/// Names that a hint lists.
const NAMED: usize = 20;
/// How alike two names are, from 0 to 1, of which one may be meant for the other.
const ALIKE: f64 = 0.6;

/// Fails where neither a commit nor a link brought a template of this name.
///
/// # Errors
/// There is none, or the store cannot be read.
pub fn template(store: &Store, name: &CompositionName) -> Result<(), Failure> {
    among(name, &templates(store)?)
}

/// Fails where a template is not among those that are known.
///
/// # Errors
/// It is not.
pub fn among(name: &CompositionName, known: &BTreeSet<CompositionName>) -> Result<(), Failure> {
    if known.contains(name) {
        return Ok(());
    }
    Err(Failure::new(format!("no commit brought a template {name}")).hint(meant(name, known)))
}

/// As [`template`], where one is named.
///
/// # Errors
/// See [`template`].
pub fn template_if_named(store: &Store, name: Option<&CompositionName>) -> Result<(), Failure> {
    name.map_or(Ok(()), |name| template(store, name))
}

/// Fails where no template has a ring of this name, where one is named.
///
/// # Errors
/// None has, or the store cannot be read.
pub fn ring_if_named(store: &Store, name: Option<&RingName>) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    let states = RolloutFile::read(store)?.compositions.into_values();
    let mut known: BTreeSet<_> = states.flat_map(|state| state.rings.into_keys()).collect();
    known.extend(store.rings()?.into_keys().map(|(_, ring)| base_ring(&ring).0));
    let followed = store.va_links()?.targets.into_values().filter_map(|target| match target {
        VaTarget::Ring { ring, .. } => Some(base_ring(&ring).0),
        VaTarget::Pinned { .. } => None,
    });
    known.extend(followed);
    if known.contains(&base_ring(name).0) {
        return Ok(());
    }
    Err(Failure::new(format!("no template has a ring {name}")).hint(meant(name, &known)))
}

/// What there is, for a hint, and which of it a name that is not there may be meant for.
fn meant<T: ToString>(name: &T, known: &BTreeSet<T>) -> String {
    let names: Vec<_> = known.iter().map(ToString::to_string).collect();
    match nearest(&name.to_string(), names.iter().map(String::as_str)) {
        Some(near) => format!("{}; did you mean {near}?", listed(known)),
        None => listed(known),
    }
}

/// The name that one which is not there was meant for, as far as one can tell.
pub fn nearest<'n>(wanted: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let likeness = |name: &&str| strsim::normalized_damerau_levenshtein(wanted, name);
    let near = known.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&near) > ALIKE).then_some(near)
}

/// All templates and VA-specific definitions of the store.
///
/// # Errors
/// The store cannot be read.
pub fn templates(store: &Store) -> Result<BTreeSet<CompositionName>, Failure> {
    let mut known: BTreeSet<_> = RolloutFile::read(store)?.compositions.into_keys().collect();
    known.extend(store.rings()?.into_keys().map(|(composition, _)| composition));
    let links = store.va_links()?.targets;
    known.extend(links.into_values().map(|target| target.composition().clone()));
    Ok(known)
}

/// What there is, for a hint.
pub fn listed<T: ToString>(known: &BTreeSet<T>) -> String {
    let names: Vec<_> = known.iter().take(NAMED).map(ToString::to_string).collect();
    match known.len().saturating_sub(names.len()) {
        _ if names.is_empty() => NO_COMMIT.to_owned(),
        0 => format!("there are: {}", names.join(", ")),
        more => format!("there are: {} and {more} more", names.join(", ")),
    }
}

/// The LDFs that a directory has, for a hint.
pub fn defined(known: &BTreeSet<CompositionName>) -> String {
    match known.is_empty() {
        true => "it defines none: strata template create DIR NAME --layer LAYER".to_owned(),
        false => listed(known),
    }
}

/// A VA by its name or its address: one of this host's machines, or one that
/// `appliances.toml` declares.
///
/// # Errors
/// The store knows no such VA.
pub fn va(store: &Store, text: &str) -> Result<(Option<VaName>, MacAddr), Failure> {
    if let Ok(mac) = text.parse::<MacAddr>() {
        return Ok((None, mac));
    }
    let name: VaName = text.parse().map_err(Failure::new)?;
    let mac = va_named(store, &name)?;
    Ok((Some(name), mac))
}

/// The address of a VA.
///
/// # Errors
/// See [`va`].
pub fn va_named(store: &Store, name: &VaName) -> Result<MacAddr, Failure> {
    let machines = Machines::open(store).map_err(super::va::machine_failure)?;
    match machines.record(name) {
        Ok(record) => Ok(record.mac),
        Err(error @ MachineError::NoVa(_)) => {
            let declared = RolloutFile::read(store)?.declared;
            let found = declared.into_iter().find(|(_, declared)| declared == name);
            found.map(|(mac, _)| mac).ok_or_else(|| super::va::machine_failure(error))
        }
        Err(error) => Err(super::va::machine_failure(error)),
    }
}
