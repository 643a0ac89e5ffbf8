//! The plainest union that could be written: a map of paths, and for each unit what it shows
//! and what is hidden in it.

use std::collections::{BTreeMap, BTreeSet};

use strata_vlfs::vfs::Errno;

use super::UNITS;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Directory,
    /// Names with the same number are hard links of one file.
    File(usize, String),
}

pub(super) type Tree = BTreeMap<String, Object>;

/// What a user sees at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Directory,
    /// With the number of links, and the first name of the file.
    File {
        text: String,
        links: usize,
        first: String,
    },
}

/// Files as a user sees them: by number, text, and number of links where known.
pub(super) fn seen(
    tree: impl IntoIterator<Item = (String, Object, Option<usize>)>,
) -> BTreeMap<String, Seen> {
    let tree: Vec<_> = tree.into_iter().collect();
    let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (path, object, _) in &tree {
        if let Object::File(number, _) = object {
            names.entry(*number).or_default().push(path.clone());
        }
    }
    let seen = tree.into_iter().map(|(path, object, links)| {
        let seen = match object {
            Object::Directory => Seen::Directory,
            Object::File(number, text) => {
                let names = &names[&number];
                let links = links.unwrap_or(names.len());
                Seen::File { text, links, first: names[0].clone() }
            }
        };
        (path, seen)
    });
    seen.collect()
}

pub(super) fn parent(path: &str) -> Option<&str> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').map_or("", |(above, _)| above)) }
}

pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    /// All units by number, as they were made.
    pub(super) units: Vec<Tree>,
    /// The set, topmost first.
    pub(super) set: Vec<usize>,
    pub(super) hidden: BTreeMap<usize, BTreeSet<String>>,
    pub(super) private: Tree,
    /// The last number of a private file.
    pub(super) last: usize,
}

/// Numbers of files are below this in each unit, and above all units' in the private layer.
pub(super) const FILES: usize = 1000;

impl Model {
    /// Contributions at a path, topmost first, seen from merged directories above.
    pub(super) fn contributions(&self, path: &str) -> Vec<usize> {
        let Some(above) = parent(path) else { return self.set.clone() };
        let merged = self.contributions(above).into_iter().take_while(|unit| {
            above.is_empty() || self.units[*unit].get(above) == Some(&Object::Directory)
        });
        merged
            .filter(|unit| self.units[*unit].contains_key(path))
            .filter(|unit| !self.hidden.get(unit).is_some_and(|hidden| hidden.contains(path)))
            .collect()
    }

    pub(super) fn lower(&self, path: &str) -> Option<Object> {
        // A private object that is no directory obscures all below it.
        let mut above = parent(path);
        while let Some(directory) = above {
            if matches!(self.private.get(directory), Some(Object::File(..))) {
                return None;
            }
            above = parent(directory);
        }
        if path.is_empty() {
            return Some(Object::Directory);
        }
        self.contributions(path).first().map(|unit| self.units[*unit][path].clone())
    }

    pub(super) fn get(&self, path: &str) -> Option<Object> {
        self.private.get(path).cloned().or_else(|| self.lower(path))
    }

    pub(super) fn tree(&self) -> Tree {
        let mut all: BTreeSet<String> = self.private.keys().cloned().collect();
        all.extend(self.set.iter().flat_map(|unit| self.units[*unit].keys().cloned()));
        all.into_iter().filter_map(|path| Some((path.clone(), self.get(&path)?))).collect()
    }

    pub(super) fn seen(&self) -> BTreeMap<String, Seen> {
        seen(self.tree().into_iter().map(|(path, object)| (path, object, None)))
    }

    pub(super) fn children(&self, directory: &str) -> Vec<String> {
        self.tree().into_keys().filter(|path| parent(path) == Some(directory)).collect()
    }

    pub(super) fn hide(&mut self, path: &str) {
        for unit in self.contributions(path) {
            let hidden = self.hidden.entry(unit).or_default();
            hidden.retain(|other| !is_below(other, path));
            hidden.insert(path.to_owned());
        }
    }

    pub(super) fn make_parents(&mut self, path: &str) {
        let mut above = parent(path);
        while let Some(directory) = above.filter(|directory| !directory.is_empty()) {
            self.private.entry(directory.to_owned()).or_insert(Object::Directory);
            above = parent(directory);
        }
    }

    pub(super) fn put(&mut self, path: &str, object: Object) {
        self.make_parents(path);
        self.private.insert(path.to_owned(), object);
    }

    pub(super) fn new_file(&mut self, text: String) -> Object {
        self.last += 1;
        Object::File(FILES * UNITS + self.last, text)
    }

    /// All names of a file that are shown follow its copy.
    pub(super) fn copy_up(&mut self, path: &str) {
        let Some(object) = self.lower(path).filter(|_| !self.private.contains_key(path)) else {
            return;
        };
        let Object::File(_, text) = &object else { return self.put(path, object) };
        let names: Vec<_> = self.tree().into_iter().filter(|(_, other)| *other == object).collect();
        let copy = self.new_file(text.clone());
        for (name, _) in names {
            self.put(&name, copy.clone());
        }
    }

    pub(super) fn write(&mut self, path: &str, new: &str) -> Result<(), Errno> {
        if self.get(path).ok_or(Errno::NOENT)? == Object::Directory {
            return Err(Errno::ISDIR);
        }
        self.copy_up(path);
        let written = self.private[path].clone();
        for object in self.private.values_mut().filter(|object| **object == written) {
            if let Object::File(_, text) = object {
                new.clone_into(text);
            }
        }
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let source = self.get(from).ok_or(Errno::NOENT)?;
        self.check_parent(to)?;
        if self.get(to).is_some() {
            return Err(Errno::EXIST);
        }
        if source == Object::Directory {
            return Err(Errno::PERM);
        }
        self.copy_up(from);
        self.put(to, self.private[from].clone());
        Ok(())
    }

    pub(super) fn check_parent(&self, path: &str) -> Result<(), Errno> {
        match self.get(parent(path).unwrap_or("")) {
            None => Err(Errno::NOENT),
            Some(Object::File(..)) => Err(Errno::NOTDIR),
            Some(Object::Directory) => Ok(()),
        }
    }

    pub(super) fn create(&mut self, path: &str, object: Object) -> Result<(), Errno> {
        self.check_parent(path)?;
        if self.get(path).is_some() {
            return Err(Errno::EXIST);
        }
        self.put(path, object);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &str, directory: bool) -> Result<(), Errno> {
        match (self.get(path).ok_or(Errno::NOENT)?, directory) {
            (Object::Directory, false) => return Err(Errno::ISDIR),
            (Object::File(..), true) => return Err(Errno::NOTDIR),
            (Object::Directory, true) if !self.children(path).is_empty() => {
                return Err(Errno::NOTEMPTY);
            }
            _ => {}
        }
        self.hide(path);
        self.private.remove(path);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let source = self.get(from).ok_or(Errno::NOENT)?;
        self.check_parent(to)?;
        let target = self.get(to);
        // Two names of one file: nothing happens.
        if from == to || (source != Object::Directory && target.as_ref() == Some(&source)) {
            return Ok(());
        }
        match (&source, target) {
            (_, None) | (Object::File(..), Some(Object::File(..))) => {}
            (Object::Directory, Some(Object::File(..))) => return Err(Errno::NOTDIR),
            (Object::File(..), Some(Object::Directory)) => return Err(Errno::ISDIR),
            (Object::Directory, Some(Object::Directory)) => {
                if !self.children(to).is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
            }
        }
        let is_moved = |path: &String| path == from || is_below(path, from);
        // The source is copied in place first, and the directories above it stay private.
        self.make_parents(from);
        for path in self.tree().into_keys().filter(is_moved) {
            self.copy_up(&path);
        }
        let moved: Vec<_> = self.tree().into_iter().filter(|(path, _)| is_moved(path)).collect();
        self.hide(from);
        self.hide(to);
        self.private.retain(|path, _| path != from && !is_below(path, from));
        for (path, object) in moved {
            self.put(&format!("{to}{}", &path[from.len()..]), object);
        }
        Ok(())
    }

    pub(super) fn swap(&mut self, set: Vec<usize>) {
        self.hidden.retain(|unit, _| set.contains(unit));
        self.set = set;
    }
}
