//! A kernel with its modules, from one source or several.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use crate::boot::error::BootError;
use crate::boot::modules::{self, Modules, module_name};
use crate::boot::source::KernelSource;
use crate::compression::Compression;
use crate::infer::elf::Platform;

/// Bytes of a kernel image.
const IMAGE_BYTES: u64 = 256 << 20;
/// Bytes of one module, as it is and unpacked (amdgpu has 30 MB).
const MODULE_BYTES: u64 = 128 << 20;
/// Bytes of all modules of one environment, unpacked.
const MODULES_BYTES: u64 = 512 << 20;
/// Bytes of the lists beside the modules.
const LIST_BYTES: u64 = 16 << 20;
/// Bytes of the name of a release (`uname -r` has 64).
const RELEASE_BYTES: usize = 64;

/// What is needed of a kernel.
#[derive(Debug)]
pub struct Kernel {
    pub release: String,
    pub image: Vec<u8>,
    /// How it was configured, where that is told.
    pub config: Option<String>,
    pub modules: Modules,
    /// What the modules are made for; `None` where there are none.
    pub platform: Option<Platform>,
}

/// Whose file it is, and what.
enum Part<'p> {
    Image { release: &'p str },
    Config { release: &'p str },
    Builtin { release: &'p str },
    Module { release: &'p str, name: String },
}

/// What a path of a kernel's holds.
fn part(path: &str) -> Option<Part<'_>> {
    any_part(path).filter(|part| is_release(part.release()))
}

/// A release becomes the name of a directory.
fn is_release(release: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    release.len() <= RELEASE_BYTES
        && release.starts_with(|c: char| c.is_ascii_alphanumeric())
        && release.bytes().all(plain)
}

fn any_part(path: &str) -> Option<Part<'_>> {
    if let Some(name) = path.strip_prefix("boot/") {
        return match name.split_once('-')? {
            ("vmlinuz" | "vmlinux", release) => Some(Part::Image { release }),
            ("config", release) => Some(Part::Config { release }),
            _ => None,
        }
        .filter(|_| !name.contains('/'));
    }
    let below = path.strip_prefix("usr/lib/modules/").or(path.strip_prefix("lib/modules/"))?;
    let (release, rest) = below.split_once('/')?;
    match rest {
        "vmlinuz" => Some(Part::Image { release }),
        "config" => Some(Part::Config { release }),
        "modules.builtin" => Some(Part::Builtin { release }),
        _ => {
            let name = module_name(rest.rsplit('/').next()?)?;
            Some(Part::Module { release, name })
        }
    }
}

impl Part<'_> {
    fn limit(&self) -> u64 {
        match self {
            Part::Image { .. } => IMAGE_BYTES,
            Part::Config { .. } | Part::Builtin { .. } => LIST_BYTES,
            Part::Module { .. } => MODULE_BYTES,
        }
    }

    fn release(&self) -> &str {
        match self {
            Part::Image { release }
            | Part::Config { release }
            | Part::Builtin { release }
            | Part::Module { release, .. } => release,
        }
    }
}

/// What was found of one release.
#[derive(Default)]
struct Found {
    image: Option<Vec<u8>>,
    config: Option<String>,
    modules: Modules,
    platform: Option<Platform>,
}

impl Found {
    fn take(&mut self, part: Part<'_>, path: &str, content: Vec<u8>) -> Result<(), BootError> {
        match part {
            Part::Image { .. } => self.image = Some(content),
            Part::Config { .. } => {
                self.config = Some(String::from_utf8_lossy(&content).into_owned());
            }
            Part::Builtin { .. } => {
                let list = String::from_utf8_lossy(&content);
                let names = list.lines().filter_map(|line| line.rsplit('/').next());
                self.modules.builtin.extend(names.filter_map(module_name));
            }
            Part::Module { name, .. } => {
                let (info, platform) = modules::read(path, &unpack(path, content)?)?;
                self.platform = Some(platform);
                self.modules.known.insert(name, info);
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// Reads a kernel, and of its modules what they say of themselves: the kernel that is
    /// wanted, or the only one.
    ///
    /// # Errors
    /// There is none, or several and none is named; or a file is damaged or too large.
    pub fn read(sources: &[KernelSource], wanted: Option<&str>) -> Result<Self, BootError> {
        let mut releases = BTreeMap::<String, Found>::new();
        // Images of others are looked at, too: their names are told.
        let concerns = |part: &Part<'_>| {
            matches!(part, Part::Image { .. })
                || wanted.is_none_or(|wanted| part.release() == wanted)
        };
        let limit = |path: &str| part(path).filter(concerns).map(|part| part.limit());
        for source in sources {
            source.visit(&limit, &mut |path, content| {
                let Some(part) = part(path) else { return Ok(()) };
                releases.entry(part.release().to_owned()).or_default().take(part, path, content)
            })?;
        }
        releases.retain(|_, found| found.image.is_some());
        let nothing = || BootError::NoKernel(sources.iter().map(|s| s.path().to_owned()).collect());
        let names: Vec<String> = releases.keys().cloned().collect();
        let release = match (wanted, names.as_slice()) {
            (_, []) => return Err(nothing()),
            (Some(wanted), _) => wanted.to_owned(),
            (None, [only]) => only.clone(),
            (None, _) => return Err(BootError::SeveralKernels(names)),
        };
        let found = releases
            .remove(&release)
            .ok_or_else(|| BootError::OtherKernels { wanted: release.clone(), found: names })?;
        let Found { image, config, modules, platform } = found;
        let image = image.ok_or_else(nothing)?;
        Ok(Kernel { release, image, config, modules, platform })
    }

    /// The contents of modules, unpacked, by name.
    ///
    /// # Errors
    /// They cannot be read or are too large together.
    pub fn contents(
        &self,
        sources: &[KernelSource],
        names: &[String],
    ) -> Result<BTreeMap<String, Vec<u8>>, BootError> {
        let wanted = |path: &str| match part(path) {
            Some(Part::Module { release, name }) if release == self.release => {
                names.contains(&name).then_some(name)
            }
            _ => None,
        };
        let mut contents = BTreeMap::new();
        let mut left = MODULES_BYTES;
        for source in sources {
            source.visit(&|path| wanted(path).map(|_| MODULE_BYTES), &mut |path, content| {
                let Some(name) = wanted(path) else { return Ok(()) };
                let content = unpack(path, content)?;
                left = left
                    .checked_sub(content.len() as u64)
                    .ok_or(BootError::ModuleBytes { limit: MODULES_BYTES })?;
                contents.insert(name, content);
                Ok(())
            })?;
        }
        Ok(contents)
    }

    /// Whether the kernel was configured with an option; unknown counts as yes.
    pub fn is_configured_with(&self, option: &str) -> bool {
        let Some(config) = &self.config else { return true };
        let wanted = format!("{option}=y");
        config.lines().any(|line| line.trim_end() == wanted)
    }
}

/// Unpacks a module by the end of its name.
fn unpack(path: &str, content: Vec<u8>) -> Result<Vec<u8>, BootError> {
    let compression = match path.rsplit('.').next() {
        Some("xz") => Compression::Xz,
        Some("zst") => Compression::Zstd,
        Some("gz") => Compression::Gzip,
        _ => return Ok(content),
    };
    let failed = |error: std::io::Error| BootError::Module {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut plain = Vec::new();
    let reader = compression.reader(content.as_slice()).map_err(failed)?;
    reader.take(MODULE_BYTES + 1).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() as u64 > MODULE_BYTES {
        let (path, bytes) = (PathBuf::from(path), plain.len() as u64);
        return Err(BootError::TooLarge { path, bytes, limit: MODULE_BYTES });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_by_their_paths() {
        for (path, found) in [
            ("boot/vmlinuz-6.1.0-1-amd64", Some("image 6.1.0-1-amd64")),
            ("boot/config-6.1.0-1-amd64", Some("config 6.1.0-1-amd64")),
            ("boot/System.map-6.1.0-1-amd64", None),
            ("boot/grub/vmlinuz-x", None),
            ("boot/vmlinuz-x/y", None),
            ("lib/modules/6.1/modules.builtin", Some("builtin 6.1")),
            ("usr/lib/modules/6.1/vmlinuz", Some("image 6.1")),
            ("lib/modules/6.1/kernel/fs/fuse/fuse.ko.xz", Some("fuse 6.1")),
            ("lib/modules/6.1/modules.order", None),
            ("lib/modules/6.1", None),
            ("usr/share/doc/x.ko", None),
            ("boot/vmlinuz-..", None),
            ("boot/vmlinuz-", None),
            ("lib/modules/a b/kernel/x.ko", None),
        ] {
            let shown = part(path).map(|part| {
                let what = match &part {
                    Part::Image { .. } => "image",
                    Part::Config { .. } => "config",
                    Part::Builtin { .. } => "builtin",
                    Part::Module { name, .. } => name,
                };
                format!("{what} {}", part.release())
            });
            assert_eq!(shown.as_deref(), found, "{path}");
        }
    }
}
