//! An RPM package as rpm knows it, read back from the layer unit that it became.

use std::path::PathBuf;

use strata_core::metadata::Metadata;
use strata_core::relation::Relation;
use strata_core::version::LayerVersion;
use strata_store::OpenedUnit;

use super::header::{Header, HeaderError};
use super::relations::{self, Raw, RelationError};
use super::{CONTROL_DIRECTORY, relation_lists, tag};

/// The interpreter that is no program but rpm itself.
const LUA: &str = "<lua>";
/// `Requires` that hold before a package's scripts run: `RPMSENSE_PRETRANS`, `_PREREQ`,
/// `_INTERP`, `_SCRIPT_PRE` and `_SCRIPT_POST`.
const BEFORE_SCRIPTS: u64 = 1 << 7 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10;
/// What rpm takes where a file trigger names no priority.
const PRIORITY: u64 = 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("the RPM header of {unit}: {source}")]
    Header { unit: PathBuf, source: HeaderError },
    #[error("the RPM header of {unit}: {source}")]
    Relation { unit: PathBuf, source: RelationError },
}

/// A script and what runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scriptlet {
    /// The interpreter with its own arguments; never empty.
    pub program: Vec<String>,
    /// `None` where the program is all there is (`%post -p /sbin/ldconfig`).
    pub text: Option<Vec<u8>>,
}

impl Scriptlet {
    fn new(program: Vec<String>, text: Option<Vec<u8>>) -> Self {
        let program = if program.is_empty() { vec!["/bin/sh".to_owned()] } else { program };
        Scriptlet { program, text }
    }

    /// Whether it runs in the Lua that rpm has.
    pub fn is_lua(&self) -> bool {
        self.program.first().is_some_and(|program| program == LUA)
    }
}

/// What a trigger waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// A package, or the beginning of paths.
    pub name: String,
    /// The moments, as rpm's sense flags have them.
    pub flags: u64,
    /// Of packages: which versions.
    pub relation: Option<Relation>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    pub scriptlet: Scriptlet,
    /// Higher ones run first; file triggers have them.
    pub priority: u64,
    pub conditions: Vec<Condition>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: LayerVersion,
    /// The header as the package had it.
    pub header: Vec<u8>,
    /// Every path, as the package names it, with its slash.
    pub paths: Vec<Vec<u8>>,
    /// For the order: what its scripts need stands as `Pre-Depends`.
    pub(super) relations: Metadata,
    scriptlets: Vec<(&'static str, Scriptlet)>,
    /// By package, by file, and by file once a transaction.
    pub(super) triggers: [Vec<Trigger>; 3],
}

impl Package {
    /// The package that a unit was converted from; `None` where it was made otherwise.
    ///
    /// # Errors
    /// Its header is damaged.
    pub fn of_unit(unit: &OpenedUnit) -> Result<Option<Self>, PackageError> {
        let Some(bytes) = unit.scripts.get(&format!("{CONTROL_DIRECTORY}/header")) else {
            return Ok(None);
        };
        let read = Header::parse(bytes).and_then(|header| read(&header));
        let header = |source| PackageError::Header { unit: unit.path.clone(), source };
        let Parts { needs, paths, scriptlets, triggers } = read.map_err(header)?;
        let relation = |source| PackageError::Relation { unit: unit.path.clone(), source };
        let mut relations = unit.metadata.clone();
        relations.pre_depends = relations::requires(&raw(&needs)).map_err(relation)?;
        let checked = |found: Vec<FoundTrigger>| -> Result<Vec<Trigger>, PackageError> {
            found.into_iter().map(|trigger| trigger.checked().map_err(relation)).collect()
        };
        let [packages, files, transactions] = triggers;
        let triggers = [checked(packages)?, checked(files)?, checked(transactions)?];
        Ok(Some(Package {
            name: unit.metadata.layer.to_string(),
            version: unit.metadata.version.clone(),
            header: bytes.clone(),
            paths,
            relations,
            scriptlets,
            triggers,
        }))
    }

    /// The scriptlet that the unit keeps under a name such as `post-install`.
    pub fn scriptlet(&self, name: &str) -> Option<&Scriptlet> {
        self.scriptlets.iter().find(|(known, _)| *known == name).map(|(_, scriptlet)| scriptlet)
    }
}

type RelationList = Vec<(String, u64, String)>;

/// What is taken from a header.
struct Parts {
    needs: RelationList,
    paths: Vec<Vec<u8>>,
    scriptlets: Vec<(&'static str, Scriptlet)>,
    triggers: [Vec<FoundTrigger>; 3],
}

struct FoundTrigger {
    scriptlet: Scriptlet,
    priority: u64,
    conditions: RelationList,
    /// Whether the conditions are packages with versions.
    is_of_packages: bool,
}

impl FoundTrigger {
    fn checked(self) -> Result<Trigger, RelationError> {
        let condition = |(name, flags, version): (String, u64, String)| {
            let relation = match self.is_of_packages {
                true => Some(relations::relation(Raw { name: &name, flags, version: &version })?),
                false => None,
            };
            Ok(Condition { name, flags, relation })
        };
        let conditions = self.conditions.into_iter().map(condition).collect::<Result<_, _>>()?;
        Ok(Trigger { scriptlet: self.scriptlet, priority: self.priority, conditions })
    }
}

fn raw(list: &[(String, u64, String)]) -> Vec<Raw<'_>> {
    list.iter().map(|(name, flags, version)| Raw { name, flags: *flags, version }).collect()
}

fn read(header: &Header) -> Result<Parts, HeaderError> {
    let mut needs = relation_lists(header, tag::REQUIRES)?;
    needs.retain(|(_, flags, _)| flags & BEFORE_SCRIPTS != 0);
    let names = header.byte_strings(tag::BASENAMES)?;
    let directories = header.byte_strings(tag::DIRNAMES)?;
    let indexes = header.numbers(tag::DIR_INDEXES)?;
    let path = |(name, index): (&Vec<u8>, &u64)| -> Result<Vec<u8>, HeaderError> {
        let directory = usize::try_from(*index).ok().and_then(|index| directories.get(index));
        let outside = HeaderError::Damaged("the header", "a file is in no directory");
        Ok([directory.ok_or(outside)?.as_slice(), name].concat())
    };
    let paths = names.iter().zip(&indexes).map(path).collect::<Result<_, HeaderError>>()?;
    let mut scriptlets = Vec::new();
    for (name, script, program) in tag::SCRIPTLETS {
        let program = header.texts(program)?;
        let text = header.byte_strings(script)?.into_iter().next();
        if text.is_some() || !program.is_empty() {
            scriptlets.push((name, Scriptlet::new(program, text)));
        }
    }
    let mut triggers = [Vec::new(), Vec::new(), Vec::new()];
    for (kind, (found, tags)) in triggers.iter_mut().zip(tag::TRIGGERS).enumerate() {
        let (_, scripts, programs, indexes, conditions) = tags;
        let programs = header.texts(programs)?;
        let indexes = header.numbers(indexes)?;
        let conditions = relation_lists(header, conditions)?;
        let priorities = match tag::TRIGGER_PRIORITIES[kind] {
            Some(tag) => header.numbers(tag)?,
            None => Vec::new(),
        };
        for (number, text) in header.byte_strings(scripts)?.into_iter().enumerate() {
            let own = indexes.iter().zip(&conditions).filter(|(at, _)| **at == number as u64);
            let program = programs.get(number).cloned().into_iter().collect();
            found.push(FoundTrigger {
                scriptlet: Scriptlet::new(program, Some(text)),
                priority: priorities.get(number).copied().unwrap_or(PRIORITY),
                conditions: own.map(|(_, condition)| condition.clone()).collect(),
                is_of_packages: kind == 0,
            });
        }
    }
    Ok(Parts { needs, paths, scriptlets, triggers })
}

#[cfg(test)]
pub(super) mod tests {
    use strata_core::metadata::LayerKind;

    use super::*;

    /// A package with scripts of these names, which need these others.
    pub(crate) fn package(name: &str, version: &str, scripts: &[&'static str]) -> Package {
        let (layer, version) = (name.parse().expect("valid"), version.parse().expect("valid"));
        let shell = || Scriptlet::new(Vec::new(), Some(name.as_bytes().to_vec()));
        Package {
            name: name.to_owned(),
            relations: Metadata::new(layer, LayerVersion::clone(&version), LayerKind::Software),
            version,
            header: Vec::new(),
            paths: vec![format!("/usr/share/{name}").into_bytes()],
            scriptlets: scripts.iter().map(|script| (*script, shell())).collect(),
            triggers: Default::default(),
        }
    }

    /// A trigger of a kind: `(name or prefix, flags)`.
    pub(crate) fn trigger(conditions: &[(&str, u64)], priority: u64) -> Trigger {
        let condition = |(name, flags): &(&str, u64)| Condition {
            name: (*name).to_owned(),
            flags: *flags,
            relation: None,
        };
        Trigger {
            scriptlet: Scriptlet::new(Vec::new(), Some(b"trigger".to_vec())),
            priority,
            conditions: conditions.iter().map(condition).collect(),
        }
    }

    #[test]
    fn programs_of_scriptlets() {
        let shell = Scriptlet::new(Vec::new(), Some(Vec::new()));
        assert_eq!(
            (shell.program.as_slice(), shell.is_lua()),
            (&["/bin/sh".to_owned()][..], false)
        );
        assert!(Scriptlet::new(vec!["<lua>".to_owned()], Some(Vec::new())).is_lua());
    }
}
