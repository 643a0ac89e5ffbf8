//! A directory of the operator's as a [`SourceTree`], for `strata check` and
//! `strata resolve`: what stands there now, committed or not.
//!
//! Symbolic links are read and never followed, below the directory that was
//! named; only what concerns Strata is looked at.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use strata_core::Diagnostic;
use strata_core::limits;
use strata_core::source::{SourceContent, SourceError, SourceTree};
use strata_store::{StoreError, read_limited};

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{0} is no directory")]
    NotADirectory(PathBuf),
    #[error("read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] StoreError),
    #[error(transparent)]
    Limit(SourceError),
}

/// What one file's name makes impossible is a diagnostic; that the directory
/// cannot be read, or passes a limit as a whole, is an error.
///
/// # Errors
/// See [`DirectoryError`].
pub fn read_directory(root: &Path) -> Result<(SourceTree, Vec<Diagnostic>), DirectoryError> {
    if !root.is_dir() {
        return Err(DirectoryError::NotADirectory(root.to_owned()));
    }
    let mut reader = Reader { tree: SourceTree::default(), diagnostics: Vec::new() };
    let mut names: Vec<_> = list(root)?;
    names.retain(|name| name.to_str().is_some_and(SourceTree::concerns));
    let mut open: Vec<PathBuf> =
        names.into_iter().map(|name| Path::new(&name).to_owned()).collect();
    while let Some(path) = open.pop() {
        reader.read(root, &path, &mut open)?;
    }
    Ok((reader.tree, reader.diagnostics))
}

struct Reader {
    tree: SourceTree,
    diagnostics: Vec<Diagnostic>,
}

impl Reader {
    /// Reads one path; a directory's entries are added to `open`.
    fn read(
        &mut self,
        root: &Path,
        path: &Path,
        open: &mut Vec<PathBuf>,
    ) -> Result<(), DirectoryError> {
        let full = root.join(path);
        let at = |source| DirectoryError::Io { path: full.clone(), source };
        let metadata = fs::symlink_metadata(&full).map_err(at)?;
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            let mut names = list(&full)?;
            if names.iter().any(|name| name == ".git") {
                SourceContent::Submodule
            } else {
                names.sort();
                names.reverse();
                open.extend(names.iter().map(|name| path.join(name)));
                return Ok(());
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(&full).map_err(at)?;
            SourceContent::Symlink { target: target.as_os_str().as_bytes().to_vec() }
        } else if kind.is_file() {
            SourceContent::Regular {
                bytes: read_limited(&full, limits::SOURCE_FILE_BYTES)?,
                executable: metadata.permissions().mode() & 0o100 != 0,
            }
        } else {
            let message = "the file is neither regular, a directory nor a symbolic link";
            self.report(path, message.to_owned());
            return Ok(());
        };
        match self.tree.insert(path.as_os_str().as_bytes(), content) {
            Ok(()) => Ok(()),
            Err(error @ (SourceError::TooManyFiles | SourceError::TooLarge)) => {
                Err(DirectoryError::Limit(error))
            }
            Err(
                error @ (SourceError::Encoding(_)
                | SourceError::Path(_)
                | SourceError::PathTooLong(_)
                | SourceError::Duplicate(_)
                | SourceError::FileTooLarge { .. }),
            ) => {
                self.report(path, error.to_string());
                Ok(())
            }
        }
    }

    fn report(&mut self, path: &Path, message: String) {
        let path = path.to_string_lossy();
        self.diagnostics.push(Diagnostic::error(&path, 0, "source", message));
    }
}

fn list(path: &Path) -> Result<Vec<std::ffi::OsString>, DirectoryError> {
    let at = |source| DirectoryError::Io { path: path.to_owned(), source };
    fs::read_dir(path).map_err(at)?.map(|entry| Ok(entry.map_err(at)?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_read_and_not_followed() {
        let outside = tempfile::tempdir().expect("a directory");
        fs::write(outside.path().join("secret.ldf"), "main/x 1\n").expect("write");
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("templates/web/bin")).expect("create");
        fs::create_dir_all(path("templates/sub/.git")).expect("create");
        fs::create_dir_all(path("other/deep")).expect("create");
        fs::write(path("strata.toml"), "").expect("write");
        fs::write(path("other/deep/file"), "not ours").expect("write");
        fs::write(path("templates/web/bin/run"), "x").expect("write");
        fs::set_permissions(path("templates/web/bin/run"), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        symlink(outside.path(), path("appliances")).expect("link");
        symlink("/etc/passwd", path("templates/web/link")).expect("link");
        let (tree, faults) = read_directory(root.path()).expect("readable");
        assert_eq!(faults, []);
        let found: Vec<_> = tree.files().map(|(path, _)| path).collect();
        assert_eq!(
            found,
            [
                "appliances",
                "strata.toml",
                "templates/sub",
                "templates/web/bin/run",
                "templates/web/link"
            ]
        );
        let content = |path: &str| &tree.get(path).expect("there").content;
        assert!(matches!(content("appliances"), SourceContent::Symlink { .. }));
        assert!(matches!(content("templates/sub"), SourceContent::Submodule));
        assert!(matches!(
            content("templates/web/bin/run"),
            SourceContent::Regular { executable: true, .. }
        ));
    }

    #[test]
    fn odd_names_are_named() {
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("templates")).expect("create");
        let odd = std::ffi::OsStr::from_bytes(b"templates/\xff.ldf");
        fs::write(root.path().join(odd), "").expect("write");
        let (_, faults) = read_directory(root.path()).expect("readable");
        assert_eq!(faults.len(), 1);
        assert!(matches!(
            read_directory(&root.path().join("nothing")),
            Err(DirectoryError::NotADirectory(_))
        ));
    }
}
