//! Boot environments: a kernel and an initramfs with which a machine without a disk of
//! its own finds its VA (§4.3; `docs/boot.md`).
//!
//! ```text
//! OUTPUT/<release>-<id>/kernel             the kernel image, as its package has it
//! OUTPUT/<release>-<id>/initramfs          a compressed cpio archive
//! OUTPUT/<release>-<id>/environment.json   what is in it
//! OUTPUT/current                           symlink to the one that was made last
//! ```
//!
//! Guarantees: the same kernel and the same programs are the same bytes, hence the
//! same `<id>`, on every machine; an environment appears whole, and `current` moves
//! by one rename after that. The packages are not trusted: nothing of them is written
//! but the image and the modules that are wanted, each within its limit.

mod cpio;
mod error;
mod kernel;
mod modules;
mod source;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_core::Digest;
use strata_store::durable::Disk;
use strata_store::read_limited;

use self::cpio::CpioWriter;
use self::kernel::Kernel;
use crate::infer::elf;

pub use self::error::BootError;
pub use self::source::KernelSource;

/// The version of `environment.json`.
pub const VERSION: u32 = 1;
/// The link to the environment that was made last.
pub const CURRENT: &str = "current";
/// Names in an environment.
pub const KERNEL: &str = "kernel";
pub const INITRAMFS: &str = "initramfs";
pub const DESCRIPTION: &str = "environment.json";

/// Modules that an appliance may need before its root file system is there.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "fuse",
    "virtiofs",
    "9pnet_virtio",
    "9p",
];
/// What it may need beside them, where its store is on a file server.
const NFS_MODULES: [&str; 3] = ["nfs", "nfsv3", "nfsv4"];
const DISK_FILE_SYSTEM: &str = "ext4";
/// What the kernel must have been configured with.
const OPTIONS: [(&str, &str); 3] = [
    ("CONFIG_BLK_DEV_INITRD", "initramfs (CONFIG_BLK_DEV_INITRD)"),
    ("CONFIG_RD_ZSTD", "zstd for its initramfs (CONFIG_RD_ZSTD)"),
    ("CONFIG_DEVTMPFS", "devtmpfs (CONFIG_DEVTMPFS)"),
];
/// Bytes of one of the two programs.
const PROGRAM_BYTES: usize = 512 << 20;
const DESCRIPTION_BYTES: usize = 1 << 20;
/// Higher levels take several times as long for a few percent.
const ZSTD_LEVEL: i32 = 12;
/// Digits of an environment's digest in its name.
const ID_DIGITS: usize = 12;
const STAGED: &str = ".staged-";

/// What to make a boot environment of.
#[derive(Debug)]
pub struct BootRequest {
    pub kernels: Vec<KernelSource>,
    /// Which kernel, where there are several.
    pub release: Option<String>,
    /// `strata-init` and `strata-vlfs`, linked statically.
    pub init: PathBuf,
    pub vlfs: PathBuf,
    /// Modules beside those that every machine may need.
    pub modules: Vec<String>,
}

/// A file with its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub blake3: String,
    pub bytes: u64,
}

impl Part {
    fn of(content: &[u8]) -> Self {
        Part { blake3: Digest::of(content).to_string(), bytes: content.len() as u64 }
    }
}

/// What is in an environment: `environment.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub version: u32,
    /// As `uname -r` says it.
    pub release: String,
    pub kernel: Part,
    pub initramfs: Part,
    pub init: Part,
    pub vlfs: Part,
    /// In the order in which they are loaded.
    pub modules: Vec<String>,
}

/// An environment on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Environment {
    pub name: String,
    pub path: PathBuf,
    /// It is the one that `current` leads to.
    pub current: bool,
    #[serde(flatten)]
    pub description: Description,
}

/// Makes a boot environment below `output`, which is made where it is not there, and
/// lets `current` lead to it.
///
/// # Errors
/// [`BootError`]; what was current still is.
pub fn build(request: &BootRequest, output: &Path, disk: &Disk) -> Result<Environment, BootError> {
    let kernel = Kernel::read(&request.kernels, request.release.as_deref())?;
    let init = program(&request.init, &kernel)?;
    let vlfs = program(&request.vlfs, &kernel)?;
    let order = choose_modules(&kernel, &request.modules)?;
    let contents = kernel.contents(&request.kernels, &order.all)?;
    let mut modules = Vec::with_capacity(order.all.len());
    for name in &order.all {
        // One that vanished since it was read.
        let content = contents.get(name).ok_or_else(|| BootError::NoModule {
            release: kernel.release.clone(),
            module: name.clone(),
        })?;
        modules.push((format!("{name}.ko"), content.as_slice()));
    }
    let initramfs = initramfs(&init, &vlfs, &modules, order.nfs_from).map_err(|source| {
        BootError::Write { action: "pack", path: PathBuf::from(INITRAMFS), source }
    })?;
    let description = Description {
        version: VERSION,
        release: kernel.release.clone(),
        kernel: Part::of(&kernel.image),
        initramfs: Part::of(&initramfs),
        init: Part::of(&init),
        vlfs: Part::of(&vlfs),
        modules: order.all,
    };
    publish(output, disk, &kernel.image, &initramfs, description)
}

/// Reads a program that is to run without anybody's libraries.
fn program(path: &Path, kernel: &Kernel) -> Result<Vec<u8>, BootError> {
    let content = read_limited(path, PROGRAM_BYTES)?;
    let broken = |source| BootError::Elf { path: path.to_owned(), source };
    let no_program = || BootError::NoProgram { path: path.to_owned() };
    if !elf::is_elf(&content) {
        return Err(no_program());
    }
    let found = elf::read(&content).map_err(broken)?.ok_or_else(no_program)?;
    let interpreter = found.interpreter.map(|path| crate::member::shown(&path));
    let needs: Vec<String> = interpreter.into_iter().chain(found.needed).collect();
    if !needs.is_empty() {
        return Err(BootError::Dynamic { path: path.to_owned(), needs: needs.join(", ") });
    }
    if kernel.platform.is_some_and(|platform| platform != found.platform) {
        return Err(BootError::OtherProcessor { path: path.to_owned() });
    }
    Ok(content)
}

/// The modules to load, in order.
struct ModuleOrder {
    all: Vec<String>,
    /// Where those begin that NFS alone needs.
    nfs_from: usize,
}

fn choose_modules(kernel: &Kernel, further: &[String]) -> Result<ModuleOrder, BootError> {
    let release = || kernel.release.clone();
    for (option, what) in OPTIONS {
        if !kernel.is_configured_with(option) {
            return Err(BootError::Lacks { release: release(), what });
        }
    }
    let has = |name| kernel.modules.has(name);
    let nfs = has("nfs") && (has("nfsv3") || has("nfsv4"));
    let shares = has("virtiofs") || has("9p") && has("9pnet_virtio") || nfs;
    for (there, what) in [
        (has("fuse"), "FUSE"),
        (has(DISK_FILE_SYSTEM), "ext4 for the private disk"),
        (shares, "virtiofs, no 9p and no NFS to reach the store"),
    ] {
        if !there {
            return Err(BootError::Lacks { release: release(), what });
        }
    }
    if let Some(absent) = further.iter().find(|name| !kernel.modules.has(name)) {
        return Err(BootError::NoModule { release: release(), module: absent.clone() });
    }
    let own = MODULES.into_iter().chain([DISK_FILE_SYSTEM]).map(ToOwned::to_owned);
    let mut wanted: Vec<String> = own.chain(further.iter().cloned()).collect();
    let nfs_from = kernel.modules.in_order(&wanted)?.len();
    wanted.extend(NFS_MODULES.map(ToOwned::to_owned));
    Ok(ModuleOrder { all: kernel.modules.in_order(&wanted)?, nfs_from })
}

/// Packs the first root of a machine. The paths are those of `vlfs/init/src/boot/places.rs`.
fn initramfs(
    init: &[u8],
    vlfs: &[u8],
    modules: &[(String, &[u8])],
    nfs_from: usize,
) -> std::io::Result<Vec<u8>> {
    let mut archive = CpioWriter::new(Vec::new());
    for name in ["dev", "proc", "run", "strata", "strata/modules", "sys"] {
        archive.directory(name, 0o755)?;
    }
    // The kernel opens it for the first process before anything is mounted.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, init)?;
    archive.file("strata/vlfs", 0o755, vlfs)?;
    let (own, nfs) = modules.split_at(nfs_from.min(modules.len()));
    for (list, names) in [("order", own), ("order-nfs", nfs)] {
        let order: String = names.iter().map(|(name, _)| format!("{name}\n")).collect();
        archive.file(&format!("strata/modules/{list}"), 0o644, order.as_bytes())?;
    }
    let mut sorted: Vec<_> = modules.iter().collect();
    sorted.sort_by_key(|(name, _)| name);
    for (name, content) in sorted {
        archive.file(&format!("strata/modules/{name}"), 0o644, content)?;
    }
    let archive = archive.finish()?;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.write_all(&archive)?;
    encoder.finish()
}

/// Puts an environment in place and makes it the current one.
fn publish(
    output: &Path,
    disk: &Disk,
    image: &[u8],
    initramfs: &[u8],
    description: Description,
) -> Result<Environment, BootError> {
    let at = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| BootError::Write { action, path, source }
    };
    let mut text = serde_json::to_string_pretty(&description)
        .map_err(|source| BootError::Description { path: PathBuf::from(DESCRIPTION), source })?;
    text.push('\n');
    let digest = Digest::of(text.as_bytes()).to_string();
    let name = format!("{}-{}", description.release, &digest[..ID_DIGITS]);
    let path = output.join(&name);
    disk.create_directory(output)?;
    sweep(output)?;
    if !path.join(DESCRIPTION).is_file() {
        let staged = tempfile::Builder::new()
            .prefix(&format!("{STAGED}{}-", std::process::id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(output)
            .map_err(at("create", output))?;
        let files = [(KERNEL, image), (INITRAMFS, initramfs), (DESCRIPTION, text.as_bytes())];
        for (name, content) in files {
            let path = staged.path().join(name);
            fs::write(&path, content).map_err(at("write", &path))?;
        }
        disk.publish_directory(staged.path(), &path)?;
        // It has another name by now.
        let _former = staged.keep();
    }
    disk.replace_link(&output.join(CURRENT), Path::new(&name))?;
    Ok(Environment { name, path, current: true, description })
}

/// Removes what builders left that were killed.
fn sweep(output: &Path) -> Result<(), BootError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| BootError::Write { action: "remove", path, source }
    };
    for entry in fs::read_dir(output).map_err(at(output))? {
        let entry = entry.map_err(at(output))?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(STAGED));
        let pid = pid.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir_all(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    Ok(())
}

/// The environments below a directory, by name; none where it is not there.
///
/// # Errors
/// The directory or a description cannot be read.
pub fn list(output: &Path) -> Result<Vec<Environment>, BootError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| BootError::Read { path, source }
    };
    let entries = match fs::read_dir(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read(output))?,
    };
    let current = fs::read_link(output.join(CURRENT)).ok();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read(output))?;
        let is_directory = entry.file_type().map_err(read(&entry.path()))?.is_dir();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_directory || name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let file = path.join(DESCRIPTION);
        let text = read_limited(&file, DESCRIPTION_BYTES)?;
        let description = serde_json::from_slice(&text)
            .map_err(|source| BootError::Description { path: file, source })?;
        let current = current.as_deref() == Some(Path::new(&name));
        found.push(Environment { name, path, current, description });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
