//! Sources behind real servers on the loopback: who is asked is known, and secrets stay
//! where they are.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use strata::pass::{Options, PassReport, PassResult};
use strata::secret::SecretReference;
use strata::source::{Credentials, Remote, Selector, Source, Token};

use crate::servers::{Answers, HttpsServer, SshServer, ssh_key};
use crate::support::World;

/// `git:t0ken-7` as HTTP wants it.
const AUTHORIZATION: &str = "Basic Z2l0OnQwa2VuLTc=";

fn pass(world: &World, url: &str, credentials: &Credentials) -> Result<PassReport, String> {
    pass_within(world, url, credentials, Duration::from_secs(60))
}

fn pass_within(
    world: &World,
    url: &str,
    credentials: &Credentials,
    fetch_deadline: Duration,
) -> Result<PassReport, String> {
    let remote = Remote::with_credentials(url, credentials.clone()).expect("a remote");
    let source = Source::new(vec![remote], Selector::branch("main").expect("a branch"));
    let options = || Options { fetch_deadline, ..Options::default() };
    let mut reconciler = world.opened_from(&source.expect("a source"), options);
    reconciler.pass(&AtomicBool::new(false)).map_err(|error| error.to_string())
}

/// A local clone would be read without any transport.
fn ssh_url(world: &World, server: &SshServer) -> String {
    let user = whoami();
    format!("ssh://{user}@127.0.0.1:{}{}", server.port, world.path("fleet.git").display())
}

fn whoami() -> String {
    let output = std::process::Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn over_ssh_the_right_host_key_is_needed() {
    let world = World::new();
    let keys = world.path("keys");
    fs::create_dir(&keys).expect("made");
    let server = SshServer::start(&keys, "host");
    ssh_key(&keys.join("another"));
    let known_hosts = keys.join("known_hosts");
    let credentials = Credentials {
        identity_file: Some(keys.join("user")),
        known_hosts_file: Some(known_hosts.clone()),
        ..Credentials::default()
    };
    let url = ssh_url(&world, &server);
    let known = |host: &str| {
        fs::write(&known_hosts, server.known_host(&keys, host)).expect("written");
    };
    fs::write(&known_hosts, "").expect("written");
    let error = pass(&world, &url, &credentials).expect_err("unknown");
    assert!(error.contains("Host key verification failed"), "{error}");
    known("another");
    let error = pass(&world, &url, &credentials).expect_err("changed");
    assert!(error.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{error}");
    assert_eq!(world.rings(), Vec::<String>::new(), "nothing was taken");
    known("host");
    let report = pass(&world, &url, &credentials).expect("fetched");
    assert_eq!(report.result, PassResult::Applied);
    // The wrong key of a user is refused by the server, without a question.
    let wrong = Credentials { identity_file: Some(keys.join("another")), ..credentials.clone() };
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    let error = pass(&world, &url, &wrong).expect_err("not let in");
    assert!(error.contains("Permission denied"), "{error}");
    assert_eq!(pass(&world, &url, &credentials).expect("fetched").result, PassResult::Applied);
}

fn https(world: &World, server: &HttpsServer, token: &str) -> Credentials {
    let path = world.path("token");
    fs::write(&path, format!("{token}\n")).expect("written");
    let token = Token { user: "git".to_owned(), secret: SecretReference::File(path) };
    let ca_file = Some(server.certificate.clone());
    Credentials { token: Some(token), ca_file, ..Credentials::default() }
}

/// No file of the store and no message holds the token, in any form.
fn assert_no_token(world: &World, said: &str) {
    for secret in ["t0ken-7", "Z2l0OnQwa2VuLTc"] {
        assert!(!said.contains(secret), "{said}");
        for path in world.snapshot().keys().filter(|path| path.is_file()) {
            let bytes = fs::read(path).expect("read");
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the token", path.display());
        }
    }
}

#[test]
fn over_https_a_token_from_a_file_lets_in_and_stays_there() {
    let world = World::new();
    let answers = Answers::Git { root: world.path("."), authorization: AUTHORIZATION.to_owned() };
    let server = HttpsServer::start(&world.path("."), "server", answers);
    let url = server.url("fleet.git");
    let error = pass(&world, &url, &https(&world, &server, "wrong")).expect_err("not let in");
    assert_no_token(&world, &error);
    let good = https(&world, &server, "t0ken-7");
    let unknown = Credentials { ca_file: None, ..good.clone() };
    let error = pass(&world, &url, &unknown).expect_err("an unknown certificate");
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert_no_token(&world, &error);
    let report = pass(&world, &url, &good).expect("fetched");
    assert_eq!(report.result, PassResult::Applied);
    assert!(server.served.load(Ordering::Relaxed) > 0);
    assert_no_token(&world, &serde_json::to_string(&report).expect("serialises"));
    // A token that was renewed is taken without a restart; one that is gone is told.
    fs::remove_file(world.path("token")).expect("removed");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.push("bump");
    let error = pass(&world, &url, &good).expect_err("no token");
    assert!(error.contains("token"), "{error}");
    fs::write(world.path("token"), "t0ken-7").expect("written");
    assert_eq!(pass(&world, &url, &good).expect("fetched").result, PassResult::Applied);
}

#[test]
fn a_redirection_is_not_followed_with_the_token() {
    let world = World::new();
    let answers = Answers::Git { root: world.path("."), authorization: AUTHORIZATION.to_owned() };
    let thief = HttpsServer::start(&world.path("."), "thief", answers);
    let answers = Answers::Redirect(thief.url("").trim_end_matches('/').to_owned());
    let server = HttpsServer::start(&world.path("."), "server", answers);
    // Both are known, so that only the redirection stands between them.
    let mut bundle = fs::read(&server.certificate).expect("read");
    bundle.extend(fs::read(&thief.certificate).expect("read"));
    fs::write(&server.certificate, bundle).expect("written");
    let credentials = https(&world, &server, "t0ken-7");
    let error = pass(&world, &server.url("fleet.git"), &credentials).expect_err("refused");
    assert_no_token(&world, &error);
    assert!(!server.seen.lock().expect("held by nobody").is_empty());
    assert!(thief.seen.lock().expect("held by nobody").is_empty(), "nothing came here");
}

/// A server that begins and never ends costs a deadline; what is there stays.
#[test]
fn half_a_fetch_is_ended_and_leaves_nothing() {
    let world = World::new();
    world.once();
    let rings = world.rings();
    let server = HttpsServer::start(&world.path("."), "server", Answers::Hang);
    let credentials = https(&world, &server, "t0ken-7");
    let begun = Instant::now();
    let deadline = Duration::from_secs(2);
    let error = pass_within(&world, &server.url("fleet.git"), &credentials, deadline)
        .expect_err("ended at the deadline");
    assert!(error.contains("was killed"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(world.rings(), rings);
    assert_eq!(world.once().result, PassResult::Unchanged);
}
