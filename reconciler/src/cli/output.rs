//! Data on stdout, as text or JSON.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;
use strata_core::printable::printable_lines;

use super::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    #[value(alias = "table")]
    Text,
    Json,
}

/// How to print data, for every command that prints any.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How to print.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// Prints one JSON document and a newline.
///
/// # Errors
/// Stdout cannot be written. A reader that has gone away (`| head`) is no error.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Failure::new(format!("write JSON: {error}")))?;
    text.push(b'\n');
    print_bytes(&text)
}

/// As [`print_json`], for text that is ready.
///
/// # Errors
/// See [`print_json`].
pub fn print_bytes(text: &[u8]) -> Result<(), Failure> {
    print_live(text).map(|_read| ())
}

/// Prints text for people: nothing in it steers a terminal. Parts of unknown origin that
/// must stay on their line are written with [`printable`](strata_core::printable::printable).
///
/// # Errors
/// See [`print_json`].
pub fn print_text(text: &str) -> Result<(), Failure> {
    print_bytes(printable_lines(text).as_bytes())
}

/// As [`print_bytes`]. False where the reader has gone away.
///
/// # Errors
/// See [`print_json`].
pub fn print_live(text: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(format!("write to stdout: {error}"))),
    }
}

/// `1 ring link`, `2 ring links`.
pub fn quantity(count: impl TryInto<u64>, unit: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    }
}
