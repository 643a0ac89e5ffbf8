//! What a notification says: templates over a record of the audit log.

use minijinja::{Environment, UndefinedBehavior, Value, context};
use strata_core::Digest;
use strata_core::audit::Record;
use strata_core::event::{Event, Importance};
use strata_core::printable::{is_unprintable, printable, printable_lines};

use crate::settings::Notify;
use crate::state::gist;

/// Bytes of a message that are sent.
const TEXT_BYTES: usize = 16 << 10;
const SUBJECT_BYTES: usize = 200;

const SUBJECT: &str =
    "[strata] {{ importance }}: {{ text }}{% if more %} and {{ more }} more{% endif %}";
const TEXT: &str = "{{ text }}
{%- if more %}
and {{ more }} more like it: strata events --kind {{ kind }}
{%- endif %}
{%- if who.commit %}
commit: {{ who.commit }}{% if who.author %} by {{ who.author }}{% endif %}
{%- endif %}
{%- if who.operator %}
operator: {{ who.operator }}
{%- endif %}
{%- for va in event.unhealthy or [] %}
unhealthy: {{ va.mac }}: {{ va.reason }}
{%- endfor %}
{%- for problem in event.problems or [] %}
{{ problem }}
{%- endfor %}
{{ time }}, record {{ seq }} of {{ host }}";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    pub text: String,
    pub importance: &'static str,
    /// So many records like it are told with it.
    pub more: u64,
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    // A template that runs away ends.
    environment.set_fuel(Some(50_000));
    environment
}

/// Whether a template can be read.
///
/// # Errors
/// Why not.
pub fn check(template: &str) -> Result<(), String> {
    environment().template_from_str(template).map(|_| ()).map_err(|e| format!("the template: {e}"))
}

/// The message for a record and so many more like it. A template that fails leaves the
/// plain text.
pub fn render(notify: &Notify, record: &Record, more: u64) -> Message {
    let importance = match record.event.importance() {
        Importance::Info => "info",
        Importance::Warning => "warning",
        Importance::Error => "error",
    };
    let mut event = serde_json::to_value(&record.event).unwrap_or_default();
    let mut who = serde_json::to_value(&record.who).unwrap_or_default();
    plain_values(&mut event);
    plain_values(&mut who);
    let values = context! {
        importance,
        kind => record.event.kind(),
        text => record.event.to_string(),
        event => Value::from_serialize(&event),
        who => Value::from_serialize(&who),
        more,
        seq => record.seq,
        host => &record.host,
        time => crate::state::time_text(record.at_ms),
    };
    let fill = |template: &str, otherwise: &dyn Fn() -> String| {
        environment().render_str(template, &values).unwrap_or_else(|error| {
            tracing::warn!(notify = notify.name, %error, "a template fails; the plain text is sent");
            otherwise()
        })
    };
    let plain = || record.event.to_string();
    let subject = fill(notify.subject.as_deref().unwrap_or(SUBJECT), &plain);
    let text = fill(notify.text.as_deref().unwrap_or(TEXT), &plain);
    let line: String = subject.chars().map(|c| if is_unprintable(c) { ' ' } else { c }).collect();
    let text = cut(&printable_lines(&text), TEXT_BYTES);
    Message { subject: cut(&line, SUBJECT_BYTES), text, importance, more }
}

/// Makes every text printable, so that no reason and no message forges a line; a problem
/// of a commit has its hint on a second one.
fn plain_values(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::String(text) => *text = printable(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(plain_values),
        Value::Object(members) => {
            let members = members.iter_mut().filter(|(key, _)| *key != "problems");
            members.for_each(|(_, value)| plain_values(value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// What makes two records the same to a reader: all that they say but when, from where
/// and with which numbers.
pub fn key(record: &Record) -> Digest {
    key_of(&record.event)
}

/// The same of an event.
pub fn key_of(event: &Event) -> Digest {
    const PASSING: [&str; 8] =
        ["took_ms", "waiting", "idle", "of", "first", "unhealthy", "more", "failing_ms"];
    let mut event = serde_json::to_value(event).unwrap_or_default();
    if let Some(members) = event.as_object_mut() {
        PASSING.iter().for_each(|member| {
            members.remove(*member);
        });
        if let Some(serde_json::Value::String(message)) = members.get_mut("message") {
            *message = gist(message);
        }
    }
    Digest::of(event.to_string().as_bytes())
}
