//! The programs under test and what they answer.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program of this build: `strata`, `strata-vlfs` or `strata-init`.
///
/// # Panics
/// It is not built.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a test knows its own path");
    let profile = this.ancestors().nth(2).expect("a test lies in <profile>/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "the program {} is not built\n  hint: cargo build --workspace --all-targets",
        path.display()
    );
    path
}

/// A command that has ended. Its output is text, for comparing.
#[derive(Debug, Clone)]
pub struct Finished {
    pub command: String,
    /// The exit code; 128 and the number of the signal where one ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        self.exits(0).stdout
    }

    /// The command must exit with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let Finished { command, stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "{command}\n--- stdout\n{stdout}--- stderr\n{stderr}");
        self
    }
}

/// Runs a command to its end, without a terminal.
///
/// # Panics
/// It cannot be started.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    use std::os::unix::process::ExitStatusExt;
    let shown = format!("{command:?}");
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => panic!("{shown}: {error}"),
    };
    let status = output.status;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { command: shown, code, stdout: text(output.stdout), stderr: text(output.stderr) }
}
