//! git with an identity and settings of its own, whatever the machine has set.

use std::path::Path;
use std::process::Command;

use crate::process::finish;

/// Runs git in `directory`; returns what it printed, trimmed.
///
/// # Panics
/// git fails.
#[track_caller]
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    finish(&mut command(directory, arguments)).ok().trim_end().to_owned()
}

/// The command that [`git`] runs, for a call that may fail.
pub fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(directory).args(arguments);
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Test");
        command.env(format!("GIT_{role}_EMAIL"), "test@example.org");
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.envs([
        ("GIT_CONFIG_COUNT", "2"),
        ("GIT_CONFIG_KEY_0", "init.defaultBranch"),
        ("GIT_CONFIG_VALUE_0", "main"),
        ("GIT_CONFIG_KEY_1", "commit.gpgSign"),
        ("GIT_CONFIG_VALUE_1", "false"),
    ]);
    command
}

/// Makes `directory` a repository whose first commit holds what lies in it;
/// returns the commit's id.
#[track_caller]
pub fn init(directory: &Path) -> String {
    git(directory, &["init", "-q"]);
    commit_all(directory, "first")
}

/// Commits the whole work tree; returns the commit's id.
#[track_caller]
pub fn commit_all(directory: &Path, message: &str) -> String {
    git(directory, &["add", "--all"]);
    git(directory, &["commit", "-q", "--allow-empty", "-m", message]);
    git(directory, &["rev-parse", "HEAD"])
}
