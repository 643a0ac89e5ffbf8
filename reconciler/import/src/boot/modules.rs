//! Kernel modules: what each says of itself, and the order in which those that are
//! wanted and all that they need can be loaded.
//!
//! A package brings no `modules.dep`: depmod(8) makes it when the package is installed.
//! What it is made of stands in each module's `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};

use object::elf;
use object::endian::Endianness;
use object::read::elf::{FileHeader, SectionHeader as _};

use crate::boot::error::BootError;
use crate::infer::elf::Platform;

/// Words of one module that are heeded: dependencies, names, what to load before.
const WORDS: usize = 1 << 16;

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleInfo {
    /// Modules without whose symbols it cannot be loaded.
    pub depends: Vec<String>,
    /// Modules that should be loaded before it, where there are any.
    pub before: Vec<String>,
    /// Names without wildcards under which others ask for it.
    pub aliases: Vec<String>,
}

/// The name of a module by the name of its file, as the kernel writes it; `None` for
/// other files.
pub fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .into_iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let valid = !stem.is_empty() && stem.len() <= 64 && stem.bytes().all(plain);
    valid.then(|| canonical(stem))
}

/// Dashes and underscores are the same in names of modules.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Reads a module that is not compressed.
///
/// # Errors
/// It is no ELF object file with a `.modinfo`.
pub fn read(path: &str, module: &[u8]) -> Result<(ModuleInfo, Platform), BootError> {
    let damaged = |reason: String| BootError::Module { path: path.to_owned(), reason };
    let read = match module.get(4).copied().map(elf::FileClass) {
        Some(elf::ELFCLASS32) => modinfo::<elf::FileHeader32<Endianness>>(module, false),
        Some(elf::ELFCLASS64) => modinfo::<elf::FileHeader64<Endianness>>(module, true),
        _ => return Err(damaged("it is no ELF file".to_owned())),
    };
    let (words, platform) = read.map_err(|error| damaged(error.to_string()))?;
    let words = words.ok_or_else(|| damaged("it has no .modinfo".to_owned()))?;
    let mut info = ModuleInfo::default();
    for word in words.split(|byte| *byte == 0).take(WORDS) {
        let Some((key, value)) = std::str::from_utf8(word).ok().and_then(|w| w.split_once('='))
        else {
            continue;
        };
        match key {
            "depends" => {
                let names = value.split(',').filter(|name| !name.is_empty());
                info.depends.extend(names.map(canonical));
            }
            "softdep" => info.before.extend(before(value)),
            "alias" if !value.contains(['*', '?', '[']) => info.aliases.push(canonical(value)),
            _ => {}
        }
    }
    Ok((info, platform))
}

/// The names after `pre:` in a soft dependency (modprobe.d(5)).
fn before(value: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut before = false;
    for word in value.split_ascii_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => names.push(canonical(name)),
            _ => {}
        }
    }
    names
}

/// What stands in `.modinfo`, and what the module is made for.
type Modinfo<'f> = (Option<&'f [u8]>, Platform);

fn modinfo<H: FileHeader<Endian = Endianness>>(
    module: &[u8],
    is_64: bool,
) -> object::Result<Modinfo<'_>> {
    let header = H::parse(module)?;
    let endian = header.endian()?;
    let platform = Platform { is_64, machine: header.e_machine(endian).0 };
    let sections = header.sections(endian, module)?;
    let words = match sections.section_by_name(endian, b".modinfo") {
        Some((_, section)) => Some(section.data(endian, module)?),
        None => None,
    };
    Ok((words, platform))
}

/// All modules of a kernel.
#[derive(Debug, Default)]
pub struct Modules {
    pub known: BTreeMap<String, ModuleInfo>,
    /// What the kernel has without a module.
    pub builtin: BTreeSet<String>,
}

impl Modules {
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.known.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The wanted modules with all that they need, each after what it needs. What is
    /// built in, or is not there, is left out.
    ///
    /// # Errors
    /// A module needs another one that is not there.
    pub fn in_order(&self, wanted: &[String]) -> Result<Vec<String>, BootError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.add(&canonical(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    /// Adds a module behind what it needs. Walks with a stack of its own: a hostile
    /// package may chain its modules.
    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), BootError> {
        let mut path = vec![(name.to_owned(), false)];
        while let Some((name, entered)) = path.pop() {
            if entered {
                order.push(name);
                continue;
            }
            let Some(info) = self.known.get(&name) else { continue };
            if !seen.insert(name.clone()) {
                continue;
            }
            path.push((name.clone(), true));
            let mut needed = Vec::new();
            for soft in &info.before {
                needed.extend(self.named(soft));
            }
            for hard in &info.depends {
                if !self.has(hard) {
                    let (module, needed) = (name, hard.clone());
                    return Err(BootError::Dependency { module, needed });
                }
                needed.push(hard.clone());
            }
            path.extend(needed.into_iter().rev().map(|name| (name, false)));
        }
        Ok(())
    }

    /// The modules that are meant by a name: one of that name, or all that answer to it.
    fn named(&self, name: &str) -> Vec<String> {
        if self.known.contains_key(name) {
            return vec![name.to_owned()];
        }
        let crypto = format!("crypto_{name}");
        let answers =
            |info: &ModuleInfo| info.aliases.iter().any(|alias| *alias == name || *alias == crypto);
        let named = self.known.iter().filter(|(_, info)| answers(info));
        named.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names<'a> = &'a [&'a str];
    /// A module, what it depends on, what is better before it, its aliases.
    type Known<'a> = (&'a str, Names<'a>, Names<'a>, Names<'a>);

    fn modules(known: &[Known<'_>], builtin: &[&str]) -> Modules {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let known = known.iter().map(|(name, depends, before, aliases)| {
            let info = ModuleInfo {
                depends: owned(depends),
                before: owned(before),
                aliases: owned(aliases),
            };
            ((*name).to_owned(), info)
        });
        let builtin = builtin.iter().map(|name| (*name).to_owned()).collect();
        Modules { known: known.collect(), builtin }
    }

    fn order(modules: &Modules, wanted: &[&str]) -> Result<Vec<String>, String> {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        modules.in_order(&wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let all = modules(
            &[
                ("ext4", &["jbd2", "mbcache", "crc16"], &["crc32c"], &[]),
                ("jbd2", &[], &[], &[]),
                ("mbcache", &[], &[], &[]),
                ("crc32c_generic", &[], &[], &["crc32c", "crypto_crc32c"]),
                ("crc32c_intel", &[], &[], &["crypto_crc32c"]),
                ("fuse", &[], &[], &[]),
                ("virtiofs", &["fuse", "virtio"], &[], &[]),
            ],
            &["crc16", "virtio"],
        );
        assert_eq!(
            order(&all, &["virtiofs", "ext4", "fuse"]).expect("ordered"),
            ["fuse", "virtiofs", "crc32c_generic", "crc32c_intel", "jbd2", "mbcache", "ext4"]
        );
        assert_eq!(order(&all, &["none", "crc16"]).expect("nothing"), [""; 0]);
    }

    #[test]
    fn a_circle_ends_and_a_gap_is_named() {
        let circle = modules(&[("a", &["b"], &[], &[]), ("b", &["a"], &[], &[])], &[]);
        assert_eq!(order(&circle, &["a"]).expect("ordered"), ["b", "a"]);
        let gap = modules(&[("a", &["b"], &["soft"], &[])], &[]);
        let error = order(&gap, &["a"]).expect_err("a gap");
        assert!(error.contains("the module a needs b"), "{error}");
        // What is only better before it may be missing.
        let soft = modules(&[("a", &[], &["soft"], &[])], &[]);
        assert_eq!(order(&soft, &["a"]).expect("ordered"), ["a"]);
    }

    #[test]
    fn names_of_files() {
        for (file, name) in [
            ("virtio_blk.ko", Some("virtio_blk")),
            ("crc32c-intel.ko.xz", Some("crc32c_intel")),
            ("9pnet_virtio.ko.zst", Some("9pnet_virtio")),
            ("x.ko.gz", Some("x")),
            ("modules.builtin", None),
            (".ko", None),
            ("a b.ko", None),
        ] {
            assert_eq!(module_name(file).as_deref(), name, "{file}");
        }
        assert_eq!(before("pre: crc32c crc-x post: late pre: d"), ["crc32c", "crc_x", "d"]);
        assert_eq!(before("post: late"), [""; 0]);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", b"\x7fELF\x02\x01\x01", &[0; 100]] {
            assert!(matches!(read("x.ko", bytes), Err(BootError::Module { .. })));
        }
    }
}
