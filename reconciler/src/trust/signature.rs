//! The signature of a commit or a tag, and the bytes that it is made over.
//!
//! A commit carries it in its `gpgsig` header, and what is signed is the commit
//! without that header; an annotated tag carries it at its end, and what is signed is
//! all before it (`gitformat-signature(5)`). Objects on which two programs could
//! disagree — several signatures, one hidden in another header — are refused.

const SSH: &[u8] = b"-----BEGIN SSH SIGNATURE-----";
const OPENPGP: &[u8] = b"-----BEGIN PGP SIGNATURE-----";
const X509: &[u8] = b"-----BEGIN SIGNED MESSAGE-----";
/// Bytes of one signature.
const SIGNATURE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ssh,
    OpenPgp,
}

/// A signature and what it is made over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub format: Format,
    pub signature: Vec<u8>,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("it is not signed")]
    Unsigned,
    #[error("it has more than one signature")]
    Several,
    #[error("its signature is larger than {SIGNATURE_BYTES} bytes")]
    TooLarge,
    #[error("its signature is neither of SSH nor of OpenPGP")]
    Format,
    #[error("the tag calls itself {found:?}, not {expected:?}")]
    TagName { found: String, expected: String },
    #[error("the tag does not name a commit")]
    TagTarget,
    #[error("the tag is no annotated tag, so nobody signed it")]
    Lightweight,
}

/// Takes a commit object apart.
///
/// # Errors
/// It is not signed, or not in a way that is understood.
pub fn of_commit(object: &[u8]) -> Result<Signed, SignatureError> {
    let headers = headers_end(object);
    let (mut signature, mut payload) = (Vec::new(), Vec::new());
    let (mut inside, mut seen) = (false, false);
    for line in object[..headers].split_inclusive(|byte| *byte == b'\n') {
        if let (true, Some(continued)) = (inside, line.strip_prefix(b" ")) {
            signature.extend_from_slice(continued);
            continue;
        }
        inside = false;
        if let Some(first) = line.strip_prefix(b"gpgsig ") {
            if seen {
                return Err(SignatureError::Several);
            }
            (inside, seen) = (true, true);
            signature.extend_from_slice(first);
        } else if line.starts_with(b"gpgsig") {
            return Err(SignatureError::Several);
        } else {
            payload.extend_from_slice(line);
        }
    }
    if !seen {
        return Err(SignatureError::Unsigned);
    }
    payload.extend_from_slice(&object[headers..]);
    signed(signature, payload)
}

/// Takes the object of an annotated tag apart, which must be that of the tag `name`:
/// a good signature of another tag proves nothing about this one.
///
/// # Errors
/// It is not signed, not in a way that is understood, or is another tag's.
pub fn of_tag(object: &[u8], name: &str) -> Result<Signed, SignatureError> {
    let header = |key: &[u8]| {
        let lines = object[..headers_end(object)].split(|byte| *byte == b'\n');
        lines.filter_map(|line| line.strip_prefix(key)).next()
    };
    if header(b"type ") != Some(b"commit") {
        return Err(SignatureError::TagTarget);
    }
    let found = header(b"tag ").unwrap_or_default();
    if found != name.as_bytes() {
        let found = String::from_utf8_lossy(found).into_owned();
        return Err(SignatureError::TagName { found, expected: name.to_owned() });
    }
    let mut at = headers_end(object);
    let mut begin = None;
    for line in object[at..].split_inclusive(|byte| *byte == b'\n') {
        if [SSH, OPENPGP, X509].iter().any(|mark| line.starts_with(mark)) {
            begin = Some(at);
        }
        at += line.len();
    }
    let begin = begin.ok_or(SignatureError::Unsigned)?;
    signed(object[begin..].to_vec(), object[..begin].to_vec())
}

fn signed(signature: Vec<u8>, payload: Vec<u8>) -> Result<Signed, SignatureError> {
    if signature.len() > SIGNATURE_BYTES {
        return Err(SignatureError::TooLarge);
    }
    let format = match &signature {
        text if text.starts_with(SSH) => Format::Ssh,
        text if text.starts_with(OPENPGP) => Format::OpenPgp,
        _ => return Err(SignatureError::Format),
    };
    Ok(Signed { format, signature, payload })
}

/// Where the headers end: at the empty line, which is not of them.
fn headers_end(object: &[u8]) -> usize {
    object.windows(2).position(|pair| pair == b"\n\n").map_or(object.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "tree 1\nauthor a\ngpgsig -----BEGIN SSH SIGNATURE-----\n one\n \n two\nencoding x\n\nwhy\ngpgsig no\n";
    const TAG: &str =
        "object 1\ntype commit\ntag v1\ntagger a\n\nnotes\n-----BEGIN PGP SIGNATURE-----\nabc\n";

    #[test]
    fn a_commit_is_signed_without_its_signature() {
        let signed = of_commit(COMMIT.as_bytes()).expect("signed");
        assert_eq!(signed.format, Format::Ssh);
        assert_eq!(signed.signature, b"-----BEGIN SSH SIGNATURE-----\none\n\ntwo\n");
        assert_eq!(signed.payload, b"tree 1\nauthor a\nencoding x\n\nwhy\ngpgsig no\n");
    }

    #[test]
    fn doubtful_commits_are_refused() {
        let twice = COMMIT.replace("encoding x", "gpgsig -----BEGIN PGP SIGNATURE-----\n x");
        let other = COMMIT.replace("encoding", "gpgsig-sha256");
        let x509 = COMMIT.replace("SSH SIGNATURE", "SIGNED MESSAGE");
        let large = COMMIT.replace(" one\n", &" one\n".repeat(20_000));
        for (text, error) in [
            (twice.as_str(), SignatureError::Several),
            (&other, SignatureError::Several),
            (&x509, SignatureError::Format),
            (&large, SignatureError::TooLarge),
            (
                "tree 1\nauthor a\n\ngpgsig -----BEGIN SSH SIGNATURE-----\n",
                SignatureError::Unsigned,
            ),
            ("", SignatureError::Unsigned),
        ] {
            assert_eq!(of_commit(text.as_bytes()), Err(error));
        }
    }

    #[test]
    fn a_tag_is_signed_up_to_its_signature() {
        let signed = of_tag(TAG.as_bytes(), "v1").expect("signed");
        assert_eq!(signed.format, Format::OpenPgp);
        assert_eq!(signed.payload, b"object 1\ntype commit\ntag v1\ntagger a\n\nnotes\n");
        // One that its message only quotes is not the signature.
        let quoted = TAG.replace("notes", "-----BEGIN SSH SIGNATURE-----");
        assert_eq!(of_tag(quoted.as_bytes(), "v1").expect("signed").format, Format::OpenPgp);
    }

    #[test]
    fn doubtful_tags_are_refused() {
        let found = |text: &str, name| of_tag(text.as_bytes(), name).expect_err("refused");
        assert!(matches!(found(TAG, "v2"), SignatureError::TagName { .. }));
        assert_eq!(found(&TAG.replace("commit", "tag"), "v1"), SignatureError::TagTarget);
        assert_eq!(found(&TAG.replace("BEGIN PGP", "begin"), "v1"), SignatureError::Unsigned);
    }
}
