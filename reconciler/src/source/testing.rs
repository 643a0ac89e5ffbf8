//! A branch that chosen definitions are taken from instead, to try what is to come on
//! some VAs.

use super::SourceError;
use super::selector::is_name;

/// Definitions that may be chosen.
const DEFINITIONS: usize = 1_000;

/// A testing branch, and who follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testing {
    branch: String,
    definitions: Vec<String>,
}

impl Testing {
    /// Definitions are named by their paths without `.ldf`: `templates/web` for all VAs
    /// of a template, `appliances/web-03` for one VA.
    ///
    /// # Errors
    /// A name that is none, or no definition at all.
    pub fn new(branch: &str, definitions: Vec<String>) -> Result<Self, SourceError> {
        if !is_name("heads", branch) || branch.contains('*') {
            return Err(SourceError::Branch(branch.to_owned()));
        }
        if definitions.is_empty() || definitions.len() > DEFINITIONS {
            return Err(SourceError::NoDefinition);
        }
        for path in &definitions {
            let name = path.strip_prefix("templates/").or(path.strip_prefix("appliances/"));
            let plain = |name: &str| {
                !matches!(name, "" | "." | "..") && !name.contains('/') && !name.ends_with(".ldf")
            };
            if !name.is_some_and(plain) {
                return Err(SourceError::Definition(path.clone()));
            }
        }
        Ok(Testing { branch: branch.to_owned(), definitions })
    }

    pub fn branch(&self) -> &str {
        &self.branch
    }

    pub fn definitions(&self) -> &[String] {
        &self.definitions
    }
}
