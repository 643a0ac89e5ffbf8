//! What an ELF file needs of others: libraries, versioned symbols, an interpreter.
//!
//! Headers and tables are read with the `object` crate. A file may say anything: counts,
//! names and the walk through the versions are bounded here, so that a hostile file costs
//! no more than its own size and [`NAME_BYTES`] do.

use object::elf;
use object::endian::Endianness;
use object::read::elf::{
    Dyn, FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym, VerneedIterator,
};

/// Libraries that one file may need.
const NEEDED: usize = 4096;
/// Symbols that one file may need.
const SYMBOLS: usize = 1 << 20;
/// Versions that one file may name (an index has 15 bits).
const VERSIONS: usize = 1 << 15;
/// Bytes of one name.
const ONE_NAME_BYTES: usize = 64 << 10;
/// Bytes of all names that are looked at in one file.
const NAME_BYTES: usize = 64 << 20;
/// Bytes of an interpreter's path.
const INTERPRETER_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("the ELF file is damaged: {0}")]
    Damaged(String),
    #[error("the ELF file has more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
}

impl From<object::Error> for ElfError {
    fn from(error: object::Error) -> Self {
        ElfError::Damaged(error.to_string())
    }
}

/// What tells whether one file can use another: the class and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Platform {
    pub is_64: bool,
    pub machine: u16,
}

/// A program or shared library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    pub platform: Platform,
    /// The name by which others need it.
    pub soname: Option<String>,
    /// The names that it needs, in its order.
    pub needed: Vec<String>,
    /// Directories to look for them in first (RUNPATH or RPATH), as they are written.
    pub search: Vec<String>,
    /// The symbols that others must have, as `name@VERSION`, or `name@Base` without one.
    pub undefined: Vec<String>,
    /// The path of what loads it.
    pub interpreter: Option<Vec<u8>>,
}

/// Whether a file that begins so is an ELF file.
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(&elf::ELFMAG)
}

/// Reads an ELF file; `None` where it is no program and no shared library (an object file,
/// a core dump).
///
/// # Errors
/// [`ElfError`].
pub fn read(file: &[u8]) -> Result<Option<Elf>, ElfError> {
    match file.get(4).copied().map(elf::FileClass) {
        Some(elf::ELFCLASS32) => read_as::<elf::FileHeader32<Endianness>>(file, false),
        Some(elf::ELFCLASS64) => read_as::<elf::FileHeader64<Endianness>>(file, true),
        _ => Err(ElfError::Damaged("it is neither of 32 nor of 64 bits".to_owned())),
    }
}

fn read_as<H: FileHeader<Endian = Endianness>>(
    file: &[u8],
    is_64: bool,
) -> Result<Option<Elf>, ElfError> {
    let header = H::parse(file)?;
    let endian = header.endian()?;
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Ok(None);
    }
    let platform = Platform { is_64, machine: header.e_machine(endian).0 };
    let segments = header.program_headers(endian, file)?;
    let mut interpreter = None;
    for segment in segments {
        if let Some(path) = segment.interpreter(endian, file)? {
            if path.len() > INTERPRETER_BYTES {
                let what = "bytes in its interpreter's path";
                return Err(ElfError::TooMany { what, limit: INTERPRETER_BYTES });
            }
            interpreter = Some(path.to_vec());
        }
    }
    let sections = header.sections(endian, file)?;
    let mut found = Elf {
        platform,
        soname: None,
        needed: Vec::new(),
        search: Vec::new(),
        undefined: Vec::new(),
        interpreter,
    };
    let mut names = Names { left: NAME_BYTES };
    let dynamic = sections.iter().find_map(|section| section.dynamic(endian, file).transpose());
    match dynamic.transpose()? {
        Some((entries, link)) => {
            let strings = sections.section(link)?.data(endian, file)?;
            take_dynamic::<H>(&mut found, entries, endian, strings, &mut names)?;
        }
        None => {
            if let Some((entries, strings)) = dynamic_segment::<H>(segments, endian, file)? {
                take_dynamic::<H>(&mut found, entries, endian, strings, &mut names)?;
            }
        }
    }
    found.undefined = undefined::<H>(&sections, endian, file, &mut names)?;
    Ok(Some(found))
}

/// Dynamic entries and their strings.
type Dynamic<'f, H> = (&'f [<H as FileHeader>::Dyn], &'f [u8]);

/// The dynamic entries of a file without section headers, and their strings.
fn dynamic_segment<'f, H: FileHeader<Endian = Endianness>>(
    segments: &'f [H::ProgramHeader],
    endian: Endianness,
    file: &'f [u8],
) -> Result<Option<Dynamic<'f, H>>, ElfError> {
    let entries = segments.iter().find_map(|segment| segment.dynamic(endian, file).transpose());
    let Some(entries) = entries.transpose()? else { return Ok(None) };
    let value = |tag| entries.iter().find(|entry| entry.tag(endian) == tag).map(|e| e.val(endian));
    let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else {
        return Ok(Some((entries, &[])));
    };
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD) {
        let strings = segment.data_range(endian, file, address, size);
        let outside = |()| ElfError::Damaged("a segment lies outside of it".to_owned());
        if let Some(strings) = strings.map_err(outside)? {
            return Ok(Some((entries, strings)));
        }
    }
    Err(ElfError::Damaged("no segment has its dynamic strings".to_owned()))
}

fn take_dynamic<H: FileHeader<Endian = Endianness>>(
    found: &mut Elf,
    entries: &[H::Dyn],
    endian: Endianness,
    strings: &[u8],
    names: &mut Names,
) -> Result<(), ElfError> {
    let mut runpath = None;
    for entry in entries {
        let tag = entry.tag(endian);
        if tag == elf::DT_NULL {
            break;
        }
        if !matches!(tag, elf::DT_NEEDED | elf::DT_SONAME | elf::DT_RPATH | elf::DT_RUNPATH) {
            continue;
        }
        let text = names.get(strings, entry.val(endian))?;
        match tag {
            elf::DT_NEEDED if found.needed.len() >= NEEDED => {
                return Err(ElfError::TooMany { what: "needed libraries", limit: NEEDED });
            }
            elf::DT_NEEDED => found.needed.push(text),
            elf::DT_SONAME => found.soname = Some(text),
            elf::DT_RUNPATH => runpath = Some(text),
            _ => found.search = split_search(&text),
        }
    }
    // The loader heeds RPATH only where there is no RUNPATH (ld.so(8)).
    if let Some(runpath) = runpath {
        found.search = split_search(&runpath);
    }
    Ok(())
}

fn split_search(text: &str) -> Vec<String> {
    text.split(':').filter(|part| !part.is_empty()).take(NEEDED).map(str::to_owned).collect()
}

fn undefined<H: FileHeader<Endian = Endianness>>(
    sections: &SectionTable<'_, H>,
    endian: Endianness,
    file: &[u8],
    names: &mut Names,
) -> Result<Vec<String>, ElfError> {
    let of_type = |kind| sections.iter().find(|section| section.sh_type(endian) == kind);
    let Some(symbols) = of_type(elf::SHT_DYNSYM) else { return Ok(Vec::new()) };
    let strings = sections.section(symbols.link(endian))?.data(endian, file)?;
    let symbols: &[H::Sym] = symbols.data_as_array(endian, file)?;
    let versions = match sections.gnu_verneed(endian, file)? {
        Some((needs, link)) => {
            versions::<H>(needs, endian, sections.section(link)?.data(endian, file)?, names)?
        }
        None => Vec::new(),
    };
    let indices = sections.gnu_versym(endian, file)?.map_or(&[][..], |(indices, _)| indices);
    let mut found = Vec::new();
    for (at, symbol) in symbols.iter().enumerate() {
        if !symbol.is_undefined(endian) || symbol.st_name(endian) == 0 {
            continue;
        }
        if found.len() >= SYMBOLS {
            return Err(ElfError::TooMany { what: "undefined symbols", limit: SYMBOLS });
        }
        let name = names.get(strings, symbol.st_name(endian).into())?;
        let index = indices.get(at).map_or(0, |index| usize::from(index.0.get(endian).index().0));
        let version = versions.get(index).and_then(Option::as_deref).unwrap_or("Base");
        found.push(format!("{name}@{version}"));
    }
    Ok(found)
}

/// The versions that the file needs of others, by index.
fn versions<H: FileHeader<Endian = Endianness>>(
    mut needs: VerneedIterator<'_, H>,
    endian: Endianness,
    strings: &[u8],
    names: &mut Names,
) -> Result<Vec<Option<String>>, ElfError> {
    let mut versions: Vec<Option<String>> = Vec::new();
    let too_many = || ElfError::TooMany { what: "needed versions", limit: VERSIONS };
    // Records may overlap and repeat: what is counted are the steps.
    let mut steps = 0;
    while let Some((_, mut of_file)) = needs.next()? {
        while let Some(need) = of_file.next()? {
            steps += 1;
            if steps > VERSIONS {
                return Err(too_many());
            }
            let index = usize::from(need.vna_other.get(endian).0 & elf::VERSYM_VERSION);
            if versions.len() <= index {
                versions.resize(index + 1, None);
            }
            versions[index] = Some(names.get(strings, need.vna_name.get(endian).into())?);
        }
        steps += 1;
        if steps > VERSIONS {
            return Err(too_many());
        }
    }
    Ok(versions)
}

/// Takes names out of string tables, as long as there are not too many bytes of them.
struct Names {
    left: usize,
}

impl Names {
    fn get(&mut self, strings: &[u8], offset: u64) -> Result<String, ElfError> {
        let rest = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..));
        let rest = rest.ok_or_else(|| ElfError::Damaged("a name is outside".to_owned()))?;
        let window = &rest[..rest.len().min(ONE_NAME_BYTES)];
        let Some(length) = memchr::memchr(0, window) else {
            return Err(ElfError::TooMany { what: "bytes in one name", limit: ONE_NAME_BYTES });
        };
        self.left = self
            .left
            .checked_sub(length)
            .ok_or(ElfError::TooMany { what: "bytes in its names", limit: NAME_BYTES })?;
        Ok(String::from_utf8_lossy(&window[..length]).into_owned())
    }
}
