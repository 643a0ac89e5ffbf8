//! How rpm's own database hears of packages that are there as layers.
//!
//! `rpm --justdb` takes packages of which only the header counts, so each is made again
//! around the header that the unit keeps: a lead, a signature header that says no more than
//! the header's size, and no payload.

use super::header::{HEADER_MAGIC, LEAD_BYTES, LEAD_MAGIC};

/// The tag of the one value of the signature header, its type and count: a 32-bit number.
const SIZE: [u32; 4] = [1000, 4, 0, 1];
/// Of the lead: format 3.0, a binary package, and a signature that is a header.
const FORMAT: [u8; 4] = [3, 0, 0, 0];
const SIGNATURE_IS_A_HEADER: [u8; 2] = [0, 5];

/// The bytes of a package without files for `rpm --justdb`.
pub fn package(header: &[u8]) -> Vec<u8> {
    let mut bytes = [&LEAD_MAGIC[..], &FORMAT].concat();
    // Architecture, name and system, which nobody reads any more.
    bytes.resize(LEAD_BYTES - 18, 0);
    bytes.extend_from_slice(&SIGNATURE_IS_A_HEADER);
    bytes.resize(LEAD_BYTES, 0);
    bytes.extend_from_slice(&HEADER_MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    let size = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let (entries, length) = (1, 4);
    for number in [entries, length].into_iter().chain(SIZE).chain([size]) {
        bytes.extend_from_slice(&u32::to_be_bytes(number));
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(header);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::header;
    use super::*;

    #[test]
    fn it_is_read_as_any_package() {
        let own = header::tests::header(&[(1000, "name"), (1001, "1")]);
        let bytes = package(&own);
        let (signature, read) = header::read(&mut &bytes[..]).expect("a package");
        assert_eq!(signature.numbers(1000).expect("a size"), [own.len() as u64]);
        assert_eq!(read.bytes, own);
    }
}
