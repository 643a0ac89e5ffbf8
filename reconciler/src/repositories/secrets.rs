//! What is read from where it is kept: credentials and passphrases, which stand in no command,
//! no file of git and no message.

use std::fs::File;
use std::io::Read as _;

use strata_core::limits;
use strata_core::remote::Credentials;
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
#[error("{from} cannot be used: {reason}")]
pub struct SecretError {
    pub from: Credentials,
    pub reason: &'static str,
}

/// The one line that a file or a variable holds.
///
/// # Errors
/// It cannot be read, is empty, too long, or has more lines.
pub fn read(from: &Credentials) -> Result<Zeroizing<String>, SecretError> {
    let refuse = |reason| SecretError { from: from.clone(), reason };
    let text = match from {
        Credentials::Environment(name) => {
            Zeroizing::new(std::env::var(name).map_err(|_| refuse("the variable is not set"))?)
        }
        Credentials::File(path) => {
            let file = File::open(path).map_err(|_| refuse("the file cannot be read"))?;
            let mut text = Zeroizing::new(String::new());
            let mut limited = file.take(limits::CREDENTIALS_BYTES as u64 + 1);
            limited.read_to_string(&mut text).map_err(|_| refuse("the file cannot be read"))?;
            text
        }
    };
    let line = text.trim_end_matches(['\n', '\r']);
    if line.is_empty() || line.len() > limits::CREDENTIALS_BYTES {
        return Err(refuse("it is empty or too long"));
    }
    if line.contains(['\n', '\r', '\0']) {
        return Err(refuse("it must be one line"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}
