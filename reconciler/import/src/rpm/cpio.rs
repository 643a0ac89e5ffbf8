//! The payload of an RPM package: a cpio archive of the SVR4 kind (`070701`,
//! with checksums `070702`), or rpm's own (`07070X`), whose members carry only
//! the number of a file of the header, as files over 4 GiB need it.

use std::io::{self, Read};

use strata_core::limits;

use crate::ar::read_block;

const TRAILER: &[u8] = b"TRAILER!!!";

#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    #[error("the payload is cut short in {0}")]
    Truncated(&'static str),
    #[error("a member of the payload is damaged: {0}")]
    Damaged(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which file a member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// By name, with the size of its content.
    Named { name: Vec<u8>, bytes: u64 },
    /// By its number in the header, which knows the size.
    Numbered(usize),
}

/// Reads members in order; the content of each by [`CpioReader::content`].
pub struct CpioReader<R> {
    input: R,
    /// Bytes of the current content that were not read, and its padding.
    left: u64,
    padding: u64,
}

impl<R: Read> CpioReader<R> {
    pub fn new(input: R) -> Self {
        CpioReader { input, left: 0, padding: 0 }
    }

    /// The next member; what is left of the current one is skipped. `None` at
    /// the end mark, without which an archive is not whole.
    ///
    /// # Errors
    /// The archive is cut short or damaged.
    pub fn next_member(&mut self) -> Result<Option<Member>, CpioError> {
        self.skip(self.left + self.padding, "a file")?;
        (self.left, self.padding) = (0, 0);
        let mut magic = [0; 6];
        self.fill(&mut magic, "the head of a member")?;
        match &magic {
            b"07070X" => {
                let mut digits = [0; 8];
                self.fill(&mut digits, "the head of a member")?;
                // Padded to four bytes from the member's start.
                self.skip(2, "the head of a member")?;
                Ok(Some(Member::Numbered(hexadecimal(&digits)? as usize)))
            }
            b"070701" | b"070702" => self.named(),
            _ => Err(CpioError::Damaged("it has no magic number")),
        }
    }

    fn named(&mut self) -> Result<Option<Member>, CpioError> {
        let mut fields = [0; 13 * 8];
        self.fill(&mut fields, "the head of a member")?;
        let field = |number: usize| hexadecimal(&fields[number * 8..number * 8 + 8]);
        let (bytes, name_bytes) = (u64::from(field(6)?), field(11)? as usize);
        if name_bytes == 0 || name_bytes > limits::PATH_BYTES + 3 {
            return Err(CpioError::Damaged("the length of its name"));
        }
        let mut name = vec![0; name_bytes];
        self.fill(&mut name, "a name")?;
        let head = 6 + fields.len() + name_bytes;
        self.skip((head.next_multiple_of(4) - head) as u64, "a name")?;
        if name.pop() != Some(0) || name.contains(&0) {
            return Err(CpioError::Damaged("its name"));
        }
        if name == TRAILER {
            return Ok(None);
        }
        self.announce(bytes);
        Ok(Some(Member::Named { name, bytes }))
    }

    /// Says how large the content of a numbered member is.
    pub fn announce(&mut self, bytes: u64) {
        self.left = bytes;
        self.padding = bytes.next_multiple_of(4) - bytes;
    }

    /// The content of the current member. Its end before its size is an error.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    /// What the archive was read from.
    pub fn into_input(self) -> R {
        self.input
    }

    fn fill(&mut self, block: &mut [u8], part: &'static str) -> Result<(), CpioError> {
        match read_block(&mut self.input, block)? == block.len() {
            true => Ok(()),
            false => Err(CpioError::Truncated(part)),
        }
    }

    fn skip(&mut self, bytes: u64, part: &'static str) -> Result<(), CpioError> {
        match io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())? == bytes {
            true => Ok(()),
            false => Err(CpioError::Truncated(part)),
        }
    }
}

fn hexadecimal(digits: &[u8]) -> Result<u32, CpioError> {
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
    text.and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or(CpioError::Damaged("a number is not hexadecimal"))
}

/// See [`CpioReader::content`].
pub struct Content<'a, R> {
    reader: &'a mut CpioReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.reader.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        if length == 0 {
            return Ok(0);
        }
        let read = self.reader.input.read(&mut buffer[..length])?;
        if read == 0 {
            let message = "the payload is cut short";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.reader.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One member of the SVR4 kind.
    pub(crate) fn member(name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut bytes = b"070701".to_vec();
        let (size, name_bytes) = (content.len(), name.len() + 1);
        for field in [1, 0o100_644, 0, 0, 1, 0, size, 0, 0, 0, 0, name_bytes, 0] {
            bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn members_in_order_read_or_skipped() {
        let numbered = b"07070X00000007\0\0abcde\0\0\0";
        let archive =
            [member(b"./a", b"123"), member(b"./b", b""), numbered.to_vec(), member(TRAILER, b"")];
        let archive = archive.concat();
        let mut reader = CpioReader::new(&archive[..]);
        let mut seen = Vec::new();
        while let Some(member) = reader.next_member().expect("a member") {
            if let Member::Numbered(_) = member {
                reader.announce(5);
                let mut text = String::new();
                reader.content().read_to_string(&mut text).expect("content");
                assert_eq!(text, "abcde");
            }
            seen.push(member);
        }
        let named = |name: &[u8], bytes| Member::Named { name: name.to_vec(), bytes };
        assert_eq!(seen, [named(b"./a", 3), named(b"./b", 0), Member::Numbered(7)]);
        for length in 0..archive.len() {
            let mut reader = CpioReader::new(&archive[..length]);
            let all = std::iter::from_fn(|| match reader.next_member() {
                Ok(Some(member)) => {
                    if let Member::Numbered(_) = member {
                        reader.announce(5);
                    }
                    Some(Ok(()))
                }
                Ok(None) => None,
                Err(error) => Some(Err(error)),
            });
            let whole = all.take(9).collect::<Result<Vec<_>, _>>().is_ok();
            assert_eq!(whole, length == archive.len(), "{length}");
        }
    }

    #[test]
    fn damage_is_named() {
        let next = |bytes: &[u8]| CpioReader::new(bytes).next_member().expect_err("damage");
        assert!(matches!(next(b"070707..."), CpioError::Damaged("it has no magic number")));
        let mut bad = member(b"./a", b"");
        bad[6 + 6 * 8] = b'+';
        assert!(matches!(next(&bad), CpioError::Damaged("a number is not hexadecimal")));
        let mut long = member(b"./a", b"");
        long[6 + 11 * 8] = b'7';
        assert!(matches!(next(&long), CpioError::Damaged("the length of its name")));
    }
}
