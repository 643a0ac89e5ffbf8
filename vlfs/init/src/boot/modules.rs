//! Loading the kernel modules of the boot environment.
//!
//! `strata boot build` has resolved their dependencies: they are loaded in the order
//! of its list, and nothing is looked up here. A module that its kernel refuses is
//! told and passed over: what needs it says so itself, and often nothing does (the
//! driver of a processor's feature that this one has not).

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use crate::boot::error::BootError;

/// Loads what a list in `directory` names. Returns what could not be loaded, and why.
///
/// # Errors
/// There is no list: the environment is damaged.
pub fn load(directory: &Path, list: &str) -> Result<Vec<String>, BootError> {
    let list = directory.join(list);
    let order =
        std::fs::read_to_string(&list).map_err(|source| BootError::Read { path: list, source })?;
    let mut refused = Vec::new();
    for name in order.lines() {
        let loaded = File::open(directory.join(name))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|module| rustix::system::finit_module(&module, c"", 0));
        match loaded {
            // Built in, or loaded already; no such device in this machine.
            Ok(()) | Err(Errno::EXIST | Errno::NODEV) => {}
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_loaded_is_told_and_the_rest_goes_on() {
        let directory =
            std::env::temp_dir().join(format!("strata-init-modules-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        std::fs::write(directory.join("order"), "absent.ko\nempty.ko\n").expect("written");
        std::fs::write(directory.join("empty.ko"), "").expect("written");
        let refused = load(&directory, "order");
        std::fs::remove_dir_all(&directory).expect("removed");
        let refused = refused.expect("the list is read");
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].starts_with("absent.ko: No such file"), "{refused:?}");
        assert!(load(&directory, "order").is_err());
    }
}
