//! What is wrong with a GitOps repository, in a form people and tools read.

use std::fmt;

use serde::Serialize;

use crate::position::Located;
use crate::printable::{printable, printable_lines};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One problem of one file. `line` and `column` count from 1; 0 means that the
/// file as a whole is meant. `code` is a stable word for tools to match on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    pub file: String,
    pub line: u32,
    pub column: u32,
    pub severity: Severity,
    pub code: &'static str,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Diagnostic {
    pub fn error(file: &str, line: u32, code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic {
            file: file.to_owned(),
            line,
            column: u32::from(line > 0),
            severity: Severity::Error,
            code,
            message: message.into(),
            hint: None,
        }
    }

    pub fn located<E: fmt::Display>(file: &str, code: &'static str, located: &Located<E>) -> Self {
        Diagnostic {
            column: located.column,
            ..Self::error(file, located.line, code, located.error.to_string())
        }
    }

    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: error: message [code]`, then the hint on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}", printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {severity}: {} [{}]", printable_lines(&self.message), self.code)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", printable_lines(hint))?;
        }
        Ok(())
    }
}
