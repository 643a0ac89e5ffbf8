//! Packages changed at random: each is converted or refused with a reason, nothing
//! outside the layer's directory is touched, and nothing panics. With a larger
//! STRATA_ARCHIVE_CASES it searches longer.

use std::fs::File;
use std::io::Write as _;

use strata_import::rpm::owners::Owners;
use strata_import::{deb, import, rpm};

use super::*;

/// Cases of a run of all tests.
const CASES: u64 = 300;

/// Splitmix64: the same seed makes the same package.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Says which case it was, should it end in a panic.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the package of seed {} did it", self.0);
        }
    }
}

/// An archive with an entry of every kind, and extensions.
fn archive() -> Vec<u8> {
    let pax = b"30 mtime=1700000000.123456789\n27 SCHILY.xattr.user.a=abc\n";
    let long = format!("./usr/share/{}\0", "d/".repeat(60));
    tarball(&[
        entry(b"./", b'5', b"", b""),
        entry(b"./usr/", b'5', b"", b""),
        entry(b"./usr/share/", b'5', b"", b""),
        entry(b"x", b'x', pax, b""),
        entry(b"./usr/share/file", b'0', &[7; 1500], b""),
        entry(b"./usr/share/hard", b'1', b"", b"./usr/share/file"),
        entry(b"./usr/share/link", b'2', b"", b"../../etc"),
        entry(b"././@LongLink", b'L', long.as_bytes(), b""),
        entry(b"./usr/share/long", b'5', b"", b""),
        entry(b"./bin/moved", b'0', b"moved", b""),
        entry(b"./usr/share/null", b'3', b"", b""),
        entry(b"./usr/share/fifo", b'6', b"", b""),
    ])
}

/// Changes a package; where it is a tar archive, checksums are often put right, so
/// that what is behind them is reached.
fn change(bytes: &mut Vec<u8>, random: &mut Random, tar: bool) {
    for _ in 0..=random.below(4) {
        if bytes.len() < 600 {
            break;
        }
        let at = random.below(bytes.len());
        let block = at / 512 * 512;
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 0xff, b'/', b'.', b'7', b'0', 0x80][random.below(7)],
            3 => {
                let end = (block + 512).min(bytes.len());
                let copy = bytes[block..end].to_vec();
                let to = random.below(bytes.len()) / 512 * 512;
                bytes.splice(to..to, copy);
            }
            4 => drop(bytes.drain(block..(block + 512).min(bytes.len()))),
            5 => {
                let digits = b"77777777777";
                let end = (at + digits.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&digits[..end - at]);
            }
            6 => {
                let names: [&[u8]; 4] =
                    [b"../../outside", b"/outside", b"./usr/share/link/x", b"./\0"];
                let name = names[random.below(4)];
                let end = (block + name.len()).min(bytes.len());
                bytes[block..end].copy_from_slice(&name[..end - block]);
            }
            _ => {
                let kind = b"0123456789xgLKSVD"[random.below(17)];
                if block + 156 < bytes.len() {
                    bytes[block + 156] = kind;
                }
            }
        }
    }
    if tar && random.below(4) > 0 {
        for header in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

#[test]
fn changed_packages_are_converted_or_refused() {
    let bench = Bench::set_up();
    let spec = "Name: sample\nVersion: 1\nRelease: 1\nSummary: s\nLicense: MIT\nBuildArch: noarch\n%define _binary_payload w.ufdio\n%description\n%install\nmkdir -p %{buildroot}/usr/share/s\necho 1 > %{buildroot}/usr/share/s/a\nln %{buildroot}/usr/share/s/a %{buildroot}/usr/share/s/b\nln -s ../../../outside %{buildroot}/usr/share/s/c\n%files\n/usr/share/s\n";
    let rpm = fs::read(&crate::rpm::build(&bench, spec)["sample"]).expect("read");
    let data = archive();
    let room = bench.path("room");
    fs::create_dir_all(room.join("outside")).expect("a directory");
    write(&room.join("outside/file"), b"untouched");
    let cases = match std::env::var("STRATA_ARCHIVE_CASES") {
        Ok(number) => number.parse().expect("STRATA_ARCHIVE_CASES is a number"),
        Err(_) => CASES,
    };
    let limits = TreeLimits { bytes: 16 << 20, entries: 1_000 };
    let (mut converted, mut refused) = (0, 0);
    for seed in 0..cases {
        let case = Case(seed);
        let mut random = Random(seed);
        let (filesystem, scripts) = (room.join("layer"), room.join("scripts"));
        fs::create_dir(&filesystem).expect("a directory");
        fs::create_dir(&scripts).expect("a directory");
        let directory = File::open(&filesystem).expect("opened").into();
        let result = if seed % 3 == 0 {
            let mut bytes = rpm.clone();
            change(&mut bytes, &mut random, false);
            let owners = Owners::default();
            rpm::convert(&bytes[..], directory, &scripts, limits, &owners)
                .map_err(import::ConvertError::from)
        } else {
            let mut bytes = data.clone();
            change(&mut bytes, &mut random, true);
            let package = match seed % 2 {
                0 => package(&bytes),
                _ => gzipped(&bytes),
            };
            deb::convert(&package[..], directory, &scripts, limits)
                .map_err(import::ConvertError::from)
        };
        match result {
            Ok(layer) => {
                converted += 1;
                assert_same(&scan(&filesystem), &layer.manifest);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        let names = fs::read_dir(&room).expect("the room");
        let mut names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["layer", "outside", "scripts"]);
        let outside = fs::read_dir(room.join("outside")).expect("listed").count();
        let file = fs::read(room.join("outside/file")).expect("read");
        assert_eq!((outside, file.as_slice()), (1, &b"untouched"[..]));
        fs::remove_dir_all(&filesystem).expect("removed");
        fs::remove_dir_all(&scripts).expect("removed");
        drop(case);
    }
    assert!(converted > 0 && refused > 0, "{converted} converted, {refused} refused");
}

/// A package around a compressed archive.
fn gzipped(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("memory");
    let data = encoder.finish().expect("memory");
    let control = tarball(&[entry(b"./control", b'0', CONTROL.as_bytes(), b"")]);
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar.gz", &data)])
}
