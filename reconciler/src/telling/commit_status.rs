//! The status of commits at the forge: one for each ring, and one for the whole.
//!
//! They are a function of the rollout state and the reconciler's state, so a restart knows
//! them again; only those that differ from what was last posted are posted. All
//! templates of a ring are one status: a forge allows few of them a commit.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, Serialize};
use serde_json::json;
use strata_core::event::short;
use strata_core::rollout::{RingStep, RolloutState};
use strata_core::{CompositionName, RingName};
use strata_store::{Store, StoreError};

use super::channels::JsonBody;
use super::place::{self, Place, Posted};
use super::{Delivery, LOOK, http, pause};
use crate::audit::{Position, Reader};
use crate::rollout::RolloutFile;
use crate::settings::{CommitStatus, Forge};
use crate::state::{ReconcileState, milliseconds};

/// Characters of a description that GitHub takes.
const DESCRIPTION: usize = 140;
const STORE_RETRY: Duration = Duration::from_secs(10);
/// Between two statuses: nobody needs more, and forges count.
const BETWEEN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Success,
    Failure,
    /// Another commit came before this one was everywhere.
    Superseded,
}

/// What a commit should be said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub commit: String,
    pub context: String,
    pub state: State,
    pub description: String,
}

/// The statuses of the commit that is rolled out, and of one that was refused.
pub fn statuses(
    rollouts: &std::collections::BTreeMap<CompositionName, RolloutState>,
    reconciler: &ReconcileState,
    context: &str,
) -> Vec<Status> {
    let mut statuses = Vec::new();
    if let Some(refused) = &reconciler.refused {
        statuses.push(Status {
            commit: refused.commit.clone(),
            context: context.to_owned(),
            state: State::Failure,
            description: cut(&format!("refused: {}", refused.message)),
        });
    }
    let Some(applied) = &reconciler.applied else { return statuses };
    let status = |context: String, states: Vec<(State, String)>, unit: &str| {
        let (total, count) =
            (states.len(), |wanted| states.iter().filter(|(s, _)| *s == wanted).count());
        let why = |wanted| states.iter().find(|(s, _)| *s == wanted).map(|(_, why)| why.as_str());
        let done = count(State::Success);
        let (state, description) = match (why(State::Failure), why(State::Pending)) {
            (Some(why), _) => (
                State::Failure,
                format!("{} of {total} {unit} failed: {why}", count(State::Failure)),
            ),
            (None, Some(why)) => (State::Pending, format!("{done} of {total} {unit} done; {why}")),
            (None, None) => (State::Success, format!("{done} of {total} {unit} done")),
        };
        Status { commit: applied.commit.clone(), context, state, description: cut(&description) }
    };
    let mut rings: Vec<&RingName> =
        rollouts.values().flat_map(|state| state.rings.keys()).collect();
    rings.sort();
    rings.dedup();
    for ring in rings {
        let judged = |(name, state): (&CompositionName, &RolloutState)| {
            Some(of_ring(name, state, ring, state.rings.get(ring)?))
        };
        let states = rollouts.iter().filter_map(judged).collect();
        statuses.push(status(format!("{context}/{ring}"), states, "templates"));
    }
    let whole = rollouts.iter().map(|(name, state)| of_template(name, state)).collect();
    statuses.push(status(context.to_owned(), whole, "templates"));
    statuses
}

fn of_ring(
    name: &CompositionName,
    state: &RolloutState,
    ring: &RingName,
    at: &strata_core::rollout::RingState,
) -> (State, String) {
    if let Some(quarantined) = &state.quarantined {
        return (State::Failure, format!("{name}: {}", quarantined.reason));
    }
    if let Some(halt) = state.halted.as_ref().filter(|halt| halt.ring == *ring) {
        return (State::Failure, format!("{name}: {}", halt.reason));
    }
    if state.done_at_ms.is_some() || at.step == RingStep::Passed {
        return (State::Success, String::new());
    }
    let step = match at.step {
        RingStep::Waiting => "waits",
        RingStep::Staging => "moves in batches",
        RingStep::Moved | RingStep::Passed => "moved, not passed yet",
    };
    (State::Pending, format!("{name} {step}"))
}

fn of_template(name: &CompositionName, state: &RolloutState) -> (State, String) {
    let reason = |reason: &str| format!("{name}: {reason}");
    match (&state.quarantined, &state.halted, state.done_at_ms) {
        (Some(quarantine), ..) => (State::Failure, reason(&quarantine.reason)),
        (None, Some(halt), _) => (State::Failure, reason(&halt.reason)),
        (None, None, Some(_)) => (State::Success, String::new()),
        (None, None, None) => match (&state.paused, &state.waiting) {
            (Some(pause), _) => (State::Pending, reason(&format!("paused: {}", pause.reason))),
            (None, Some(waiting)) => (State::Pending, reason(&waiting.to_string())),
            (None, None) => (State::Pending, format!("{name} rolls out")),
        },
    }
}

fn cut(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.chars().count() {
        ..=DESCRIPTION => text,
        _ => text.chars().take(DESCRIPTION - 1).chain(['…']).collect(),
    }
}

/// What is to be posted: what differs from what was, and the end of what waited for a
/// commit that another one has replaced.
pub fn due(wanted: &[Status], posted: &[Posted]) -> Vec<Status> {
    let same = |status: &Status, known: &Posted| {
        (&status.commit, &status.context) == (&known.commit, &known.context)
    };
    let mut due: Vec<_> = posted
        .iter()
        .filter(|known| known.state == State::Pending)
        .filter(|known| !wanted.iter().any(|status| same(status, known)))
        .filter_map(|known| {
            let by = wanted.iter().map(|status| &status.commit).find(|c| **c != known.commit)?;
            Some(Status {
                commit: known.commit.clone(),
                context: known.context.clone(),
                state: State::Superseded,
                description: format!("superseded by {}", short(by)),
            })
        })
        .collect();
    let changed = wanted.iter().filter(|status| {
        let known = posted.iter().find(|known| same(status, known));
        known.is_none_or(|k| (k.state, &k.description) != (status.state, &status.description))
    });
    due.extend(changed.cloned());
    due
}

/// The request that posts a status.
fn request(client: &Client, to: &CommitStatus, token: &str, status: &Status) -> RequestBuilder {
    let CommitStatus { api, repository, forge, .. } = to;
    let Status { commit, context, description, state } = status;
    let target_url = to.target_url.as_ref().map(|url| url.replace("{commit}", commit));
    let state = match (forge, state) {
        (Forge::GitLab, State::Pending) => "running",
        (Forge::GitLab, State::Failure) => "failed",
        (Forge::GitLab, State::Superseded) => "canceled",
        (_, State::Pending) => "pending",
        (_, State::Success) => "success",
        (_, State::Failure) => "failure",
        (_, State::Superseded) => "error",
    };
    let named = if *forge == Forge::GitLab { "name" } else { "context" };
    let mut body = json!({ "state": state, "description": description, named: context });
    if let Some(url) = target_url {
        body["target_url"] = url.into();
    }
    let request = match forge {
        Forge::GitHub => client
            .post(format!("{api}/repos/{repository}/statuses/{commit}"))
            .header("Accept", "application/vnd.github+json")
            .header("X-GitHub-Api-Version", "2022-11-28")
            .bearer_auth(token),
        Forge::GitLab => {
            let project = repository.replace('/', "%2F");
            client
                .post(format!("{api}/projects/{project}/statuses/{commit}"))
                .header("PRIVATE-TOKEN", token)
        }
        Forge::Gitea => client
            .post(format!("{api}/repos/{repository}/statuses/{commit}"))
            .header("Authorization", format!("token {token}")),
    };
    request.json_body(&body)
}

/// Keeps the statuses at the forge, for ever.
pub async fn run(store: Arc<Store>, to: CommitStatus) {
    let client = match http::client() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "no certificates; no statuses of commits");
            return;
        }
    };
    loop {
        if let Err(error) = follow(&store, &to, &client).await {
            tracing::warn!(forge = to.name, %error, "the store cannot be used; tried again");
        }
        tokio::time::sleep(STORE_RETRY).await;
    }
}

fn look(store: &Store, to: &CommitStatus) -> Result<Vec<Status>, StoreError> {
    let rollouts = match RolloutFile::read(store) {
        Ok(file) => file.compositions,
        Err(error) => {
            tracing::debug!(%error, "the rollout state cannot be told of");
            return Ok(Vec::new());
        }
    };
    let reconciler = match ReconcileState::read(store) {
        Ok(Some(state)) => state,
        Ok(None) | Err(_) => return Ok(Vec::new()),
    };
    Ok(statuses(&rollouts, &reconciler, &to.context))
}

async fn follow(store: &Arc<Store>, to: &CommitStatus, client: &Client) -> Result<(), StoreError> {
    let receiver = place::commit_status(&to.name);
    let start = || Place::at(Position::default());
    let mut place = Place::read(store, &receiver)?.unwrap_or_else(start);
    // Whatever happens is in the log: a longer log is why to look.
    let mut seen = None;
    let mut failures = 0;
    loop {
        let end = Reader::at_end(store.clone())?.position();
        if failures == 0 && seen == Some(end) {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        seen = Some(end);
        let wanted = look(store, to)?;
        let mut wait = LOOK;
        failures = 0;
        for status in due(&wanted, &place.posted) {
            let delivery = match to.token.read() {
                Ok(token) => http::send(request(client, to, token.expose(), &status)).await,
                Err(error) => Delivery::Later { why: error.to_string(), after: None },
            };
            let now_ms = milliseconds(SystemTime::now());
            match delivery {
                Delivery::Done { pause } => {
                    place.delivered(None, now_ms);
                    place.posted(posted(status));
                    place.write(store, &receiver)?;
                    tokio::time::sleep(pause.unwrap_or(BETWEEN).max(BETWEEN)).await;
                }
                // GitLab says so of a status that it has already.
                Delivery::Refused { why }
                    if to.forge == Forge::GitLab && why.contains("Cannot transition") =>
                {
                    place.posted(posted(status));
                    place.write(store, &receiver)?;
                }
                Delivery::Refused { why } => {
                    tracing::error!(
                        forge = to.name,
                        commit = status.commit,
                        why,
                        "the status of a commit was refused"
                    );
                    place.dropped(why);
                    place.posted(posted(status));
                    place.write(store, &receiver)?;
                }
                Delivery::Later { why, after } => {
                    failures = place.failed(why, now_ms);
                    wait = pause(failures, after);
                    place.write(store, &receiver)?;
                    let why = place.failing.as_ref().map(|failing| failing.message.as_str());
                    tracing::warn!(
                        forge = to.name,
                        why,
                        retry_after_s = wait.as_secs(),
                        "the status of a commit cannot be posted"
                    );
                    // What is wanted may be something else by then.
                    break;
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

fn posted(status: Status) -> Posted {
    let Status { commit, context, state, description } = status;
    Posted { commit, context, state, description }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Found;

    fn rollout(json: serde_json::Value) -> RolloutState {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../golden/rollout.json")).expect("golden");
        let first = golden["compositions"].as_object().and_then(|all| all.values().next());
        let mut state = first.expect("one").clone();
        for (key, value) in json.as_object().expect("members") {
            state[key] = value.clone();
        }
        serde_json::from_value(state).expect("a state")
    }

    fn applied(commit: &str) -> ReconcileState {
        let found = Found::Applied { commit: commit.to_owned() };
        ReconcileState::new(String::new()).after(&found, 1)
    }

    fn told(state: &RolloutState, reconciler: &ReconcileState) -> Vec<(String, State)> {
        let rollouts = [("web".parse().expect("valid"), state.clone())].into();
        let all = statuses(&rollouts, reconciler, "strata");
        all.into_iter().map(|status| (status.context, status.state)).collect()
    }

    #[test]
    fn rings_are_told_apart_and_a_refused_commit_fails() {
        let id = "a".repeat(64);
        let ring = |step: &str| json!({"at": id, "good": null, "step": step, "since_ms": 1, "healthy_since_ms": null, "moving": false, "drifted": null});
        let nothing = json!({"paused": null, "halted": null, "quarantined": null, "waiting": null, "done_at_ms": null,
            "target": id, "rings": {"canary": ring("passed"), "everyone": ring("waiting")}});
        let rolling = rollout(nothing.clone());
        let names = |states: [State; 3]| {
            let contexts = ["strata/canary", "strata/everyone", "strata"].map(str::to_owned);
            contexts.into_iter().zip(states).collect::<Vec<_>>()
        };
        use State::{Failure, Pending, Success};
        assert_eq!(told(&rolling, &applied("c")), names([Success, Pending, Pending]));
        let mut done = rolling.clone();
        done.done_at_ms = Some(1);
        assert_eq!(told(&done, &applied("c")), names([Success; 3]));
        let halted = json!({"ring": "everyone", "reason": "ill", "unhealthy": [], "at_ms": 1});
        let mut members = nothing;
        members["halted"] = halted;
        assert_eq!(told(&rollout(members), &applied("c")), names([Success, Failure, Failure]));
        let refused = Found::Refused {
            commit: "d".to_owned(),
            reason: crate::state::RefusalReason::Invalid,
            message: "2 errors".to_owned(),
            problems: Vec::new(),
        };
        let all = statuses(&Default::default(), &applied("c").after(&refused, 2), "strata");
        let found: Vec<_> = all.iter().map(|s| (s.commit.as_str(), s.state)).collect();
        assert_eq!(found, [("d", Failure), ("c", Success)]);
    }

    #[test]
    fn only_what_changed_is_posted_and_what_waited_ends() {
        let status = |commit: &str, state| Status {
            commit: commit.to_owned(),
            context: "strata".to_owned(),
            state,
            description: "x".to_owned(),
        };
        let wanted = [status("b", State::Pending)];
        assert_eq!(due(&wanted, &[]), wanted);
        assert_eq!(due(&wanted, &[posted(status("b", State::Pending))]), []);
        assert_eq!(due(&wanted, &[posted(status("b", State::Success))]), wanted);
        let found = due(&wanted, &[posted(status("a", State::Pending))]);
        assert_eq!((found[0].commit.as_str(), found[0].state), ("a", State::Superseded));
        assert_eq!(found[1], wanted[0]);
        let ended = due(&wanted, &[posted(status("a", State::Success))]);
        assert_eq!(ended, wanted);
    }
}
