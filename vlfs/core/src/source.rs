//! What one commit of the GitOps repository holds, as plain data.
//!
//! The reconciler fills a [`SourceTree`] from git objects, `strata check` from
//! a directory; nothing else of Strata sees git or that directory. A path that
//! was inserted is UTF-8, relative, free of empty, `.`, `..` and `.git`
//! components, and within the limits.

use std::collections::BTreeMap;

use crate::limits;

/// The content of one path. Directories are not listed: git keeps none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceContent {
    Regular {
        bytes: Vec<u8>,
        executable: bool,
    },
    /// A symbolic link with its target as it stands; never followed.
    Symlink {
        target: Vec<u8>,
    },
    /// A link to a commit of another repository; never fetched.
    Submodule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    pub content: SourceContent,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("the path {0:?} is not UTF-8")]
    Encoding(String),
    #[error(
        "the path {0:?} is empty, absolute, or has a component that is empty, `.`, `..` or `.git`"
    )]
    Path(String),
    #[error("the path {0:?} is longer than {max} bytes, or one of its names is longer than {component}", max = limits::PATH_BYTES, component = limits::COMPONENT_BYTES)]
    PathTooLong(String),
    #[error("{0:?} stands twice, or is both a file and a directory")]
    Duplicate(String),
    #[error("{path:?} has {length} bytes, the limit is {max}", max = limits::SOURCE_FILE_BYTES)]
    FileTooLarge { path: String, length: usize },
    #[error("more than {max} files", max = limits::SOURCE_FILES)]
    TooManyFiles,
    #[error("the files have more than {max} bytes together", max = limits::SOURCE_BYTES)]
    TooLarge,
}

/// What the files of a definition end in, besides those in its directory.
const DEFINITION_FILES: [&str; 4] = [".ldf", ".modes", ".data", ".health"];

/// The files of a commit that concern Strata (see [`SourceTree::concerns`]), by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceTree {
    files: BTreeMap<String, SourceFile>,
    bytes: usize,
}

impl SourceTree {
    /// Whether a file at this path can matter to Strata. What reads a commit
    /// may leave everything else out: READMEs, pipelines, and what people keep
    /// beside their definitions.
    pub fn concerns(path: &str) -> bool {
        matches!(path, "strata.toml" | "appliances.toml" | "templates" | "appliances")
            || path.starts_with("templates/")
            || path.starts_with("appliances/")
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A path that is none, a path that is there already, or a limit passed.
    pub fn insert(&mut self, path: &[u8], content: SourceContent) -> Result<(), SourceError> {
        let path = std::str::from_utf8(path)
            .map_err(|_| SourceError::Encoding(String::from_utf8_lossy(path).into_owned()))?;
        let bad = |c: &str| matches!(c, "" | "." | "..") || c.eq_ignore_ascii_case(".git");
        if path.contains('\0') || path.split('/').any(bad) {
            return Err(SourceError::Path(path.to_owned()));
        }
        let long = |c: &str| c.len() > limits::COMPONENT_BYTES;
        if path.len() > limits::PATH_BYTES || path.split('/').any(long) {
            return Err(SourceError::PathTooLong(path.chars().take(128).collect()));
        }
        let length = match &content {
            SourceContent::Regular { bytes, .. } => bytes.len(),
            SourceContent::Symlink { target } => target.len(),
            SourceContent::Submodule => 0,
        };
        if length > limits::SOURCE_FILE_BYTES {
            return Err(SourceError::FileTooLarge { path: path.to_owned(), length });
        }
        if self.files.len() >= limits::SOURCE_FILES {
            return Err(SourceError::TooManyFiles);
        }
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > limits::SOURCE_BYTES {
            return Err(SourceError::TooLarge);
        }
        let above = path.match_indices('/').any(|(at, _)| self.files.contains_key(&path[..at]));
        if above || self.files.contains_key(path) || self.below(path).next().is_some() {
            return Err(SourceError::Duplicate(path.to_owned()));
        }
        self.files.insert(path.to_owned(), SourceFile { content });
        Ok(())
    }

    pub fn get(&self, path: &str) -> Option<&SourceFile> {
        self.files.get(path)
    }

    /// All files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &SourceFile)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// The files below a directory, with their paths relative to it.
    pub fn below<'a>(
        &'a self,
        directory: &str,
    ) -> impl Iterator<Item = (&'a str, &'a SourceFile)> + use<'a> {
        let prefix = format!("{directory}/");
        self.files.range(prefix.clone()..).map_while(move |(path, file)| {
            path.strip_prefix(prefix.as_str()).map(|relative| (relative, file))
        })
    }

    /// Takes all files of a definition from another tree, in place of those that are
    /// here. The definition is named by its path without `.ldf`, as `templates/web`.
    ///
    /// # Errors
    /// Both trees together pass a limit.
    pub fn take_definition(&mut self, other: &SourceTree, path: &str) -> Result<(), SourceError> {
        let theirs = |file: &str| {
            let rest = file.strip_prefix(path);
            // What stands in the place of the directory is theirs, too: it is a fault there.
            rest.is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('/') || DEFINITION_FILES.contains(&rest)
            })
        };
        let length = |file: &SourceFile| match &file.content {
            SourceContent::Regular { bytes, .. } => bytes.len(),
            SourceContent::Symlink { target } => target.len(),
            SourceContent::Submodule => 0,
        };
        let bytes = &mut self.bytes;
        self.files.retain(|file, content| {
            let stays = !theirs(file);
            if !stays {
                *bytes -= length(content);
            }
            stays
        });
        for (file, content) in other.files().filter(|(file, _)| theirs(file)) {
            self.insert(file.as_bytes(), content.content.clone())?;
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Line and column, from 1, of a byte offset; the column in bytes.
pub(crate) fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    (clamp(line), clamp(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceContent {
        SourceContent::Regular { bytes: text.into(), executable: false }
    }

    #[test]
    fn paths_are_checked() {
        let mut tree = SourceTree::default();
        for bad in ["", "/etc", "a//b", "a/../b", "./a", "a/", "a/.git/hooks", "a/.GIT/x", "a\0b"] {
            assert!(
                matches!(tree.insert(bad.as_bytes(), file("")), Err(SourceError::Path(_))),
                "{bad:?}"
            );
        }
        assert!(matches!(tree.insert(b"a\xff", file("")), Err(SourceError::Encoding(_))));
        assert!(matches!(
            tree.insert("x".repeat(300).as_bytes(), file("")),
            Err(SourceError::PathTooLong(_))
        ));
        assert!(tree.is_empty());
    }

    #[test]
    fn a_path_is_one_thing() {
        let mut tree = SourceTree::default();
        tree.insert(b"templates/web/etc/motd", file("x")).expect("new");
        for twice in ["templates/web/etc/motd", "templates/web/etc", "templates/web/etc/motd/x"] {
            assert!(matches!(
                tree.insert(twice.as_bytes(), file("")),
                Err(SourceError::Duplicate(_))
            ));
        }
        tree.insert(b"templates/web-2/x", file("")).expect("new");
        let below: Vec<_> = tree.below("templates/web").map(|(path, _)| path).collect();
        assert_eq!(below, ["etc/motd"]);
    }

    #[test]
    fn a_definition_is_taken_whole() {
        let tree = |files: &[(&str, &str)]| {
            let mut tree = SourceTree::default();
            for (path, text) in files {
                tree.insert(path.as_bytes(), file(text)).expect("new");
            }
            tree
        };
        let mut ours = tree(&[
            ("templates/web.ldf", "ours"),
            ("templates/web.health", "ours"),
            ("templates/web/etc/motd", "ours"),
            ("templates/web.2.ldf", "ours"),
            ("templates/web-2/etc/motd", "ours"),
            ("strata.toml", "ours"),
        ]);
        let theirs = tree(&[
            ("templates/web.ldf", "theirs"),
            ("templates/web.modes", "theirs"),
            ("templates/web.2.ldf", "theirs"),
            ("templates/web/etc/issue", "theirs"),
            ("strata.toml", "theirs"),
        ]);
        ours.take_definition(&theirs, "templates/web").expect("within the limits");
        let expected = tree(&[
            ("templates/web.ldf", "theirs"),
            ("templates/web.modes", "theirs"),
            ("templates/web/etc/issue", "theirs"),
            ("templates/web.2.ldf", "ours"),
            ("templates/web-2/etc/motd", "ours"),
            ("strata.toml", "ours"),
        ]);
        assert_eq!(ours, expected);
    }
}
