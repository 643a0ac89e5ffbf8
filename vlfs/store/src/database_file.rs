//! The file `database` of a repository: the flat text, compressed with zstd.
//!
//! The text itself, uncompressed, is read as well: a person may write one, and
//! former versions did. The first bytes tell which it is, so there is one name and
//! one rename, and never two files that disagree.

use std::io::{self, Read, Write};
use std::path::Path;

use strata_core::limits;

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

#[cfg(test)]
mod tests {
    use super::*;

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
