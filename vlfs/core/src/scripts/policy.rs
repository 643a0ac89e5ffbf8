//! What a generation says about its scripts (`docs/formats.md`, "Generation").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::position::Located;

/// First line of a generation's `scripts` file.
pub const HEADER: &str = "strata-scripts 1";
/// Seconds that one script may run where nothing is said.
pub const DEFAULT_TIME_LIMIT_S: u32 = 300;
/// The most seconds that a script may be given.
pub const LONGEST_TIME_LIMIT_S: u32 = 3600;

/// What follows when a script fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The new layers stay, the other scripts run, and the VA has a condition.
    #[default]
    KeepGoing,
    /// The VA goes back to the layers it had.
    SwapBack,
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OnFailure::KeepGoing => "keep-going",
            OnFailure::SwapBack => "swap-back",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{0:?} is no choice; write \"keep-going\" or \"swap-back\"")]
    OnFailure(String),
    #[error("a script may have 1 to {LONGEST_TIME_LIMIT_S} seconds, not {0}")]
    TimeLimit(u32),
    #[error("the file is not as it would be printed, or of another version than {HEADER:?}")]
    NotCanonical,
}

impl FromStr for OnFailure {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "keep-going" => Ok(OnFailure::KeepGoing),
            "swap-back" => Ok(OnFailure::SwapBack),
            _ => Err(PolicyError::OnFailure(text.chars().take(64).collect())),
        }
    }
}

/// How scripts are run, and what their failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptPolicy {
    pub on_failure: OnFailure,
    /// Seconds that one script may run.
    pub time_limit_s: u32,
}

impl Default for ScriptPolicy {
    fn default() -> Self {
        ScriptPolicy { on_failure: OnFailure::default(), time_limit_s: DEFAULT_TIME_LIMIT_S }
    }
}

impl ScriptPolicy {
    /// # Errors
    /// The time limit is zero or too long.
    pub fn new(on_failure: OnFailure, time_limit_s: u32) -> Result<Self, PolicyError> {
        match time_limit_s {
            1..=LONGEST_TIME_LIMIT_S => Ok(ScriptPolicy { on_failure, time_limit_s }),
            other => Err(PolicyError::TimeLimit(other)),
        }
    }

    /// The text of a generation's `scripts` file.
    pub fn print(&self) -> String {
        let ScriptPolicy { on_failure, time_limit_s } = self;
        format!("{HEADER}\non-failure {on_failure}\ntime-limit-s {time_limit_s}\n")
    }

    /// Reads a generation's `scripts` file.
    ///
    /// # Errors
    /// Anything but the print of a policy that is not the default one.
    pub fn parse(text: &[u8]) -> Result<Self, Located<PolicyError>> {
        let whole = |error| Located::new(1, 1, error);
        let parsed = std::str::from_utf8(text).ok().and_then(|text| {
            let lines: Vec<_> = text.lines().collect();
            let [HEADER, on_failure, time_limit_s] = lines.as_slice() else { return None };
            let on_failure = on_failure.strip_prefix("on-failure ")?.parse().ok()?;
            let time_limit_s = time_limit_s.strip_prefix("time-limit-s ")?.parse().ok()?;
            ScriptPolicy::new(on_failure, time_limit_s).ok()
        });
        parsed
            .filter(|policy| {
                *policy != ScriptPolicy::default() && policy.print().as_bytes() == text
            })
            .ok_or(whole(PolicyError::NotCanonical))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let text = include_bytes!("../../golden/generation-scripts");
        let policy = ScriptPolicy::parse(text).expect("the golden file");
        assert_eq!(policy.print().as_bytes(), text);
        assert_eq!(policy, ScriptPolicy { on_failure: OnFailure::SwapBack, time_limit_s: 60 });
    }

    #[test]
    fn only_what_was_printed_is_read() {
        for text in [
            "",
            "strata-scripts 1\n",
            "strata-scripts 2\non-failure swap-back\ntime-limit-s 60\n",
            "strata-scripts 1\non-failure swap-back\ntime-limit-s 060\n",
            "strata-scripts 1\non-failure swap-back\ntime-limit-s 0\n",
            "strata-scripts 1\non-failure swap-back\ntime-limit-s 3601\n",
            "strata-scripts 1\non-failure maybe\ntime-limit-s 60\n",
            "strata-scripts 1\non-failure swap-back\ntime-limit-s 60",
            // The default is no file.
            "strata-scripts 1\non-failure keep-going\ntime-limit-s 300\n",
        ] {
            assert!(ScriptPolicy::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
