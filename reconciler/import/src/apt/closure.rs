//! Which packages of an archive belong together: the closure of what is asked
//! for, found by the resolver that resolves compositions (§5.2), essential
//! packages included. So what is imported is what `strata resolve` can choose.

use std::collections::{BTreeMap, BTreeSet};

use strata_core::configuration::CONFIGURATION_FILE;
use strata_core::database::{Database, Unit};
use strata_core::desired::DesiredState;
use strata_core::digest::Digest;
use strata_core::names::{LayerName, NameError, RepositoryName};
use strata_core::resolver::{self, Upgrade};
use strata_core::source::{SourceContent, SourceTree};
use strata_core::universe::Universe;
use strata_core::version::{LayerVersion, VersionError};

use super::index::Available;

/// `name` or `name=version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: LayerName,
    pub version: Option<LayerVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl std::str::FromStr for Request {
    type Err = RequestError;
    fn from_str(text: &str) -> Result<Self, RequestError> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(LayerVersion::new(version)?)),
            None => (text, None),
        };
        Ok(Request { name: LayerName::new(name)?, version })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosureError {
    #[error("no source of apt has the package {0}")]
    Unknown(LayerName),
    #[error("no source of apt has {name} {wanted}; there is {}", found.join(", "))]
    UnknownVersion { name: LayerName, wanted: LayerVersion, found: Vec<String> },
    #[error("{0} is asked for in two versions")]
    Twice(LayerName),
    #[error("the packages cannot be installed together:\n{}", .0.join("\n"))]
    Unsolvable(Vec<String>),
}

/// Packages by name and version, with where each comes from.
type Packages<I> = BTreeMap<(LayerName, LayerVersion), (Available, I)>;

/// The packages of all sources. `I` says where each comes from.
#[derive(Debug, Default)]
pub struct Archive<I> {
    /// By the priority of their source.
    packages: BTreeMap<u32, Packages<I>>,
}

/// The name of the resolver's repository of a priority.
fn repository(priority: u32) -> RepositoryName {
    RepositoryName::new(format!("priority-{priority}")).expect("letters, digits and a dash")
}

impl<I: Clone> Archive<I> {
    pub fn new() -> Self {
        Archive { packages: BTreeMap::new() }
    }

    /// Adds what a source has. Of the same version in several, the first counts.
    pub fn add(&mut self, priority: u32, packages: Vec<Available>, from: &I) {
        let known = self.packages.entry(priority).or_default();
        for package in packages {
            let key = (package.metadata.layer.clone(), package.metadata.version.clone());
            known.entry(key).or_insert_with(|| (package, from.clone()));
        }
    }

    /// The number of packages.
    pub fn len(&self) -> usize {
        self.packages.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All versions of a package with the priorities of their sources, the best first.
    fn versions(&self, name: &LayerName) -> Vec<(u32, &LayerVersion)> {
        let mut found = Vec::new();
        for (priority, packages) in self.packages.iter().rev() {
            let versions = packages.keys().rev().filter(|(known, _)| known == name);
            found.extend(versions.map(|(_, version)| (*priority, version)));
        }
        found
    }

    fn get(
        &self,
        priority: u32,
        name: &LayerName,
        version: &LayerVersion,
    ) -> Option<(Available, I)> {
        self.packages.get(&priority)?.get(&(name.clone(), version.clone())).cloned()
    }

    /// The unit that a request means.
    fn find(&self, request: &Request) -> Result<(u32, LayerVersion), ClosureError> {
        let versions = self.versions(&request.name);
        let found = match &request.version {
            None => versions.first(),
            Some(wanted) => versions.iter().find(|(_, version)| *version == wanted),
        };
        match (found, &request.version) {
            (Some((priority, version)), _) => Ok((*priority, (*version).clone())),
            (None, Some(wanted)) if !versions.is_empty() => Err(ClosureError::UnknownVersion {
                name: request.name.clone(),
                wanted: wanted.clone(),
                found: versions.iter().map(|(_, version)| version.to_string()).collect(),
            }),
            (None, _) => Err(ClosureError::Unknown(request.name.clone())),
        }
    }

    /// The packages that are asked for, without what they depend on.
    ///
    /// # Errors
    /// No source has one of them.
    pub fn only(&self, requests: &[Request]) -> Result<Vec<(Available, I)>, ClosureError> {
        let mut found = BTreeMap::new();
        for request in requests {
            let (priority, version) = self.find(request)?;
            found.extend(self.get(priority, &request.name, &version).map(|it| (&request.name, it)));
        }
        Ok(found.into_values().collect())
    }

    /// The packages that are asked for with all that they need, by name.
    ///
    /// # Errors
    /// No source has one of them, or they cannot be installed together.
    pub fn closure(&self, requests: &[Request]) -> Result<Vec<(Available, I)>, ClosureError> {
        let desired = self.desired(requests)?;
        let universe = Universe::new(self.databases());
        let resolution = resolver::resolve(&desired, &universe, &Upgrade::Nothing);
        let Some(resolved) = resolution.resolved.into_values().next() else {
            let reasons = resolution.diagnostics.into_iter().map(|found| match found.hint {
                Some(hint) => format!("{} ({hint})", found.message),
                None => found.message,
            });
            let unique: BTreeSet<String> = reasons.collect();
            return Err(ClosureError::Unsolvable(unique.into_iter().collect()));
        };
        let mut packages = BTreeMap::new();
        for (_, line) in resolved.ldf.explicit().chain(resolved.ldf.implicit()) {
            let priority =
                self.packages.keys().find(|known| repository(**known) == line.repository);
            let version = line.version.as_ref();
            let found = priority.zip(version).and_then(|(p, v)| self.get(*p, &line.layer, v));
            packages.extend(found.map(|found| (line.layer.clone(), found)));
        }
        Ok(packages.into_values().collect())
    }

    /// A composition whose explicit layers are the requests.
    fn desired(&self, requests: &[Request]) -> Result<DesiredState, ClosureError> {
        let mut configuration = String::new();
        for priority in self.packages.keys() {
            let name = repository(*priority);
            configuration
                .push_str(&format!("[[repository]]\nname = \"{name}\"\npriority = {priority}\n\n"));
        }
        let mut lines: BTreeMap<&LayerName, String> = BTreeMap::new();
        for request in requests {
            let (priority, version) = self.find(request)?;
            let version = request.version.as_ref().map(|_| format!(" {version}"));
            let line =
                format!("{}/{}{}", repository(priority), request.name, version.unwrap_or_default());
            if lines.insert(&request.name, line.clone()).is_some_and(|known| known != line) {
                return Err(ClosureError::Twice(request.name.clone()));
            }
        }
        let ldf = lines.into_values().collect::<Vec<_>>().join("\n") + "\n";
        let mut tree = SourceTree::default();
        for (path, text) in [(CONFIGURATION_FILE, configuration), ("templates/import.ldf", ldf)] {
            let content = SourceContent::Regular { bytes: text.into_bytes(), executable: false };
            tree.insert(path.as_bytes(), content)
                .expect("two short texts at paths of a GitOps repository");
        }
        Ok(DesiredState::read(&tree).0)
    }

    fn databases(&self) -> Vec<(RepositoryName, u32, Database)> {
        let database = |packages: &Packages<I>| {
            let mut database = Database::default();
            for (package, _) in packages.values() {
                database.insert(Unit {
                    metadata: package.metadata.clone(),
                    // Of what is not a unit yet; no generation is made of it.
                    digest: Digest::of(package.sha256.to_string().as_bytes()),
                    content_bytes: package.bytes,
                    withdrawn: None,
                });
            }
            database
        };
        let of = |(priority, packages): (&u32, _)| {
            (repository(*priority), *priority, database(packages))
        };
        self.packages.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::index;
    use crate::apt::index::tests::stanza;

    fn archive() -> Archive<&'static str> {
        let mut archive = Archive::new();
        let stable = [
            stanza("web", "1", "Depends: libssl (>= 2) | old, mail\n"),
            stanza("libssl", "2", ""),
            stanza("old", "1", ""),
            stanza("postfix", "3", "Provides: mail\nConflicts: exim\n"),
            stanza("exim", "4", "Provides: mail\nConflicts: postfix\n"),
            stanza("base", "1", "Essential: yes\nDepends: libc\n"),
            stanza("libc", "2.36", ""),
        ];
        let security = stanza("libssl", "2.1", "");
        let backports = stanza("libssl", "3", "");
        for (priority, text, name) in [
            (500, stable.concat(), "stable"),
            (500, security, "security"),
            (100, backports, "backports"),
        ] {
            let (packages, _) = index::parse(text.as_bytes(), "amd64").expect("an index");
            archive.add(priority, packages, &name);
        }
        archive
    }

    fn requests(texts: &[&str]) -> Vec<Request> {
        texts.iter().map(|text| text.parse().expect("a request")).collect()
    }

    fn shown(found: Result<Vec<(Available, &str)>, ClosureError>) -> Vec<String> {
        let of = |(package, from): (Available, &str)| {
            format!("{} {} {from}", package.metadata.layer, package.metadata.version)
        };
        found.expect("a closure").into_iter().map(of).collect()
    }

    #[test]
    fn closures_have_the_essential_packages_and_the_best_versions() {
        let archive = archive();
        let found = shown(archive.closure(&requests(&["web"])));
        let expected = [
            "base 1 stable",
            "exim 4 stable",
            "libc 2.36 stable",
            "libssl 2.1 security",
            "web 1 stable",
        ];
        assert_eq!(found, expected);
        let found = shown(archive.closure(&requests(&["web", "libssl=3", "postfix"])));
        assert!(found.contains(&"libssl 3 backports".to_owned()), "{found:?}");
        assert!(!found.contains(&"exim 4 stable".to_owned()), "{found:?}");
        assert_eq!(shown(archive.only(&requests(&["web"]))), ["web 1 stable"]);
    }

    #[test]
    fn what_cannot_be_is_explained() {
        let archive = archive();
        let fails = |texts: &[&str]| archive.closure(&requests(texts)).expect_err("no closure");
        assert_eq!(fails(&["nothing"]).to_string(), "no source of apt has the package nothing");
        let error = fails(&["libssl=9"]).to_string();
        assert!(error.contains("there is 2.1, 2, 3"), "{error}");
        assert!(matches!(fails(&["libssl", "libssl=2"]), ClosureError::Twice(_)));
        let error = fails(&["exim", "postfix"]).to_string();
        assert!(error.contains("exim") && error.contains("postfix"), "{error}");
    }
}
