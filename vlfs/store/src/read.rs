//! Reading with limits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, StoreError};

/// Reads a regular file of at most `limit` bytes without following a symbolic
/// link at its end and without waiting on a FIFO.
///
/// # Errors
/// The file cannot be read, is no regular file, or is larger.
pub fn read_limited(path: &Path, limit: usize) -> Result<Vec<u8>, StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP) => return Err(StoreError::NotRegular(path.to_owned())),
        file => File::from(file.at("open", path)?),
    };
    if !file.metadata().at("stat", path)?.is_file() {
        return Err(StoreError::NotRegular(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() > limit {
        return Err(StoreError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// `Ok(None)` where the thing does not exist.
pub(crate) fn optional<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory that are UTF-8 and no work in progress, sorted. A
/// directory that does not exist is empty.
pub(crate) fn names_in(directory: &Path) -> Result<Vec<String>, StoreError> {
    let Some(entries) = optional(std::fs::read_dir(directory).at("list", directory))? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.at("list", directory)?.file_name();
        match name.into_string() {
            Ok(name) if !name.starts_with('.') => names.push(name),
            Ok(_) => {}
            Err(name) => {
                tracing::warn!(directory = %directory.display(), name = ?name, "a name that is no UTF-8 is passed over");
            }
        }
    }
    names.sort();
    Ok(names)
}
