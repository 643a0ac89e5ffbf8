//! Signed commits: git signs with real keys, and only what is signed by somebody who
//! is listed is taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use git2::Oid;
use strata::pass::{Options, PassError, PassReport, PassResult};
use strata::source::{Remote, Selector, Source};
use strata::state::RefusalReason;
use strata::trust::{SignerLists, Trust};

use crate::support::World;

fn run(command: &mut Command) -> String {
    let output = command.output().expect("apt-get install openssh-client gnupg");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Keys of people, in a world's directory.
struct People<'w> {
    world: &'w World,
    homes: Vec<PathBuf>,
}

impl Drop for People<'_> {
    fn drop(&mut self) {
        for home in &self.homes {
            let agent = ["--kill", "gpg-agent"];
            let killed = Command::new("gpgconf").arg("--homedir").arg(home).args(agent).status();
            assert!(killed.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

impl<'w> People<'w> {
    fn new(world: &'w World) -> Self {
        People { world, homes: Vec::new() }
    }

    /// A key of SSH; returns its line for `allowed_signers`.
    fn ssh(&self, name: &str, kind: &str) -> String {
        let file = self.world.path(name);
        run(Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", name, "-t", kind, "-f"])
            .arg(&file));
        let public = fs::read_to_string(file.with_extension("pub")).expect("a public key");
        format!("{name}@example.org {public}")
    }

    /// A key of OpenPGP that ends after so long, made and used at a time; returns it armoured.
    fn openpgp(&mut self, name: &str, time: &str, expires: &str) -> String {
        let home = self.world.path(&format!("gpg-{name}"));
        fs::create_dir(&home).expect("made");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("set");
        self.homes.push(home.clone());
        let gpg = || {
            let mut gpg = Command::new("gpg");
            gpg.args(["--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]);
            gpg.args(["--faked-system-time", time, "--homedir"]).arg(&home);
            gpg
        };
        let user = format!("{name} <{name}@example.org>");
        run(gpg().args(["--quick-generate-key", &user, "ed25519", "sign", expires]));
        let script = format!(
            "#!/bin/sh\nexec gpg --faked-system-time {time} --homedir {} \"$@\"\n",
            home.display()
        );
        let program = self.world.path(&format!("sign-{name}"));
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
        run(gpg().args(["--armor", "--export", &user]))
    }

    /// Runs git in the work tree so that what it makes is signed by this person.
    fn git(&self, name: &str, arguments: &[&str]) -> String {
        let gpg = self.world.path(&format!("sign-{name}"));
        let key = self.world.path(name);
        let mut all: Vec<String> = vec!["-c".into(), "commit.gpgSign=true".into()];
        if gpg.exists() {
            all.extend(["-c".into(), format!("gpg.program={}", gpg.display())]);
            all.extend(["-c".into(), format!("user.signingKey={name}@example.org")]);
        } else {
            all.extend(["-c".into(), "gpg.format=ssh".into()]);
            all.extend(["-c".into(), format!("user.signingKey={}", key.display())]);
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        self.world.git(&all)
    }

    /// Changes the template so that every commit has something to bring.
    fn commit(&self, name: &str, message: &str) -> String {
        self.world.write("templates/sql.ldf", &format!("# {message}\nmain/base 1\n"));
        self.world.git(&["add", "-A"]);
        self.git(name, &["commit", "-q", "-m", message]);
        self.world.head()
    }
}

fn push(world: &World) {
    world.git(&["push", "-qf", "origin", "HEAD:main"]);
}

fn write(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.path(name);
    fs::write(&path, text).expect("written");
    path
}

fn files(ssh: Option<&Path>, openpgp: Option<&Path>) -> SignerLists {
    let owned = |path: Option<&Path>| path.map(Path::to_owned);
    SignerLists::Files { ssh: owned(ssh), ssh_revoked: None, openpgp: owned(openpgp) }
}

fn pass(world: &World, lists: &SignerLists, anchor: Option<&str>) -> Result<PassReport, PassError> {
    let anchor = anchor.map(|id| Oid::from_str(id).expect("an id"));
    let trust = || Trust { lists: lists.clone(), anchor };
    let options = || Options { trust: Some(trust()), ..Options::default() };
    let mut reconciler = world.opened(options);
    reconciler.pass(&AtomicBool::new(false))
}

#[track_caller]
fn taken(world: &World, lists: &SignerLists, anchor: Option<&str>) -> PassReport {
    let report = pass(world, lists, anchor).expect("a pass");
    assert_ne!(report.result, PassResult::Refused, "{:?}", report.message);
    report
}

/// Refused, with every one of these words, and nothing moved.
#[track_caller]
fn refused(world: &World, lists: &SignerLists, anchor: Option<&str>, words: &[&str]) {
    let rings = world.rings();
    let report = pass(world, lists, anchor).expect("a pass");
    assert_eq!(report.refusal, Some(RefusalReason::Untrusted), "{:?}", report.message);
    let message = report.message.expect("told");
    for word in words {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(world.rings(), rings, "nothing was moved");
}

#[test]
fn commits_signed_with_ssh_are_taken_and_others_are_not() {
    let world = World::new();
    let people = People::new(&world);
    let first = world.head();
    let allowed = write(&world, "allowed", &people.ssh("ann", "ed25519"));
    people.ssh("mallory", "ed25519");
    let lists = files(Some(&allowed), None);
    refused(&world, &lists, None, &[&first, "not signed"]);
    taken(&world, &lists, Some(&first));
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    let good = people.commit("ann", "signed");
    push(&world);
    let report = taken(&world, &lists, Some(&first));
    assert_eq!((report.result, &report.commit), (PassResult::Applied, &good));
    assert!(report.signer.expect("told").starts_with("ann@example.org (SHA256:"));
    // An unsigned one hidden below a signed one is found.
    world.git(&["commit", "-q", "--allow-empty", "-m", "unsigned"]);
    let unsigned = world.head();
    people.commit("ann", "on top");
    push(&world);
    refused(&world, &lists, None, &[&unsigned, "not signed"]);
    world.git(&["reset", "-q", "--hard", &good]);
    let wrong = people.commit("mallory", "wrong");
    push(&world);
    let named = [&*wrong, "by Ann <ann@example.org>", "its ED25519 key SHA256:"];
    refused(&world, &lists, None, &named);
    // A signature of another commit proves nothing.
    world.git(&["reset", "-q", "--hard", &good]);
    let stolen = world.git(&["cat-file", "commit", &good]).replace("signed", "changed");
    let parents = format!("parent {good}\n");
    let forged = stolen.replacen("parent ", &format!("{parents}parent "), 1) + "\n";
    let forged = world.hash_object("commit", forged.as_bytes());
    world.git_at(&world.path("fleet.git"), &["update-ref", "refs/heads/main", &forged]);
    refused(&world, &lists, None, &[&forged, "bad"]);
}

#[test]
fn rsa_and_ecdsa_keys_and_limited_ones_count_as_openssh_says() {
    let world = World::new();
    let people = People::new(&world);
    let first = world.head();
    let (rsa, ecdsa) = (people.ssh("rsa", "rsa"), people.ssh("ecdsa", "ecdsa"));
    let limited = |line: &str, option: &str| line.replacen(' ', &format!(" {option} "), 1);
    let lists = files(Some(&write(&world, "allowed", &format!("{rsa}{ecdsa}"))), None);
    taken(&world, &lists, Some(&first));
    people.commit("rsa", "one");
    people.commit("ecdsa", "two");
    push(&world);
    taken(&world, &lists, None);
    let last = people.commit("rsa", "three");
    push(&world);
    for option in ["valid-before=\"20200101\"", "namespaces=\"file\""] {
        write(&world, "allowed", &format!("{}{ecdsa}", limited(&rsa, option)));
        refused(&world, &lists, None, &[&last]);
    }
    write(&world, "allowed", &format!("{rsa}{ecdsa}"));
    let public = fs::read_to_string(world.path("rsa.pub")).expect("read");
    let revoked = SignerLists::Files {
        ssh: Some(world.path("allowed")),
        ssh_revoked: Some(write(&world, "revoked", &public)),
        openpgp: None,
    };
    refused(&world, &revoked, None, &[&last, "revoked"]);
    taken(&world, &lists, None);
}

#[test]
fn commits_signed_with_openpgp_are_taken_and_expired_keys_are_not() {
    let world = World::new();
    let mut people = People::new(&world);
    let first = world.head();
    let ann = people.openpgp("ann", "20260101T000000", "0");
    let old = people.openpgp("old", "20200101T000000", "2020-02-01");
    people.openpgp("mallory", "20260101T000000", "0");
    let lists = files(None, Some(&write(&world, "keys.asc", &format!("{ann}{old}"))));
    taken(&world, &lists, Some(&first));
    let good = people.commit("ann", "signed");
    push(&world);
    let report = taken(&world, &lists, None);
    assert_eq!(report.signer.expect("told").len(), 40, "a fingerprint");
    for (who, why) in [("old", "has expired"), ("mallory", "is not trusted here")] {
        let bad = people.commit(who, who);
        push(&world);
        refused(&world, &lists, None, &[&bad, why]);
        world.git(&["reset", "-q", "--hard", &good]);
    }
    // A list that cannot be read stops the pass; nobody is believed meanwhile.
    people.commit("ann", "again");
    push(&world);
    let gone = files(None, Some(&world.path("no-such-list")));
    let error = pass(&world, &gone, None).expect_err("no list");
    assert!(error.to_string().contains("no-such-list"), "{error}");
    taken(&world, &lists, None);
}

#[test]
fn a_merge_brings_in_nothing_unsigned() {
    let world = World::new();
    let people = People::new(&world);
    let first = world.head();
    let lists = files(Some(&write(&world, "allowed", &people.ssh("ann", "ed25519"))), None);
    taken(&world, &lists, Some(&first));
    world.git(&["checkout", "-q", "-b", "side"]);
    world.git(&["commit", "-q", "--allow-empty", "-m", "on the side"]);
    let unsigned = world.head();
    world.git(&["checkout", "-q", "main"]);
    people.commit("ann", "main goes on");
    people.git("ann", &["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    push(&world);
    refused(&world, &lists, None, &[&unsigned, "not signed"]);
    world.git(&["reset", "-q", "--hard", "HEAD~1"]);
    world.git(&["branch", "-qf", "side", &first]);
    world.git(&["checkout", "-q", "side"]);
    people.git("ann", &["commit", "-q", "--allow-empty", "-m", "signed on the side"]);
    world.git(&["checkout", "-q", "main"]);
    people.git("ann", &["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    push(&world);
    taken(&world, &lists, None);
}

#[test]
fn a_tag_that_is_followed_is_signed_itself() {
    let world = World::new();
    let people = People::new(&world);
    let first = world.head();
    let lists = files(Some(&write(&world, "allowed", &people.ssh("ann", "ed25519"))), None);
    people.ssh("mallory", "ed25519");
    let source = |selector| {
        let path = world.path("fleet.git");
        let remote = Remote::parse(path.to_str().expect("UTF-8")).expect("a remote");
        Source::new(vec![remote], selector).expect("a source")
    };
    let pass = |source: Source| {
        let anchor = Some(Oid::from_str(&first).expect("an id"));
        let trust = Trust { lists: lists.clone(), anchor };
        let options = || Options { trust: Some(trust.clone()), ..Options::default() };
        let mut reconciler = world.opened_from(&source, options);
        reconciler.pass(&AtomicBool::new(false)).expect("a pass")
    };
    let range = || source(Selector::range("^1").expect("a range"));
    let tag = |by: Option<&str>, name: &str| {
        match by {
            Some(by) => drop(people.git(by, &["tag", "-s", "-f", "-m", name, name])),
            None => drop(world.git(&["tag", "-f", name])),
        }
        world.git(&["push", "-qf", "origin", &format!("refs/tags/{name}")]);
    };
    let refused = |source, why: &str| {
        let report = pass(source);
        assert_eq!(report.refusal, Some(RefusalReason::Untrusted), "{:?}", report.message);
        let message = report.message.expect("told");
        assert!(message.contains(why), "{message}");
    };
    people.commit("ann", "signed");
    push(&world);
    tag(None, "v1.0.0");
    refused(range(), "the tag v1.0.0 is not to be trusted: the tag is no annotated tag");
    tag(Some("mallory"), "v1.0.0");
    refused(range(), "not among the signers");
    tag(Some("ann"), "v1.0.0");
    assert_ne!(pass(range()).result, PassResult::Refused);
    // A good tag by another name proves nothing.
    people.commit("ann", "further");
    push(&world);
    tag(Some("ann"), "scratch");
    world.git(&["push", "-q", "origin", "refs/tags/scratch:refs/tags/v1.1.0"]);
    refused(range(), "the tag calls itself \"scratch\", not \"v1.1.0\"");
    refused(source(Selector::tag("v1.1.0").expect("a tag")), "calls itself");
    let report = pass(source(Selector::tag("scratch").expect("a tag")));
    assert_ne!(report.result, PassResult::Refused, "{:?}", report.message);
    // Nor does a signed tag stand for a commit that is not signed.
    world.git(&["commit", "-q", "--allow-empty", "-m", "unsigned"]);
    push(&world);
    tag(Some("ann"), "v1.2.0");
    refused(range(), "it is not signed");
}

/// What was signed once is not taken again, with the mirror lost and the program new.
#[test]
fn an_old_signed_commit_cannot_be_played_back_after_a_restart() {
    let world = World::new();
    let people = People::new(&world);
    let first = world.head();
    let lists = files(Some(&write(&world, "allowed", &people.ssh("ann", "ed25519"))), None);
    let old = people.commit("ann", "old");
    push(&world);
    taken(&world, &lists, Some(&first));
    people.commit("ann", "new");
    push(&world);
    taken(&world, &lists, Some(&first));
    let rings = world.rings();
    let replay = |commit: &str| {
        world.git(&["push", "-qf", "origin", &format!("{commit}:main")]);
        fs::remove_dir_all(world.store.state("mirror.git")).expect("removed");
        let report = pass(&world, &lists, Some(&first)).expect("a pass");
        assert_eq!(report.refusal, Some(RefusalReason::Rewritten), "{:?}", report.message);
        assert_eq!(world.rings(), rings);
    };
    replay(&old);
    // Nor is a history that was made anew by somebody who may sign.
    world.git(&["reset", "-q", "--hard", &old]);
    replay(&people.commit("ann", "another new"));
}

#[test]
fn signers_that_the_repository_lists_change_with_its_commits() {
    let world = World::new();
    let people = People::new(&world);
    let (ann, bob) = (people.ssh("ann", "ed25519"), people.ssh("bob", "ed25519"));
    world.write("signers/allowed", &ann);
    let anchor = world.push("signers");
    let path = Some("signers/allowed".to_owned());
    let lists = SignerLists::Commit { ssh: path, ssh_revoked: None, openpgp: None };
    taken(&world, &lists, Some(&anchor));
    // Bob cannot add himself.
    world.write("signers/allowed", &format!("{ann}{bob}"));
    let usurped = people.commit("bob", "me too");
    push(&world);
    refused(&world, &lists, None, &[&usurped, "not among the signers"]);
    // Ann can; what Bob signs after that is taken, even in one go.
    world.git(&["reset", "-q", "--hard", &anchor]);
    world.write("signers/allowed", &format!("{ann}{bob}"));
    let added = people.commit("ann", "Bob may sign");
    people.commit("bob", "thanks");
    push(&world);
    let report = taken(&world, &lists, None);
    assert!(report.signer.expect("told").starts_with("bob@"), "the head's signer");
    // Once he is removed, what he signed on a branch that left before is refused.
    world.write("signers/allowed", &ann);
    people.commit("ann", "Bob left");
    world.git(&["checkout", "-q", "-b", "late", &added]);
    people.git("bob", &["commit", "-q", "--allow-empty", "-m", "late"]);
    let late = world.head();
    world.git(&["checkout", "-q", "main"]);
    people.git("ann", &["merge", "-q", "--no-ff", "-m", "merge", "late"]);
    push(&world);
    refused(&world, &lists, None, &[&late, "not among the signers"]);
    // A commit that leaves nobody to follow it is refused.
    world.git(&["reset", "-q", "--hard", "HEAD~1"]);
    world.remove("signers/allowed");
    let nobody = people.commit("ann", "nobody");
    push(&world);
    refused(&world, &lists, None, &[&nobody, "lists no signer"]);
}
