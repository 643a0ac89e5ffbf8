//! The head of an RPM package: lead, signature header, header, then the payload
//! (the format's description is in rpm's `docs/manual/format*`).
//!
//! A header is an index of tags into a store of bytes. Every number is checked
//! before it is followed; sizes have bounds.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::ar::read_block;

/// The first bytes of a package.
pub const LEAD_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
pub(super) const LEAD_BYTES: usize = 96;
pub(super) const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 0x01];
/// Entries and bytes of one header; the largest packages have 4 MB.
const HEADER_ENTRIES: u32 = 4_096;
const HEADER_BYTES: u32 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("it does not start as an RPM package does")]
    Magic,
    #[error("the package is cut short in {0}")]
    Truncated(&'static str),
    #[error("{0} is damaged: {1}")]
    Damaged(&'static str, &'static str),
    #[error("the tag {tag} is {found}, where {expected} is wanted")]
    Type { tag: u32, found: u32, expected: &'static str },
    #[error("the tag {0} is missing")]
    Missing(u32),
    #[error("a text is not UTF-8 (tag {0})")]
    Encoding(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy)]
struct Value {
    kind: u32,
    offset: usize,
    count: usize,
}

/// A header's tags with their values.
#[derive(Debug)]
pub struct Header {
    values: BTreeMap<u32, Value>,
    store: Vec<u8>,
    /// As it stands in the package: magic, index and store.
    pub bytes: Vec<u8>,
}

/// Reads the lead and both headers; the payload follows in `input`.
///
/// # Errors
/// It is no package, cut short or damaged.
pub fn read(input: &mut impl Read) -> Result<(Header, Header), HeaderError> {
    let mut lead = [0; LEAD_BYTES];
    if read_block(input, &mut lead)? != LEAD_BYTES || lead[..4] != LEAD_MAGIC {
        return Err(HeaderError::Magic);
    }
    let signature = Header::read(input, "the signature header")?;
    // The signature header is padded to eight bytes.
    let padding = signature.store.len().next_multiple_of(8) - signature.store.len();
    let mut pad = [0; 8];
    if read_block(input, &mut pad[..padding])? != padding {
        return Err(HeaderError::Truncated("the signature header"));
    }
    let header = Header::read(input, "the header")?;
    Ok((signature, header))
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

impl Header {
    /// A header that stands alone, with its magic number.
    ///
    /// # Errors
    /// It is cut short or damaged.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, HeaderError> {
        Header::read(&mut bytes, "the header")
    }

    fn read(input: &mut impl Read, name: &'static str) -> Result<Self, HeaderError> {
        let mut intro = [0; 16];
        if read_block(input, &mut intro)? != intro.len() {
            return Err(HeaderError::Truncated(name));
        }
        if intro[..4] != HEADER_MAGIC {
            return Err(HeaderError::Damaged(name, "it has no magic number"));
        }
        let (entries, length) = (number(&intro[8..12]), number(&intro[12..16]));
        if entries > HEADER_ENTRIES || length > HEADER_BYTES {
            return Err(HeaderError::Damaged(name, "it is too large"));
        }
        let (entries, length) = (entries as usize, length as usize);
        let mut rest = Vec::new();
        let wanted = entries * 16 + length;
        input.take(wanted as u64).read_to_end(&mut rest)?;
        if rest.len() != wanted {
            return Err(HeaderError::Truncated(name));
        }
        let (index, store) = rest.split_at(entries * 16);
        let mut values = BTreeMap::new();
        for entry in index.chunks_exact(16) {
            let [tag, kind, offset, count] = [0, 4, 8, 12].map(|at| number(&entry[at..at + 4]));
            let value = Value { kind, offset: offset as usize, count: count as usize };
            let size = match kind {
                3 => 2,
                4 => 4,
                5 => 8,
                0..=2 | 6..=9 => 1,
                _ => return Err(HeaderError::Damaged(name, "a value of an unknown type")),
            };
            let end = value.count.checked_mul(size).and_then(|n| n.checked_add(value.offset));
            if end.is_none_or(|end| end > store.len()) {
                return Err(HeaderError::Damaged(name, "a value lies outside of it"));
            }
            values.insert(tag, value);
        }
        let bytes = [&intro[..], &rest].concat();
        Ok(Header { values, store: store.to_vec(), bytes })
    }

    pub fn has(&self, tag: u32) -> bool {
        self.values.contains_key(&tag)
    }

    /// Bytes of a value, where it is of one of these types.
    fn value(
        &self,
        tag: u32,
        kinds: &[u32],
        expected: &'static str,
    ) -> Result<Option<Value>, HeaderError> {
        match self.values.get(&tag) {
            Some(value) if kinds.contains(&value.kind) => Ok(Some(*value)),
            Some(value) => Err(HeaderError::Type { tag, found: value.kind, expected }),
            None => Ok(None),
        }
    }

    /// Texts (one, several, or translations of one); none where the tag is missing.
    ///
    /// # Errors
    /// Another type, no UTF-8, or damage.
    pub fn texts(&self, tag: u32) -> Result<Vec<String>, HeaderError> {
        self.byte_strings(tag)?
            .into_iter()
            .map(|text| String::from_utf8(text).map_err(|_| HeaderError::Encoding(tag)))
            .collect()
    }

    /// As [`Header::texts`], of any encoding: names of files.
    ///
    /// # Errors
    /// Another type, or damage.
    pub fn byte_strings(&self, tag: u32) -> Result<Vec<Vec<u8>>, HeaderError> {
        let Some(value) = self.value(tag, &[6, 8, 9], "a text")? else { return Ok(Vec::new()) };
        let mut rest = &self.store[value.offset..];
        let mut texts = Vec::new();
        for _ in 0..value.count {
            let end = rest.iter().position(|byte| *byte == 0);
            let end = end.ok_or(HeaderError::Damaged("the header", "a text has no end"))?;
            texts.push(rest[..end].to_vec());
            rest = &rest[end + 1..];
        }
        Ok(texts)
    }

    /// The first text of a tag.
    ///
    /// # Errors
    /// See [`Header::texts`].
    pub fn text(&self, tag: u32) -> Result<Option<String>, HeaderError> {
        Ok(self.texts(tag)?.into_iter().next())
    }

    /// Numbers of 16, 32 or 64 bits; none where the tag is missing.
    ///
    /// # Errors
    /// Another type.
    pub fn numbers(&self, tag: u32) -> Result<Vec<u64>, HeaderError> {
        let Some(value) = self.value(tag, &[3, 4, 5], "a number")? else { return Ok(Vec::new()) };
        let size = 1 << (value.kind - 2);
        let bytes = &self.store[value.offset..value.offset + value.count * size];
        let of = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(bytes.chunks_exact(size).map(of).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header of texts.
    pub(crate) fn header(texts: &[(u32, &str)]) -> Vec<u8> {
        let mut index = Vec::new();
        let mut store = Vec::new();
        for (tag, text) in texts {
            for number in [*tag, 6, store.len() as u32, 1] {
                index.extend_from_slice(&number.to_be_bytes());
            }
            store.extend_from_slice(text.as_bytes());
            store.push(0);
        }
        let mut bytes = HEADER_MAGIC.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(texts.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(store.len() as u32).to_be_bytes());
        [bytes, index, store].concat()
    }

    #[test]
    fn damage_is_found() {
        let whole = header(&[(1000, "name"), (1001, "1")]);
        let read = |bytes: &[u8]| Header::read(&mut &bytes[..], "the header");
        let good = read(&whole).expect("a header");
        assert_eq!(good.text(1000).expect("a text").as_deref(), Some("name"));
        assert_eq!(good.bytes, whole);
        assert!(matches!(good.numbers(1000), Err(HeaderError::Type { .. })));
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        let mut outside = whole.clone();
        outside[16 + 8] = 0x7f;
        assert!(matches!(
            read(&outside),
            Err(HeaderError::Damaged(_, "a value lies outside of it"))
        ));
        let mut endless = whole;
        let last = endless.len() - 1;
        endless[last] = b'x';
        let endless = read(&endless).expect("the index is sound");
        assert!(endless.text(1001).is_err());
    }
}
