//! One repository, and everyone who would have it say something else.

use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{HashAlg, LineEnding, PrivateKey};

use super::*;

const NOW: i64 = 1_800_000_000;
const DATABASE: &[u8] = b"the database";

fn main() -> RepositoryName {
    RepositoryName::new("main").expect("a name")
}

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::from(pair), "").expect("a key")
}

fn role(threshold: u32, seeds: &[u8]) -> Role {
    let text = |seed: &u8| key(*seed).public_key().to_openssh().expect("printed");
    let keys = seeds.iter().map(|seed| text(seed).parse().expect("a key")).collect();
    Role { threshold, keys }
}

fn signed(text: String, namespace: &str, seeds: &[u8]) -> Vec<u8> {
    let sign = |seed: &u8| {
        let signature = key(*seed).sign(namespace, HashAlg::Sha512, text.as_bytes());
        let pem = signature.expect("signed").to_pem(LineEnding::LF).expect("printed");
        format!("{}\n", pem.trim_end())
    };
    let signatures = seeds.iter().map(sign).collect();
    Envelope { text, signatures }.print().into_bytes()
}

fn at(seconds: i64) -> Expiry {
    Expiry::at(seconds).expect("a time")
}

fn root(version: u32, keys: Role) -> Root {
    let (repository, expires) = (main(), at(NOW + 1000));
    Root { repository, version, expires, root: keys, database: role(1, &[9]) }
}

fn snapshot(version: u32) -> Snapshot {
    Snapshot {
        repository: main(),
        version,
        expires: at(NOW + 100),
        database: Digest::of(DATABASE),
        database_bytes: DATABASE.len() as u64,
    }
}

fn sign_root(root: &Root, seeds: &[u8]) -> Vec<u8> {
    signed(root.print(), ROOT_NAMESPACE, seeds)
}

fn sign_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    signed(snapshot.print(), SNAPSHOT_NAMESPACE, &[9])
}

/// Everything as it should be: keys changed once, pinned are the first.
struct Case {
    pinned: Role,
    seen: Option<HighWater>,
    roots: Vec<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    now: i64,
}

impl Case {
    fn new() -> Self {
        let (first, second) = (root(1, role(1, &[1, 2])), root(2, role(2, &[2, 3])));
        Case {
            pinned: role(1, &[1, 2]),
            seen: None,
            roots: vec![sign_root(&first, &[1]), sign_root(&second, &[2, 3])],
            snapshot: Some(sign_snapshot(&snapshot(5))),
            now: NOW,
        }
    }

    fn accept(&self) -> Result<Accepted, TrustError> {
        let name = main();
        let mut chain = Chain::new(&name, &self.pinned, self.seen.as_ref());
        for root in &self.roots {
            chain.offer(root)?;
        }
        chain.finish(self.snapshot.as_deref(), self.now)
    }

    fn refused(&self) -> TrustError {
        self.accept().expect_err("it must be refused")
    }
}

#[test]
fn the_chain_from_the_pinned_keys_to_the_database_is_accepted() {
    let accepted = Case::new().accept().expect("accepted");
    assert_eq!((accepted.root.version, accepted.snapshot.version), (2, 5));
    assert_eq!(accepted.expires(), NOW + 100);
    accepted.check_database(DATABASE).expect("the database");
    // Once more, now that it was seen.
    let again = Case { seen: Some(accepted.high_water), ..Case::new() };
    assert_eq!(again.accept().expect("accepted"), accepted);
}

#[test]
fn keys_pinned_after_a_change_pass_over_what_was_before() {
    let pinned = role(2, &[2, 3]);
    assert_eq!(Case { pinned, ..Case::new() }.accept().expect("accepted").root.version, 2);
    let pinned = role(1, &[7]);
    let refused = Case { pinned, ..Case::new() }.refused();
    assert!(matches!(refused, TrustError::NoPinnedRoot(2)), "{refused}");
}

#[test]
fn rollback_is_refused() {
    let seen = Case::new().accept().expect("accepted").high_water;
    let older = Some(sign_snapshot(&snapshot(4)));
    let refused = Case { seen: Some(seen), snapshot: older, ..Case::new() }.refused();
    let of_snapshot =
        matches!(refused, TrustError::Rollback { what: "the snapshot", seen: 5, found: 4 });
    assert!(of_snapshot, "{refused}");
    let mut case = Case { seen: Some(seen), ..Case::new() };
    case.roots.pop();
    let refused = case.refused();
    assert!(matches!(refused, TrustError::Rollback { what: "the root", .. }), "{refused}");
}

#[test]
fn another_text_under_a_version_that_was_seen_is_refused() {
    let seen = Some(Case::new().accept().expect("accepted").high_water);
    let other = Snapshot { expires: at(NOW + 101), ..snapshot(5) };
    let refused = Case { seen, snapshot: Some(sign_snapshot(&other)), ..Case::new() }.refused();
    assert!(matches!(refused, TrustError::Equivocation { what: "the snapshot", .. }), "{refused}");
    let mut case = Case { seen, ..Case::new() };
    case.roots[1] = sign_root(&root(2, role(1, &[2])), &[2]);
    let refused = case.refused();
    assert!(matches!(refused, TrustError::Equivocation { what: "the root", .. }), "{refused}");
}

#[test]
fn what_has_expired_is_refused() {
    let refused = Case { now: NOW + 100, ..Case::new() }.refused();
    assert!(matches!(refused, TrustError::Expired { what: "the snapshot", .. }), "{refused}");
    let refused = Case { now: NOW + 1000, ..Case::new() }.refused();
    assert!(matches!(refused, TrustError::Expired { what: "the root", .. }), "{refused}");
}

#[test]
fn the_database_of_another_snapshot_is_refused() {
    let accepted = Case::new().accept().expect("accepted");
    for database in [&b"another base"[..], b"", b"the database and more"] {
        let refused = accepted.check_database(database);
        assert!(matches!(refused, Err(TrustError::OtherDatabase { .. })), "{refused:?}");
    }
}

#[test]
fn signatures_of_others_and_for_other_uses_do_not_count() {
    let text = snapshot(5).print();
    let of = |file: Vec<u8>| Case { snapshot: Some(file), ..Case::new() }.refused();
    let cases = [
        ("a stranger's", signed(text.clone(), SNAPSHOT_NAMESPACE, &[8])),
        ("a root key's", signed(text.clone(), SNAPSHOT_NAMESPACE, &[2, 3])),
        ("for git", signed(text.clone(), "git", &[9])),
        ("for roots", signed(text.clone(), ROOT_NAMESPACE, &[9])),
        ("none", text.clone().into_bytes()),
    ];
    for (what, file) in cases {
        let refused = of(file);
        assert!(matches!(refused, TrustError::TooFew { valid: 0, .. }), "{what}: {refused}");
    }
    let good = String::from_utf8(sign_snapshot(&snapshot(5))).expect("text");
    let changed = good.replacen("version = 5", "version = 6", 1);
    let refused = of(changed.into_bytes());
    assert!(matches!(refused, TrustError::TooFew { valid: 0, .. }), "{refused}");
}

#[test]
fn keys_are_changed_only_by_enough_of_those_before_and_those_after() {
    let second = root(2, role(2, &[2, 3]));
    // 3 alone is none of those before, 2 alone is too few of those after, 2 twice is 2 once.
    for seeds in [&[3][..], &[2], &[2, 2], &[8, 9], &[]] {
        let mut case = Case::new();
        case.roots[1] = sign_root(&second, seeds);
        let refused = case.refused();
        assert!(matches!(refused, TrustError::TooFew { .. }), "{seeds:?}: {refused}");
    }
    let mut case = Case::new();
    case.roots[1] = sign_root(&root(3, role(2, &[2, 3])), &[2, 3]);
    let refused = case.refused();
    assert!(matches!(refused, TrustError::Version { expected: 2, found: 3 }), "{refused}");
}

#[test]
fn documents_of_another_repository_are_refused() {
    let name = RepositoryName::new("other").expect("a name");
    let other = Snapshot { repository: name.clone(), ..snapshot(5) };
    let refused = Case { snapshot: Some(sign_snapshot(&other)), ..Case::new() }.refused();
    assert!(matches!(refused, TrustError::OtherRepository { .. }), "{refused}");
    let mut case = Case::new();
    case.roots[0] = sign_root(&Root { repository: name, ..root(1, role(1, &[1, 2])) }, &[1]);
    let refused = case.refused();
    assert!(matches!(refused, TrustError::OtherRepository { .. }), "{refused}");
}

#[test]
fn what_is_missing_is_named() {
    let unsigned = Case { roots: Vec::new(), ..Case::new() }.refused();
    assert!(matches!(unsigned, TrustError::Unsigned), "{unsigned}");
    let never = Case { snapshot: None, ..Case::new() }.refused();
    assert!(matches!(never, TrustError::NoSnapshot), "{never}");
    let large = vec![b' '; limits::SIGNED_BYTES + 1];
    let endless = Case { snapshot: Some(large), ..Case::new() }.refused();
    let too_large = TrustError::Document {
        what: "snapshot.toml".to_owned(),
        error: SignedError::TooLarge(limits::SIGNED_BYTES + 1),
    };
    assert_eq!(endless.to_string(), too_large.to_string());
}

/// `ssh-keygen` made the golden files: what it signs is understood.
#[test]
fn signatures_of_openssh_are_understood() {
    let golden = |text: &[u8]| Envelope::parse(text).expect("a document");
    let root = golden(include_bytes!("../../../../vlfs/core/golden/signed-root"));
    let keys = Root::parse(&root.text).expect("a root");
    let keys_of = |role: &Role| -> Vec<_> {
        role.keys.iter().map(|text| public_key(text).expect("a key")).collect()
    };
    assert_eq!(signers(&root, ROOT_NAMESPACE, &keys_of(&keys.root)).len(), 2);
    let snapshot = golden(include_bytes!("../../../../vlfs/core/golden/signed-snapshot"));
    assert_eq!(signers(&snapshot, SNAPSHOT_NAMESPACE, &keys_of(&keys.database)).len(), 1);
}
