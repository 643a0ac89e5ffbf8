//! What is suspicious about a layer unit (§5.1): where its files are, whom they trust, and
//! how it stands beside the other layers of the store.
//!
//! [`rules`] judges the manifest alone; [`programs`] looks at what scripts and programs are
//! run by, [`neighbours`] at the other layers. A finding names a path where it is about one.
//! Nothing is changed, and no link is followed out of the layer.

pub mod neighbours;
pub mod programs;
pub mod rules;

use std::fmt;
use std::str::FromStr;

use strata_core::manifest::Manifest;
use strata_core::metadata::Metadata;
use strata_core::names::RepositoryName;
use strata_store::{Store, StoreError};

use crate::infer::providers::Providers;
use crate::rooted::RootedError;

#[derive(Debug, thiserror::Error)]
pub enum LintError {
    #[error(transparent)]
    Read(#[from] RootedError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0} is not in the database of its repository")]
    Unlisted(String),
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a look: there can be good reasons for it.
    Warning,
    /// The layer does not work, or should not be trusted.
    Error,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

macro_rules! codes {
    ($($variant:ident $text:literal $meaning:literal),+ $(,)?) => {
        /// What is found.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $meaning] $variant),+ }

        impl Code {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),+ }
            }
        }
    };
}

codes! {
    OutsideHierarchy "outside-hierarchy" "A file that no layer should bring, by where it is.",
    UnmergedUsr "unmerged-usr" "A path below /bin, /sbin or /lib, which are links of the base.",
    LinkOutOfTree "link-out-of-tree" "A relative link that leads above the root.",
    AbsoluteLink "absolute-link" "A link to an absolute path that the layer does not have.",
    DanglingLink "dangling-link" "A link to a path that no layer has.",
    WorldWritable "world-writable" "A path that everybody may write.",
    Setuid "setuid" "A program that runs as its owner.",
    Setgid "setgid" "A program that runs as its group.",
    Capability "capability" "A program that has capabilities of its own.",
    MissingInterpreter "missing-interpreter" "A program that nothing can run.",
    UnmetDependency "unmet-dependency" "A dependency that no unit of the repositories meets.",
    SharedPath "shared-path" "Paths that another layer has, too.",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no finding {0:?}; there are {all}", all = Code::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", "))]
pub struct CodeError(String);

impl FromStr for Code {
    type Err = CodeError;
    fn from_str(text: &str) -> Result<Self, CodeError> {
        let found = Code::ALL.iter().copied().find(|code| code.as_str() == text);
        found.ok_or_else(|| CodeError(text.chars().take(64).collect()))
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub severity: Severity,
    pub code: Code,
    /// Relative to the root; `None` where the finding is about the layer as a whole.
    pub path: Option<Vec<u8>>,
    pub reason: String,
}

impl Finding {
    fn at(severity: Severity, code: Code, path: &[u8], reason: impl Into<String>) -> Self {
        Finding { severity, code, path: Some(path.to_vec()), reason: reason.into() }
    }
}

/// The unit that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'s> {
    pub store: &'s Store,
    pub repository: &'s RepositoryName,
    pub metadata: &'s Metadata,
    pub manifest: &'s Manifest,
}

/// Everything that is found: errors first, then by path.
///
/// # Errors
/// The unit, or another, cannot be read.
pub fn lint(subject: Subject<'_>) -> Result<Vec<Finding>, LintError> {
    let Subject { store, repository, metadata, manifest } = subject;
    let mut repositories = store.repositories()?;
    repositories.sort_by_key(|other| other != repository);
    let providers = Providers::load(store, &repositories, Some(&metadata.layer))?;
    let mut findings = rules::findings(manifest);
    findings.extend(rules::links(manifest, &providers)?);
    let files = store.unit_path(repository, &metadata.layer, &metadata.version).join("filesystem");
    findings.extend(programs::findings(&files, manifest, &providers)?);
    findings.extend(neighbours::findings(subject, &repositories, &providers)?);
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    Ok(findings)
}
