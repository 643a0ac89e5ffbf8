//! Which maintainer scripts run, with which arguments, in which order. Pure.
//!
//! A first build runs `preinst install` and `postinst configure` of every package.
//! A build that starts from a former configuration layer does what dpkg does on an
//! upgrade: `prerm upgrade NEW` and `postrm upgrade NEW` of the old version, `preinst
//! upgrade OLD NEW` and `postinst configure OLD` of the new one, and `prerm remove`,
//! `postrm remove`, `postrm purge` of what is no longer there.
//!
//! The order is that in which a distribution's installer makes its first system
//! (deb-preinst(5) knows no order of its own): `preinst` of who makes the first accounts,
//! then an awk, then what is essential, then who makes further accounts, then the rest;
//! each with all that it needs, which dpkg itself brings into order.

use std::collections::{BTreeMap, BTreeSet};

use super::database::Former;
use super::package::Package;

/// A script that is run by us; `postinst configure` is dpkg's own work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub package: String,
    /// As dpkg names its files.
    pub database_name: String,
    pub architecture: String,
    /// `preinst`, `prerm` or `postrm`.
    pub script: &'static str,
    pub arguments: Vec<String>,
}

/// One step of preparing what was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// `preinst` of those that are new.
    pub install: Vec<Script>,
    /// Packages for `dpkg --configure`.
    pub configure: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Of old versions, before their scripts are replaced.
    pub before: Vec<Script>,
    /// `preinst upgrade`, from where dpkg stages it.
    pub upgrade: Vec<Script>,
    /// Of old versions, after that.
    pub after: Vec<Script>,
    /// In order; what no group names is configured at the end.
    pub groups: Vec<Group>,
    /// Names of packages to make `/usr/bin/awk` from until one of them has.
    pub awk: Option<&'static str>,
}

impl Plan {
    /// Nothing has changed.
    pub fn is_empty(&self) -> bool {
        let idle = |group: &Group| group.install.is_empty() && group.configure.is_empty();
        self.before.is_empty() && self.groups.iter().all(idle)
    }
}

/// Package, and the program that stands for awk.
const AWKS: [(&str, &str); 3] =
    [("mawk", "mawk"), ("gawk", "gawk"), ("original-awk", "original-awk")];

/// What there is to do to get from the database `former` to `packages`.
pub fn plan(packages: &BTreeMap<String, Package>, former: &BTreeMap<String, Former>) -> Plan {
    let mut plan = Plan::default();
    for (name, old) in former {
        let new = packages.get(name);
        let script = |script, arguments: &[&str]| Script {
            package: name.clone(),
            database_name: old.database_name.clone(),
            architecture: new.map_or_else(String::new, |new| new.architecture.clone()),
            script,
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        };
        match new {
            Some(new) if new.version == old.version => {}
            Some(new) => {
                let version = new.version.as_str();
                if old.installed {
                    plan.before.push(script("prerm", &["upgrade", version]));
                }
                let staged = ["upgrade", old.version.as_str(), version];
                plan.upgrade.push(Script {
                    database_name: new.database_name(),
                    ..script("preinst", &staged)
                });
                plan.after.push(script("postrm", &["upgrade", version]));
            }
            None => {
                if old.installed {
                    plan.before.push(script("prerm", &["remove"]));
                }
                plan.after.push(script("postrm", &["remove"]));
                plan.after.push(script("postrm", &["purge"]));
            }
        }
    }
    let fresh = |name: &&str| packages.contains_key(*name) && !former.contains_key(*name);
    let awk = AWKS.iter().find(|(package, _)| fresh(package));
    plan.awk = awk.map(|(_, program)| *program);
    let mut seen = BTreeSet::new();
    let accounts = packages.contains_key("base-passwd").then_some("base-passwd");
    plan.groups.push(group(packages, former, &mut seen, accounts.iter().copied(), false));
    let essential = packages.values().filter(|package| package.essential);
    let stages: [Vec<&str>; 4] = [
        awk.map(|(package, _)| *package).into_iter().collect(),
        essential.map(|package| package.name.as_str()).collect(),
        vec!["passwd", "adduser"],
        packages.keys().map(String::as_str).collect(),
    ];
    for names in stages {
        let all = closure(packages, &names);
        plan.groups.push(group(packages, former, &mut seen, all.into_iter(), true));
    }
    plan
}

/// The packages and all that they need, by name.
fn closure<'p>(packages: &'p BTreeMap<String, Package>, names: &[&str]) -> BTreeSet<&'p str> {
    let mut providers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages.values() {
        for name in &package.provides {
            providers.entry(name).or_default().push(&package.name);
        }
    }
    let mut all = BTreeSet::new();
    let mut pending: Vec<&Package> = names.iter().filter_map(|name| packages.get(*name)).collect();
    while let Some(package) = pending.pop() {
        if !all.insert(package.name.as_str()) {
            continue;
        }
        for alternatives in &package.needs {
            for name in alternatives {
                let provided = providers.get(name.as_str()).into_iter().flatten();
                let found = std::iter::once(name.as_str()).chain(provided.copied());
                pending.extend(found.filter_map(|name| packages.get(name)));
            }
        }
    }
    all
}

/// One step for those of `names` that no earlier one had. Without `configure` only
/// `preinst` is run, and a later step configures them.
fn group<'p>(
    packages: &'p BTreeMap<String, Package>,
    former: &BTreeMap<String, Former>,
    seen: &mut BTreeSet<(&'p str, bool)>,
    names: impl Iterator<Item = &'p str>,
    configure: bool,
) -> Group {
    let mut group = Group::default();
    for package in names.filter_map(|name| packages.get(name)) {
        let name = package.name.as_str();
        let old = former.get(name);
        if old.is_some_and(|old| old.version == package.version && old.installed) {
            continue;
        }
        let first = seen.insert((name, false));
        if first && old.is_none() && package.member("preinst").is_some() {
            group.install.push(Script {
                package: package.name.clone(),
                database_name: package.database_name(),
                architecture: package.architecture.clone(),
                script: "preinst",
                arguments: vec!["install".to_owned()],
            });
        }
        if configure && seen.insert((name, true)) {
            group.configure.push(package.name.clone());
        }
    }
    group
}

#[cfg(test)]
mod tests;
