//! Statuses of commits at the three kinds of forges.

use std::time::Duration;

use strata::rollout::RolloutFile;
use strata::state::{Found, ReconcileState, RefusalReason};
use strata_core::event::Event;

use crate::receivers::Host;
use crate::sink::{Http, Request, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn host(forge: &str, server: &Http) -> Host {
    let configuration = format!(
        "[[commit-status]]\nname = \"hub\"\nforge = \"{forge}\"\napi = \"{}\"\nrepository = \"org/fleet\"\n\
         token-file = \"DIRECTORY/token\"\ntarget-url = \"https://example.org/{{commit}}\"\n",
        server.url("/api")
    );
    Host::new(&configuration, &[("token", "hush")])
}

/// What a pass leaves: a commit that was applied, and a rollout in some state.
fn applied(host: &Host, commit: &str, done: bool) {
    let found = Found::Applied { commit: commit.to_owned() };
    let state = ReconcileState::new("fleet".to_owned()).after(&found, 1);
    state.write(&host.store).expect("written");
    let mut file: RolloutFile =
        serde_json::from_str(include_str!("../../golden/rollout.json")).expect("golden");
    for rollout in file.compositions.values_mut() {
        (rollout.halted, rollout.quarantined, rollout.paused) = (None, None, None);
        rollout.commit = commit.to_owned();
        rollout.done_at_ms = done.then_some(1);
    }
    file.write(&host.store).expect("written");
    host.happens(Event::CommitApplied { commit: commit.to_owned(), took_ms: 1 });
}

/// The statuses of a commit by context, the last ones.
fn told(server: &Http, commit: &str) -> std::collections::BTreeMap<String, String> {
    let about = |request: &Request| request.path.ends_with(commit);
    let seen = server.seen();
    let pair = |request: &Request| {
        let body = request.json();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let context = [text("context"), text("name")].concat();
        (context, text("state"))
    };
    seen.iter().filter(|request| about(request)).map(pair).collect()
}

fn whole(server: &Http, commit: &str) -> Option<String> {
    told(server, commit).remove("strata")
}

#[test]
fn a_commit_is_pending_then_good_and_told_once() {
    let server = Http::new();
    let mut host = host("github", &server);
    let (first, second) = ("a".repeat(40), "b".repeat(40));
    applied(&host, &first, false);
    host.start();
    wait_until("pending", SOON, || whole(&server, &first).as_deref() == Some("pending"));
    let request = server.seen().into_iter().next().expect("one");
    assert_eq!(request.path, format!("/api/repos/org/fleet/statuses/{first}"));
    assert_eq!(request.header("authorization"), Some("Bearer hush"));
    assert_eq!(request.json()["target_url"], format!("https://example.org/{first}"));
    applied(&host, &first, true);
    wait_until("good", SOON, || whole(&server, &first).as_deref() == Some("success"));
    assert!(told(&server, &first).len() > 1, "rings have their own: {:?}", told(&server, &first));
    assert!(told(&server, &first).values().all(|state| state == "success"));
    let count = server.seen().len();
    host.stop();
    host.start();
    applied(&host, &second, false);
    wait_until("the next one", SOON, || whole(&server, &second).as_deref() == Some("pending"));
    let again = server.seen().iter().skip(count).filter(|r| r.path.ends_with(&first)).count();
    assert_eq!(again, 0, "what was told is not told again after a restart");
    let third = "c".repeat(40);
    applied(&host, &third, true);
    wait_until("good", SOON, || whole(&server, &third).as_deref() == Some("success"));
    assert_eq!(whole(&server, &second).as_deref(), Some("error"), "it was superseded");
}

#[test]
fn a_limit_that_is_used_up_is_waited_for() {
    let server = Http::new();
    server
        .answer(&["403 Forbidden\r\nRetry-After: 2\r\nX-RateLimit-Remaining: 0", "403 Forbidden"]);
    let mut host = host("github", &server);
    let commit = "a".repeat(40);
    applied(&host, &commit, true);
    host.start();
    wait_until("it is said", SOON, || {
        host.store.state("telling").exists() && server.seen().len() == 1
    });
    wait_until("good at last", SOON, || whole(&server, &commit).as_deref() == Some("success"));
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(2), "as long as it asked for");
    wait_until("noted", SOON, || host.place("commit-status-hub").failing.is_none());
}

#[test]
fn gitlab_and_gitea_have_their_own_words() {
    for (forge, path, header, value, pending, failed) in [
        (
            "gitlab",
            "/api/projects/org%2Ffleet/statuses/",
            "private-token",
            "hush",
            "running",
            "failed",
        ),
        (
            "forgejo",
            "/api/repos/org/fleet/statuses/",
            "authorization",
            "token hush",
            "pending",
            "failure",
        ),
    ] {
        let server = Http::new();
        let mut host = host(forge, &server);
        let (good, bad) = ("a".repeat(40), "b".repeat(40));
        applied(&host, &good, false);
        host.start();
        wait_until("pending", SOON, || whole(&server, &good).as_deref() == Some(pending));
        let request = server.seen().into_iter().next().expect("one");
        assert_eq!(request.path, format!("{path}{good}"));
        assert_eq!(request.header(header), Some(value));
        let refused = Found::Refused {
            commit: bad.clone(),
            reason: RefusalReason::Invalid,
            message: "the commit has 1 error".to_owned(),
            problems: Vec::new(),
        };
        let state = ReconcileState::read(&host.store).expect("readable").expect("there");
        state.after(&refused, 2).write(&host.store).expect("written");
        host.happens(Event::PassFailed { message: "anything".to_owned() });
        wait_until("refused", SOON, || whole(&server, &bad).as_deref() == Some(failed));
        let body = server.seen().into_iter().rfind(|r| r.path.ends_with(&bad)).expect("one").json();
        assert_eq!(body["description"], "refused: the commit has 1 error");
    }
}
