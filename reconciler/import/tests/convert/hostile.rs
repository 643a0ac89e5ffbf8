//! Archives that mean harm: a clear error, nothing outside, nothing left.

use super::*;

const ROOT: &[u8] = b"./";

/// Name, type, content and link target of an entry.
type Part<'a> = (&'a [u8], u8, &'a [u8], &'a [u8]);

fn data(entries: &[Part<'_>]) -> Vec<u8> {
    let mut parts = vec![entry(ROOT, b'5', b"", b"")];
    parts.extend(
        entries.iter().map(|(name, kind, content, link)| entry(name, *kind, content, link)),
    );
    package(&tarball(&parts))
}

/// The error of importing `bytes`; the import must leave nothing behind.
fn refused(bench: &Bench, bytes: &[u8]) -> String {
    let path = bench.path("bad.deb");
    write(&path, bytes);
    let error = bench.import_one(&path).expect_err("the package is refused").to_string();
    assert!(error.contains("bad.deb"), "{error}");
    bench.assert_clean();
    let database = bench.store.database(&bench.repository).expect("a database");
    assert!(database.is_empty());
    error
}

#[test]
fn names_that_leave_the_layer() {
    let bench = Bench::set_up();
    let outside = bench.path("outside");
    fs::create_dir(&outside).expect("a directory");
    let target = text(&outside).as_bytes().to_vec();
    for (entries, reason) in [
        (&[(&b"/etc/passwd"[..], b'0', &b"x"[..], &b""[..])][..], "the name is absolute"),
        (&[(b"./a/../../x", b'0', b"x", b"")], "leaves the layer"),
        (&[(b"../x", b'5', b"", b"")], "leaves the layer"),
        (
            &[(b"./link", b'2', b"", &target), (b"./link/x", b'0', b"x", b"")],
            "not a directory of this layer",
        ),
        (&[(b"./link", b'2', b"", &target), (b"./link/", b'5', b"", b"")], "occurs twice"),
        (
            &[(b"./link", b'2', b"", &target), (b"./link/d/", b'5', b"", b"")],
            "not a directory of this layer",
        ),
        (&[(b"./link", b'2', b"", &target), (b"./link", b'0', b"x", b"")], "with other content"),
        (&[(b"./x", b'1', b"", b"/etc/passwd")], "the name is absolute"),
        (&[(b"./x", b'1', b"", b"../../etc/passwd")], "leaves the layer"),
        (&[(b"./x", b'1', b"", b"./missing")], "no earlier file"),
        (&[(b"./d/", b'5', b"", b""), (b"./x", b'1', b"", b"./d")], "no earlier file"),
        (
            &[(b"./f", b'0', b"1", b""), (b"./f/x", b'0', b"1", b"")],
            "not a directory of this layer",
        ),
        (&[(b"./f", b'0', b"1", b""), (b"./f", b'0', b"2", b"")], "with other content"),
        (&[(b"./f", b'0', b"1", b""), (b"./f", b'5', b"", b"")], "occurs twice"),
        (&[(b"./d/f", b'0', b"1", b""), (b"./d", b'0', b"1", b"")], "with other content"),
        (&[(b"./l", b'2', b"", b"")], "without a target"),
        (
            &[(b"./bin/x", b'0', b"1", b""), (b"./usr/bin/x", b'0', b"2", b"")],
            "holds bin/x at the same place",
        ),
        (&[(b"./x", b'V', b"", b"")], "belong in no package"),
    ] {
        let error = refused(&bench, &data(entries));
        assert!(error.contains(reason), "{reason}: {error}");
    }
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 0);
}

#[test]
fn a_repeated_identical_file_is_taken_once() {
    let bench = Bench::set_up();
    let path = bench.path("twice.deb");
    write(&path, &data(&[(b"./f", b'0', b"1", b""), (b"f", b'0', b"1", b"")]));
    assert_eq!(bench.import_one(&path).expect("harmless").entries, 2);
}

#[test]
fn damaged_and_foreign_packages() {
    let bench = Bench::set_up();
    let control = tarball(&[entry(b"./control", b'0', CONTROL.as_bytes(), b"")]);
    let binary: (&str, &[u8]) = ("debian-binary", b"2.0\n");
    let plain = tarball(&[entry(ROOT, b'5', b"", b"")]);
    let bad_control = |text: &str| {
        ar(&[binary, ("control.tar", &tarball(&[entry(b"./control", b'0', text.as_bytes(), b"")]))])
    };
    for (bytes, reason) in [
        (b"hello".to_vec(), "no Debian package"),
        (Vec::new(), "no Debian package"),
        (ar(&[("debian-binary", b"3.0\n")]), "only 2.x is known"),
        (ar(&[("control.tar", &control)]), "where deb(5) wants debian-binary"),
        (ar(&[binary]), "ends before its control.tar"),
        (ar(&[binary, ("control.tar", &control)]), "ends before its data.tar"),
        (ar(&[binary, ("control.tar", &control), ("control.tar", &control)]), "wants data.tar"),
        (
            ar(&[binary, ("control.tar", &control), ("data.tar.bz2", b"BZh")]),
            "compression is not supported",
        ),
        (ar(&[binary, ("control.tar.xz", b"no xz at all")]), "control.tar.xz"),
        (ar(&[binary, ("control.tar.zst", b"no zstd")]), "control.tar.zst"),
        (ar(&[binary, ("control.tar.gz", b"no gzip")]), "control.tar.gz"),
        (ar(&[binary, ("control.tar", &plain)]), "ends before its control file"),
        (bad_control("Package: a\n"), "control:1:1: the field Version is missing"),
        (bad_control("Package: ../../a\nVersion: 1\n"), "may not contain '/'"),
        (bad_control("Package: a\nVersion: 1\nDepends: b (?? 1)\n"), "control:3:10"),
        (ar(&[binary, ("control.tar", &control), ("data.tar", &plain[..512])]), "cut short"),
        (
            ar(&[binary, ("control.tar", &tarball(&[entry(b"./a/b", b'0', b"", b"")]))]),
            "plain files only",
        ),
        (
            ar(&[binary, ("control.tar", &tarball(&[entry(b"./x", b'2', b"", b"/etc/passwd")]))]),
            "plain files only",
        ),
    ] {
        let error = refused(&bench, &bytes);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_package_cut_anywhere_is_refused() {
    let bench = Bench::set_up();
    let content: Vec<u8> =
        (0..20_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let plain = tarball(&[entry(ROOT, b'5', b"", b""), entry(b"./f", b'0', &content, b"")]);
    let control = tarball(&[entry(b"./control", b'0', CONTROL.as_bytes(), b"")]);
    let compress = |name: &str| -> Vec<u8> {
        match name {
            "data.tar.zst" => zstd::encode_all(&plain[..], 3).expect("zstd"),
            "data.tar.gz" => {
                let mut gzip =
                    flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast());
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut gzip, &mut bytes).expect("gzip");
                bytes
            }
            "data.tar.xz" => liblzma::encode_all(&plain[..], 1).expect("xz"),
            _ => plain.clone(),
        }
    };
    for name in ["data.tar", "data.tar.gz", "data.tar.xz", "data.tar.zst"] {
        let data = compress(name);
        let whole = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), (name, &data)]);
        let start = whole.len() - data.len();
        for cut in [start, start + 1, start + data.len() / 2, whole.len() - 9 - data.len() % 2] {
            if name == "data.tar" && cut >= whole.len() - 512 {
                continue;
            }
            refused(&bench, &whole[..cut]);
        }
        // The same cut with the member's header telling of it.
        for cut in [1, data.len() / 2, data.len() - 9] {
            if name == "data.tar" && cut >= data.len() - 512 {
                continue;
            }
            let members =
                [("debian-binary", &b"2.0\n"[..]), ("control.tar", &control), (name, &data[..cut])];
            refused(&bench, &ar(&members));
        }
        let mut flipped = data.clone();
        let middle = flipped.len() / 2;
        if name != "data.tar" {
            flipped[middle] ^= 0x55;
            let members =
                [("debian-binary", &b"2.0\n"[..]), ("control.tar", &control), (name, &flipped)];
            // zstd frames without a checksum cannot tell; the digest can.
            if name != "data.tar.zst" {
                refused(&bench, &ar(&members));
            }
        }
    }
}

#[test]
fn bombs_meet_the_limits() {
    let bench = Bench::set_up();
    let zeros = vec![0; 8 << 20];
    let bomb = package(&tarball(&[entry(b"./zeros", b'0', &zeros, b"")]));
    let path = bench.path("bomb.deb");
    write(&path, &bomb);
    let import = |path: &Path, limits: TreeLimits| {
        let options = ImportOptions { limits, ..ImportOptions::default() };
        let mut result = None;
        let packages = [path.to_owned()];
        import_packages(
            &bench.store,
            &bench.repository,
            packages.into_iter().map(crate::Package::from),
            &options,
            &mut |_, r| {
                result = Some(r);
            },
        )
        .expect("the repository can be written");
        result.expect("one result").map_err(|error| error.to_string())
    };
    let limits = TreeLimits { bytes: 1 << 20, entries: 10 };
    let error = import(&path, limits).expect_err("too large");
    assert!(error.contains("zeros") && error.contains("more than 1048576 bytes"), "{error}");
    let names: Vec<_> = (0..20).map(|n| format!("./f{n}")).collect();
    let many: Vec<_> = names.iter().map(|n| entry(n.as_bytes(), b'0', b"", b"")).collect();
    write(&path, &package(&tarball(&many)));
    let error = import(&path, limits).expect_err("too many");
    assert!(error.contains("more than 10 entries"), "{error}");
    // A header that announces 8 EiB, and a hole of as much.
    let mut huge = header(b"./huge", b'0', 0, b"");
    huge.set_size(u64::MAX >> 1);
    huge.set_cksum();
    write(&path, &package(&tarball(&[huge.as_bytes().to_vec()])));
    assert!(import(&path, TreeLimits::default()).is_err());
    let mut sparse = header(b"./sparse", b'S', 0, b"");
    let gnu = sparse.as_gnu_mut().expect("a GNU header");
    gnu.realsize.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].offset.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
    sparse.set_cksum();
    write(&path, &package(&tarball(&[sparse.as_bytes().to_vec()])));
    let error = import(&path, limits).expect_err("a huge hole");
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    bench.assert_clean();
}
