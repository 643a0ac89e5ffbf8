//! One receiver of notifications.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Client;
use strata_core::audit::Record;
use strata_core::event::Event;
use strata_store::{Store, StoreError};

use super::message::{self, Message};
use super::place::{self, Place};
use super::{Delivery, LONGEST_RETRY, LOOK, OLDEST, channels, http, pause};
use crate::audit::Reader;
use crate::settings::Notify;
use crate::state::milliseconds;

/// Records that are looked at before the place is noted although nothing was told.
const NOTED: u32 = 2_000;
const STORE_RETRY: Duration = Duration::from_secs(10);

/// Tells the receiver what comes, for ever.
pub async fn run(store: Arc<Store>, notify: Notify) {
    let client = match http::client() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "no certificates; nobody can be told");
            return;
        }
    };
    loop {
        if let Err(error) = follow(&store, &notify, &client).await {
            tracing::warn!(notify = notify.name, %error, "the store cannot be used; tried again");
        }
        tokio::time::sleep(STORE_RETRY).await;
    }
}

/// Whether the receiver wants to be told of a record.
pub fn wants(notify: &Notify, record: &Record) -> bool {
    // Whoever is told of a beginning is told of its end.
    let begins = record.event.begins();
    let judged = begins.as_ref().unwrap_or(&record.event);
    let chosen = match notify.events.is_empty() {
        true => judged.importance() >= notify.importance,
        false => {
            let named = |kind| notify.events.iter().any(|event| event == kind);
            named(judged.kind()) || named(record.event.kind())
        }
    };
    let template = record.event.composition();
    chosen
        && (notify.templates.is_empty()
            || template.is_none_or(|template| notify.templates.contains(template)))
}

async fn follow(store: &Arc<Store>, notify: &Notify, client: &Client) -> Result<(), StoreError> {
    let receiver = place::notify(&notify.name);
    let mut place = match Place::read(store, &receiver)? {
        Some(place) => place,
        None => {
            // Who is new is told what comes, not all that ever was.
            let place = Place::at(Reader::at_end(store.clone())?.position());
            place.write(store, &receiver)?;
            place
        }
    };
    let mut reader = Reader::new(store.clone(), place.position);
    let mut passed = 0;
    loop {
        let filter = notify.clone();
        let step = tokio::task::spawn_blocking(move || {
            let found = next(&mut reader, &filter, &mut passed);
            (reader, passed, found)
        });
        let Ok((returned, count, found)) = step.await else { return Ok(()) };
        (reader, passed) = (returned, count);
        let Some(group) = found? else {
            if passed >= NOTED {
                (place.position, passed) = (reader.position(), 0);
                place.write(store, &receiver)?;
            } else {
                tokio::time::sleep(LOOK).await;
            }
            continue;
        };
        let Group { record, more } = group;
        let mut next_place = place.clone();
        next_place.position = reader.position();
        let (key, now_ms) = (message::key(&record), milliseconds(SystemTime::now()));
        let quiet_ms = u64::try_from(notify.quiet.as_millis()).unwrap_or(u64::MAX);
        let begins = record.event.begins().map(|event| message::key_of(&event));
        if let Some(begins) = &begins {
            // It would be told again, as what is told now would be wrong then.
            next_place.forget(begins);
        }
        let since_ms = now_ms.saturating_sub(quiet_ms).max(1);
        if begins.is_none() && place.told_since(&key, since_ms) {
            next_place.repeated += 1;
        } else {
            let message = message::render(notify, &record, more);
            let id = format!("{}-{}", notify.name, record.seq);
            insist(store, notify, client, &mut next_place, (&record, &message, &id), key).await?;
        }
        place = next_place;
        passed = 0;
        place.write(store, &receiver)?;
    }
}

/// A record that is to be told, and how many like it came with it.
struct Group {
    record: Record,
    more: u64,
}

/// Whether it is about one VA: of these, thousands may come at a time, and are one message.
fn is_about_one_va(event: &Event) -> bool {
    matches!(
        event,
        Event::VaTroubled { .. }
            | Event::VaRecovered { .. }
            | Event::VaSilent { .. }
            | Event::VaLinked { .. }
            | Event::VaRemoved { .. }
            | Event::PrivateDrift { .. }
    )
}

/// The next record that is to be told.
fn next(
    reader: &mut Reader,
    notify: &Notify,
    passed: &mut u32,
) -> Result<Option<Group>, StoreError> {
    while let Some(record) = reader.next()? {
        if wants(notify, &record) {
            let more = like_it(reader, notify, &record)?;
            return Ok(Some(Group { record, more }));
        }
        *passed += 1;
        if *passed >= NOTED {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Takes the records that follow and are of the same kind, about other VAs.
fn like_it(reader: &mut Reader, notify: &Notify, record: &Record) -> Result<u64, StoreError> {
    let mut more = 0;
    if !is_about_one_va(&record.event) {
        return Ok(more);
    }
    loop {
        let before = reader.position();
        match reader.next()? {
            Some(other) if !wants(notify, &other) => {}
            Some(other) if other.event.kind() == record.event.kind() => more += 1,
            Some(_) => {
                reader.go_back(before);
                return Ok(more);
            }
            None => return Ok(more),
        }
    }
}

/// Delivers a message, as often as it takes, until it is too old.
async fn insist(
    store: &Arc<Store>,
    notify: &Notify,
    client: &Client,
    place: &mut Place,
    (record, message, id): (&Record, &Message, &str),
    key: strata_core::Digest,
) -> Result<(), StoreError> {
    let name = &notify.name;
    loop {
        let delivery = channels::deliver(client, &notify.channel, record, message, id).await;
        let now_ms = milliseconds(SystemTime::now());
        match delivery {
            Delivery::Done { pause } => {
                if place.failing.is_some() {
                    tracing::info!(notify = name, "notifications are delivered again");
                }
                place.delivered(Some(key), now_ms);
                if let Some(pause) = pause {
                    tokio::time::sleep(pause.min(LONGEST_RETRY)).await;
                }
                return Ok(());
            }
            Delivery::Refused { why } => {
                tracing::error!(notify = name, seq = record.seq, why, "a notification was refused");
                place.dropped(why);
                return Ok(());
            }
            Delivery::Later { why, .. }
                if now_ms.saturating_sub(record.at_ms) > OLDEST.as_millis() as u64 =>
            {
                tracing::error!(
                    notify = name,
                    seq = record.seq,
                    why,
                    "a notification is too old by now"
                );
                place.dropped(why);
                return Ok(());
            }
            Delivery::Later { why, after } => {
                let attempts = place.failed(why, now_ms);
                let wait = pause(attempts, after);
                let why = place.failing.as_ref().map(|failing| failing.message.as_str());
                tracing::warn!(
                    notify = name,
                    why,
                    retry_after_s = wait.as_secs(),
                    "a notification cannot be delivered"
                );
                // The status says so; the place in the log stays where it was.
                let mut told =
                    Place::read(store, &place::notify(name))?.unwrap_or_else(|| place.clone());
                told.failing = place.failing.clone();
                told.write(store, &place::notify(name))?;
                tokio::time::sleep(wait).await;
            }
        }
    }
}
