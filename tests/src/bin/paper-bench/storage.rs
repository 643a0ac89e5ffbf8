//! Figure 6 and Table 3: what VAs take on the disk (§6.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use strata_core::Digest;
use strata_core::manifest::{Kind, Timestamp};
use strata_store::Store;
use strata_tests::archive::REPOSITORY;
use strata_tests::commands::{output, run};
use strata_tests::disk::{Disk, Format};
use strata_tests::goals::{Goals, Limit};

use crate::appliances::{APPLIANCES, Archive, Versions};
use crate::document::bars;
use crate::images::{self, disk_bytes};
use crate::site::Site;

/// The VAs of Figure 6: one Apache, one of each, ten of each.
const FLEETS: [usize; 3] = [1, 5, 50];
/// What 50 VAs may take of one set of layers.
const LIMIT: f64 = 1.02;
const MIB: f64 = (1 << 20) as f64;
/// What the disk whose files share blocks can take.
const SHARING_DISK: u64 = 6 << 30;
const FILES_OF_A_COMMAND: usize = 500;

/// Measures a site whose VAs were started once, and tells it in Markdown.
pub fn measure(site: &Site, archive: &Archive, images: &Path, goals: &mut Goals) -> Result<String> {
    let root = site.store.root();
    let layers = disk_bytes(&root.join("repos"), &mut BTreeSet::new())? as f64;
    let mut own = Vec::new();
    for va in site.vas() {
        let path = site.store.machines().join(&va.name);
        own.push(disk_bytes(&path, &mut BTreeSet::new())? as f64);
    }
    let whole = disk_bytes(root, &mut BTreeSet::new())? as f64;
    let shared = whole - own.iter().sum::<f64>();
    let (raw, qcow2) = image_bytes(images)?;
    let mut text = "| VAs | raw copies | QCOW2 overlays | Strata |\n|---|---|---|---|\n".to_owned();
    let mut plot = Vec::new();
    let mut last = f64::NAN;
    for fleet in FLEETS {
        let of = |bytes: &[f64]| (0..fleet).map(|va| bytes[va % APPLIANCES.len()]).sum::<f64>();
        let bases = raw.iter().take(fleet).sum::<f64>();
        let (raw, qcow2) = (of(&raw), bases + of(&qcow2));
        let own = own.get(..fleet).with_context(|| format!("there are fewer than {fleet} VAs"))?;
        last = shared + own.iter().sum::<f64>();
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / MIB);
        text.push_str(&format!("| {fleet} | {} | {} | {} |\n", mib(raw), mib(qcow2), mib(last)));
        for (name, bytes) in [("raw", raw), ("QCOW2", qcow2), ("Strata", last)] {
            plot.push((format!("{fleet:>2} {name}"), bytes / MIB));
        }
    }
    goals.goal("50 VAs against one set of layers", last / layers, Limit::AtMost(LIMIT), "×");
    text.push_str(&format!("\n{}\n", bars(&plot, "MiB")));
    text.push_str(&format!(
        "Blocks on the disk. One raw copy of each appliance was made and counts for all of its kind; the overlays are as they are created, \
         with the images below them; Strata's is the whole store with the private layers of VAs that were started once ({:.0} KiB \
         each on average). One set of layers takes {:.0} MiB.\n\n",
        own.iter().take(50).sum::<f64>() / 50.0 / 1024.0,
        layers / MIB
    ));
    text.push_str(&layers_of_appliances(site, archive)?);
    Ok(text)
}

/// Bytes of a raw copy and of an overlay of each appliance.
fn image_bytes(images: &Path) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut raw, mut qcow2) = (Vec::new(), Vec::new());
    let image = images.join("copy");
    for appliance in &APPLIANCES {
        let base = images::base(images, appliance.name);
        for (make, bytes) in [
            (images::copy as fn(&Path, &Path) -> Result<f64>, &mut raw),
            (images::overlay, &mut qcow2),
        ] {
            make(&base, &image)?;
            // Blocks are given out when the data goes to the disk.
            fs::File::open(&image)?.sync_all()?;
            bytes.push(disk_bytes(&image, &mut BTreeSet::new())? as f64);
            fs::remove_file(&image)?;
        }
    }
    Ok((raw, qcow2))
}

/// Table 3: a layer is shared where another appliance has it, too.
fn layers_of_appliances(site: &Site, archive: &Archive) -> Result<String> {
    let database = site.store.database(&REPOSITORY.parse()?)?;
    let sets: Vec<_> = (0..APPLIANCES.len()).map(|number| archive.layers(number)).collect();
    let mut used = BTreeMap::new();
    sets.iter().flatten().for_each(|layer| *used.entry(layer).or_insert(0) += 1);
    let bytes =
        |layers: &mut dyn Iterator<Item = &(String, strata_core::LayerVersion)>| -> Result<f64> {
            let mut sum = 0;
            for (name, version) in layers {
                let unit = database.get(&name.parse()?, version);
                sum += unit.with_context(|| format!("{name} {version}"))?.content_bytes;
            }
            Ok(sum as f64 / MIB)
        };
    let whole = bytes(&mut used.keys().copied())?;
    let mut text = format!(
        "| | all | {} |\n|---|---|---|---|---|---|---|\n",
        APPLIANCES.map(|appliance| appliance.name).join(" | ")
    );
    let (mut size, mut number) =
        (format!("| content | {whole:.0} MiB"), format!("| layers | {}", used.len()));
    let (mut shared, mut unique) = ("| shared | ".to_owned(), "| unique | ".to_owned());
    for set in &sets {
        let mib = |bytes: f64| format!(" | {bytes:.0} MiB");
        size.push_str(&mib(bytes(&mut set.iter())?));
        number.push_str(&format!(" | {}", set.len()));
        shared.push_str(&mib(bytes(&mut set.iter().filter(|layer| used[layer] > 1))?));
        unique.push_str(&mib(bytes(&mut set.iter().filter(|layer| used[layer] == 1))?));
    }
    for row in [size, number, shared, unique] {
        text.push_str(&row);
        text.push_str(" |\n");
    }
    Ok(text)
}

/// Bytes of files in the newer of two versions.
#[derive(Default)]
struct Alike {
    all: u64,
    /// The older version has a file with the same content.
    alike: u64,
    same_time: u64,
    /// On the same blocks as the older version's.
    once: u64,
}

/// Of the bytes in files that two versions of a layer have alike, how many are stored once: on
/// the disk of the site, and on one whose files can share blocks.
pub fn versions(site: &Site, work: &Path, pairs: &[Versions], goals: &mut Goals) -> Result<String> {
    for pair in pairs {
        site.import(&pair.files[0])?;
    }
    let inodes = Alike::of(&site.store, pairs)?;
    let directory = work.join("sharing");
    fs::create_dir(&directory)?;
    let disk = Disk::make(&directory, SHARING_DISK, Format::Xfs)?;
    let store = Store::init(&disk.root().join("store"))?;
    for number in [0, 1] {
        let files = pairs.iter().map(|pair| &pair.files[number]);
        let import = ["layer", "import", "--repo", REPOSITORY, "--store"];
        run(site.command(&import).arg(store.root()).args(files))?;
    }
    let blocks = Alike::of(&store, pairs)?;
    drop((store, disk));
    fs::remove_dir_all(&directory)?;
    let goal = "bytes alike in two versions of a layer, stored once where files can share blocks";
    goals.goal(goal, blocks.once as f64 / blocks.alike as f64, Limit::AtLeast(1.0), "");
    let mib = |bytes: u64| bytes as f64 / MIB;
    Ok(format!(
        "\n{} layers of these were imported at two versions: the newer have {:.1} MiB, of which {:.1} MiB are in files that the older version \
         has with the same content. On an XFS, where files of different owner, mode and time can share blocks, {:.1} MiB of them are stored once. \
         This ext4 cannot share blocks, only whole inodes, and an inode has one time; \
         the distribution gives the files of a new version the time of its build: {:.1} MiB have the same time, too, and {:.1} MiB are stored once there.\n",
        pairs.len(),
        mib(blocks.all),
        mib(blocks.alike),
        mib(blocks.once),
        mib(inodes.same_time),
        mib(inodes.once)
    ))
}

impl Alike {
    /// `pairs` are in the store at both versions.
    fn of(store: &Store, pairs: &[Versions]) -> Result<Alike> {
        let repository = REPOSITORY.parse()?;
        let mut found = Alike::default();
        for Versions { layer, versions, .. } in pairs {
            let layer = layer.parse()?;
            let mut former: BTreeMap<Digest, (PathBuf, Timestamp)> = BTreeMap::new();
            let (mut sizes, mut files) = (Vec::new(), Vec::new());
            for (number, version) in versions.iter().enumerate() {
                let root = store.unit_path(&repository, &layer, version).join("filesystem");
                for entry in store.manifest(&repository, &layer, version)?.entries() {
                    let Kind::Regular { size, digest } = entry.kind else { continue };
                    let path = root.join(std::str::from_utf8(&entry.path)?);
                    if number == 0 {
                        former.insert(digest, (path, entry.mtime));
                        continue;
                    }
                    found.all += size;
                    let Some((other, time)) = former.get(&digest) else { continue };
                    found.alike += size;
                    found.same_time += if *time == entry.mtime { size } else { 0 };
                    sizes.push(size);
                    files.extend([path, other.clone()]);
                }
            }
            let places = extents(&files)?;
            for (size, places) in sizes.iter().zip(places.chunks(2)) {
                found.once += match places {
                    [own, other] if own == other && !own.is_empty() => *size,
                    _ => 0,
                };
            }
        }
        Ok(found)
    }
}

/// Where each of the files is on the disk: the lines of its table of extents without what
/// is not the place.
fn extents(files: &[PathBuf]) -> Result<Vec<Vec<String>>> {
    let mut places = Vec::new();
    for files in files.chunks(FILES_OF_A_COMMAND) {
        let said = output(Command::new("filefrag").arg("-v").args(files))?;
        let before = places.len();
        for line in String::from_utf8_lossy(&said).lines() {
            let fields: Vec<_> = line.split(':').map(str::trim).collect();
            match fields.as_slice() {
                [text] | [text, ..] if text.starts_with("File size of ") => {
                    places.push(Vec::new());
                }
                [number, _, place, ..] if number.parse::<u32>().is_ok() => {
                    places.last_mut().context("a table has a head")?.push((*place).to_owned());
                }
                _ => {}
            }
        }
        ensure!(places.len() == before + files.len(), "filefrag left files out");
    }
    Ok(places)
}
