//! Where in a text an error stands.

use std::fmt;

/// An error with the place it was found at: `line` and `column` count from 1,
/// `column` in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<E> {
    pub line: u32,
    pub column: u32,
    pub error: E,
}

impl<E> Located<E> {
    pub fn new(line: usize, column: usize, error: E) -> Self {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Located { line: clamp(line), column: clamp(column), error }
    }

    pub fn map<F>(self, into: impl FnOnce(E) -> F) -> Located<F> {
        Located { line: self.line, column: self.column, error: into(self.error) }
    }
}

impl<E: fmt::Display> fmt::Display for Located<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.error)
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Located<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}
