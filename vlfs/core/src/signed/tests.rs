use super::*;

const ROOT: &str = include_str!("../../golden/signed-root");
const SNAPSHOT: &str = include_str!("../../golden/signed-snapshot");

#[test]
fn golden_files_are_read_and_printed_as_they_are() {
    let envelope = Envelope::parse(ROOT.as_bytes()).expect("a root");
    assert_eq!(envelope.signatures.len(), 2);
    assert_eq!(envelope.print(), ROOT);
    let root = Root::parse(&envelope.text).expect("valid");
    assert_eq!((root.version, root.root.threshold, root.root.keys.len()), (1, 2, 2));
    assert_eq!(root.print(), envelope.text);
    let envelope = Envelope::parse(SNAPSHOT.as_bytes()).expect("a snapshot");
    let snapshot = Snapshot::parse(&envelope.text).expect("valid");
    assert_eq!(snapshot.print(), envelope.text);
    assert_eq!(snapshot.expires.to_string(), "2027-01-01T00:00:00Z");
}

fn root_with(from: &str, to: &str) -> Result<Root, SignedError> {
    let text = Envelope::parse(ROOT.as_bytes()).expect("a root").text;
    assert!(text.contains(from), "{from:?} is in the golden file");
    Root::parse(&text.replacen(from, to, 1))
}

#[test]
fn what_a_root_may_not_say_is_refused() {
    assert!(matches!(root_with("strata-root 1", "strata-root 2"), Err(SignedError::Header(_))));
    assert!(matches!(root_with("version = 1", "version = 0"), Err(SignedError::Version)));
    assert!(matches!(root_with("version = 1", "version = -1"), Err(SignedError::Toml(_))));
    assert!(matches!(root_with("version = 1", "version = 1\nmore = 1"), Err(SignedError::Toml(_))));
    let threshold = |text: &str| root_with("threshold = 2", text);
    assert!(matches!(threshold("threshold = 0"), Err(SignedError::Threshold { .. })));
    assert!(matches!(threshold("threshold = 3"), Err(SignedError::Threshold { .. })));
    for time in ["2027-01-01", "2027-01-01T00:00:00.5Z", "2027-01-01T01:00:00+01:00", "never"] {
        let found = root_with("2027-01-01T00:00:00Z", time);
        assert!(matches!(found, Err(SignedError::Toml(_))), "{time}: {found:?}");
    }
}

#[test]
fn one_key_counts_once() {
    let text = Envelope::parse(ROOT.as_bytes()).expect("a root").text;
    let mut root = Root::parse(&text).expect("valid");
    root.root.keys[1] = root.root.keys[0].clone();
    let found = Root::parse(&root.print());
    assert!(matches!(found, Err(SignedError::KeyTwice(RoleName::Root, _))), "{found:?}");
    root.root.keys.clear();
    assert!(matches!(Root::parse(&root.print()), Err(SignedError::Keys(RoleName::Root))));
}

#[test]
fn only_signatures_follow_the_text() {
    let cases: [(String, SignedError); 4] = [
        (format!("{ROOT}more"), SignedError::Signatures),
        (ROOT.trim_end().to_owned(), SignedError::Signatures),
        (ROOT.replacen(END, "", 2), SignedError::Signatures),
        (format!("text\n{}", format!("{BEGIN}{END}").repeat(17)), SignedError::ManySignatures),
    ];
    for (text, error) in cases {
        assert_eq!(Envelope::parse(text.as_bytes()), Err(error));
    }
    let large = vec![b'a'; limits::SIGNED_BYTES + 1];
    assert!(matches!(Envelope::parse(&large), Err(SignedError::TooLarge(_))));
    assert_eq!(Envelope::parse(&[0xff]), Err(SignedError::Encoding));
}

#[test]
fn keys_are_told_by_their_form() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==";
    let parsed: PublicKeyText = format!("{key} alice@example").parse().expect("a key");
    assert_eq!(parsed.as_str(), key);
    for text in ["", "ssh-ed25519", "ssh-ed25519 {}", "ssh-ed25519 AAAA\nssh-ed25519 BBBB"] {
        assert!(text.parse::<PublicKeyText>().is_err(), "{text:?}");
    }
}
