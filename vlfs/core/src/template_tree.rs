//! The configuration layer of a `templates/<name>/` (or `appliances/<name>/`)
//! tree in git (§4.2; `docs/formats.md`, "Configuration trees").
//!
//! Git keeps contents, symbolic links and the executable bit; everything else
//! is fixed here (owner root, 0644 or 0755, modification time 0) or said by
//! `<name>.modes`, so that the same commit gives the same layer in every clone.

use std::collections::BTreeMap;

use crate::database::{Unit, unit_digest};
use crate::diagnostic::Diagnostic;
use crate::digest::Digest;
use crate::generation::LayerSetEntry;
use crate::manifest::{Entry, Kind, Manifest, Timestamp};
use crate::metadata::{LayerKind, Metadata};
use crate::modes::{self, ModeLine, Modes};
use crate::names::{CompositionName, RepositoryName};
use crate::source::{SourceContent, SourceFile, SourceTree};
use crate::version::LayerVersion;

/// A configuration layer that lives in git, ready to be sealed into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateTree {
    unit: Unit,
    manifest: Manifest,
    /// The contents of regular files, by path.
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl TemplateTree {
    /// Reads the tree at `directory` (`templates/<name>`) and its `.modes`
    /// file; `None` where neither exists or a fault stands in the way.
    pub fn read(
        tree: &SourceTree,
        directory: &str,
        name: &CompositionName,
    ) -> (Option<Self>, Vec<Diagnostic>) {
        let mut diagnostics = Vec::new();
        let modes_file = format!("{directory}.modes");
        let modes = read_modes(tree, &modes_file, &mut diagnostics);
        let mut files = tree.below(directory).peekable();
        if modes.is_none() && files.peek().is_none() {
            return (None, diagnostics);
        }
        let modes = modes.unwrap_or_default();
        let mut entries = Entries::default();
        for (path, file) in files {
            if let Err(message) = entries.add(path, file) {
                let file = format!("{directory}/{path}");
                diagnostics.push(Diagnostic::error(&file, 0, "configuration-tree", message));
            }
        }
        for (path, line) in &modes {
            if let Err(message) = entries.apply(path, line) {
                diagnostics.push(Diagnostic::error(&modes_file, line.line, "modes", message));
            }
        }
        if !diagnostics.is_empty() {
            return (None, diagnostics);
        }
        match Manifest::new(entries.entries.into_values().collect()) {
            Ok(manifest) => (Some(Self::sealed(name, manifest, entries.contents)), diagnostics),
            Err(error) => {
                let fault =
                    Diagnostic::error(directory, 0, "configuration-tree", error.to_string());
                (None, vec![fault])
            }
        }
    }

    fn sealed(
        name: &CompositionName,
        manifest: Manifest,
        contents: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Self {
        let text = manifest.print();
        let version = format!("0+{}", Digest::of(text.as_bytes()).short());
        let version = LayerVersion::new(version).expect("digits and letters are a version");
        let metadata = Metadata::new(name.layer_name(), version, LayerKind::Configuration);
        let digest = unit_digest(&metadata, &text, &BTreeMap::new());
        let content_bytes = manifest.content_bytes();
        let unit = Unit { metadata, digest, content_bytes, withdrawn: None };
        TemplateTree { unit, manifest, contents }
    }

    /// The unit as the store's database of the repository `templates` will hold it.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The contents of all regular files, by the paths of the manifest.
    pub fn contents(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.contents
    }

    /// The layer as a generation names it: `templates/<name> 0+<12 digits>`.
    pub fn entry(&self) -> LayerSetEntry {
        LayerSetEntry {
            kind: LayerKind::Configuration,
            repository: RepositoryName::templates(),
            layer: self.unit.metadata.layer.clone(),
            version: self.unit.metadata.version.clone(),
            digest: self.unit.digest,
        }
    }
}

fn read_modes(tree: &SourceTree, file: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Modes> {
    match &tree.get(file)?.content {
        SourceContent::Regular { bytes, .. } => {
            let (modes, faults) = modes::parse(bytes);
            let located = |fault| Diagnostic::located(file, "modes", fault);
            diagnostics.extend(faults.iter().map(located));
            Some(modes)
        }
        SourceContent::Symlink { .. } | SourceContent::Submodule => {
            let message = "a modes file must be a regular file";
            diagnostics.push(Diagnostic::error(file, 0, "not-a-file", message));
            None
        }
    }
}

/// The layer's entries by path; starts with the root directory.
struct Entries {
    entries: BTreeMap<Vec<u8>, Entry>,
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Entries {
    fn default() -> Self {
        let root = entry(b"", Kind::Directory, 0o755);
        Entries { entries: BTreeMap::from([(Vec::new(), root)]), contents: BTreeMap::new() }
    }
}

fn entry(path: &[u8], kind: Kind, mode: u32) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        link_count: 1,
        xattrs: BTreeMap::new(),
    }
}

impl Entries {
    fn add(&mut self, path: &str, file: &SourceFile) -> Result<(), String> {
        let (kind, mode) = match &file.content {
            SourceContent::Regular { bytes, executable } => {
                let kind = Kind::Regular { size: bytes.len() as u64, digest: Digest::of(bytes) };
                self.contents.insert(path.into(), bytes.clone());
                (kind, if *executable { 0o755 } else { 0o644 })
            }
            SourceContent::Symlink { target } => {
                if target.is_empty() || target.contains(&0) {
                    return Err("the symbolic link has an empty or invalid target".to_owned());
                }
                (Kind::Symlink { target: target.clone() }, 0o777)
            }
            SourceContent::Submodule => {
                return Err(
                    "a submodule cannot be part of a configuration layer; commit its files"
                        .to_owned(),
                );
            }
        };
        self.make_directories(path)?;
        self.entries.insert(path.into(), entry(path.as_bytes(), kind, mode));
        Ok(())
    }

    /// Makes the directories above `path` where they are missing.
    fn make_directories(&mut self, path: &str) -> Result<(), String> {
        for (at, _) in path.match_indices('/') {
            let above = &path[..at];
            let found = self
                .entries
                .entry(above.into())
                .or_insert_with(|| entry(above.as_bytes(), Kind::Directory, 0o755));
            if found.kind != Kind::Directory {
                return Err(format!("{above} is no directory in this tree"));
            }
        }
        Ok(())
    }

    fn apply(&mut self, path: &str, line: &ModeLine) -> Result<(), String> {
        if line.directory && !self.entries.contains_key(path.as_bytes()) {
            self.make_directories(path)?;
            let made = entry(path.as_bytes(), Kind::Directory, 0o755);
            self.entries.insert(path.into(), made);
        }
        let Some(entry) = self.entries.get_mut(path.as_bytes()) else {
            return Err(format!("{path} is not in the tree"));
        };
        if line.directory && entry.kind != Kind::Directory {
            return Err(format!("{path} is no directory in this tree"));
        }
        match (line.mode, &entry.kind) {
            (None, _) => {}
            (Some(0o777), Kind::Symlink { .. }) => {}
            (Some(_), Kind::Symlink { .. }) => {
                return Err(format!("{path} is a symbolic link and has no mode; write -"));
            }
            (Some(mode), _) => entry.mode = mode,
        }
        (entry.uid, entry.gid) = (line.uid, line.gid);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, executable: bool) -> SourceContent {
        SourceContent::Regular { bytes: text.into(), executable }
    }

    fn read(files: &[(&str, SourceContent)]) -> (Option<TemplateTree>, Vec<Diagnostic>) {
        let mut tree = SourceTree::default();
        for (path, content) in files {
            tree.insert(path.as_bytes(), content.clone()).expect("a path");
        }
        TemplateTree::read(&tree, "templates/web", &"web".parse().expect("a name"))
    }

    #[test]
    fn a_tree_becomes_a_layer() {
        let link = SourceContent::Symlink { target: b"../../etc/hosts".to_vec() };
        let (tree, faults) = read(&[
            ("templates/web/etc/motd", file("hello\n", false)),
            ("templates/web/usr/bin/run", file("#!/bin/sh\n", true)),
            ("templates/web/etc/link", link),
            ("templates/web.modes", file("etc/motd 0600 0 33\nvar/lib/web/ 2770 33 33\n", false)),
        ]);
        assert_eq!(faults, []);
        let tree = tree.expect("a layer");
        let mode = |path: &str| {
            let entry = tree.manifest().get(path.as_bytes()).expect("an entry");
            (entry.mode, entry.uid, entry.gid)
        };
        assert_eq!(mode("etc/motd"), (0o600, 0, 33));
        assert_eq!(mode("usr/bin/run"), (0o755, 0, 0));
        assert_eq!(mode("var/lib"), (0o755, 0, 0));
        assert_eq!(mode("var/lib/web"), (0o2770, 33, 33));
        assert_eq!(tree.contents()[&b"etc/motd"[..]], b"hello\n");
        // Pinned: the same tree must give the same unit in every clone, for ever.
        assert_eq!(tree.entry().to_string(), "templates/web 0+bf747f8d3f40");
    }

    #[test]
    fn no_tree_is_no_layer() {
        assert_eq!(read(&[("templates/web.ldf", file("", false))]), (None, vec![]));
    }

    #[test]
    fn faults_name_their_file_and_line() {
        let (tree, faults) = read(&[
            ("templates/web/sub", SourceContent::Submodule),
            ("templates/web/link", SourceContent::Symlink { target: b"x".to_vec() }),
            (
                "templates/web.modes",
                file("nothing 0600 0 0\nlink 0600 0 0\nlink/x/ - 0 0\n", false),
            ),
        ]);
        assert_eq!(tree, None);
        let places: Vec<_> = faults.iter().map(|f| (f.file.as_str(), f.line)).collect();
        let modes = "templates/web.modes";
        assert_eq!(places, [("templates/web/sub", 0), (modes, 2), (modes, 3), (modes, 1)]);
    }
}
