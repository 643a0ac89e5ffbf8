//! A layer from a directory, as `make install DESTDIR=…` leaves one (§5.3).

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use strata_core::metadata::Metadata;
use strata_core::names::RepositoryName;
use strata_core::scripts::Script;
use strata_store::{Store, StoreError, read_limited};

use crate::import::{Imported, open_directory};
use crate::tree::{self, TreeError};
use crate::writer::{TreeLimits, TreeWriter, WriteError};

/// Bytes of one script.
const SCRIPT_BYTES: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{root} holds the store {store}: a layer cannot contain the store it is built in")]
    HoldsStore { root: PathBuf, store: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{0} is no script of a layer; the scripts are pre-remove, pre-install, post-remove and post-install"
    )]
    Script(PathBuf),
    #[error(
        "{0} cannot be run: it is no regular file that begins with `#!` and an interpreter, and no program"
    )]
    NotRunnable(PathBuf),
    #[error("{path} has more than {SCRIPT_BYTES} bytes")]
    ScriptTooLarge { path: PathBuf },
    #[error("{root}: {source}")]
    Tree { root: PathBuf, source: TreeError },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Builds a unit from the tree below `root` and the files of `scripts`, and
/// publishes it in `repository`, which is made where it does not exist.
///
/// # Errors
/// [`BuildError`]; the repository is as before.
pub fn build(
    store: &Store,
    repository: &RepositoryName,
    metadata: Metadata,
    root: &Path,
    scripts: Option<&Path>,
    limits: TreeLimits,
) -> Result<Imported, BuildError> {
    let at_root = |source| BuildError::Io { path: root.to_owned(), source };
    let real = root.canonicalize().map_err(at_root)?;
    if store.root().starts_with(&real) {
        let store = store.root().to_owned();
        return Err(BuildError::HoldsStore { root: root.to_owned(), store });
    }
    let unit = store.stage_unit(repository)?;
    let mut writer = TreeWriter::new(open_directory(&unit.filesystem()).map_err(at_root)?, limits);
    tree::copy(&real, &mut writer)
        .map_err(|source| BuildError::Tree { root: root.to_owned(), source })?;
    if let Some(scripts) = scripts {
        copy_scripts(scripts, &unit.scripts())?;
    }
    let manifest = writer.finish()?;
    let (layer, version) = (metadata.layer.clone(), metadata.version.clone());
    let mut repository = store.write_repository(repository)?;
    let published = repository.publish(unit, metadata, &manifest)?;
    repository.commit()?;
    Ok(Imported::of(published, layer, version, &manifest))
}

fn copy_scripts(from: &Path, to: &Path) -> Result<(), BuildError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildError::Io { path, source }
    };
    for entry in std::fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(script) = name.to_str().and_then(Script::of_name) else {
            return Err(BuildError::Script(path));
        };
        let kind = entry.metadata().map_err(at(&path))?;
        if !kind.is_file() {
            return Err(BuildError::NotRunnable(path));
        }
        if kind.len() > SCRIPT_BYTES as u64 {
            return Err(BuildError::ScriptTooLarge { path });
        }
        let content = read_limited(&path, SCRIPT_BYTES)?;
        if !is_runnable(&content) {
            return Err(BuildError::NotRunnable(path));
        }
        let target = to.join(script.name());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&target)
            .map_err(at(&target))?;
        io::Write::write_all(&mut file, &content).map_err(at(&target))?;
    }
    Ok(())
}

/// Whether the kernel could run it: a script that names its interpreter by an absolute
/// path, or a program.
fn is_runnable(content: &[u8]) -> bool {
    let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let interpreter = line.strip_prefix(b"#!").map(<[u8]>::trim_ascii);
    interpreter.is_some_and(|path| path.starts_with(b"/")) || content.starts_with(b"\x7fELF")
}
