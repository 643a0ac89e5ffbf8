//! Merging layers into an index. Pure but for the sink that it writes to.
//!
//! Every path of any layer becomes a node with all its contributions, whatever
//! obscures it and whatever a VA hides: what a VA sees of it is the overlay's
//! matter (`overlay.rs`). Software layers that share a path are refused (§3).

use std::collections::VecDeque;
use std::io::{self, Write};

use strata_core::metadata::LayerKind;

use super::Contribution;
use super::format::{
    BLOCK_BYTES, CHECK_BYTES, EntryRecord, HEADER_BYTES, Header, LayerRecord, NodeRecord, Section,
};
use super::pack::View;

/// One layer as the merge sees it.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub view: View<'a>,
    /// Identity and kind of a unit of a store; `None` for a plain directory.
    pub unit: Option<(strata_core::Digest, LayerKind)>,
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `first` and `second` are positions in the set.
    #[error("two software layers share a path")]
    Overlap { first: usize, second: usize, path: Vec<u8> },
    #[error("the layers have more paths, names or contents than an index can number")]
    TooLarge,
    #[error("the index cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// A merged set, ready to be written.
pub struct Merged<'a> {
    layers: &'a [Input<'a>],
    records: Vec<LayerRecord>,
    nodes: Vec<NodeRecord>,
    contributions: Vec<Contribution>,
    /// The node of each entry, all layers one after the other.
    node_of: Vec<u32>,
    permits: Permits<'a>,
}

/// Whether the layer at the first position may obscure the path of the one at the
/// second, below it (`strata_core::shared_paths::may_obscure`).
pub type Permits<'a> = &'a dyn Fn(usize, usize, &[u8]) -> bool;

/// A directory whose children are still to be merged.
struct Pending {
    node: u32,
    directories: Vec<Contribution>,
}

/// Merges layers, the topmost first, of which none takes over another's path.
///
/// # Errors
/// Software layers share a path; the set is too large.
pub fn merge<'a>(layers: &'a [Input<'a>]) -> Result<Merged<'a>, BuildError> {
    merge_where(layers, &|_, _, _| false)
}

/// Merges layers, the topmost first. `permits` is asked where software layers
/// share a path.
///
/// # Errors
/// Software layers share a path; the set is too large.
pub fn merge_where<'a>(
    layers: &'a [Input<'a>],
    permits: Permits<'a>,
) -> Result<Merged<'a>, BuildError> {
    let records = layer_records(layers)?;
    let total = records.last().map_or(0, |last| (last.first_entry + last.entries) as usize);
    let mut merged = Merged {
        layers,
        records,
        nodes: Vec::with_capacity(total),
        contributions: Vec::with_capacity(total),
        node_of: vec![0; total],
        permits,
    };
    let roots: Vec<_> =
        (0..).zip(layers).map(|(layer, _)| Contribution { layer, entry: 0 }).collect();
    merged.add_node(0, &roots)?;
    let mut pending = VecDeque::from([Pending { node: 0, directories: roots }]);
    while let Some(directory) = pending.pop_front() {
        merged.merge_children(&directory, &mut pending)?;
    }
    Ok(merged)
}

fn layer_records(layers: &[Input<'_>]) -> Result<Vec<LayerRecord>, BuildError> {
    let mut next = LayerRecord::default();
    let mut records = Vec::with_capacity(layers.len());
    let number = |length: usize| u32::try_from(length).map_err(|_| BuildError::TooLarge);
    for Input { view, unit } in layers {
        let record = LayerRecord {
            digest: unit.map_or([0; 32], |(digest, _)| *digest.as_bytes()),
            entries: number(view.count())?,
            digests: number(view.digests.len() / 32)?,
            strings_length: view.strings.len() as u64,
            kind: match unit {
                Some((_, LayerKind::Software)) => 0,
                Some((_, LayerKind::Configuration)) => 1,
                None => 2,
            },
            ..next
        };
        records.push(record);
        let too_large = || BuildError::TooLarge;
        next.first_entry = record.first_entry.checked_add(record.entries).ok_or_else(too_large)?;
        next.first_digest =
            record.first_digest.checked_add(record.digests).ok_or_else(too_large)?;
        next.strings += record.strings_length;
        number(usize::try_from(next.strings).unwrap_or(usize::MAX))?;
    }
    Ok(records)
}

impl Merged<'_> {
    fn is_directory(&self, contribution: &Contribution) -> bool {
        self.layers[contribution.layer as usize].view.is_directory(contribution.entry)
    }

    fn add_node(&mut self, parent: u32, contributions: &[Contribution]) -> Result<u32, BuildError> {
        let number = |length: usize| u32::try_from(length).map_err(|_| BuildError::TooLarge);
        let index = number(self.nodes.len())?;
        let mut node = NodeRecord {
            parent,
            first_contribution: number(self.contributions.len())?,
            contributions: number(contributions.len())?,
            ..NodeRecord::default()
        };
        let mut obscured = false;
        for contribution in contributions {
            let layer = contribution.layer as usize;
            self.node_of[(self.records[layer].first_entry + contribution.entry) as usize] = index;
            let is_directory = self.is_directory(contribution);
            if obscured && is_directory {
                node.flags |= NodeRecord::OBSCURES;
            }
            obscured |= !is_directory;
        }
        if let Some(top) = contributions.first() {
            let layer = top.layer as usize;
            if let Some(record) = self.layers[layer].view.record(top.entry) {
                let name = self.records[layer].strings + u64::from(record.name);
                node.name = u32::try_from(name).map_err(|_| BuildError::TooLarge)?;
                node.name_length = record.name_length;
            }
        }
        self.contributions.extend_from_slice(contributions);
        self.nodes.push(node);
        if obscured && contributions.len() > 1 {
            self.check_overlap(index, contributions)?;
        }
        if node.flags & NodeRecord::OBSCURES != 0 {
            let mut at = parent;
            while self.nodes[at as usize].flags & NodeRecord::OBSCURES_BELOW == 0 {
                self.nodes[at as usize].flags |= NodeRecord::OBSCURES_BELOW;
                at = self.nodes[at as usize].parent;
            }
        }
        Ok(index)
    }

    fn merge_children(
        &mut self,
        directory: &Pending,
        pending: &mut VecDeque<Pending>,
    ) -> Result<(), BuildError> {
        let layers = self.layers;
        let mut found: Vec<(&[u8], Contribution)> = Vec::new();
        for Contribution { layer, entry } in &directory.directories {
            let view = &layers[*layer as usize].view;
            found.extend(
                view.children(*entry)
                    .map(|child| (view.name(child), Contribution { layer: *layer, entry: child })),
            );
        }
        if directory.directories.len() > 1 {
            found.sort_unstable_by(|(a, c), (b, d)| a.cmp(b).then(c.layer.cmp(&d.layer)));
        }
        let first_child = self.nodes.len();
        let mut directories = 0;
        for same_name in found.chunk_by(|a, b| a.0 == b.0) {
            let all: Vec<_> = same_name.iter().map(|(_, contribution)| *contribution).collect();
            let node = self.add_node(directory.node, &all)?;
            let below: Vec<_> = all.iter().copied().filter(|c| self.is_directory(c)).collect();
            if below.first() == all.first() {
                directories += 1;
            }
            if !below.is_empty() {
                pending.push_back(Pending { node, directories: below });
            }
        }
        let children = self.nodes.len() - first_child;
        let node = &mut self.nodes[directory.node as usize];
        node.first_child = u32::try_from(first_child).map_err(|_| BuildError::TooLarge)?;
        node.children = u32::try_from(children).map_err(|_| BuildError::TooLarge)?;
        node.directories = directories;
        Ok(())
    }

    /// Software layers may have one path only where both have a directory, or
    /// entries alike in all but their links, or where the upper one takes it over
    /// (the rule of `strata_core::shared_paths`).
    fn check_overlap(&self, node: u32, contributions: &[Contribution]) -> Result<(), BuildError> {
        let software = |contribution: &&Contribution| {
            let unit = self.layers[contribution.layer as usize].unit;
            matches!(unit, Some((_, LayerKind::Software)))
        };
        let entry = |c: &Contribution| self.layers[c.layer as usize].view.entry(c.entry);
        let alike = |a: &Contribution, b: &Contribution| match (entry(a), entry(b)) {
            (Some(a), Some(b)) => {
                (a.is_directory() && b.is_directory())
                    || (a.kind == b.kind && a.attributes == b.attributes)
            }
            _ => false,
        };
        let software: Vec<_> = contributions.iter().filter(software).collect();
        let mut path = None;
        for (at, upper) in software.iter().enumerate() {
            for lower in software[at + 1..].iter().filter(|lower| !alike(upper, lower)) {
                let path = path.get_or_insert_with(|| self.path(node));
                let (first, second) = (upper.layer as usize, lower.layer as usize);
                if !(self.permits)(first, second, path) {
                    return Err(BuildError::Overlap { first, second, path: path.clone() });
                }
            }
        }
        Ok(())
    }

    fn path(&self, mut node: u32) -> Vec<u8> {
        let mut names = Vec::new();
        while node != 0 {
            let record = self.nodes[node as usize];
            let top = self.contributions[record.first_contribution as usize];
            names.push(self.layers[top.layer as usize].view.name(top.entry));
            node = record.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Where everything will stand.
    pub fn header(&self, key: [u8; 32], generation: [u8; 32]) -> Header {
        let views = || self.layers.iter().map(|layer| &layer.view);
        let mut lengths = [
            self.records.len() * LayerRecord::BYTES,
            self.nodes.len() * NodeRecord::BYTES,
            self.contributions.len() * Section::Contributions.record(),
            views().map(|view| view.entries.len()).sum(),
            views().map(|view| view.digests.len()).sum(),
            views().map(|view| view.strings.len()).sum(),
            0,
        ];
        lengths[6] = Header::place(key, generation, lengths).blocks() * CHECK_BYTES;
        Header::place(key, generation, lengths)
    }

    /// Writes all that follows the header, and returns the header's bytes, which
    /// belong before it.
    ///
    /// # Errors
    /// The sink fails.
    pub fn write(&self, header: &Header, sink: &mut dyn Write) -> io::Result<Vec<u8>> {
        let mut sink = Checked { sink, at: HEADER_BYTES, block: Vec::new(), checks: Vec::new() };
        for section in Section::ALL {
            sink.skip_to(header.section(section).start)?;
            match section {
                Section::Layers => {
                    self.records.iter().try_for_each(|record| sink.put(&record.print()))?;
                }
                Section::Nodes => {
                    self.nodes.iter().try_for_each(|record| sink.put(&record.print()))?;
                }
                Section::Contributions => {
                    for Contribution { layer, entry } in &self.contributions {
                        sink.put(&layer.to_le_bytes())?;
                        sink.put(&entry.to_le_bytes())?;
                    }
                }
                Section::Entries => self.write_entries(&mut sink)?,
                Section::Digests => {
                    self.layers.iter().try_for_each(|layer| sink.put(layer.view.digests))?;
                }
                Section::Strings => {
                    self.layers.iter().try_for_each(|layer| sink.put(layer.view.strings))?;
                }
                Section::Checks => {}
            }
        }
        let checks = sink.finish()?;
        Ok(header.print(&checks))
    }

    fn write_entries(&self, sink: &mut Checked<'_>) -> io::Result<()> {
        let mut nodes = self.node_of.iter();
        for layer in self.layers {
            for record in layer.view.entries.chunks_exact(EntryRecord::BYTES) {
                let (before, after) = record.split_at(EntryRecord::NODE);
                sink.put(before)?;
                sink.put(&nodes.next().copied().unwrap_or(0).to_le_bytes())?;
                sink.put(&after[4..])?;
            }
        }
        Ok(())
    }
}

/// Passes bytes on and checks them by blocks.
struct Checked<'a> {
    sink: &'a mut dyn Write,
    at: usize,
    block: Vec<u8>,
    checks: Vec<u8>,
}

impl Checked<'_> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = rest;
            if self.block.len() == BLOCK_BYTES {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.checks.extend_from_slice(&check(&self.block));
        self.sink.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn skip_to(&mut self, at: usize) -> io::Result<()> {
        let gap = vec![0; at - self.at];
        self.put(&gap)
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.sink.write_all(&self.checks)?;
        Ok(self.checks)
    }
}

/// The check of a block.
pub fn check(block: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(block).as_bytes()[..CHECK_BYTES]);
    check
}
