//! A cpio archive as the kernel unpacks it as its first root ("newc", kernel document
//! `driver-api/early-userspace/buffer-format`).
//!
//! Own code, because it is a header of fourteen numbers: the crates there are bring
//! readers, or take times and inode numbers from files on disk. Here both are fixed and
//! the order is the caller's, so that equal entries are equal bytes.

use std::io::{self, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Bits of the type in a mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive.
pub struct CpioWriter<W> {
    output: W,
    /// Of the next entry.
    inode: u32,
    /// Bytes written so far.
    offset: u64,
}

#[derive(Default)]
struct Entry<'a> {
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl<W: Write> CpioWriter<W> {
    pub fn new(output: W) -> Self {
        CpioWriter { output, inode: 1, offset: 0 }
    }

    /// A directory of root's; those above it must come first.
    ///
    /// # Errors
    /// As writing the output.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, &Entry { mode: DIRECTORY | mode, links: 2, ..Entry::default() })
    }

    /// # Errors
    /// As writing the output; the file is too large for the format.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, &Entry { mode: REGULAR | mode, links: 1, content, ..Entry::default() })
    }

    /// # Errors
    /// As writing the output.
    pub fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        let mode = CHARACTER_DEVICE | mode;
        self.entry(path, &Entry { mode, links: 1, device, ..Entry::default() })
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As writing the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(TRAILER, &Entry { links: 1, ..Entry::default() })?;
        Ok(self.output)
    }

    fn entry(&mut self, path: &str, entry: &Entry<'_>) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, "too large for cpio");
        let size = u32::try_from(entry.content.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let (major, minor) = entry.device;
        let mut header = MAGIC.to_owned();
        for number in
            [self.inode, entry.mode, 0, 0, entry.links, 0, size, 0, 0, major, minor, name_size, 0]
        {
            header.push_str(&format!("{number:08x}"));
        }
        self.inode += 1;
        self.write(header.as_bytes())?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.pad()?;
        self.write(entry.content)?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    /// Everything begins at a multiple of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        let over = usize::try_from(self.offset % 4).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.write(&[0; 3][..4 - over]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernels_document_says() {
        let mut archive = CpioWriter::new(Vec::new());
        archive.directory("d", 0o755).expect("written");
        archive.file("d/f", 0o644, b"five!").expect("written");
        archive.character_device("console", 0o600, (5, 1)).expect("written");
        let bytes = archive.finish().expect("written");
        let header = |numbers: [&str; 13]| format!("070701{}", numbers.concat());
        let zero = "00000000";
        let one = "00000001";
        let two = "00000002";
        let mut expected = header([
            one, "000041ed", zero, zero, two, zero, zero, zero, zero, zero, zero, two, zero,
        ]);
        expected.push_str("d\0");
        expected.push_str(&header([
            two, "000081a4", zero, zero, one, zero, "00000005", zero, zero, zero, zero, "00000004",
            zero,
        ]));
        expected.push_str("d/f\0\0\0five!\0\0\0");
        expected.push_str(&header([
            "00000003", "00002180", zero, zero, one, zero, zero, zero, zero, "00000005", one,
            "00000008", zero,
        ]));
        expected.push_str("console\0\0\0");
        expected.push_str(&header([
            zero, zero, zero, zero, one, zero, zero, zero, zero, zero, zero, "0000000b", zero,
        ]));
        expected.push_str("TRAILER!!!\0\0\0\0");
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }
}
