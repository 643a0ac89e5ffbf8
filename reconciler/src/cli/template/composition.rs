//! A template as its directory defines it, and the lines of its LDF.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use strata_core::check::check_desired;
use strata_core::desired::{Definition, DesiredState};
use strata_core::generation::Generation;
use strata_core::ldf::LayerLine;
use strata_core::{CompositionName, Severity};
use strata_store::Store;
use strata_store::durable::Disk;

use crate::cli::Failure;
use crate::cli::known::defined;
use crate::directory::read_directory;
use crate::repositories::{StoreManifests, load_universe};

/// The composition as it would run, and where it is defined.
pub fn composition(
    store: &Store,
    directory: &Path,
    name: &CompositionName,
) -> Result<(Definition, Generation), Failure> {
    let (tree, unreadable) = read_directory(directory)?;
    let (desired, mut diagnostics) = DesiredState::read(&tree);
    let (universe, faults) = load_universe(store, &desired.configuration);
    diagnostics.extend(faults);
    diagnostics.extend(unreadable);
    let mut checked = check_desired(desired, diagnostics, &universe, &StoreManifests::new(store));
    let Some(definition) = checked.desired.definitions.remove(name) else {
        let known = checked.desired.definitions.keys().cloned().collect();
        let failure = Failure::new(format!("{} defines no {name}", directory.display()));
        return Err(failure.hint(defined(&known)));
    };
    if let Some(generation) = checked.compositions.remove(name) {
        return Ok((definition, generation));
    }
    let faults = checked.diagnostics.iter().filter(|found| found.severity == Severity::Error);
    let faults: Vec<_> = faults.map(ToString::to_string).collect();
    Err(Failure::new(format!("{name} has faults:\n{}", faults.join("\n")))
        .hint("mend them first; `strata resolve` writes versions and what layers depend on"))
}

/// Names a layer in the LDF. Returns the new text where that changed it.
///
/// # Errors
/// The file cannot be written; it is as before.
pub fn name_layer(
    directory: &Path,
    definition: &Definition,
    line: LayerLine,
) -> Result<Option<String>, Failure> {
    let mut ldf = definition.ldf.clone();
    ldf.put_explicit(line);
    let text = ldf.print();
    if text == definition.ldf.print() {
        return Ok(None);
    }
    let path = directory.join(&definition.file);
    let mode = std::fs::metadata(&path).map(|found| found.permissions().mode() & 0o777);
    let mode = mode.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Disk::default().write_file(&path, text.as_bytes(), mode)?;
    Ok(Some(text))
}
