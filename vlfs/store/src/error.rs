//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use strata_core::data_paths::DataPathsError;
use strata_core::database::DatabaseError;
use strata_core::generation::GenerationError;
use strata_core::manifest::ManifestError;
use strata_core::metadata::MetadataError;
use strata_core::report::ReportError;
use strata_core::scripts::policy::PolicyError;
use strata_core::whiteouts::WhiteoutsError;
use strata_core::withdrawn::WithdrawnError;
use strata_core::{
    Digest, GenerationId, LayerName, LayerVersion, Located, MacAddr, RepositoryName,
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} is no store: it has no file `format` with the text `strata-store 1`")]
    NotAStore(PathBuf),
    #[error("{0} is not empty and no store; nothing was changed")]
    NotEmpty(PathBuf),
    #[error("{path} has more than {limit} bytes")]
    TooLarge { path: PathBuf, limit: usize },
    #[error("{0} is no regular file")]
    NotRegular(PathBuf),
    #[error("the store has no repository {0}")]
    NoRepository(RepositoryName),
    #[error("no permission to read the repository {repository}: {path}")]
    NoAccess { repository: RepositoryName, path: PathBuf },
    #[error("{path} cannot be decompressed: {source}")]
    Compression { path: PathBuf, source: io::Error },
    #[error("the repository name `templates` is reserved for layers that come from git")]
    ReservedRepository,
    #[error("the repository {0} is a mirror: what it holds is changed where it comes from")]
    Mirror(RepositoryName),
    #[error("the repository {0} is the store's own, and is not overwritten by a mirror of another")]
    NoMirror(RepositoryName),
    #[error("the repository {repository} has no unit {layer} {version}")]
    NoUnit { repository: RepositoryName, layer: LayerName, version: LayerVersion },
    #[error("{path}:{located}")]
    Database { path: PathBuf, located: Located<DatabaseError> },
    #[error("{path}:{located}")]
    Metadata { path: PathBuf, located: Located<MetadataError> },
    #[error("{path}:{located}")]
    Manifest { path: PathBuf, located: Located<ManifestError> },
    #[error("{path}:{located}")]
    Whiteouts { path: PathBuf, located: Located<WhiteoutsError> },
    #[error("{path}:{located}")]
    Withdrawn { path: PathBuf, located: Located<WithdrawnError> },
    #[error("{path}:{located}")]
    Generation { path: PathBuf, located: Located<GenerationError> },
    #[error("{path}:{located}")]
    Data { path: PathBuf, located: Located<DataPathsError> },
    #[error("{path}:{located}")]
    Policy { path: PathBuf, located: Located<PolicyError> },
    #[error("{path}: {source}")]
    Report { path: PathBuf, source: ReportError },
    #[error("the layer unit in {path} is damaged: its digest is {found}, expected {expected}")]
    Damaged { path: PathBuf, expected: Digest, found: Digest },
    #[error(
        "units of the repository {repository} are others than its database says, and a unit never changes: {}",
        shown(.units)
    )]
    UnitsChanged { repository: RepositoryName, units: Vec<String> },
    #[error("the directory {path} holds the unit {found}, which belongs elsewhere")]
    Misplaced { path: PathBuf, found: String },
    #[error(
        "{repository}/{layer} {version} is in the repository with other content ({present}, new {new}); a unit never changes: choose another version"
    )]
    UnitDiffers {
        repository: RepositoryName,
        layer: LayerName,
        version: LayerVersion,
        present: Digest,
        new: Digest,
    },
    #[error("the generation {0} is not in the store")]
    NoGeneration(GenerationId),
    #[error("{path} is no link that Strata made: it points to {target}")]
    ForeignLink { path: PathBuf, target: PathBuf },
    #[error("{0} is no symbolic link, which only Strata puts there")]
    NotALink(PathBuf),
    #[error("{} is full: look at what was set aside there, and remove it", .0.display())]
    AsideFull(PathBuf),
    #[error("the MAC address {0} belongs to another VA already")]
    MacTaken(MacAddr),
    #[error("{path} cannot be sealed: its disk or this kernel has no fs-verity")]
    NoVerity { path: PathBuf },
    #[error("{0} is locked by another process")]
    Locked(PathBuf),
}

/// The first of them.
fn shown(units: &[String]) -> String {
    const MOST: usize = 20;
    let more = match units.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first: Vec<_> = units.iter().take(MOST).map(String::as_str).collect();
    first.join(", ") + &more
}

impl StoreError {
    /// Names the repository where its directory does not let the caller in.
    pub(crate) fn of_repository(self, repository: &RepositoryName) -> Self {
        match self {
            StoreError::Io { path, source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                StoreError::NoAccess { repository: repository.clone(), path }
            }
            other => other,
        }
    }

    /// Whether what stands in the place of a link was put there by somebody else.
    pub fn is_foreign_link(&self) -> bool {
        matches!(self, StoreError::ForeignLink { .. } | StoreError::NotALink(_))
    }
}

/// Names the action and the path that an I/O error belongs to.
pub(crate) trait Context<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
