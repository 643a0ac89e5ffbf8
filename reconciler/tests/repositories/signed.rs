//! `strata repo key`, `sign` and `cosign`, and what a reader makes of a signed repository.

use std::fs;
use std::process::{Command, Stdio};

use crate::killed::killed;
use crate::support::{Bench, text};

/// A repository of one layer, with a root key and a database key, signed.
struct Signed {
    bench: Bench,
}

impl Signed {
    fn new() -> Self {
        let signed = Signed { bench: Bench::new() };
        signed.bench.layer("main", "app", "1", &[("usr/bin/app", "one")]);
        for name in ["offline", "second", "nightly", "stranger"] {
            signed.make_key(name);
        }
        let said = signed.set_keys(&["offline"], 1, &["offline"]);
        assert!(said.starts_with("main: root 1 is signed by 1 key, until 20"), "{said}");
        let said = signed.sign();
        assert!(said.starts_with("main: snapshot 1 is signed by 1 key, until 20"), "{said}");
        signed.configure("");
        signed
    }

    fn make_key(&self, name: &str) {
        let path = self.bench.path(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", text(&path)])
            .status()
            .expect("ssh-keygen runs: apt-get install openssh-client");
        assert!(made.success());
    }

    fn key(&self, name: &str) -> String {
        text(&self.bench.path(name)).to_owned()
    }

    fn public(&self, name: &str) -> String {
        format!("{}.pub", self.key(name))
    }

    fn set_keys_command(&self, root: &[&str], threshold: u32, signers: &[&str]) -> Vec<String> {
        let mut command: Vec<String> = ["repo", "key", "set", "main"].map(str::to_owned).into();
        for key in root {
            command.extend(["--root-key".to_owned(), self.public(key)]);
        }
        command.extend(["--root-threshold".to_owned(), threshold.to_string()]);
        command.extend(["--database-key".to_owned(), self.public("nightly")]);
        for key in signers {
            command.extend(["--key".to_owned(), self.key(key)]);
        }
        command
    }

    fn set_keys(&self, root: &[&str], threshold: u32, signers: &[&str]) -> String {
        let command = self.set_keys_command(root, threshold, signers);
        self.bench.good(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn sign(&self) -> String {
        self.bench.good(&["repo", "sign", "main", "--key", &self.key("nightly")])
    }

    /// Writes a GitOps repository that pins `offline`, or what `instead` says.
    fn configure(&self, instead: &str) {
        let directory = self.bench.path("gitops");
        fs::create_dir_all(directory.join("templates")).expect("made");
        let public = fs::read_to_string(self.public("offline")).expect("a key");
        let keys = format!("keys = [\"{}\"]\n", public.trim_end());
        let keys = if instead.is_empty() { keys.as_str() } else { instead };
        let configuration = format!("[[repository]]\nname = \"main\"\n{keys}");
        fs::write(directory.join("strata.toml"), configuration).expect("written");
        fs::write(directory.join("templates/web.ldf"), "main/app 1\n").expect("written");
    }

    fn check(&self) -> (Option<i32>, String) {
        let output = self.bench.strata(&["check", text(&self.bench.path("gitops"))]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    fn refused(&self, why: &str) {
        let (code, said) = self.check();
        assert!(code != Some(0) && said.contains(why), "{code:?}: {said}");
    }

    fn accepted(&self) {
        let (code, said) = self.check();
        assert!(code == Some(0) && said.contains(" 0 warnings"), "{code:?}: {said}");
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.bench.path("store/repos/main").join(name)
    }
}

#[test]
fn what_was_signed_is_used_and_what_came_after_waits() {
    let signed = Signed::new();
    signed.accepted();
    signed.bench.layer("main", "later", "1", &[("usr/bin/later", "later")]);
    let (code, said) = signed.check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the repository main was changed since it was signed"), "{said}");
    let ldf = signed.bench.path("gitops/templates/web.ldf");
    fs::write(&ldf, "main/app 1\nmain/later 1\n").expect("written");
    signed.refused("the repository main has no layer later");
    assert!(signed.sign().starts_with("main: snapshot 2 "));
    signed.accepted();
    let listed = signed.bench.good(&["repo", "key", "list", "main", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["snapshot"]["version"], 2);
    assert_eq!(listed["snapshot"]["changed"], false);
    assert_eq!(listed["seen"]["snapshot"], 2);
}

#[test]
fn an_older_state_is_refused_once_a_newer_was_seen() {
    let signed = Signed::new();
    let older = fs::read(signed.file("snapshot.toml")).expect("a snapshot");
    signed.sign();
    signed.accepted();
    fs::write(signed.file("snapshot.toml"), older).expect("written");
    signed.refused("the snapshot has version 1, version 2 was seen before");
    // The owner, too, goes on from what was seen.
    assert!(signed.sign().starts_with("main: snapshot 3 "));
    signed.accepted();
}

#[test]
fn what_was_changed_without_a_key_is_refused() {
    let signed = Signed::new();
    signed.accepted();
    let path = signed.file("snapshot.toml");
    let snapshot = fs::read_to_string(&path).expect("a snapshot");
    fs::write(&path, snapshot.replace("version = 1", "version = 7")).expect("written");
    signed.refused("0 of 1 signatures are by keys of the role `database` of root-1.toml");
    fs::write(&path, &snapshot).expect("written");
    // Another database in the place of both copies.
    let kept = fs::read_dir(signed.file(""))
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let kept: Vec<_> = kept.filter(|name| name.starts_with("database")).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for name in kept {
        fs::write(signed.file(&name), "Layer: evil\n").expect("written");
    }
    signed.refused("the database is not the one that the snapshot names");
    fs::remove_file(&path).expect("removed");
    signed.refused("it has a root and no snapshot");
    fs::remove_file(signed.file("root-1.toml")).expect("removed");
    signed.refused("it is not signed");
}

#[test]
fn only_the_pinned_keys_begin_the_chain() {
    let signed = Signed::new();
    let public = fs::read_to_string(signed.public("stranger")).expect("a key");
    signed.configure(&format!("keys = [\"{}\"]\n", public.trim_end()));
    signed.refused("none of its 1 roots is signed by the keys that the configuration pins");
    signed.configure("keys = [\"ssh-ed25519 AAAA\"]\n");
    signed.refused("the key ssh-ed25519 AAAA cannot be used");
    signed.configure("keys = []\n");
    signed.refused("strata.toml:1");
    signed.configure("threshold = 1\n");
    signed.refused("`threshold` says how many of `keys` must sign");
}

#[test]
fn a_change_of_keys_waits_for_the_keys_of_before_and_of_after() {
    let signed = Signed::new();
    let said = signed.set_keys(&["offline", "second"], 2, &["offline"]);
    assert!(said.contains("root 2 is signed by 1 key and waits for 1 more signature"), "{said}");
    assert!(!signed.file("root-2.toml").exists(), "it does not count yet");
    signed.accepted();
    let stranger = ["repo", "cosign", "main", "--key", &signed.key("stranger")];
    let said = signed.bench.bad(&stranger);
    assert!(said.contains("is not one of those that sign root 2 of main"), "{said}");
    let second = ["repo", "cosign", "main", "--key", &signed.key("second")];
    let said = signed.bench.good(&second);
    assert!(said.contains("root 2 is signed by 2 keys"), "{said}");
    signed.accepted();
    let said = signed.bench.bad(&second);
    assert!(said.contains("nothing of the repository main waits for signatures"), "{said}");
    // Keys that nobody of before agrees to are none.
    let said = signed.set_keys(&["stranger"], 1, &["stranger"]);
    assert!(said.contains("root 3 is signed by 1 key and waits for 2 more signatures"), "{said}");
}

#[test]
fn keys_that_others_can_read_are_refused_and_encrypted_ones_opened() {
    let signed = Signed::new();
    let path = signed.bench.path("nightly");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    };
    mode(0o640);
    let said = signed.bench.bad(&["repo", "sign", "main", "--key", text(&path)]);
    assert!(said.contains("others than its owner can read the private key"), "{said}");
    mode(0o600);
    let locked = Command::new("ssh-keygen")
        .args(["-q", "-p", "-P", "", "-N", "secret", "-f", text(&path)])
        .stdout(Stdio::null())
        .status();
    assert!(locked.expect("ssh-keygen runs").success());
    let sign = ["repo", "sign", "main", "--key", text(&path)];
    let said = signed.bench.bad(&sign);
    assert!(said.contains("is encrypted") && said.contains("--passphrase env:NAME"), "{said}");
    let kept = signed.bench.path("passphrase");
    let from = format!("file:{}", text(&kept));
    let with = [&sign[..], &["--passphrase", &from]].concat();
    let said = signed.bench.bad(&with);
    assert!(said.contains("cannot be used: the file cannot be read"), "{said}");
    fs::write(&kept, "other-than-it\n").expect("written");
    let said = signed.bench.bad(&with);
    assert!(said.contains("does not open") && !said.contains("other-than-it"), "{said}");
    fs::write(&kept, "secret\n").expect("written");
    signed.bench.good(&with);
    let by_variable = [&sign[..], &["--passphrase", "env:LAYERS_PASSPHRASE"]].concat();
    let mut command = signed.bench.command(&by_variable);
    let output = command.env("LAYERS_PASSPHRASE", "secret").output().expect("strata runs");
    assert!(output.status.success(), "{output:?}");
    signed.accepted();
    let said = signed.bench.bad(&[&sign[..], &["--passphrase", "secret"]].concat());
    assert!(said.contains("where it is kept, never the secret itself"), "{said}");
    let said = signed.bench.bad(&["repo", "sign", "main", "--key", &signed.public("offline")]);
    assert!(!said.contains("AAAA"), "no content of a key is told: {said}");
}

#[test]
fn a_wrong_file_as_a_key_is_told_and_nothing_of_it() {
    let signed = Signed::new();
    let make = |kind: &[&str], name: &str| {
        let path = signed.bench.path(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-f", text(&path)])
            .args(kind)
            .status()
            .expect("ssh-keygen runs: apt-get install openssh-client");
        assert!(made.success());
    };
    make(&["-t", "ecdsa", "-m", "PEM"], "ec");
    make(&["-t", "rsa"], "rsa");
    make(&["-t", "ecdsa", "-b", "384"], "p384");
    let (offline, key) = (signed.public("offline"), signed.key("offline"));
    let set = |root: &str, database: &str| {
        let keys = ["--root-key", root, "--database-key", database, "--key", &key];
        signed.bench.bad(&[&["repo", "key", "set", "main"][..], &keys].concat())
    };
    for private in ["ec", "offline", "rsa"] {
        let path = signed.key(private);
        let text = fs::read_to_string(&path).expect("a key");
        let secret = text.lines().nth(1).expect("a line");
        for said in [set(&path, &offline), set(&offline, &path)] {
            assert!(said.contains("begins as a private key does"), "{said}");
            assert!(!said.contains(&secret[..8]) && !said.contains("BEGIN"), "{said}");
        }
    }
    for unfit in ["rsa", "p384"] {
        let said = set(&offline, &signed.public(unfit));
        assert!(said.contains("signed with Ed25519 or ECDSA P-256"), "{said}");
    }
    let said = signed.bench.bad(&["repo", "sign", "main", "--key", &signed.public("nightly")]);
    assert!(said.contains("is a public key") && !said.contains("chmod"), "{said}");
    assert!(said.contains(&format!("--key {}\n", signed.key("nightly"))), "{said}");
    let listed = signed.bench.good(&["repo", "key", "list", "main"]);
    assert!(listed.starts_with("main: root 1, "), "nothing was changed: {listed}");
}

#[test]
fn an_index_without_a_database_goes_by_the_one_that_was_signed() {
    let signed = Signed::new();
    let bench = &signed.bench;
    bench.layer("main", "app", "2", &[("usr/bin/app", "two")]);
    bench.good(&["layer", "withdraw", "main/app", "1", "--reason", "CVE-2026-1"]);
    signed.sign();
    let database = bench.path("store/repos/main/database");
    fs::remove_file(&database).expect("moved away");
    let output = bench.strata(&["repo", "index", "main", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["marks"], &json["units"]), (&"signed".into(), &2.into()), "{output:?}");
    assert!(bench.good(&["layer", "list"]).contains("withdrawn: CVE-2026-1"));
    // It also says what each unit was.
    fs::remove_file(&database).expect("moved away");
    let metadata = bench.unit("main", "app", "2").join("metadata");
    let text = fs::read_to_string(&metadata).expect("there");
    fs::write(&metadata, text + "Depends: zz\n").expect("changed");
    assert!(bench.bad(&["repo", "index", "main"]).contains(": app 2\n"));
}

#[test]
fn signing_that_is_killed_leaves_a_repository_that_can_be_read() {
    let signed = Signed::new();
    for moment in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64] {
        let version = moment.to_string();
        signed.bench.layer("main", "other", &version, &[("usr/share/other", &version)]);
        let key = signed.key("nightly");
        killed(signed.bench.command(&["repo", "sign", "main", "--key", &key]), moment);
        let (code, said) = signed.check();
        assert_eq!(code, Some(0), "after {moment} ms: {said}");
    }
    signed.sign();
    signed.accepted();
}

#[test]
fn several_signers_at_once_follow_each_other() {
    let signed = Signed::new();
    let key = signed.key("nightly");
    let mut running: Vec<_> = (0..6)
        .map(|_| {
            let mut command = signed.bench.command(&["repo", "sign", "main", "--key", &key]);
            command.stdout(Stdio::null()).spawn().expect("strata runs")
        })
        .collect();
    for child in &mut running {
        assert!(child.wait().expect("it ends").success());
    }
    signed.accepted();
    let listed = signed.bench.good(&["repo", "key", "list", "main"]);
    assert!(listed.contains("\nsnapshot 7: "), "each has its version: {listed}");
}
