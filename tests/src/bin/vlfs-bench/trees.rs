//! What the bench reads and writes: layers that look like packages, the same
//! files as one plain directory, a C project, an archive. The same at every run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use strata_tests::commands::run;
use strata_tests::workloads::Sources;

/// Layers of the file system that is measured.
pub const LAYERS: usize = 40;
/// Directories of small files a layer has.
const DIRECTORIES: usize = 10;
/// The one large file, for reads of data.
pub const LARGE: &str = "usr/lib/large.bin";
/// The program that is started again and again.
pub const PROGRAM: &str = "usr/bin/short";
/// The C project.
pub const PROJECT: &str = "usr/src/project";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    /// Small files of all layers.
    pub files: usize,
    pub large_mib: usize,
    pub created: usize,
    pub processes: usize,
    pub postmark_files: usize,
    pub postmark_transactions: usize,
    /// Layers of the large generations, and files that 404 of them have.
    pub generations: &'static [usize],
    pub generation_files: usize,
    pub whole_project: bool,
    /// What the archive holds.
    pub archived: &'static [&'static str],
}

pub const FULL: Size = Size {
    rounds: 5,
    files: 50_000,
    large_mib: 128,
    created: 20_000,
    processes: 500,
    postmark_files: 20_000,
    postmark_transactions: 200_000,
    generations: &[12, 43, 404, 1_000],
    generation_files: 150_000,
    whole_project: true,
    archived: &["usr/share", "usr/src"],
};

pub const QUICK: Size = Size {
    rounds: 5,
    files: 10_000,
    large_mib: 64,
    created: 2_000,
    processes: 100,
    postmark_files: 2_000,
    postmark_transactions: 10_000,
    generations: &[12, 404],
    generation_files: 20_000,
    whole_project: false,
    archived: &["usr/share/doc", "usr/src"],
};

/// A generator of numbers that are the same at every run (splitmix64).
#[derive(Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap_or(0)
    }

    /// `length` bytes that do not compress to nothing.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.below(usize::MAX).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// The paths that exist in every tree.
#[derive(Debug)]
pub struct Trees {
    /// Small files.
    pub files: Vec<String>,
    /// Names that do not exist, in directories that do.
    pub absent: Vec<String>,
    pub layers: Vec<PathBuf>,
    pub archive: PathBuf,
}

impl Trees {
    /// Makes layers, bottom first, and `native` with the same files.
    pub fn make(work: &Path, native: &Path, size: &Size, sources: &Sources) -> Result<Trees> {
        let mut numbers = Numbers(7);
        let mut trees =
            Trees { files: vec![], absent: vec![], layers: vec![], archive: work.join("a.tar") };
        let each = size.files / (LAYERS * DIRECTORIES);
        for layer in 0..LAYERS {
            let root = work.join("layers").join(format!("{layer:02}"));
            for directory in 0..DIRECTORIES {
                // Merged directories above, the package's own below, as in a distribution.
                let place = match directory {
                    0..3 => format!("usr/lib/package-{layer}/module-{directory}"),
                    3..6 => format!("usr/share/package-{layer}/data-{directory}"),
                    6 => format!("usr/share/doc/package-{layer}"),
                    7 => "usr/share/man/man1".to_owned(),
                    8 => "usr/include".to_owned(),
                    _ => format!("etc/package-{layer}"),
                };
                fs::create_dir_all(root.join(&place))?;
                for file in 0..each {
                    let path = format!("{place}/{layer}-{directory}-file-{file}.conf");
                    let length = 200 + numbers.below(4_000);
                    fs::write(root.join(&path), numbers.bytes(length))?;
                    trees.absent.push(format!("{path}.absent"));
                    trees.files.push(path);
                }
            }
            trees.layers.push(root);
        }
        let first = &trees.layers[0];
        write_large(&first.join(LARGE), size.large_mib, &mut numbers)?;
        fs::create_dir_all(first.join("usr/bin"))?;
        fs::copy("/bin/true", first.join(PROGRAM)).context("/bin/true")?;
        sources.project(&trees.layers[LAYERS / 2].join(PROJECT))?;
        for layer in &trees.layers {
            run(Command::new("cp").arg("-aT").args([layer, native]))?;
        }
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&trees.archive).arg("-C").arg(native).args(size.archived);
        run(&mut tar)?;
        // What is dirty cannot be dropped from memory, and must not be written meanwhile.
        rustix::fs::sync();
        // Reads in a scattered order, as programs do.
        for at in (1..trees.files.len()).rev() {
            trees.files.swap(at, numbers.below(at + 1));
        }
        Ok(trees)
    }
}

fn write_large(path: &Path, mib: usize, numbers: &mut Numbers) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let block = numbers.bytes(1 << 20);
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}
