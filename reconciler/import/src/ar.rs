//! The `ar` container of a Debian package (`deb(5)`): a magic line, then
//! members with a 60-byte header each, padded to even offsets.

use std::io::{self, Read};

pub const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;

#[derive(Debug, thiserror::Error)]
pub enum ArError {
    #[error("it does not start with !<arch>: no Debian package")]
    Magic,
    #[error("the package is cut short in {0}")]
    Truncated(&'static str),
    #[error("a member's header is damaged: {0} is not as deb(5) says")]
    Header(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A member: its name without padding or a trailing slash, its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub size: u64,
}

/// Reads members in order; each is read from [`ArReader::content`].
pub struct ArReader<R> {
    input: R,
    /// Bytes of the current member not read yet, and whether one of padding follows.
    remaining: u64,
    padding: bool,
}

impl<R: Read> ArReader<R> {
    /// # Errors
    /// Where the input does not start with the magic line.
    pub fn new(mut input: R) -> Result<Self, ArError> {
        let mut magic = [0; MAGIC.len()];
        match read_block(&mut input, &mut magic)? {
            length if length == magic.len() && magic == *MAGIC => {
                Ok(ArReader { input, remaining: 0, padding: false })
            }
            _ => Err(ArError::Magic),
        }
    }

    /// The next member; what is left of the current one is skipped.
    ///
    /// # Errors
    /// A damaged or cut header.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArError> {
        let skipped = io::copy(&mut (&mut self.input).take(self.remaining), &mut io::sink())?;
        if skipped != self.remaining {
            return Err(ArError::Truncated("a member's content"));
        }
        self.remaining = 0;
        if self.padding {
            let mut byte = [0];
            // The last member's padding is left out by some tools.
            if read_block(&mut self.input, &mut byte)? == 0 {
                return Ok(None);
            }
            self.padding = false;
        }
        let mut header = [0; HEADER_BYTES];
        match read_block(&mut self.input, &mut header)? {
            0 => return Ok(None),
            HEADER_BYTES => {}
            _ => return Err(ArError::Truncated("a member's header")),
        }
        if header[58..60] != *b"`\n" {
            return Err(ArError::Header("the end mark"));
        }
        let name = std::str::from_utf8(&header[..16])
            .map_err(|_| ArError::Header("the name"))?
            .trim_end_matches(' ');
        let name = name.strip_suffix('/').unwrap_or(name);
        let digits = std::str::from_utf8(&header[48..58])
            .map_err(|_| ArError::Header("the size"))?
            .trim_end_matches(' ');
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ArError::Header("the size"));
        }
        let size: u64 = digits.parse().map_err(|_| ArError::Header("the size"))?;
        self.remaining = size;
        self.padding = size % 2 == 1;
        Ok(Some(Member { name: name.to_owned(), size }))
    }

    /// The content of the current member. Its end before `size` bytes is an error.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }
}

/// See [`ArReader::content`].
pub struct Content<'a, R> {
    reader: &'a mut ArReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = usize::try_from(self.reader.remaining).unwrap_or(usize::MAX);
        let length = buffer.len().min(remaining);
        if length == 0 {
            return Ok(0);
        }
        let read = self.reader.input.read(&mut buffer[..length])?;
        if read == 0 {
            let message = "the package is cut short";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.reader.remaining -= read as u64;
        Ok(read)
    }
}

/// Reads until the block is full or the input ends; the number of bytes.
pub(crate) fn read_block(input: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match input.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len())
                .into_bytes();
        bytes.extend_from_slice(content);
        if content.len() % 2 == 1 {
            bytes.push(b'\n');
        }
        bytes
    }

    #[test]
    fn members_in_order_read_or_skipped() {
        let bytes = [&MAGIC[..], &member("a", b"123"), &member("b/", b"45"), &member("c", b"")];
        let bytes = bytes.concat();
        let mut reader = ArReader::new(&bytes[..]).expect("the magic");
        let mut seen = Vec::new();
        while let Some(Member { name, size }) = reader.next_member().expect("a member") {
            let mut content = String::new();
            if name == "b" {
                reader.content().read_to_string(&mut content).expect("content");
            }
            seen.push((name, size, content));
        }
        let expected = [("a", 3, ""), ("b", 2, "45"), ("c", 0, "")];
        assert_eq!(seen, expected.map(|(n, s, c)| (n.to_owned(), s, c.to_owned())));
    }

    #[test]
    fn damage_is_named() {
        assert!(matches!(ArReader::new(&b"PK"[..]), Err(ArError::Magic)));
        let whole = [&MAGIC[..], &member("a", b"123")].concat();
        let next = |bytes: &[u8]| {
            let mut reader = ArReader::new(bytes)?;
            while reader.next_member()?.is_some() {}
            Ok::<_, ArError>(())
        };
        assert!(next(&whole).is_ok());
        assert!(matches!(next(&whole[..30]), Err(ArError::Truncated("a member's header"))));
        assert!(matches!(next(&whole[..69]), Err(ArError::Truncated("a member's content"))));
        let mut bad = whole.clone();
        bad[8 + 48] = b'-';
        assert!(matches!(next(&bad), Err(ArError::Header("the size"))));
        bad[8 + 58] = b'x';
        assert!(matches!(next(&bad), Err(ArError::Header("the end mark"))));
    }
}
