//! Traces, as a collector on loopback hears of them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::daemon::{Daemon, log};
use crate::sink::Http;
use crate::support::{World, wait_until};
use crate::verification;

const SOON: Duration = Duration::from_secs(30);
/// The bound of `docs/observability.md`.
const CHILDREN: usize = 64;

fn settings(world: &World, endpoint: &str, more: &str) -> String {
    let path = world.path("strata.toml");
    std::fs::write(&path, format!("[traces]\nendpoint = \"{endpoint}\"\n{more}")).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

/// A daemon that looks at its source when something is pushed, and sends traces.
fn start(world: &World, endpoint: &str, more: &str) -> Daemon {
    let config = settings(world, endpoint, more);
    Daemon::start(world, &["--poll", "3600", "--config", &config])
}

/// Asks for a pass.
fn ask(world: &World) {
    let strata = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["reconcile", "now", "--store"])
        .arg(world.store.root())
        .status();
    assert!(strata.expect("runs").success());
}

fn text(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        let value = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(truth)) => truth.to_string(),
            other => format!("{other:?}"),
        };
        (pair.key.clone(), value)
    };
    pairs.iter().map(text).collect()
}

fn requests(collector: &Http) -> Vec<ExportTraceServiceRequest> {
    let seen = collector.seen();
    let decode = |body: &[u8]| ExportTraceServiceRequest::decode(body).expect("OTLP");
    seen.iter().map(|request| decode(&request.body)).collect()
}

/// All spans that a collector was sent.
fn spans(collector: &Http) -> Vec<Span> {
    let requests = requests(collector).into_iter();
    let scopes = requests.flat_map(|r| r.resource_spans).flat_map(|r| r.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits for the trace of the pass that took a commit; its spans, by what they are
/// in: the name of a span and of its parent.
fn trace(
    world: &World,
    collector: &Http,
    commit: &str,
    enough: impl Fn(&[Span]) -> bool,
) -> Vec<Span> {
    let of = |span: &Span| {
        let attributes = text(&span.attributes);
        span.name == "pass"
            && attributes.get("commit").is_some_and(|found| found == commit)
            && attributes.get("result").is_some_and(|result| result != "unchanged")
    };
    let mut found = Vec::new();
    wait_until(&format!("a trace of {commit}"), SOON, || {
        let all = spans(collector);
        let Some(pass) = all.iter().find(|span| of(span)) else {
            assert!(!log(world).contains("traces cannot be sent"), "{}", log(world));
            return false;
        };
        let id = pass.trace_id.clone();
        found = all.into_iter().filter(|span| span.trace_id == id).collect();
        enough(&found)
    });
    found
}

fn named<'s>(trace: &'s [Span], name: &str) -> &'s Span {
    let found = trace.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no span {name} in {:?}", names(trace)))
}

fn names(trace: &[Span]) -> Vec<(&str, &str)> {
    let parent = |span: &Span| {
        trace
            .iter()
            .find(|other| other.span_id == span.parent_span_id)
            .map(|other| other.name.as_str())
    };
    let mut names: Vec<_> =
        trace.iter().map(|span| (parent(span).unwrap_or("-"), span.name.as_str())).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_pass_is_a_trace_from_the_fetch_to_the_last_report() {
    let world = World::new();
    world.claim("web", "everyone", 0..2);
    let collector = Http::new();
    std::fs::write(world.path("key"), "Bearer s3cret\n").expect("written");
    let more = format!(
        "instance = \"host-7\"\n[traces.attributes]\n\"deployment.environment.name\" = \"test\"\n\
         [[traces.header]]\nname = \"Authorization\"\nvalue-file = \"{}\"\n",
        world.path("key").display()
    );
    let daemon = start(&world, &collector.url(""), &more);
    wait_until("the first pass", SOON, || world.rings().len() == 4);
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    world.write("templates/web/etc/motd", "hello\n");
    let head = world.push("an update");
    let former = world.ring("web", "everyone");
    wait_until("the ring moves", SOON, || world.ring("web", "everyone") != former);
    for number in 0..2 {
        verification::write(&world, number, world.ring("web", "everyone"));
    }
    let whole = |trace: &[Span]| trace.iter().any(|span| span.name == "verify");
    let trace = trace(&world, &collector, &head, whole);
    assert_eq!(
        names(&trace),
        [
            ("-", "pass"),
            ("apply", "rollout"),
            ("apply", "seal"),
            ("pass", "apply"),
            ("pass", "check"),
            ("pass", "fetch"),
            ("pass", "mirror"),
            ("pass", "plan"),
            ("pass", "read"),
            ("pass", "tell"),
            ("pass", "trust"),
            ("pass", "verify"),
            ("rollout", "template"),
        ]
    );
    let said = |name: &str, key: &str| {
        let attributes = text(&named(&trace, name).attributes);
        attributes.get(key).unwrap_or_else(|| panic!("no {key} in {attributes:?}")).clone()
    };
    assert_eq!(said("pass", "commit"), head);
    assert_eq!((said("pass", "result"), said("pass", "rings")), ("applied".into(), "2".into()));
    assert_eq!(said("fetch", "remote"), world.path("fleet.git").display().to_string());
    assert_eq!(
        (said("template", "template"), said("template", "moves")),
        ("web".into(), "2".into())
    );
    assert_eq!((said("verify", "ring"), said("verify", "vas")), ("everyone".into(), "2".into()));
    assert_eq!(said("verify", "in_sync"), "true");
    let (pass, verify) = (named(&trace, "pass"), named(&trace, "verify"));
    assert!(trace.iter().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano));
    assert!(verify.start_time_unix_nano >= pass.start_time_unix_nano);
    let inside = |name: &str| {
        let span = named(&trace, name);
        (pass.start_time_unix_nano..=pass.end_time_unix_nano).contains(&span.end_time_unix_nano)
    };
    assert!(inside("fetch") && inside("apply") && inside("tell"));
    assert!(trace.iter().all(|span| span.events.is_empty()), "log lines are none of it");
    let resource = requests(&collector)[0].resource_spans[0].resource.clone().expect("one");
    let resource = text(&resource.attributes);
    assert_eq!(resource["service.name"], "strata");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["service.instance.id"], "host-7");
    assert_eq!(resource["deployment.environment.name"], "test");
    for request in collector.seen() {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/traces"));
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(request.header("authorization"), Some("Bearer s3cret"));
    }
    let log = log(&world);
    let ids = format!("trace_id={} span_id={}", hex(&pass.trace_id), hex(&pass.span_id));
    assert!(log.contains(&ids), "{ids} in\n{log}");
    assert!(!log.contains("s3cret"), "{log}");
    assert_eq!(daemon.terminate(), Some(0));
}

/// What a pass that is refused and one that fails say.
#[test]
fn a_refusal_and_a_failure_show() {
    let world = World::new();
    let collector = Http::new();
    let daemon = start(&world, &collector.url("/otlp/v1/traces"), "service-name = \"fleet\"\n");
    wait_until("the first pass", SOON, || world.rings().len() == 4);
    world.write("templates/web.ldf", "main/no-such-layer 1\n");
    let head = world.push("bad");
    let refused = trace(&world, &collector, &head, |_| true);
    let pass = text(&named(&refused, "pass").attributes);
    assert_eq!((pass["result"].as_str(), pass["refusal"].as_str()), ("refused", "invalid"));
    assert!(refused.iter().all(|span| span.name != "apply"), "{:?}", names(&refused));
    assert_eq!(collector.seen()[0].path, "/otlp/v1/traces");
    std::fs::rename(world.path("fleet.git"), world.path("away.git")).expect("moved away");
    ask(&world);
    wait_until("the failure", SOON, || {
        let all = spans(&collector);
        let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
        let fetch = all.iter().find(|span| span.name == "fetch" && failed(span));
        fetch.is_some_and(|fetch| {
            all.iter().any(|pass| pass.span_id == fetch.parent_span_id && failed(pass))
        })
    });
    assert_eq!(daemon.terminate(), Some(0));
}

/// However many templates and VAs there are, a pass has few spans.
#[test]
fn the_spans_of_a_pass_are_bounded() {
    let world = World::new();
    for number in 0..150 {
        world.write(&format!("templates/t{number}.ldf"), "main/base 1\n");
    }
    let head = world.push("many templates");
    world.once();
    for number in 0..150 {
        world.claim(&format!("t{number}"), "everyone", number * 20..number * 20 + 20);
        world.write(&format!("templates/t{number}.ldf"), "main/app 1\nmain/base 1\n");
    }
    assert_ne!(world.push("all of them change"), head);
    let collector = Http::new();
    let config = settings(&world, &collector.url(""), "");
    let daemon = Daemon::start(&world, &["--poll", "3600", "--config", &config]);
    let trace = trace(&world, &collector, &world.head(), |_| true);
    assert_eq!(daemon.terminate(), Some(0));
    // Those that were waited for to the end came with the end.
    let id = trace[0].trace_id.clone();
    let trace: Vec<_> = spans(&collector).into_iter().filter(|span| span.trace_id == id).collect();
    let count = |name: &str| trace.iter().filter(|span| span.name == name).count();
    assert_eq!(count("template"), CHILDREN);
    assert!((1..=CHILDREN).contains(&count("verify")), "{}", count("verify"));
    assert!(trace.len() < 2 * CHILDREN + 16, "{:?}", names(&trace));
    assert_eq!(text(&named(&trace, "rollout").attributes)["templates"], "150");
}

#[test]
fn one_pass_alone_sends_its_trace_too() {
    let world = World::new();
    let collector = Http::new();
    let config = settings(&world, &collector.url(""), "");
    let daemon = Daemon::start(&world, &["--once", "--config", &config]);
    assert_eq!(daemon.ended(), Some(0));
    let trace = trace(&world, &collector, &world.head(), |_| true);
    assert!(names(&trace).contains(&("apply", "seal")), "{:?}", names(&trace));
    // No part of all traces is none.
    let other = Http::new();
    let config = settings(&world, &other.url(""), "sample = 0.0\n");
    let daemon = Daemon::start(&world, &["--once", "--config", &config]);
    assert_eq!(daemon.ended(), Some(0));
    assert!(other.seen().is_empty() && !log(&world).contains("trace_id"), "{}", log(&world));
}

/// A collector that is not there is told of once; passes go on, and so do traces when it is
/// there again.
#[test]
fn a_collector_out_of_reach_holds_nothing_up_and_is_told_once() {
    let world = World::new();
    let address = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound");
    let daemon = start(&world, &format!("http://{address}"), "");
    let failing = || log(&world).matches("traces cannot be sent").count();
    wait_until("it is told", SOON, || failing() == 1);
    for version in [2, 1, 2] {
        world.write("templates/web.ldf", &format!("main/app {version}\nmain/base 1\n"));
        let head = world.push("bump");
        let state = || std::fs::read_to_string(world.store.state("reconcile.json"));
        wait_until("applied", SOON, || state().unwrap_or_default().contains(&head));
    }
    let collector = Http::at(address);
    // A pass without news is a trace as well.
    ask(&world);
    wait_until("it is there again", SOON, || log(&world).contains("traces are sent again"));
    assert_eq!(failing(), 1, "{}", log(&world));
    assert!(!spans(&collector).is_empty());
    assert_eq!(daemon.terminate(), Some(0));
}

/// One that takes a connection and never answers delays neither a pass nor, for long, the end.
#[test]
fn a_collector_that_hangs_holds_nothing_up() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = silent.local_addr().expect("bound");
    let daemon = start(&world, &format!("http://{address}"), "");
    let (_held, _) = silent.accept().expect("spans come");
    world.write("templates/web.ldf", "main/app 2\nmain/base 1\n");
    let head = world.push("bump");
    let pushed = Instant::now();
    let state = || std::fs::read_to_string(world.store.state("reconcile.json"));
    wait_until("applied", SOON, || state().unwrap_or_default().contains(&head));
    assert!(pushed.elapsed() < Duration::from_secs(5), "{:?}", pushed.elapsed());
    let asked = Instant::now();
    assert_eq!(daemon.terminate(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}

/// Traces are turned on, moved and turned off while it runs.
#[test]
fn settings_that_are_read_anew_turn_traces_on_and_off() {
    let world = World::new();
    let (first, second) = (Http::new(), Http::new());
    let path = world.path("strata.toml");
    std::fs::write(&path, "").expect("written");
    let config = path.to_str().expect("UTF-8");
    let daemon = Daemon::start(&world, &["--poll", "3600", "--config", config]);
    wait_until("the first pass", SOON, || world.rings().len() == 4);
    let reload = |text: &str, times: usize| {
        std::fs::write(&path, text).expect("written");
        daemon.signal(rustix::process::Signal::HUP);
        wait_until("it is taken", SOON, || {
            log(&world).matches("the new configuration was taken").count() == times
        });
        ask(&world);
    };
    let to = |collector: &Http| format!("[traces]\nendpoint = \"{}\"\n", collector.url(""));
    reload(&to(&first), 1);
    wait_until("traces come", SOON, || !spans(&first).is_empty());
    reload(&to(&second), 2);
    wait_until("traces go elsewhere", SOON, || !spans(&second).is_empty());
    let (at_first, before) = (spans(&first).len(), spans(&second).len());
    assert!(spans(&first).iter().all(|span| !spans(&second).contains(span)));
    reload("", 3);
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(spans(&first).len(), at_first);
    // What was under way when they were turned off may come; the pass that was asked for
    // after that does not.
    let passes = |spans: &[Span]| spans.iter().filter(|span| span.name == "pass").count();
    assert!(passes(&spans(&second)) <= passes(&spans(&second)[..before]) + 1);
}
