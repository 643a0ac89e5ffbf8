//! What a file system holds in memory, handed to a successor of this program.
//!
//! White-outs, copies and journals are on disk; what is not are the kernel's
//! node numbers with their references and names, the open files and
//! directories, and what has no name any more. Descriptors are passed by number:
//! the successor runs in the same process. No request may be in hand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};
use strata_core::Digest;
use strata_core::manifest::Timestamp;

use super::directory::{DirectoryHandle, Listed};
use super::file::{Backing, FileHandle};
use super::held::PrivateDirectory;
use super::node::{Node, ROOT_ID, Upper};
use super::{Attr, Result, Vfs};
use crate::layer::Layer;
use crate::private::UnitKey;

/// Bytes as text: one character a byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Name(String);

impl Name {
    fn of(bytes: &[u8]) -> Name {
        Name(bytes.iter().map(|byte| char::from(*byte)).collect())
    }

    /// `None` for text that [`Name::of`] does not make.
    fn bytes(&self) -> Option<Box<[u8]>> {
        self.0.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum UpperState {
    None,
    File(u64),
    /// With a descriptor where it has lost its name; else it is opened by its names.
    Directory {
        inode: u64,
        descriptor: Option<i32>,
    },
    /// A descriptor.
    Orphan(i32),
}

/// `st_*` of an object whose last name is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttrState {
    ino: u64,
    mode: u32,
    nlink: u32,
    owner: (u32, u32),
    size: u64,
    blocks: u64,
    device: (u32, u32),
    /// Access, modification and change.
    times: [(i64, u32); 3],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeState {
    id: u64,
    ino: u64,
    /// `S_IFMT` bits.
    kind: u32,
    /// The kernel's; none for one that the kernel does not know.
    references: Option<u64>,
    names: Vec<(u64, Name)>,
    upper: UpperState,
    removed: Option<AttrState>,
    successor: Option<u64>,
    /// Index into `backings`.
    backing: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerState {
    name: String,
    unit: (String, String),
    digest: Option<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackingState {
    descriptor: i32,
    /// The kernel's number for it.
    id: Option<i32>,
    layer: Option<LayerState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileState {
    handle: u64,
    node: u64,
    backing: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectoryState {
    handle: u64,
    node: u64,
    /// Name, `d_ino`, `S_IFMT` bits; as far as it was read.
    listing: Option<Vec<(Name, u64, u32)>>,
}

/// All of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    next_node: u64,
    next_handle: u64,
    swaps: u64,
    nodes: Vec<NodeState>,
    /// Parent, name, node.
    children: Vec<(u64, Name, u64)>,
    linked: Vec<u64>,
    backings: Vec<BackingState>,
    files: Vec<FileState>,
    directories: Vec<DirectoryState>,
}

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("the state names {what} {number}, which it does not hold")]
    Missing { what: &'static str, number: u64 },
    #[error("the state holds a name that is none")]
    Name,
    #[error("a descriptor cannot be passed on: {0}")]
    Descriptor(#[from] rustix::io::Errno),
}

/// Collects what is reachable, once each.
struct Export {
    flags: FdFlags,
    nodes: BTreeMap<u64, Arc<Node>>,
    backings: Vec<Arc<Backing>>,
}

impl Export {
    fn node(&mut self, node: &Arc<Node>) {
        let mut pending = vec![node.clone()];
        while let Some(node) = pending.pop() {
            if self.nodes.contains_key(&node.id) {
                continue;
            }
            let place = node.place.read().expect("no panic while held");
            pending.extend(place.names.iter().map(|(parent, _)| parent.clone()));
            drop(place);
            pending.extend(node.successor());
            self.nodes.insert(node.id, node);
        }
    }

    fn descriptor(&self, descriptor: impl AsFd) -> Result<i32> {
        rustix::io::fcntl_setfd(&descriptor, self.flags)?;
        Ok(descriptor.as_fd().as_raw_fd())
    }

    fn backing(&mut self, backing: &Arc<Backing>) -> usize {
        match self.backings.iter().position(|known| Arc::ptr_eq(known, backing)) {
            Some(at) => at,
            None => {
                self.backings.push(backing.clone());
                self.backings.len() - 1
            }
        }
    }

    fn node_state(&mut self, node: &Arc<Node>, references: Option<u64>) -> Result<NodeState> {
        let (successor, backing) = {
            let files = node.files.lock().expect("no panic while held");
            (files.successor.clone(), files.backing.clone())
        };
        let place = node.place.read().expect("no panic while held");
        let upper = match &place.upper {
            Upper::None => UpperState::None,
            Upper::File { inode } => UpperState::File(*inode),
            Upper::Directory(directory) => UpperState::Directory {
                inode: directory.inode,
                descriptor: match directory.pin_held().filter(|_| node.id != ROOT_ID) {
                    Some(fd) => Some(self.descriptor(&*fd)?),
                    None => None,
                },
            },
            Upper::Orphan(fd) => UpperState::Orphan(self.descriptor(&**fd)?),
        };
        let name = |(parent, name): &(Arc<Node>, Box<[u8]>)| (parent.id, Name::of(name));
        Ok(NodeState {
            id: node.id,
            ino: node.ino,
            kind: node.kind.as_raw_mode(),
            references,
            names: place.names.iter().map(name).collect(),
            upper,
            removed: place.removed.as_ref().map(AttrState::of),
            successor: successor.map(|node| node.id),
            backing: backing.as_ref().map(|backing| self.backing(backing)),
        })
    }

    fn backing_states(&self) -> Result<Vec<BackingState>> {
        let state = |backing: &Arc<Backing>| {
            Ok(BackingState {
                descriptor: self.descriptor(&**backing)?,
                id: backing.id,
                layer: backing.layer.as_ref().map(|layer| LayerState {
                    name: layer.name.clone(),
                    unit: (layer.unit.repository.clone(), layer.unit.unit.clone()),
                    digest: layer.digest,
                }),
            })
        };
        self.backings.iter().map(state).collect()
    }
}

impl Vfs {
    /// The state, with every descriptor in it given `flags`: none to let it
    /// outlive an `execve`, `CLOEXEC` to take that back.
    ///
    /// # Errors
    /// A descriptor does not take the flags.
    pub fn export(&self, flags: FdFlags) -> Result<State> {
        // What nobody has open is let go: the successor opens it again.
        self.drop_kept(|_| false);
        let mut export = Export { flags, nodes: BTreeMap::new(), backings: Vec::new() };
        let table = self.table.dump();
        let referenced: HashMap<u64, u64> =
            table.nodes.iter().map(|(node, references)| (node.id, *references)).collect();
        let known = table.nodes.iter().map(|(node, _)| node);
        for node in known.chain(table.children.iter().map(|(_, _, node)| node)).chain(&table.linked)
        {
            export.node(node);
        }
        let open_files: Vec<_> = {
            let files = self.files.read().expect("no panic while held");
            files.iter().map(|(number, handle)| (*number, handle.clone())).collect()
        };
        let mut files = Vec::new();
        for (handle, file) in open_files {
            export.node(&file.node);
            files.push(FileState {
                handle,
                node: file.node.id,
                backing: export.backing(&file.file()),
            });
        }
        let open_directories: Vec<_> = {
            let directories = self.directories.read().expect("no panic while held");
            directories.iter().map(|(number, handle)| (*number, handle.clone())).collect()
        };
        let mut directories = Vec::new();
        for (handle, directory) in open_directories {
            export.node(&directory.node);
            let name = |l: &Listed| (Name::of(&l.name), l.ino, l.kind.as_raw_mode());
            let listing = directory.listing_now().map(|listing| listing.iter().map(name).collect());
            directories.push(DirectoryState { handle, node: directory.node.id, listing });
        }
        let all: Vec<_> = export.nodes.values().cloned().collect();
        let mut nodes = Vec::new();
        for node in &all {
            nodes.push(export.node_state(node, referenced.get(&node.id).copied())?);
        }
        let child =
            |(parent, name, node): &(u64, Box<[u8]>, Arc<Node>)| (*parent, Name::of(name), node.id);
        Ok(State {
            next_node: table.next,
            next_handle: self.next_handle.load(Ordering::Relaxed),
            swaps: self.swaps.load(Ordering::Relaxed),
            nodes,
            children: table.children.iter().map(child).collect(),
            linked: table.linked.iter().map(|node| node.id).collect(),
            backings: export.backing_states()?,
            files,
            directories,
        })
    }

    /// Takes over what a predecessor exported. `self` is new, of the same layers,
    /// and has its passthrough set. `adopt` turns a descriptor's number into the
    /// descriptor, once each.
    ///
    /// # Errors
    /// The state contradicts itself.
    pub fn import(
        &self,
        state: &State,
        adopt: &dyn Fn(i32) -> OwnedFd,
    ) -> std::result::Result<(), HandoverError> {
        let backings = self.import_backings(state, adopt)?;
        let nodes = self.import_nodes(state, adopt, &backings)?;
        let find =
            |id: u64| nodes.get(&id).ok_or(HandoverError::Missing { what: "node", number: id });
        for (parent, name, id) in &state.children {
            let name = name.bytes().ok_or(HandoverError::Name)?;
            self.table.set_child(*parent, &name, find(*id)?);
        }
        for id in &state.linked {
            self.table.set_linked(find(*id)?);
        }
        let mut files = self.files.write().expect("no panic while held");
        for file in &state.files {
            let node = find(file.node)?;
            let backing = backing_at(&backings, file.backing)?;
            let handle = Arc::new(FileHandle::adopt(node.clone(), backing));
            node.files.lock().expect("no panic while held").open.push(Arc::downgrade(&handle));
            files.insert(file.handle, handle);
        }
        drop(files);
        let mut directories = self.directories.write().expect("no panic while held");
        for directory in &state.directories {
            let listed = |(name, ino, kind): &(Name, u64, u32)| {
                let name = name.bytes().ok_or(HandoverError::Name)?;
                Ok(Listed { name, ino: *ino, kind: FileType::from_raw_mode(*kind) })
            };
            let listing: Option<std::result::Result<Vec<_>, HandoverError>> =
                directory.listing.as_ref().map(|names| names.iter().map(listed).collect());
            let node = find(directory.node)?.clone();
            let open = DirectoryHandle::adopt(node, listing.transpose()?);
            directories.insert(directory.handle, Arc::new(open));
        }
        self.next_handle.store(state.next_handle, Ordering::Relaxed);
        self.swaps.store(state.swaps, Ordering::Relaxed);
        Ok(())
    }

    fn import_backings(
        &self,
        state: &State,
        adopt: &dyn Fn(i32) -> OwnedFd,
    ) -> std::result::Result<Vec<Arc<Backing>>, HandoverError> {
        let active = self.active();
        let mut unlinked: BTreeMap<(String, String), Arc<Layer>> = BTreeMap::new();
        let mut backings = Vec::new();
        for backing in &state.backings {
            let fd = adopt(backing.descriptor);
            let layer = match &backing.layer {
                None => None,
                Some(layer) => {
                    let unit = UnitKey::new(&layer.unit.0, &layer.unit.1);
                    let same = |l: &&Arc<Layer>| l.unit == unit && l.digest == layer.digest;
                    let known = active.layers.iter().find(same);
                    Some(match known.or_else(|| unlinked.get(&layer.unit)) {
                        Some(known) => known.clone(),
                        None => {
                            let root = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
                            let gone =
                                Layer::unlinked(layer.name.clone(), unit, layer.digest, root);
                            let gone = Arc::new(gone);
                            unlinked.insert(layer.unit.clone(), gone.clone());
                            gone
                        }
                    })
                }
            };
            let passthrough = self.passthrough.get().cloned();
            backings.push(Arc::new(Backing::adopt(fd, backing.id, layer, passthrough)));
        }
        let held = unlinked.values().map(Arc::downgrade);
        self.unlinked.lock().expect("no panic while held").extend(held);
        Ok(backings)
    }

    fn import_nodes(
        &self,
        state: &State,
        adopt: &dyn Fn(i32) -> OwnedFd,
        backings: &[Arc<Backing>],
    ) -> std::result::Result<HashMap<u64, Arc<Node>>, HandoverError> {
        let mut nodes: HashMap<u64, Arc<Node>> = HashMap::new();
        let mut adopted: HashMap<i32, Arc<OwnedFd>> = HashMap::new();
        let mut once =
            |number: i32| adopted.entry(number).or_insert_with(|| Arc::new(adopt(number))).clone();
        for node in &state.nodes {
            let upper = match node.upper {
                UpperState::None => Upper::None,
                UpperState::File(inode) => Upper::File { inode },
                UpperState::Directory { inode, descriptor } => {
                    Upper::Directory(Arc::new(match descriptor {
                        Some(fd) => PrivateDirectory::pinned(inode, once(fd)),
                        None => PrivateDirectory::closed(inode),
                    }))
                }
                UpperState::Orphan(fd) => Upper::Orphan(once(fd)),
            };
            let kind = FileType::from_raw_mode(node.kind);
            let made = match self.table.get(ROOT_ID).filter(|_| node.id == ROOT_ID) {
                Some(root) => root,
                None => Arc::new(Node::new(node.id, node.ino, kind, upper)),
            };
            nodes.insert(node.id, made);
        }
        let find = |id: u64| {
            nodes.get(&id).cloned().ok_or(HandoverError::Missing { what: "node", number: id })
        };
        for node in &state.nodes {
            let made = find(node.id)?;
            let mut names = Vec::new();
            for (parent, name) in &node.names {
                names.push((find(*parent)?, name.bytes().ok_or(HandoverError::Name)?));
            }
            let mut place = made.place.write().expect("no panic while held");
            place.names = names;
            place.removed = node.removed.as_ref().map(AttrState::attr);
            drop(place);
            let mut files = made.files.lock().expect("no panic while held");
            files.successor = node.successor.map(find).transpose()?;
            files.backing = node.backing.map(|at| backing_at(backings, at)).transpose()?;
            drop(files);
            if let Some(references) = node.references {
                self.table.insert(&made, references);
            }
        }
        let ids: BTreeSet<u64> = nodes.keys().copied().collect();
        self.table
            .continue_from(ids.last().map_or(state.next_node, |id| state.next_node.max(id + 1)));
        Ok(nodes)
    }
}

fn backing_at(
    backings: &[Arc<Backing>],
    at: usize,
) -> std::result::Result<Arc<Backing>, HandoverError> {
    let missing = HandoverError::Missing { what: "open file", number: at as u64 };
    backings.get(at).cloned().ok_or(missing)
}

impl AttrState {
    fn of(attr: &Attr) -> AttrState {
        let time = |time: Timestamp| (time.seconds, time.nanoseconds);
        AttrState {
            ino: attr.ino,
            mode: attr.kind.as_raw_mode() | attr.mode,
            nlink: attr.nlink,
            owner: (attr.uid, attr.gid),
            size: attr.size,
            blocks: attr.blocks,
            device: attr.device,
            times: [time(attr.atime), time(attr.mtime), time(attr.ctime)],
        }
    }

    fn attr(&self) -> Attr {
        let [atime, mtime, ctime] =
            self.times.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
        Attr {
            ino: self.ino,
            kind: FileType::from_raw_mode(self.mode),
            mode: self.mode & 0o7777,
            nlink: self.nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            size: self.size,
            blocks: self.blocks,
            device: self.device,
            atime,
            mtime,
            ctime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_survive() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = serde_json::to_string(&Name::of(&bytes)).expect("text");
        let name: Name = serde_json::from_str(&text).expect("a name");
        assert_eq!(name.bytes().as_deref(), Some(&bytes[..]));
        assert_eq!(Name("\u{100}".to_owned()).bytes(), None);
    }
}
