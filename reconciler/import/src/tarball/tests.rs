use super::*;

fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path(name).expect("a short name");
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_cksum();
    header
}

fn blocks(header: &Header, content: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.extend([0; 2 * BLOCK_BYTES]);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        reader.content().read_to_end(&mut content)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        text.extend(length.to_string().bytes());
        text.extend(body);
    }
    blocks(&header("pax", EntryType::XHeader, text.len() as u64), &text)
}

#[test]
fn long_names_pax_records_and_contents() {
    let long = "d/".repeat(80) + "file";
    let long_name = blocks(
        &header("././@LongLink", EntryType::GNULongName, long.len() as u64 + 1),
        format!("{long}\0").as_bytes(),
    );
    let records = pax(&[
        ("path", b"caf\xe9\n"),
        ("mtime", b"-1.25"),
        ("uid", b"70000"),
        ("SCHILY.xattr.user.a", b"x\ny=\0"),
    ]);
    let bytes = archive(&[
        long_name,
        blocks(&header("short", EntryType::Regular, 3), b"abc"),
        records,
        blocks(&header("other", EntryType::Regular, 0), b""),
    ]);
    let entries = read(&bytes).expect("valid");
    assert_eq!(entries[0].0.name, long.as_bytes());
    assert_eq!(entries[0].1, b"abc");
    let second = &entries[1].0;
    assert_eq!((second.name.as_slice(), second.uid), (&b"caf\xe9\n"[..], 70000));
    assert_eq!(second.mtime, Timestamp { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(second.xattrs[&b"user.a".to_vec()], b"x\ny=\0");
}

fn sparse(real_size: u64, map: &[(u64, u64)], stored: &[u8]) -> Vec<u8> {
    let mut header = header("sparse", EntryType::GNUSparse, stored.len() as u64);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    let octal = |field: &mut [u8; 12], value: u64| {
        field.copy_from_slice(format!("{value:011o}\0").as_bytes());
    };
    octal(&mut gnu.realsize, real_size);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(map) {
        octal(&mut slot.offset, *offset);
        octal(&mut slot.numbytes, *length);
    }
    header.set_cksum();
    blocks(&header, stored)
}

#[test]
fn sparse_files_have_holes_of_zeros() {
    let stored = [&[1_u8; 512][..], &[2; 3]].concat();
    let bytes = archive(&[
        sparse(2000, &[(100, 512), (1500, 3)], &stored),
        blocks(&header("next", EntryType::Regular, 1), b"n"),
    ]);
    let entries = read(&bytes).expect("valid");
    let mut expected = vec![0; 2000];
    expected[100..612].fill(1);
    expected[1500..1503].fill(2);
    assert_eq!((entries[0].0.size, &entries[0].1), (2000, &expected));
    assert_eq!(entries[1].1, b"n");
    for bad in [
        sparse(100, &[(90, 20)], &[1; 20]),
        sparse(100, &[(0, 5)], &[1; 20]),
        sparse(100, &[(50, 5), (10, 5)], &[1; 10]),
    ] {
        assert!(matches!(read(&archive(&[bad])), Err(TarError::Header { .. })));
    }
}

#[test]
fn damage_is_named() {
    let whole = archive(&[blocks(&header("a", EntryType::Regular, 600), &[7; 600])]);
    assert!(read(&whole).is_ok());
    assert!(read(&whole[..whole.len() - BLOCK_BYTES]).is_ok(), "one end block is enough");
    for length in [0, 100, 512, 700, 1024, 1536] {
        let error = read(&whole[..length]).expect_err("cut");
        let cut = matches!(&error, TarError::Truncated(_))
            || matches!(&error, TarError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof);
        assert!(cut, "{length}: {error}");
    }
    let mut flipped = whole.clone();
    flipped[0] = b'b';
    assert!(matches!(
        read(&flipped),
        Err(TarError::Header { problem: "its checksum is wrong", .. })
    ));
    let huge = header("././@LongLink", EntryType::GNULongName, 8 << 30);
    assert!(matches!(read(&archive(&[blocks(&huge, b"")])), Err(TarError::Extension(_))));
    let link = header("link", EntryType::Symlink, 9);
    assert!(matches!(read(&archive(&[blocks(&link, b"x")])), Err(TarError::Header { .. })));
    let odd = header("dump", EntryType::new(b'D'), 0);
    assert!(matches!(read(&archive(&[blocks(&odd, b"")])), Err(TarError::Type { kind: 'D', .. })));
    let sparse = pax(&[("GNU.sparse.major", b"1")]);
    let file = blocks(&header("a", EntryType::Regular, 0), b"");
    assert!(matches!(read(&archive(&[sparse, file])), Err(TarError::Unsupported { .. })));
    let trailing = [whole, vec![0; 2 << 20]].concat();
    assert!(matches!(read(&trailing), Err(TarError::Trailing)));
}

#[test]
fn pax_times() {
    let time = |text| pax_time(text).map(|time| (time.seconds, time.nanoseconds));
    assert_eq!(time("5"), Some((5, 0)));
    assert_eq!(time("5.5"), Some((5, 500_000_000)));
    assert_eq!(time("1.1234567899"), Some((1, 123_456_789)));
    assert_eq!(time("-0.5"), Some((-1, 500_000_000)));
    assert_eq!(time(""), None);
    assert_eq!(time("1.x"), None);
}

proptest::proptest! {
    #[test]
    fn never_panics(at in 0..2048_usize, byte: u8, cut in 0..2560_usize) {
        let mut bytes = archive(&[
            pax(&[("path", b"x"), ("size", b"3")]),
            sparse(2000, &[(100, 3)], b"abc"),
        ]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _checked = read(&bytes[..cut.min(bytes.len())]);
    }
}
