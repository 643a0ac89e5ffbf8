//! What a template says of the health of its VAs: `templates/<name>.health`
//! (`docs/formats.md`, "Health checks").

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::diagnostic::Diagnostic;
use crate::digest::Digest;
use crate::limits;
use crate::rollout::policy::{PolicyError, Span};
use crate::toml_reader::{TableReader, TomlFile};

/// A check that has not passed after this time failed, unless it says otherwise.
pub const DEFAULT_DEADLINE_MS: u64 = 10_000;
/// And is tried again so many times.
pub const DEFAULT_RETRIES: u32 = 3;
const LONGEST_DEADLINE_MS: u64 = 600_000;

/// What checks amount to: equal ones have the same digest, others another one. A member that is
/// added later is to be left out where it says nothing new, so that an update of Strata changes
/// no digest.
pub fn digest(checks: &[HealthCheck]) -> Digest {
    Digest::of(&serde_json::to_vec(checks).expect("plain fields serialise"))
}

/// How a VA is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A command in the VA that must end with status 0.
    Command(Vec<String>),
    /// A URL whose answer must have a status from 200 to 399.
    Http(String),
    /// `host:port`, where something must accept a connection.
    Tcp(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    pub probe: Probe,
    /// For one try.
    pub deadline_ms: u64,
    pub retries: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("{0:?} is no http:// URL; a VA is asked without TLS")]
    Url(String),
    #[error("the URL has a user or a password in it, and git is no place for secrets")]
    Secret,
    #[error("{0:?} is no address; write host:port with a port from 1 to 65535")]
    Address(String),
    #[error("{0:?} is not from 1s to 10m")]
    Deadline(String),
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

struct Url(String);

impl FromStr for Url {
    type Err = ProbeError;
    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let rest = text.strip_prefix("http://").unwrap_or_default();
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(ProbeError::Secret);
        }
        let plain =
            !authority.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if plain { Ok(Url(text.to_owned())) } else { Err(ProbeError::Url(shown(text))) }
    }
}

/// How long one try may take.
struct Deadline(Span);

impl FromStr for Deadline {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let span: Span = text.parse().map_err(|error: PolicyError| error.to_string())?;
        match span.ms {
            1..=LONGEST_DEADLINE_MS => Ok(Deadline(span)),
            _ => Err(ProbeError::Deadline(shown(text)).to_string()),
        }
    }
}

struct Address(String);

impl FromStr for Address {
    type Err = ProbeError;
    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
            Some(1..) => Ok(Address(text.to_owned())),
            _ => Err(ProbeError::Address(shown(text))),
        }
    }
}

impl HealthCheck {
    /// Reads a `.health` file. What could be read is returned along with every fault.
    pub fn read(name: &str, text: &[u8]) -> (Vec<Self>, Vec<Diagnostic>) {
        let (mut file, table) = TomlFile::parse(name, text);
        let mut checks = Vec::new();
        let Some(table) = table else { return (checks, file.diagnostics) };
        let mut reader = TableReader::new(&table, 0, "a health file");
        for (table, at) in reader.tables(&mut file, "check") {
            let mut reader = TableReader::new(table, at, "a [[check]]");
            checks.extend(read_check(&mut file, &mut reader, at));
            reader.finish(&mut file);
        }
        reader.finish(&mut file);
        if checks.len() > limits::HEALTH_CHECKS {
            let message = format!("more than {} checks", limits::HEALTH_CHECKS);
            file.diagnostics.push(Diagnostic::error(name, 0, "health", message));
            checks.truncate(limits::HEALTH_CHECKS);
        }
        (checks, file.diagnostics)
    }

    /// The check of one VA: `{name}`, `{mac}` and its labels are filled in.
    #[must_use]
    pub fn for_va<'l>(&self, value: impl Fn(&str) -> Option<&'l str>) -> Self {
        let fill = |text: &String| fill(text, &value);
        let probe = match &self.probe {
            Probe::Command(words) => Probe::Command(words.iter().map(fill).collect()),
            Probe::Http(url) => Probe::Http(fill(url)),
            Probe::Tcp(address) => Probe::Tcp(fill(address)),
        };
        HealthCheck { probe, ..self.clone() }
    }
}

/// Replaces `{key}` by its value; what has none stays.
fn fill<'l>(text: &str, value: &impl Fn(&str) -> Option<&'l str>) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        match after.split_once('}').and_then(|(key, after)| Some((value(key)?, after))) {
            Some((value, after)) => {
                filled.push_str(value);
                rest = after;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

fn read_check(
    file: &mut TomlFile<'_>,
    reader: &mut TableReader<'_, '_>,
    at: usize,
) -> Option<HealthCheck> {
    let named = ["command", "http", "tcp"].into_iter().filter(|key| reader.has(key)).count();
    let before = file.diagnostics.len();
    let command = reader.parsed_list::<String>(file, "command");
    let is_empty = command.as_ref().is_some_and(Vec::is_empty);
    if is_empty && file.diagnostics.len() == before {
        file.report(at, "health", "`command` names no program".to_owned(), None);
    }
    let http = reader.parsed::<Url>(file, "http");
    let tcp = reader.parsed::<Address>(file, "tcp");
    let deadline = reader.parsed::<Deadline>(file, "deadline");
    let retries = reader.number(file, "retries", 100).unwrap_or(DEFAULT_RETRIES);
    let mut probes = Vec::new();
    if let Some(words) = command.filter(|words| !words.is_empty()) {
        probes.push(Probe::Command(words.into_iter().map(|word| word.value).collect()));
    }
    probes.extend(http.map(|url| Probe::Http(url.value.0)));
    probes.extend(tcp.map(|address| Probe::Tcp(address.value.0)));
    let deadline_ms = deadline.map_or(DEFAULT_DEADLINE_MS, |deadline| deadline.value.0.ms);
    let probe = probes.pop();
    // Of one whose value is at fault, that alone is said.
    if named != 1 {
        let message = "a check needs exactly one of `command`, `http` and `tcp`";
        file.report(at, "health", message.to_owned(), None);
        return None;
    }
    Some(HealthCheck { probe: probe?, deadline_ms, retries })
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Command(words) => write!(f, "{}", words.join(" ")),
            Probe::Http(url) => write!(f, "{url}"),
            Probe::Tcp(address) => write!(f, "tcp {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[check]]\ncommand = [\"/usr/bin/test\", \"-e\", \"/run/ready\"]\ndeadline = \"5s\"\nretries = 1\n\n[[check]]\nhttp = \"http://{address}:8080/healthz\"\n\n[[check]]\ntcp = \"{name}:5432\"\n";

    #[test]
    fn a_whole_file() {
        let (checks, faults) = HealthCheck::read("templates/web.health", GOOD.as_bytes());
        assert_eq!((faults.len(), checks.len()), (0, 3), "{faults:?}");
        assert_eq!((checks[0].deadline_ms, checks[0].retries), (5_000, 1));
        let labels = |key: &str| match key {
            "name" => Some("web-1"),
            "address" => Some("192.0.2.1"),
            _ => None,
        };
        assert_eq!(
            checks[1].for_va(labels).probe,
            Probe::Http("http://192.0.2.1:8080/healthz".into())
        );
        assert_eq!(checks[2].for_va(labels).probe, Probe::Tcp("web-1:5432".into()));
        assert_eq!(fill("{x} {name", &labels), "{x} {name");
    }

    #[test]
    fn every_fault_has_its_line() {
        let text = "[[check]]\n[[check]]\nhttp = \"https://x\"\n[[check]]\ntcp = \"x:0\"\ncolour = 1\n[[check]]\ntcp = \"x:1\"\nhttp = \"http://x\"\n[[check]]\ntcp = \"x:1\"\ndeadline = \"0s\"\n[[check]]\nhttp = \"http://u:p@x/\"\ndeadline = \"11m\"\n[[check]]\ncommand = []\n[[check]]\ncommand = [1]\n";
        let (checks, faults) = HealthCheck::read("templates/web.health", text.as_bytes());
        assert_eq!(checks.len(), 1, "one with the default in the place of a wrong deadline");
        assert!(faults.iter().all(|fault| !fault.message.contains("u:p")), "{faults:?}");
        let mut lines: Vec<_> = faults.iter().map(|fault| (fault.line, fault.code)).collect();
        lines.sort_unstable();
        let expected = [
            (1, "health"),
            (3, "value"),
            (5, "value"),
            (6, "unknown-key"),
            (7, "health"),
            (12, "value"),
            (14, "value"),
            (15, "value"),
            (16, "health"),
            (19, "type"),
        ];
        assert_eq!(lines, expected);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), at in 0..GOOD.len(), byte: u8) {
            let _checked = HealthCheck::read("x", &bytes);
            let mut text = GOOD.as_bytes().to_vec();
            text[at] = byte;
            let _checked = HealthCheck::read("x", &text);
        }
    }
}
