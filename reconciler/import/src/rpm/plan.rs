//! Which scriptlets run, with which arguments, in which order: what one transaction of rpm
//! does that brings a system from `former` to `packages` (rpm's `docs/manual/triggers.md`,
//! `file_triggers.md` and `scriptlet_expansion.md`; the arguments are those that rpm 4.18
//! gives). Pure.
//!
//! Files are there before the first scriptlet runs and those of replaced packages are gone,
//! so nothing is unpacked or erased in between; all else is in rpm's order: `%pretrans`; each
//! package, after those that its scripts need, with its triggers; then what is replaced or gone;
//! `%posttrans` and the file triggers of the transaction last.

use std::collections::BTreeMap;

use strata_core::scripts::order::integration_order;
use strata_core::version::LayerVersion;

use super::package::{Condition, Package, Scriptlet, Trigger};

/// The moments of triggers (`RPMSENSE_TRIGGER…`).
pub const TRIGGER_IN: u64 = 1 << 16;
pub const TRIGGER_UN: u64 = 1 << 17;
pub const TRIGGER_POSTUN: u64 = 1 << 18;
pub const TRIGGER_PREIN: u64 = 1 << 25;
/// From this priority on, file triggers run before the package's own script.
const EARLY: u64 = 10_000;

/// A package that was set up before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    pub version: LayerVersion,
    /// `None` where its unit is gone, and its scripts with it.
    pub package: Option<Package>,
}

/// One scriptlet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub package: String,
    /// As spec files call it.
    pub what: &'static str,
    pub scriptlet: Scriptlet,
    pub arguments: Vec<u32>,
    /// What a file trigger reads: paths, one a line.
    pub input: Option<Vec<u8>>,
    /// Whether rpm ends the transaction when it fails.
    pub must_succeed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// New packages and those with another version, in their order.
    pub installed: Vec<String>,
    /// Packages that are no longer there.
    pub erased: Vec<String>,
    /// Replaced or gone packages whose scripts are not known any more.
    pub unknown: Vec<String>,
}

/// What there is to do to get from the packages `former` to `packages`.
pub fn plan(packages: &BTreeMap<String, Package>, former: &BTreeMap<String, Former>) -> Plan {
    let is_same = |package: &Package| {
        former.get(&package.name).is_some_and(|former| former.version == package.version)
    };
    let all: Vec<&Package> = packages.values().collect();
    let relations: Vec<_> = all.iter().map(|package| &package.relations).collect();
    let order = integration_order(&relations).into_iter().map(|at| all[at]);
    let fresh: Vec<&Package> = order.filter(|package| !is_same(package)).collect();
    let replaced = |name: &String| packages.get(name).is_none_or(|package| !is_same(package));
    let old: Vec<_> = former.iter().filter(|(name, _)| replaced(name)).collect();
    let mut transaction = Transaction::new(packages, former);
    for package in &fresh {
        let argument = transaction.count(&package.name) + 1;
        transaction.script(package, "pre-transaction", "%pretrans", argument, true);
    }
    let old_paths: Vec<&[u8]> =
        old.iter().filter_map(|(_, former)| former.package.as_ref()).flat_map(paths).collect();
    transaction.file_triggers(TRANSACTION, TRIGGER_UN, None, &old_paths);
    for package in &fresh {
        transaction.install(package);
    }
    // What owns file triggers of the transaction's end may be gone by then.
    let owners = transaction.installed.clone();
    for (name, former) in &old {
        transaction.erase(name, former.package.as_ref());
    }
    for package in &fresh {
        let argument = 1 + u32::from(former.contains_key(&package.name));
        transaction.script(package, "post-transaction", "%posttrans", argument, false);
    }
    let new_paths: Vec<&[u8]> = fresh.iter().copied().flat_map(paths).collect();
    transaction.file_triggers(TRANSACTION, TRIGGER_IN, None, &new_paths);
    transaction.installed = owners;
    transaction.file_triggers(TRANSACTION, TRIGGER_POSTUN, None, &old_paths);
    Plan {
        steps: transaction.steps,
        installed: fresh.iter().map(|package| package.name.clone()).collect(),
        erased: former.keys().filter(|name| !packages.contains_key(*name)).cloned().collect(),
        unknown: old
            .iter()
            .filter(|(_, former)| former.package.is_none())
            .map(|(name, former)| format!("{name} {}", former.version))
            .collect(),
    }
}

fn paths(package: &Package) -> impl Iterator<Item = &[u8]> {
    package.paths.iter().map(Vec::as_slice)
}

/// Kinds of triggers, as [`Package`] has them.
const PACKAGE: usize = 0;
const FILE: usize = 1;
const TRANSACTION: usize = 2;

/// Instances of a package, and the one whose triggers count.
#[derive(Debug, Clone, Copy)]
struct Installed<'p> {
    count: u32,
    package: Option<&'p Package>,
}

struct Transaction<'p> {
    installed: BTreeMap<&'p str, Installed<'p>>,
    steps: Vec<Step>,
}

impl<'p> Transaction<'p> {
    fn new(packages: &'p BTreeMap<String, Package>, former: &'p BTreeMap<String, Former>) -> Self {
        let installed = former.iter().map(|(name, former)| {
            let same = packages.get(name).filter(|package| package.version == former.version);
            let package = former.package.as_ref().or(same);
            (name.as_str(), Installed { count: 1, package })
        });
        Transaction { installed: installed.collect(), steps: Vec::new() }
    }

    fn count(&self, name: &str) -> u32 {
        self.installed.get(name).map_or(0, |installed| installed.count)
    }

    fn install(&mut self, package: &'p Package) {
        let name = package.name.as_str();
        let count = self.count(name) + 1;
        self.package_triggers(package, TRIGGER_PREIN);
        self.script(package, "pre-install", "%pre", count, true);
        self.installed.insert(name, Installed { count, package: Some(package) });
        let own: Vec<&[u8]> = paths(package).collect();
        self.file_triggers(FILE, TRIGGER_IN, Some(true), &own);
        self.own_file_triggers(package, true);
        self.script(package, "post-install", "%post", count, false);
        self.package_triggers(package, TRIGGER_IN);
        self.file_triggers(FILE, TRIGGER_IN, Some(false), &own);
        self.own_file_triggers(package, false);
    }

    fn erase(&mut self, name: &'p str, package: Option<&'p Package>) {
        let remaining = self.count(name).saturating_sub(1);
        match self.installed.get_mut(name) {
            Some(installed) if remaining > 0 => installed.count = remaining,
            Some(_) | None => {
                self.installed.remove(name);
            }
        }
        let Some(package) = package else { return };
        let own: Vec<&[u8]> = paths(package).collect();
        self.file_triggers(FILE, TRIGGER_UN, Some(true), &own);
        self.package_triggers(package, TRIGGER_UN);
        self.script(package, "pre-remove", "%preun", remaining, false);
        self.file_triggers(FILE, TRIGGER_UN, Some(false), &own);
        self.file_triggers(FILE, TRIGGER_POSTUN, Some(true), &own);
        self.script(package, "post-remove", "%postun", remaining, false);
        self.package_triggers(package, TRIGGER_POSTUN);
        self.file_triggers(FILE, TRIGGER_POSTUN, Some(false), &own);
    }

    fn script(
        &mut self,
        package: &Package,
        name: &str,
        what: &'static str,
        argument: u32,
        must_succeed: bool,
    ) {
        if let Some(scriptlet) = package.scriptlet(name) {
            self.steps.push(Step {
                package: package.name.clone(),
                what,
                scriptlet: scriptlet.clone(),
                arguments: vec![argument],
                input: None,
                must_succeed,
            });
        }
    }

    /// Triggers of others on `package`, then its own on others.
    fn package_triggers(&mut self, package: &Package, moment: u64) {
        let mut steps = Vec::new();
        let target = self.count(&package.name);
        let what = package_trigger(moment);
        let waits = |condition: &Condition, on: &Package| {
            let relation = condition.relation.as_ref();
            condition.flags & moment != 0
                && condition.name == on.name
                && relation.is_none_or(|relation| relation.admits(&on.version))
        };
        let mut run = |owner: &Package, trigger: &Trigger, arguments: [u32; 2]| {
            steps.push(Step {
                package: owner.name.clone(),
                what,
                scriptlet: trigger.scriptlet.clone(),
                arguments: arguments.into(),
                input: None,
                must_succeed: false,
            });
        };
        let others: Vec<Installed<'p>> = (self.installed.iter())
            .filter(|(name, _)| **name != package.name)
            .map(|(_, installed)| *installed)
            .collect();
        for Installed { count, package: owner } in &others {
            let Some(owner) = owner else { continue };
            for trigger in &owner.triggers[PACKAGE] {
                if trigger.conditions.iter().any(|condition| waits(condition, package)) {
                    run(owner, trigger, [*count, target]);
                }
            }
        }
        // After a package is gone nobody hears of it but the others.
        let own = if moment == TRIGGER_POSTUN { &[][..] } else { &package.triggers[PACKAGE][..] };
        for trigger in own {
            let waits_for =
                |on: &Package| trigger.conditions.iter().any(|condition| waits(condition, on));
            if let Some(on) = others.iter().find(|on| on.package.is_some_and(waits_for)) {
                run(package, trigger, [target, on.count]);
            }
        }
        self.steps.extend(steps);
    }

    /// File triggers of all that is installed on these paths; of the early or the late ones,
    /// or of both.
    fn file_triggers(&mut self, kind: usize, moment: u64, early: Option<bool>, paths: &[&[u8]]) {
        let owners = self.installed.values().filter_map(|installed| installed.package);
        let steps = file_steps(kind, moment, early, owners, paths);
        self.steps.extend(steps);
    }

    /// File triggers of a new package on what others have.
    fn own_file_triggers(&mut self, package: &'p Package, early: bool) {
        let others = self.installed.values().filter_map(|installed| installed.package);
        let others = others.filter(|other| other.name != package.name);
        let paths: Vec<&[u8]> = match package.triggers[FILE].is_empty() {
            true => Vec::new(),
            false => others.flat_map(paths).collect(),
        };
        let steps = file_steps(FILE, TRIGGER_IN, Some(early), [package].into_iter(), &paths);
        self.steps.extend(steps);
    }
}

fn package_trigger(moment: u64) -> &'static str {
    match moment {
        TRIGGER_PREIN => "%triggerprein",
        TRIGGER_IN => "%triggerin",
        TRIGGER_UN => "%triggerun",
        _ => "%triggerpostun",
    }
}

fn file_trigger(kind: usize, moment: u64) -> &'static str {
    match (kind, moment) {
        (FILE, TRIGGER_IN) => "%filetriggerin",
        (FILE, TRIGGER_UN) => "%filetriggerun",
        (FILE, _) => "%filetriggerpostun",
        (_, TRIGGER_IN) => "%transfiletriggerin",
        (_, TRIGGER_UN) => "%transfiletriggerun",
        _ => "%transfiletriggerpostun",
    }
}

fn file_steps<'p>(
    kind: usize,
    moment: u64,
    early: Option<bool>,
    owners: impl Iterator<Item = &'p Package>,
    paths: &[&[u8]],
) -> Vec<Step> {
    let mut found = Vec::new();
    for owner in owners {
        for trigger in &owner.triggers[kind] {
            let prefixes: Vec<_> =
                trigger.conditions.iter().filter(|c| c.flags & moment != 0).collect();
            let is_meant = |path: &&&[u8]| {
                prefixes.iter().any(|prefix| path.starts_with(prefix.name.as_bytes()))
            };
            let is_its_turn = early.is_none_or(|early| early == (trigger.priority >= EARLY));
            let lines: Vec<&[u8]> = match is_its_turn && !prefixes.is_empty() {
                true => paths.iter().filter(is_meant).copied().collect(),
                false => continue,
            };
            if !lines.is_empty() {
                let input = [lines.join(&b'\n'), b"\n".to_vec()].concat();
                found.push((std::cmp::Reverse(trigger.priority), owner, trigger, input));
            }
        }
    }
    // Sorting is stable: among equals it is by owner and place.
    found.sort_by_key(|(priority, ..)| *priority);
    let step = |(_, owner, trigger, input): (_, &Package, &Trigger, Vec<u8>)| Step {
        package: owner.name.clone(),
        what: file_trigger(kind, moment),
        scriptlet: trigger.scriptlet.clone(),
        arguments: vec![0],
        input: Some(input),
        must_succeed: false,
    };
    found.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests;
