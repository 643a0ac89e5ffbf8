//! How a script ended, as the VA's journal, its report and the status say it.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::Script;
use crate::printable::{OneLine, is_unprintable};

/// The most failures that a report names, the latest ones.
pub const REPORTED_FAILURES: usize = 8;
/// The most bytes of one failure's output in a report.
pub const REPORTED_OUTPUT_BYTES: usize = 1 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Succeeded,
    Exit(i32),
    Signal(i32),
    /// It was ended, with all that it had started.
    TimeLimit,
    /// The VA or its file system ended while it ran.
    Interrupted,
    /// Its text is not in the store, or it could not be started.
    NotRun,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Succeeded => f.write_str("succeeded"),
            Outcome::Exit(code) => write!(f, "exit status {code}"),
            Outcome::Signal(signal) => write!(f, "ended by signal {signal}"),
            Outcome::TimeLimit => f.write_str("ended at its time limit"),
            Outcome::Interrupted => f.write_str("interrupted"),
            Outcome::NotRun => f.write_str("could not be run"),
        }
    }
}

/// A script that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptFailure {
    /// `repository/layer version`.
    pub layer: String,
    pub script: Script,
    pub outcome: Outcome,
    /// The end of what it printed, of printable characters.
    pub output: String,
    /// Milliseconds since 1970, by the VA's clock.
    pub at_ms: u64,
}

impl fmt::Display for ScriptFailure {
    /// One line, with the last line of the output. The text may be a VA's claim.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = OneLine(f);
        write!(f, "{} {}: {}", self.layer, self.script, self.outcome)?;
        let last = self.output.lines().rev().map(str::trim).find(|line| !line.is_empty());
        last.map_or(Ok(()), |line| write!(f, ": {line}"))
    }
}

/// What a VA does about scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptsState {
    /// Nothing is to be run.
    Idle,
    /// Scripts are to be run once the VA runs.
    Waiting,
    Running,
    /// A script failed, and the VA went back to the layers of before.
    SwappedBack,
    /// What has run cannot be told, so nothing is run.
    Damaged,
}

/// What a report says of scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptsReport {
    pub state: ScriptsState,
    /// The latest ones, oldest first.
    pub failures: Vec<ScriptFailure>,
    /// All of them.
    pub failure_count: u32,
}

/// Text that does nothing to a terminal: newlines and tabs stay, what else is not
/// printable becomes a replacement character, so that the text does not grow.
pub fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        c if is_unprintable(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// The end of a text, of at most `bytes` bytes, from a character's start.
pub fn tail(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let start = (from..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or(text.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_does_nothing_to_a_terminal() {
        let failure = ScriptFailure {
            layer: "main/app 2".to_owned(),
            script: Script::PostInstall,
            outcome: Outcome::Exit(3),
            output: "starting\n\u{1b}[2Jno such user\n\n".to_owned(),
            at_ms: 0,
        };
        assert_eq!(
            failure.to_string(),
            "main/app 2 post-install: exit status 3: \\u{1b}[2Jno such user"
        );
    }

    #[test]
    fn tails_start_at_a_character() {
        assert_eq!(tail("aäb", 2), "b");
        assert_eq!(tail("aäb", 3), "äb");
        assert_eq!(tail("ab", 10), "ab");
        assert_eq!(tail("", 0), "");
    }
}
