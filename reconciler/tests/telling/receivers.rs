//! Webhook, Slack, Matrix, e-mail: what they get, once, and also after a restart.

use std::sync::Arc;
use std::time::Duration;

use strata::audit::AuditLog;
use strata::settings::Settings;
use strata::telling::Telling;
use strata::telling::place::{self, Place};
use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_store::Store;

use crate::sink::{Http, Smtp, wait_until};

const SOON: Duration = Duration::from_secs(20);

pub struct Host {
    directory: tempfile::TempDir,
    pub store: Arc<Store>,
    pub settings: Settings,
    running: Option<Running>,
}

/// Telling on a thread of its own; it ends when the sender is dropped.
struct Running {
    end: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// `configuration` is what the file says; `DIRECTORY` in it is a place for secrets.
    pub fn new(configuration: &str, secrets: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::init(&directory.path().join("store")).expect("a store"));
        for (name, secret) in secrets {
            std::fs::write(directory.path().join(name), format!("{secret}\n")).expect("written");
        }
        let file = directory.path().join("strata.toml");
        let place = directory.path().to_str().expect("UTF-8");
        std::fs::write(&file, configuration.replace("DIRECTORY", place)).expect("written");
        let settings = Settings::read(&file).unwrap_or_else(|error| panic!("{error}"));
        Host { directory, store, settings, running: None }
    }

    pub fn start(&mut self) {
        let (end, ended) = tokio::sync::oneshot::channel();
        let (store, settings) = (self.store.clone(), self.settings.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut telling = Telling::default();
                telling.restart(&store, &settings);
                let _dropped = ended.await;
            });
        });
        self.running = Some(Running { end, thread });
    }

    /// Starts, and waits until the receivers know where they are.
    pub fn start_at_the_end(&mut self) {
        self.start();
        let names: Vec<_> = self.settings.notify.iter().map(|n| place::notify(&n.name)).collect();
        wait_until("the places are noted", SOON, || {
            names.iter().all(|name| Place::read(&self.store, name).expect("readable").is_some())
        });
    }

    pub fn stop(&mut self) {
        if let Some(Running { end, thread }) = self.running.take() {
            drop(end);
            thread.join().expect("it ends well");
        }
    }

    pub fn happens(&self, event: Event) {
        let who =
            Who { commit: Some("c".repeat(40)), author: Some("Ann".into()), ..Who::default() };
        AuditLog::new(self.store.clone()).note(&who, event).expect("written");
    }

    pub fn place(&self, receiver: &str) -> Place {
        Place::read(&self.store, receiver).expect("readable").expect("noted")
    }

    pub fn secret(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("written");
    }
}

fn failed(message: &str) -> Event {
    Event::PassFailed { message: message.to_owned() }
}

#[test]
fn a_webhook_is_signed_told_once_and_also_what_happened_while_nobody_ran() {
    let server = Http::new();
    let configuration = format!(
        "[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nsecret-file = \"DIRECTORY/secret\"\n",
        server.url("/hook")
    );
    let mut host = Host::new(&configuration, &[("secret", "hush")]);
    host.happens(failed("before anybody was told"));
    host.start_at_the_end();
    host.happens(Event::CommandBegun { command: "not important".to_owned() });
    host.happens(failed("no route"));
    host.happens(failed("no route"));
    host.happens(failed("no disk"));
    wait_until("two messages", SOON, || server.seen().len() == 2);
    let first = &server.seen()[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/hook"));
    assert_eq!(first.header("x-strata-event"), Some("pass-failed"));
    assert_eq!(first.header("x-strata-delivery"), Some("ops-3"));
    let expected = signature(b"hush", &first.body);
    assert_eq!(first.header("x-strata-signature-256"), Some(expected.as_str()));
    let body = first.json();
    assert_eq!(body["version"], 1);
    assert_eq!(body["importance"], "warning");
    assert_eq!(body["record"]["seq"], 3);
    assert_eq!(body["record"]["message"], "no route");
    assert_eq!(body["subject"], "[strata] warning: a pass failed: no route");
    assert!(body["text"].as_str().expect("text").contains("by Ann"), "{body}");
    wait_until("the place is noted", SOON, || host.place("notify-ops").delivered == 2);
    host.stop();
    host.happens(failed("while nobody ran"));
    host.start();
    wait_until("what happened meanwhile", SOON, || server.seen().len() == 3);
    wait_until("the place is noted", SOON, || host.place("notify-ops").delivered == 3);
    let place = host.place("notify-ops");
    assert_eq!((place.repeated, place.dropped, place.failing), (1, 0, None));
    assert_eq!(server.seen()[2].json()["record"]["message"], "while nobody ran");
}

/// As the documentation says how to check it, with other code.
/// Who is told of a failure is told of its end, once, and of the failure after it.
#[test]
fn the_end_of_a_failure_is_told_to_whom_its_beginning_was() {
    let server = Http::new();
    let receiver = |name: &str, more: &str| {
        let url = server.url(&format!("/{name}"));
        format!("[[notify]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"{url}\"\n{more}")
    };
    let configuration = [
        receiver("warnings", ""),
        receiver("named", "events = [\"pass-failed\"]\n"),
        receiver("errors", "importance = \"error\"\n"),
        receiver("other", "events = [\"va-silent\", \"rolled-back\"]\n"),
    ];
    let mut host = Host::new(&configuration.concat(), &[]);
    host.start_at_the_end();
    let works = |failing_ms| Event::PassRecovered { message: "no route".to_owned(), failing_ms };
    host.happens(failed("no route"));
    host.happens(works(180_000));
    host.happens(failed("no route"));
    host.happens(works(7));
    host.happens(Event::RemovalsWait { count: 2, limit: 1, token: "last".to_owned() });
    let told = |name: &str| {
        let path = format!("/{name}");
        let seen = server.seen();
        let mine = seen.iter().filter(|request| request.path == path);
        mine.map(|request| request.header("x-strata-event").unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    let flaps = ["pass-failed", "pass-recovered", "pass-failed", "pass-recovered"];
    let last = ["removals-wait"];
    wait_until("all are told", SOON, || {
        told("warnings").len() > 4 && told("named").len() > 3 && !told("errors").is_empty()
    });
    assert_eq!(told("warnings"), [&flaps[..], &last].concat());
    assert_eq!(told("named"), flaps);
    assert_eq!(told("errors"), last);
    assert_eq!(told("other"), [""; 0]);
    let seen = server.seen();
    let texts: Vec<_> = seen.iter().map(|request| request.json()["subject"].clone()).collect();
    let works = "[strata] info: passes work again, after 3 min of: no route";
    assert!(texts.iter().any(|text| *text == works), "{texts:?}");
    host.stop();
}

fn signature(secret: &[u8], body: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let mut key = [0u8; 64];
    key[..secret.len()].copy_from_slice(secret);
    let inner = Sha256::digest([&key.map(|b| b ^ 0x36)[..], body].concat());
    let outer = Sha256::digest([&key.map(|b| b ^ 0x5c)[..], &inner].concat());
    outer.iter().fold("sha256=".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[test]
fn who_is_out_of_reach_delays_nobody_and_is_told_later() {
    let (down, up) = (Http::new(), Http::new());
    down.answer(&[
        "503 Service Unavailable\r\nRetry-After: 2",
        "429 Too Many Requests",
        "302 Found\r\nLocation: http://127.0.0.1:9/",
    ]);
    let entry = |name: &str, server: &Http| {
        format!(
            "[[notify]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"{}\"\n",
            server.url("/")
        )
    };
    let mut host = Host::new(&(entry("down", &down) + &entry("up", &up)), &[]);
    host.start_at_the_end();
    host.happens(failed("one"));
    host.happens(failed("two"));
    wait_until("the other one is told", SOON, || up.seen().len() == 2);
    wait_until("that it fails is noted", SOON, || host.place("notify-down").failing.is_some());
    let failing = host.place("notify-down").failing.expect("noted");
    assert!(failing.message.contains("503"), "{failing:?}");
    wait_until("both messages", Duration::from_secs(60), || down.seen().len() == 5);
    let seen = down.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(2), "as long as it asked for");
    let told: Vec<_> = seen.iter().map(|r| r.json()["record"]["message"].clone()).collect();
    assert_eq!(told, ["one", "one", "one", "one", "two"], "in order, and no redirect was followed");
    wait_until("all is well again", SOON, || host.place("notify-down").failing.is_none());
}

/// A fleet that falls ill is one message, not thousands.
#[test]
fn what_happens_to_many_vas_is_one_message() {
    let server = Http::new();
    let configuration =
        format!("[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\n", server.url("/"));
    let mut host = Host::new(&configuration, &[]);
    host.start_at_the_end();
    host.stop();
    let silent = |n: u8| {
        let mac = strata_core::MacAddr::locally_administered([2, 0, 0, 0, 0, n]);
        EventRecord::new(7, Event::VaSilent { mac, days: 31 })
    };
    let events: Vec<_> = (0..200).map(silent).collect();
    AuditLog::new(host.store.clone()).tell(&Who::default(), &events).expect("written");
    host.happens(failed("and then"));
    host.start();
    wait_until("two messages", SOON, || server.seen().len() == 2);
    let told: Vec<_> = server.seen().iter().map(|r| r.json()["subject"].clone()).collect();
    assert_eq!(
        told[0],
        "[strata] warning: 02:00:00:00:00:00 was not seen for 31 days and 199 more"
    );
    assert_eq!(told[1], "[strata] warning: a pass failed: and then");
}

#[test]
fn what_a_receiver_refuses_is_dropped_and_said() {
    let server = Http::new();
    server.answer(&["422 Unprocessable Entity"]);
    let configuration =
        format!("[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\n", server.url("/"));
    let mut host = Host::new(&configuration, &[]);
    host.start_at_the_end();
    host.happens(failed("one"));
    host.happens(failed("two"));
    wait_until("the next one is delivered", SOON, || host.place("notify-ops").delivered == 1);
    let place = host.place("notify-ops");
    assert_eq!(place.dropped, 1);
    assert!(place.dropped_why.as_deref().is_some_and(|why| why.contains("422")), "{place:?}");
}

#[test]
fn slack_and_matrix_are_told_in_their_ways_with_templates() {
    let server = Http::new();
    let configuration = format!(
        "[[notify]]\nname = \"chat\"\nkind = \"slack\"\nurl-file = \"DIRECTORY/slack\"\nevents = [\"commit-refused\"]\n\
         subject = \"{{{{ kind }}}} <{{{{ event.commit }}}}>\"\ntext = \"{{% for p in event.problems %}}- {{{{ p }}}}\\n{{% endfor %}}\"\n\
         [[notify]]\nname = \"room\"\nkind = \"matrix\"\nhomeserver = \"{}\"\nroom = \"!a/b:example.org\"\n\
         token-file = \"DIRECTORY/token\"\nimportance = \"error\"\n",
        server.url("")
    );
    let secrets = [("slack", server.url("/services/T/B/x")), ("token", "syt_secret".to_owned())];
    let secrets = secrets.each_ref().map(|(name, text)| (*name, text.as_str()));
    let mut host = Host::new(&configuration, &secrets);
    host.start_at_the_end();
    host.happens(failed("not for them"));
    host.happens(Event::CommitRefused {
        commit: "abc".to_owned(),
        reason: "invalid".to_owned(),
        message: "1 error".to_owned(),
        problems: vec!["web.ldf:1: no <such> layer".to_owned()],
        took_ms: 3,
    });
    wait_until("both are told", SOON, || server.seen().len() == 2);
    let seen = server.seen();
    let slack = seen.iter().find(|r| r.path == "/services/T/B/x").expect("slack");
    let text = slack.json()["text"].as_str().expect("text").to_owned();
    assert_eq!(text, "*commit-refused &lt;abc&gt;*\n- web.ldf:1: no &lt;such&gt; layer\n");
    let matrix = seen.iter().find(|r| r.method == "PUT").expect("matrix");
    assert_eq!(
        matrix.path,
        "/_matrix/client/v3/rooms/!a%2Fb:example.org/send/m.room.message/room-2"
    );
    assert_eq!(matrix.header("authorization"), Some("Bearer syt_secret"));
    assert_eq!(matrix.json()["msgtype"], "m.notice");
    // What is secret is in no file but its own.
    for receiver in ["notify-chat", "notify-room"] {
        wait_until("noted", SOON, || host.place(receiver).delivered == 1);
        let noted = format!("{:?}", host.place(receiver));
        assert!(!noted.contains("syt_secret") && !noted.contains("/services/"), "{noted}");
    }
    assert!(!format!("{:?}", host.settings).contains("syt_secret"));
}

#[test]
fn mail_is_sent_and_an_address_that_is_refused_is_said() {
    let server = Smtp::new(&["451 later", "250 OK", "550 nobody here", "250 OK"]);
    let configuration = format!(
        "[[notify]]\nname = \"mail\"\nkind = \"email\"\nserver = \"127.0.0.1\"\nport = {}\nencryption = \"none\"\n\
         from = \"Strata <strata@example.org>\"\nto = [\"ops@example.org\"]\n",
        server.address.port()
    );
    let mut host = Host::new(&configuration, &[]);
    host.start_at_the_end();
    host.happens(failed("one"));
    wait_until("the first one", SOON, || server.seen().len() == 1);
    host.happens(failed("two"));
    host.happens(failed("three"));
    wait_until("the third one", SOON, || server.seen().len() == 2);
    wait_until("noted", SOON, || host.place("notify-mail").delivered == 2);
    let place = host.place("notify-mail");
    assert_eq!(place.dropped, 1);
    assert!(place.dropped_why.as_deref().is_some_and(|why| why.contains("nobody")), "{place:?}");
    let mail = &server.seen()[0];
    for part in [
        "From: Strata <strata@example.org>\r\n",
        "To: ops@example.org\r\n",
        "Subject: [strata] warning: a pass failed: one\r\n",
        "Message-ID: <mail-1@example.org>\r\n",
        "commit: cccc",
    ] {
        assert!(mail.contains(part), "{part} in\n{mail}");
    }
}

#[test]
fn a_secret_is_read_when_it_is_used() {
    let server = Http::new();
    let configuration = format!(
        "[[notify]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"{}\"\nsecret-file = \"DIRECTORY/secret\"\n",
        server.url("/")
    );
    let mut host = Host::new(&configuration, &[]);
    host.start_at_the_end();
    host.happens(failed("one"));
    wait_until("that there is none is said", SOON, || host.place("notify-ops").failing.is_some());
    assert_eq!(server.seen().len(), 0, "nothing goes out unsigned");
    host.secret("secret", "late\n");
    wait_until("delivered", SOON, || server.seen().len() == 1);
    let request = &server.seen()[0];
    let expected = signature(b"late", &request.body);
    assert_eq!(request.header("x-strata-signature-256"), Some(expected.as_str()));
}
