//! Settings that are read anew on SIGHUP: all of them count at once, or none.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, log};
use crate::support::{World, wait_until};

const SOON: Duration = Duration::from_secs(30);
/// The source is looked at with a reason only.
const NO_POLL: &[&str] = &["--poll", "3600"];

/// A daemon whose source, too, is in its settings.
struct Configured {
    world: World,
    daemon: Daemon,
}

impl Configured {
    fn start(more: &str) -> Self {
        let world = World::new();
        write(&world, &format!("{}{more}", source(&world, "branch = \"main\"")));
        let daemon = Daemon::configured(&world, NO_POLL);
        let configured = Configured { world, daemon };
        configured.wait_for("the first pass", || configured.world.rings().len() == 4);
        configured.wait_for_commit(&configured.world.head());
        configured
    }

    fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) {
        wait_until(&format!("{what}; log:\n{}", log(&self.world)), SOON, condition);
    }

    fn state(&self) -> String {
        fs::read_to_string(self.world.store.state("reconcile.json")).unwrap_or_default()
    }

    fn wait_for_commit(&self, commit: &str) {
        let applied = || self.world.applied().as_deref() == Some(commit);
        self.wait_for(&format!("{commit} is applied"), applied);
    }

    /// Replaces the settings and waits until they were taken or refused.
    fn reload(&self, text: &str) {
        let told = || {
            let log = log(&self.world);
            log.matches("configuration was taken").count()
                + log.matches("configuration was not taken").count()
        };
        let before = told();
        write(&self.world, text);
        self.daemon.signal(Signal::HUP);
        self.wait_for("the settings are read", || told() > before);
    }

    fn taken(&self, text: &str) {
        self.reload(text);
        assert_eq!(self.configured(), (true, String::new()), "{}", log(&self.world));
    }

    /// The settings are refused, and all goes on as before.
    #[track_caller]
    fn refused(&self, text: &str, why: &str) {
        self.reload(text);
        let (configured, message) = self.configured();
        assert!(!configured && message.contains(why), "{why}: {message}");
        assert!(log(&self.world).contains(why), "{why} in\n{}", log(&self.world));
        self.bump();
        self.wait_for_commit(&self.world.head());
    }

    /// The condition, as `strata status` has it.
    fn configured(&self) -> (bool, String) {
        let status: Value =
            serde_json::from_str(&self.strata(&["--output", "json"])).expect("JSON");
        let conditions = status["conditions"].as_array().expect("conditions");
        let found = conditions.iter().find(|condition| condition["type"] == "Configured");
        let found = found.expect("the condition");
        let message = found["message"].as_str().expect("text").to_owned();
        (found["status"].as_bool().expect("a truth"), message)
    }

    fn strata(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_strata"))
            .args(["status", "--store"])
            .arg(self.world.store.root())
            .args(arguments)
            .output();
        String::from_utf8(output.expect("runs").stdout).expect("UTF-8")
    }

    /// A commit that changes something.
    fn bump(&self) {
        let text = fs::read_to_string(self.world.path("work/templates/sql.ldf")).expect("read");
        self.world.write("templates/sql.ldf", &format!("# again\n{text}"));
        self.world.push("bump");
    }
}

fn write(world: &World, text: &str) {
    fs::write(world.path("reconciler.toml"), text).expect("written");
}

fn source(world: &World, what: &str) -> String {
    let url = world.path("fleet.git").display().to_string();
    format!("[source]\n{what}\n[[source.remote]]\nurl = \"{url}\"\n")
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

/// The status that a webhook with GitLab's token gets; `None` where nobody listens.
fn webhook(port: u16, token: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let head = format!(
        "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Gitlab-Token: {token}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn another_source_is_followed_from_then_on() {
    let configured = Configured::start("");
    let world = &configured.world;
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.git(&["commit", "-qam", "next"]);
    world.git(&["push", "-q", "origin", "HEAD:next"]);
    let next = world.head();
    assert!(!configured.state().contains(&next), "it is on no branch that is followed");
    configured.taken(&source(world, "branch = \"next\""));
    configured.wait_for_commit(&next);
    assert!(configured.strata(&[]).contains("#next"), "{}", configured.strata(&[]));
    // Its file events count, too.
    world.write("templates/web.ldf", "main/app 1\nmain/base 1\n");
    world.git(&["commit", "-qam", "next"]);
    world.git(&["push", "-q", "origin", "HEAD:next"]);
    configured.wait_for_commit(&world.head());
    // What was applied stays the mark: a branch that lacks it takes nothing back.
    let ring = world.ring("web", "everyone");
    configured.taken(&source(world, "branch = \"main\""));
    configured.wait_for("it is refused", || configured.state().contains("rewritten"));
    assert_eq!(world.ring("web", "everyone"), ring);
    assert_eq!(configured.daemon.terminate(), Some(0));
}

/// Nobody waits for a fetch whose source does not count any more.
#[test]
fn a_source_that_hangs_is_left_for_another_one() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    silent.set_nonblocking(true).expect("set");
    let port = silent.local_addr().expect("bound").port();
    let hangs = format!("[[source.remote]]\nurl = \"https://127.0.0.1:{port}/fleet.git\"\n");
    write(&world, &hangs);
    let daemon = Daemon::configured(&world, &[NO_POLL, &["--fetch-deadline", "300"]].concat());
    let configured = Configured { world, daemon };
    let mut asked = None;
    configured.wait_for("the remote is asked", || {
        asked = silent.accept().ok();
        asked.is_some()
    });
    configured.taken(&source(&configured.world, ""));
    configured.wait_for_commit(&configured.world.head());
    assert_eq!(configured.daemon.terminate(), Some(0));
}

#[test]
fn who_is_believed_can_be_changed() {
    let configured = Configured::start("");
    let world = &configured.world;
    let key = world.path("ann");
    let made =
        Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&key).status();
    assert!(made.expect("apt-get install openssh-client").success());
    let public = fs::read_to_string(key.with_extension("pub")).expect("a key");
    let signers = world.path("signers");
    fs::write(&signers, format!("ann@example.org {public}")).expect("written");
    let open = source(world, "");
    configured.taken(&format!("{open}[trust]\nssh = \"{}\"\n", signers.display()));
    configured.bump();
    configured.wait_for("it is refused", || configured.state().contains("untrusted"));
    configured.taken(&open);
    configured.wait_for_commit(&world.head());
    assert_eq!(configured.daemon.terminate(), Some(0));
}

#[test]
fn webhooks_move_and_take_another_secret() {
    let configured = Configured::start("");
    let world = &configured.world;
    let (first, second) = (free_port(), free_port());
    let secret = world.path("secret");
    fs::write(&secret, "one").expect("written");
    let settings = |port: u16| {
        format!(
            "{}[webhook]\nlisten = \"127.0.0.1:{port}\"\nforge = \"gitlab\"\nsecret-file = \"{}\"\n",
            source(world, ""),
            secret.display()
        )
    };
    configured.taken(&settings(first));
    assert_eq!((webhook(first, "one"), webhook(first, "two")), (Some(202), Some(401)));
    // The file alone has changed.
    fs::write(&secret, "two").expect("written");
    configured.taken(&settings(first));
    assert_eq!((webhook(first, "one"), webhook(first, "two")), (Some(401), Some(202)));
    configured.taken(&settings(second));
    assert_eq!(webhook(second, "two"), Some(202));
    configured.wait_for("the former address is free", || webhook(first, "two").is_none());
    configured.taken(&source(world, ""));
    configured.wait_for("nobody listens", || webhook(second, "two").is_none());
    assert_eq!(configured.daemon.terminate(), Some(0));
}

#[test]
fn settings_with_a_fault_change_nothing_and_show_as_a_condition() {
    let port = free_port();
    let secret = "hook";
    let configured = Configured::start("");
    let hook = configured.world.path("hook");
    fs::write(&hook, secret).expect("written");
    let good = format!(
        "{}[webhook]\nlisten = \"127.0.0.1:{port}\"\nforge = \"gitlab\"\nsecret-file = \"{}\"\n",
        source(&configured.world, ""),
        hook.display()
    );
    configured.taken(&good);
    configured.refused(&format!("{good}surprise = 1\n"), "reconciler.toml:9: ");
    configured.refused(
        &format!("{good}[traces]\nendpoint = \"ftp://x\"\n"),
        "reconciler.toml:9: traces.endpoint",
    );
    configured.refused("", "no source is named");
    let gone = good.replace(&hook.display().to_string(), "/nowhere/hook");
    configured.refused(&gone, "[webhook]: the secret in /nowhere/hook");
    let other = good.replace("[source]", "[source]\nbranch = \"other\"");
    let busy = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = busy.local_addr().expect("bound");
    let listens = format!("{other}[listen]\nmetrics = \"{address}\"\n");
    configured.refused(&listens, &format!("[listen] metrics: {address} cannot be listened on"));
    // Nothing of any of them counts: neither the branch nor the webhook has changed.
    assert_eq!(webhook(port, secret), Some(202));
    assert!(configured.strata(&[]).contains("settings not taken"), "{}", configured.strata(&[]));
    assert!(configured.strata(&[]).contains("#main"), "{}", configured.strata(&[]));
    let events = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["events", "--importance", "warning", "--store"])
        .arg(configured.world.store.root())
        .output();
    let events = String::from_utf8(events.expect("runs").stdout).expect("UTF-8");
    assert!(events.contains("did not take its new configuration"), "{events}");
    configured.taken(&good);
    // A start with settings that are good says so, too.
    configured.reload("surprise = 1\n");
    assert!(!configured.configured().0);
    assert_eq!(configured.daemon.terminate(), Some(0));
    write(&configured.world, &good);
    let daemon = Daemon::configured(&configured.world, NO_POLL);
    let again = Configured { world: configured.world, daemon };
    again.wait_for("it is configured", || again.configured().0);
    assert_eq!(again.daemon.terminate(), Some(0));
}
