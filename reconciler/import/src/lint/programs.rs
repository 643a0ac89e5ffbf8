//! What runs a layer's scripts and programs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use strata_core::limits;
use strata_core::manifest::{Kind, Manifest};

use super::{Code, Finding, LintError, Severity};
use crate::infer::elf;
use crate::infer::interpreter::{Interpreter, LINE_BYTES, SEARCHED};
use crate::infer::providers::Providers;
use crate::member::shown;
use crate::rooted::Rooted;
use crate::usr_merge::{merged, resolve};

/// Files whose interpreter neither the layer nor another has.
///
/// # Errors
/// A file or another layer's manifest cannot be read.
pub fn findings(
    files: &Path,
    manifest: &Manifest,
    providers: &Providers<'_>,
) -> Result<Vec<Finding>, LintError> {
    let own: HashSet<Vec<u8>> =
        manifest.entries().iter().map(|entry| merged(&entry.path)).collect();
    let files = Rooted::open(files)?;
    let mut found = Vec::new();
    for entry in manifest.entries() {
        if !matches!(entry.kind, Kind::Regular { .. }) || entry.mode & 0o111 == 0 {
            continue;
        }
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let start = files.read_start(path, LINE_BYTES as u64)?.unwrap_or_default();
        let Some(Runner { places, name }) = runner(&files, path, &start)? else { continue };
        let mut there = places.iter().any(|place| own.contains(place));
        for place in &places {
            there = there || providers.of_path(place)?.is_some();
        }
        if !there {
            let reason = match places.is_empty() {
                true => format!("it is run by {name}, which is no absolute path"),
                false => format!("it is run by {name}, which no layer here has"),
            };
            let code = Code::MissingInterpreter;
            found.push(Finding::at(Severity::Error, code, &entry.path, reason));
        }
    }
    Ok(found)
}

/// What runs a program.
struct Runner {
    /// Where it may be.
    places: Vec<Vec<u8>>,
    /// What to call it.
    name: String,
}

/// What runs the program at `path`; `None` where the kernel does.
fn runner(files: &Rooted, path: &Path, start: &[u8]) -> Result<Option<Runner>, LintError> {
    if elf::is_elf(start) {
        let content = files.read(path, limits::ELF_BYTES)?.unwrap_or_default();
        // What cannot be read as a program is no program; it has no interpreter to miss.
        let Ok(Some(elf)) = elf::read(&content) else { return Ok(None) };
        let Some(interpreter) = elf.interpreter else { return Ok(None) };
        let name = shown(&interpreter);
        let place = interpreter.starts_with(b"/").then(|| resolve(b"", &interpreter)).flatten();
        let places = place.into_iter().map(|place| merged(&place)).collect();
        return Ok(Some(Runner { places, name }));
    }
    Ok(Interpreter::of(start).map(|interpreter| match interpreter {
        Interpreter::Path(path) => {
            Runner { places: vec![merged(&path)], name: format!("/{}", shown(&path)) }
        }
        Interpreter::Searched { name, .. } => {
            let places = SEARCHED.iter().map(|at| [at.as_bytes(), b"/", &name].concat());
            Runner { places: places.collect(), name: shown(&name) }
        }
        Interpreter::Relative(name) => Runner { places: Vec::new(), name: shown(&name) },
    }))
}
