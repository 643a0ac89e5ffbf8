//! What a layer depends on, found in its files (§5.3): the libraries that programs need
//! and the versions of the symbols that they use of them, and the interpreters of scripts.
//!
//! For libraries the rules are those of dpkg-shlibdeps(1), from what the layers in the
//! store say of theirs (`symbols`, else `shlibs`); `ci/proof dependencies` compares. Two
//! things go beyond it: a library of a layer that says nothing of its libraries (one that
//! was built here, one of an RPM package) is a dependency on that layer in the version at
//! hand or a later one; and a script depends on the layer that has its interpreter, unless
//! that is essential to the same repository.
//!
//! Nothing here follows a link out of the layer, and files are read with limits.

pub mod elf;
pub mod interpreter;
pub mod providers;
pub mod symbols;

mod search;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use strata_core::limits;
use strata_core::manifest::{Entry, Kind, Manifest};
use strata_core::names::{LayerName, RepositoryName};
use strata_core::relation::{self, Comparison, Dependency, RelationFault};
use strata_core::version::LayerVersion;
use strata_store::StoreError;

use self::elf::{Elf, ElfError};
use self::interpreter::Interpreter;
use self::providers::{Provider, Providers};
use self::search::Search;
use self::symbols::{Library, MINIMAL_VERSION};
use crate::member::shown;
use crate::rooted::{Rooted, RootedError};
use crate::usr_merge::merged;

/// Symbols of programs that were taken apart, and examples: nobody runs them.
const PASSED_OVER: [&[u8]; 2] = [b"usr/lib/debug/", b"usr/share/doc/"];

#[derive(Debug, thiserror::Error)]
pub enum InferError {
    #[error(transparent)]
    Read(#[from] RootedError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{layer} says of {soname}: {text:?}: {error}", error = fault.1)]
    Dependency { layer: LayerName, soname: String, text: String, fault: RelationFault },
}

/// The layer that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'t> {
    /// Where its files are.
    pub files: &'t Path,
    pub manifest: &'t Manifest,
    /// Where it is or is to be, and its name, where that is known.
    pub own: Option<(&'t RepositoryName, &'t LayerName)>,
}

/// What a file needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A library, and the symbol that decides about the version.
    Library { soname: String, symbol: Option<String> },
    /// A program, by its absolute path.
    Interpreter { path: String },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Library { soname, symbol: None } => write!(f, "needs {soname}"),
            Need::Library { soname, symbol: Some(symbol) } => {
                write!(f, "needs {symbol} of {soname}")
            }
            Need::Interpreter { path } => write!(f, "is run by {path}"),
        }
    }
}

/// A file and what it needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// Absolute, for people.
    pub path: String,
    pub need: Need,
}

/// A dependency with one of its reasons: the one that decides about its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    pub dependency: Dependency,
    pub reason: Reason,
}

/// What was found in a layer.
#[derive(Debug, Default)]
pub struct Findings {
    /// By what they name.
    pub dependencies: Vec<Inferred>,
    /// What neither the layer nor another has.
    pub missing: Vec<Reason>,
    /// Files that look like programs and cannot be read as such.
    pub unreadable: Vec<(String, ElfError)>,
}

/// Finds what a layer depends on.
///
/// # Errors
/// A file, or what other layers say, cannot be read.
pub fn infer(subject: Subject<'_>, providers: &Providers<'_>) -> Result<Findings, InferError> {
    let mut inference = Inference {
        subject,
        providers,
        search: Search::of(subject.manifest),
        wanted: BTreeMap::new(),
        libraries: HashMap::new(),
        findings: Findings::default(),
    };
    let files = Rooted::open(subject.files)?;
    for entry in subject.manifest.entries() {
        let passed_over = |start: &&[u8]| entry.path.starts_with(start);
        if !matches!(entry.kind, Kind::Regular { .. }) || PASSED_OVER.iter().any(passed_over) {
            continue;
        }
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let start = files.read_start(path, interpreter::LINE_BYTES as u64)?.unwrap_or_default();
        if elf::is_elf(&start) {
            let content = files.read(path, limits::ELF_BYTES)?.unwrap_or_default();
            match elf::read(&content) {
                Ok(Some(elf)) => inference.elf(entry, &elf)?,
                Ok(None) => {}
                Err(error) => {
                    inference.findings.unreadable.push((absolute(&entry.path), error));
                }
            }
        } else if entry.mode & 0o111 != 0
            && let Some(interpreter) = Interpreter::of(&start)
        {
            inference.script(entry, &interpreter)?;
        }
    }
    inference.finish()
}

/// A path of a manifest for people.
fn absolute(path: &[u8]) -> String {
    format!("/{}", shown(path))
}

/// A dependency as a layer writes it for its users, and what it is wanted for.
#[derive(Debug)]
struct Wanted {
    layer: LayerName,
    soname: String,
    version: Option<LayerVersion>,
    reason: Reason,
}

struct Inference<'i> {
    subject: Subject<'i>,
    providers: &'i Providers<'i>,
    search: Search,
    wanted: BTreeMap<String, Wanted>,
    /// What a layer's `symbols` says of a library.
    libraries: HashMap<(LayerName, String), Option<Library>>,
    findings: Findings,
}

/// Where a needed library is.
enum Place<'i> {
    Own,
    Layer(&'i Provider),
    Nowhere,
}

impl<'i> Inference<'i> {
    fn elf(&mut self, entry: &Entry, elf: &Elf) -> Result<(), InferError> {
        let mut described: Vec<(&str, &'i Provider)> = Vec::new();
        for soname in &elf.needed {
            let reason = |symbol| Reason {
                path: absolute(&entry.path),
                need: Need::Library { soname: soname.clone(), symbol },
            };
            let provider = match self.place(entry, elf, soname)? {
                Place::Own => continue,
                Place::Nowhere => {
                    self.findings.missing.push(reason(None));
                    continue;
                }
                Place::Layer(provider) => provider,
            };
            if let Some(library) = self.library(provider, soname) {
                let least = library.versions().filter_map(|text| LayerVersion::new(text).ok());
                let least = least.min_by(LayerVersion::debian_cmp);
                let dependency = library.dependency().unwrap_or_default().to_owned();
                self.want(&dependency, provider, least, reason(None));
                described.push((soname, provider));
            } else if let Some(text) = symbols::shlibs_dependency(provider.shlibs(), soname) {
                self.want(text, provider, None, reason(None));
            } else {
                let (layer, version) = (&provider.metadata.layer, &provider.metadata.version);
                let text = format!("{layer} {MINIMAL_VERSION}");
                self.want(&text, provider, Some(version.clone()), reason(None));
            }
        }
        for symbol in &elf.undefined {
            for (soname, provider) in &described {
                let Some(library) = self.library(provider, soname) else { continue };
                let Some((text, since)) = library.symbol(symbol) else { continue };
                let (text, since) = (text.to_owned(), LayerVersion::new(since).ok());
                let symbol = Some(symbol.clone());
                let need = Need::Library { soname: (*soname).to_owned(), symbol };
                let reason = Reason { path: absolute(&entry.path), need };
                self.want(&text, provider, since, reason);
                break;
            }
        }
        Ok(())
    }

    fn library(&mut self, provider: &Provider, soname: &str) -> Option<&Library> {
        let key = (provider.metadata.layer.clone(), soname.to_owned());
        let read = || symbols::library(provider.symbols(), soname);
        self.libraries.entry(key).or_insert_with(read).as_ref()
    }

    /// Where the loader would find a library that the file at `entry` needs.
    fn place(&self, entry: &Entry, elf: &Elf, soname: &str) -> Result<Place<'i>, InferError> {
        let directories = search::directories(&entry.path, elf);
        if self.search.finds(&directories, soname) {
            return Ok(Place::Own);
        }
        let providers: &'i Providers<'i> = self.providers;
        let candidates = providers.of_library(soname);
        if candidates.len() > 1 {
            // Alternatives of one library: the one that has the very name.
            for provider in &candidates {
                let manifest = providers.manifest(provider)?;
                if search::places(&directories, soname).any(|path| manifest.get(&path).is_some()) {
                    return Ok(Place::Layer(provider));
                }
            }
        }
        if let Some(provider) = candidates.first() {
            return Ok(Place::Layer(provider));
        }
        if self.search.has_name(soname) {
            return Ok(Place::Own);
        }
        for path in search::places(&directories, soname) {
            if let Some(provider) = providers.of_path(&path)? {
                return Ok(Place::Layer(provider));
            }
        }
        Ok(Place::Nowhere)
    }

    fn script(&mut self, entry: &Entry, interpreter: &Interpreter) -> Result<(), InferError> {
        let mut programs: Vec<(Vec<Vec<u8>>, String)> = Vec::new();
        match interpreter {
            Interpreter::Path(path) => programs.push((vec![merged(path)], absolute(path))),
            Interpreter::Searched { env, name } => {
                programs.push((vec![merged(env)], absolute(env)));
                let places = interpreter::SEARCHED.iter();
                let places = places.map(|place| [place.as_bytes(), b"/", name].concat()).collect();
                programs.push((places, format!("{} of the PATH", shown(name))));
            }
            Interpreter::Relative(name) => programs.push((Vec::new(), shown(name))),
        }
        for (places, path) in programs {
            let need = Need::Interpreter { path };
            let reason = Reason { path: absolute(&entry.path), need };
            if places.iter().any(|path| self.search.has(path)) {
                continue;
            }
            let mut found = None;
            for path in &places {
                found = self.providers.of_path(path)?;
                if found.is_some() {
                    break;
                }
            }
            match found {
                None => self.findings.missing.push(reason),
                Some(provider) if self.is_always_there(provider) => {}
                Some(provider) => {
                    let text = provider.metadata.layer.to_string();
                    self.want(&text, provider, None, reason);
                }
            }
        }
        Ok(())
    }

    /// Whether every composition that draws on the layer's repository has it anyway.
    fn is_always_there(&self, provider: &Provider) -> bool {
        let own = self.subject.own.map(|(repository, _)| repository);
        provider.metadata.essential && own == Some(&provider.repository)
    }

    /// Notes that `text` is wanted, each of its dependencies in this version at least.
    fn want(
        &mut self,
        text: &str,
        provider: &Provider,
        version: Option<LayerVersion>,
        reason: Reason,
    ) {
        let soname = match &reason.need {
            Need::Library { soname, .. } => soname.clone(),
            Need::Interpreter { path } => path.clone(),
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let layer = provider.metadata.layer.clone();
            let wanted = self.wanted.entry(part.to_owned()).or_insert_with(|| Wanted {
                layer,
                soname: soname.clone(),
                version: None,
                reason: reason.clone(),
            });
            let later = match (&wanted.version, &version) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(known), Some(new)) => known.debian_cmp(new).is_lt(),
            };
            if later {
                wanted.version.clone_from(&version);
                wanted.reason = reason.clone();
            }
        }
    }

    fn finish(mut self) -> Result<Findings, InferError> {
        let mut found = Vec::new();
        for (template, wanted) in self.wanted {
            // Version 0 means that any will do.
            let version = wanted.version.filter(|version| version.as_str() != "0");
            let bound = version.map(|version| format!("(>= {version})")).unwrap_or_default();
            let text = template.replace(MINIMAL_VERSION, &bound);
            let dependencies = relation::parse_dependencies(&text).map_err(|fault| {
                let (layer, soname) = (wanted.layer.clone(), wanted.soname.clone());
                InferError::Dependency { layer, soname, text, fault }
            })?;
            let reason = &wanted.reason;
            found.extend(
                dependencies
                    .into_iter()
                    .map(|dependency| Inferred { dependency, reason: reason.clone() }),
            );
        }
        let own = self.subject.own.map(|(_, layer)| layer);
        found.retain(|inferred| {
            !inferred.dependency.alternatives.iter().any(|relation| Some(&relation.name) == own)
        });
        self.findings.dependencies = simplified(found);
        self.findings.missing.sort();
        self.findings.missing.dedup();
        Ok(self.findings)
    }
}

/// Leaves out what follows from another dependency of the list.
fn simplified(mut found: Vec<Inferred>) -> Vec<Inferred> {
    found.sort_by(|a, b| a.dependency.cmp(&b.dependency));
    let mut kept: Vec<Inferred> = Vec::new();
    for inferred in found {
        if kept.iter().any(|other| implies(&other.dependency, &inferred.dependency)) {
            continue;
        }
        kept.retain(|other| !implies(&inferred.dependency, &other.dependency));
        kept.push(inferred);
    }
    kept
}

/// Adds to what a layer says that it depends on what was found, as far as it does not
/// follow from it.
pub fn add_to(depends: &mut Vec<Dependency>, found: &[Inferred]) {
    for Inferred { dependency, .. } in found {
        if !depends.iter().any(|known| implies(known, dependency)) {
            depends.retain(|known| !implies(dependency, known));
            depends.push(dependency.clone());
        }
    }
}

/// Whether whatever satisfies `a` satisfies `b`, as far as that is plain to see.
fn implies(a: &Dependency, b: &Dependency) -> bool {
    if a == b {
        return true;
    }
    let ([a], [b]) = (a.alternatives.as_slice(), b.alternatives.as_slice()) else { return false };
    if (&a.name, &a.architecture) != (&b.name, &b.architecture) {
        return false;
    }
    match (&a.constraint, &b.constraint) {
        (_, None) => true,
        (
            Some((Comparison::LaterOrEqual | Comparison::Exactly, a)),
            Some((Comparison::LaterOrEqual, b)),
        ) => a.debian_cmp(b).is_ge(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
