//! The file `database` of a repository: the flat text, compressed with zstd.
//!
//! The text itself, uncompressed, is read as well: a person may write one, and
//! former versions did. The first bytes tell which it is, so there is one name and
//! one rename, and never two files that disagree.

use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use strata_core::database::DatabaseError;
use strata_core::database_text::{DatabaseText, UncheckedText};
use strata_core::limits;
use strata_core::position::Located;

use crate::error::StoreError;

/// What every zstd frame starts with (RFC 8878); no text of a database does.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// zstd's own default: a whole distribution in a fifth of its size, and quickly.
const LEVEL: i32 = 3;

/// The bytes of the file for a text. Equal texts have equal bytes.
pub(crate) fn encode(path: &Path, text: &[u8]) -> Result<Vec<u8>, StoreError> {
    let encoded = || -> io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.write_all(text)?;
        encoder.finish()
    };
    encoded().map_err(|source| StoreError::Compression { path: path.to_owned(), source })
}

/// The text of a file, of at most `limits::DATABASE_BYTES` however small the file is.
pub(crate) fn decode(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    if !bytes.starts_with(&MAGIC) {
        return Ok(bytes);
    }
    let limit = limits::DATABASE_BYTES;
    let mut text = Vec::new();
    zstd::Decoder::new(bytes.as_slice())
        .and_then(|decoder| decoder.take(limit as u64 + 1).read_to_end(&mut text))
        .map_err(|source| StoreError::Compression { path: path.to_owned(), source })?;
    if text.len() > limit {
        return Err(StoreError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(text)
}

/// From this many bytes on, starting threads is worth it.
const THREADED_BYTES: usize = 1 << 20;
/// More threads than this check no faster.
const THREADS: usize = 8;

/// Checks a database's text, by all processors where it is large.
///
/// # Errors
/// The first fault, with line and column.
pub fn check(text: Vec<u8>) -> Result<DatabaseText, Located<DatabaseError>> {
    let threads = match text.len() {
        0..THREADED_BYTES => 1,
        _ => thread::available_parallelism().map_or(1, usize::from).min(THREADS),
    };
    let text = UncheckedText::new(text, threads)?;
    let parts = thread::scope(|scope| {
        let text = &text;
        let others: Vec<_> =
            (1..text.parts()).map(|part| scope.spawn(move || text.check(part))).collect();
        let first = text.check(0);
        let others = others.into_iter().map(|part| part.join().expect("checking does not panic"));
        [first].into_iter().chain(others).collect::<Result<Vec<_>, _>>()
    })?;
    text.finish(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_text_is_checked_in_parts() {
        let unit = String::from_utf8(GOLDEN.to_vec()).expect("UTF-8");
        let first = unit.split("\n\n").next().expect("a unit");
        let name = first.lines().find(|line| line.starts_with("Layer:")).expect("a name");
        let text: String = (0..20_000)
            .map(|number| {
                format!("{}\n\n", first.replacen(name, &format!("Layer: l{number:05}"), 1))
            })
            .collect();
        assert!(text.len() > THREADED_BYTES);
        assert_eq!(check(text.clone().into_bytes()).expect("whole").len(), 20_000);
        let fault = check(format!("{text}no colon\n").into_bytes()).expect_err("a fault");
        assert_eq!(fault.line as usize, text.lines().count() + 1);
    }

    const GOLDEN: &[u8] = include_bytes!("../../core/golden/database");

    #[test]
    fn both_forms_are_read() {
        let path = Path::new("database");
        let encoded = encode(path, GOLDEN).expect("compressed");
        assert!(encoded.starts_with(&MAGIC));
        assert_eq!(decode(path, encoded).expect("decompressed"), GOLDEN);
        assert_eq!(decode(path, GOLDEN.to_vec()).expect("as it is"), GOLDEN);
    }

    #[test]
    fn damage_is_told_wherever_it_is() {
        let path = Path::new("database");
        let encoded = encode(path, GOLDEN).expect("compressed");
        for at in 4..encoded.len() {
            let mut damaged = encoded.clone();
            damaged[at] ^= 1;
            // A bit that decides nothing may be another one; the text is never another.
            if let Ok(text) = decode(path, damaged) {
                assert_eq!(text, GOLDEN, "byte {at}");
            }
            let cut = decode(path, encoded[..at].to_vec());
            assert!(matches!(cut, Err(StoreError::Compression { .. })), "cut at {at}");
        }
    }
}
