//! The fuzz targets' properties on files that are accepted and on mutations of them, so
//! that they hold, and still compile, in every run of the tests. `ci/fuzz` searches longer.

use proptest::prelude::*;

use super::*;

#[path = "../../fuzz/src/lib.rs"]
mod of_archives;

type Property = fn(&[u8]);

/// A property, and an input that is accepted.
fn targets() -> Vec<(Property, Vec<u8>)> {
    let files = tarball(&[
        entry(b"./", b'5', b"", b""),
        entry(b"./usr/", b'5', b"", b""),
        entry(b"./usr/file", b'0', b"content", b""),
        entry(b"./usr/hard", b'1', b"", b"./usr/file"),
        entry(b"./usr/link", b'2', b"", b"../etc"),
    ]);
    let symbols = "libx.so.1 libx1 #MINVER#\n| libx1 (>> 2), libx1 (<< 3)\n* Build-Depends-Package: libx-dev\n a@Base 1.0\n b@X_1 2~rc1 1\nlibx 1 libx1 (>= 1)\nudeb: libx 1 libx1-udeb\n";
    let program = std::fs::read("/usr/bin/true").expect("a program of coreutils");
    let mut payload = Vec::new();
    for (name, content) in [("./a", "content"), ("TRAILER!!!", "")] {
        let (mode, length, named) = (0o100_644, content.len(), name.len() + 1);
        let numbers = [1, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, named, 0];
        payload.extend(b"070701");
        numbers.iter().for_each(|number| payload.extend(format!("{number:08x}").bytes()));
        payload.extend(name.bytes().chain([0]));
        payload.resize(payload.len().next_multiple_of(4), 0);
        payload.extend(content.bytes());
        payload.resize(payload.len().next_multiple_of(4), 0);
    }
    vec![
        (of_archives::elf, program),
        (of_archives::library_files, symbols.into()),
        (of_archives::deb, package(&files)),
        (of_archives::deb_files, files),
        (of_archives::rpm, vec![0xed, 0xab, 0xee, 0xdb, 3, 0]),
        (of_archives::rpm_payload, payload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn properties_of_packages_and_programs_hold(
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        for (property, mut bytes) in targets() {
            property(&bytes);
            for (at, byte) in &changes {
                let at = at.index(bytes.len().min(1 << 16));
                bytes[at] = *byte;
            }
            property(&bytes);
            bytes.truncate(cut.index(bytes.len() + 1));
            property(&bytes);
        }
    }
}
