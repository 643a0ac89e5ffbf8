//! What wakes a running reconciler: webhooks and operators, and what must not.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::daemon::{Daemon, log};
use crate::support::{World, wait_until};

const SECRET: &str = "hook-s3cret";
const BODY: &str = "{\"ref\":\"refs/heads/main\"}";

/// A world whose daemon looks at its source only when it is told to.
struct Told {
    world: World,
    port: u16,
    daemon: Daemon,
}

impl Told {
    fn start(forge: &str) -> Self {
        let world = World::new();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let secret = world.path("hook-secret");
        fs::write(&secret, format!("{SECRET}\n")).expect("written");
        let settings = format!(
            "[webhook]\nlisten = \"127.0.0.1:{port}\"\nforge = \"{forge}\"\nsecret-file = \"{}\"\n",
            secret.display()
        );
        let path = world.path("reconciler.toml");
        fs::write(&path, settings).expect("written");
        let config = path.to_str().expect("UTF-8");
        let daemon = Daemon::start(&world, &["--poll", "3600", "--no-events", "--config", config]);
        wait_until("the first pass", Duration::from_secs(60), || world.applied().is_some());
        Told { world, port, daemon }
    }

    /// Pushes a version of web, of which the daemon hears nothing.
    fn push(&self, version: u32) {
        let text = format!("main/app {version}\nmain/base 1\n");
        self.world.write("templates/web.ldf", &text);
        self.world.push("bump");
    }

    fn state(&self) -> String {
        fs::read_to_string(self.world.store.state("reconcile.json")).unwrap_or_default()
    }

    fn wait_for_head(&self) {
        let head = self.world.head();
        let what = format!("{head} is applied; log:\n{}", log(&self.world));
        wait_until(&what, Duration::from_secs(30), || self.world.applied().as_ref() == Some(&head));
    }

    /// Sends a request; returns the status, or `None` where the server hung up.
    fn send(&self, head: &str, body: &[u8]) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        // A server that has refused may have closed already.
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        let _ended = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
    }

    fn post(&self, headers: &[(&str, &str)]) -> Option<u16> {
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = BODY.len();
        let head = format!(
            "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        self.send(&head, BODY.as_bytes())
    }
}

fn signature() -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    mac.update(BODY.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_signed_webhook_brings_a_push_in() {
    let told = Told::start("github");
    let signed = format!("sha256={}", signature());
    let headers =
        |delivery| [("X-Hub-Signature-256", signed.as_str()), ("X-GitHub-Delivery", delivery)];
    told.push(2);
    assert_eq!(told.post(&headers("1")), Some(202));
    told.wait_for_head();
    // The same delivery again is known, and wakes nobody.
    told.push(1);
    assert_eq!(told.post(&headers("1")), Some(200));
    let wrong = format!("sha256={}", "0".repeat(64));
    assert_eq!(told.post(&[("X-Hub-Signature-256", &wrong)]), Some(401));
    assert_eq!(told.post(&[]), Some(401));
    assert_eq!(told.send("GET /webhook HTTP/1.1\r\nHost: x\r\n\r\n", b""), Some(405));
    assert_eq!(told.send("POST /x HTTP/1.1\r\nHost: x\r\n\r\n", b""), Some(404));
    assert!(!told.state().contains(&told.world.head()), "nothing of it was a reason to look");
    assert_eq!(told.post(&headers("2")), Some(202));
    told.wait_for_head();
    assert!(!log(&told.world).contains(SECRET));
    assert_eq!(told.daemon.terminate(), Some(0));
}

#[test]
fn other_forges_are_understood() {
    for (forge, header, value) in [
        ("gitlab", "X-Gitlab-Token", SECRET.to_owned()),
        ("gitea", "X-Gitea-Signature", signature()),
        ("forgejo", "X-Forgejo-Signature", signature()),
    ] {
        let told = Told::start(forge);
        told.push(2);
        assert_eq!(told.post(&[(header, &value)]), Some(202), "{forge}");
        told.wait_for_head();
        assert_eq!(told.daemon.terminate(), Some(0));
    }
}

/// Hundreds of requests without a signature, ones that never end and ones that are too
/// large cost neither memory nor the next good one.
#[test]
fn a_flood_of_webhooks_does_no_harm() {
    let told = Told::start("gitea");
    let memory = || told.daemon.resident_kib();
    let before = memory();
    let idle: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", told.port)).expect("connected");
            stream.write_all(b"POST /webhook HTTP/1.1\r\n").expect("sent");
            stream
        })
        .collect();
    let large = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nX-Gitea-Signature: {}\r\n\r\n",
        "0".repeat(64)
    );
    assert_eq!(told.send(&large, b"x"), Some(413));
    // Without a length it is read up to the limit, and not kept.
    let chunked = large.replace("Content-Length: 1000000000", "Transfer-Encoding: chunked");
    let mut body = format!("{:x}\r\n", 8 << 20).into_bytes();
    body.extend(std::iter::repeat_n(b'x', 8 << 20));
    assert!(matches!(told.send(&chunked, &body), Some(413) | None));
    let headers = format!("POST /webhook HTTP/1.1\r\n{}", "X-Long: y\r\n".repeat(100_000));
    assert!(matches!(told.send(&headers, b""), Some(400..=431) | None));
    for _ in 0..500 {
        assert_eq!(told.post(&[]), Some(401));
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more than before");
    let warnings = log(&told.world).matches("webhooks refused").count();
    assert!((1..=3).contains(&warnings), "{warnings} lines in the log");
    told.push(2);
    assert_eq!(told.post(&[("X-Gitea-Signature", &signature())]), Some(202));
    told.wait_for_head();
    drop(idle);
    assert_eq!(told.daemon.terminate(), Some(0));
}

/// Good ones in any number are one hint, and answered while a pass is under way.
#[test]
fn a_hundred_good_webhooks_are_answered_at_once() {
    let told = Told::start("gitea");
    told.push(2);
    let signed = signature();
    let begun = std::time::Instant::now();
    for number in 0..100 {
        let delivery = number.to_string();
        let headers = [("X-Gitea-Signature", signed.as_str()), ("X-Gitea-Delivery", &delivery)];
        assert_eq!(told.post(&headers), Some(202));
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    told.wait_for_head();
    assert_eq!(told.daemon.terminate(), Some(0));
}

fn now(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["reconcile", "now", "--store"])
        .arg(world.store.root())
        .args(arguments)
        .env_remove("STRATA_LOG")
        .output()
        .expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("UTF-8"))
}

#[test]
fn an_operator_asks_for_a_pass_and_hears_how_it_went() {
    let told = Told::start("github");
    let world = &told.world;
    told.push(2);
    let (code, said) = now(world, &["--wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said, format!("{} applied\n", &world.head()[..12]));
    assert!(told.state().contains(&world.head()), "it waited for the pass");
    let (code, said) = now(world, &["--wait", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, report["result"].as_str()), (Some(0), Some("unchanged")));
    world.write("templates/web.ldf", "main/no-such-layer 1\n");
    world.push("bad");
    let (code, said) = now(world, &["--wait"]);
    assert!(code == Some(1) && said.contains("refused: the commit has"), "{code:?} {said}");
    fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    let (code, said) = now(world, &["--wait"]);
    assert!(code == Some(2) && said.contains("could not fetch"), "{code:?} {said}");
    fs::rename(world.path("away.git"), world.path("fleet.git")).expect("moved back");
    told.push(1);
    assert_eq!(now(world, &[]), (Some(0), String::new()));
    told.wait_for_head();
    let Told { world, daemon, .. } = told;
    assert_eq!(daemon.terminate(), Some(0));
    let (code, said) = now(&world, &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no reconciler runs") && said.contains("hint: "), "{said}");
}
