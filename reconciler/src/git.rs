//! `git` as a child.
//!
//! It sees no configuration but what is written here: no hooks, no submodules, no automatic
//! packing, every object checked. Where a remote is and what convinces it goes to the child
//! alone, by its environment; of this program's own it gets what [`ENVIRONMENT`] names.

use std::path::Path;
use std::process::Command;

use crate::secret::SecretError;
use crate::source::{ALLOWED_PROTOCOLS, Remote};

/// The name of the remote for the child: URLs are no arguments.
pub const REMOTE: &str = "source";
/// Variables that reach git, besides those set here.
const ENVIRONMENT: [&str; 9] = [
    "PATH",
    "HOME",
    "SSH_AUTH_SOCK",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// A command on the bare repository `directory`, with `remote` as [`REMOTE`].
///
/// # Errors
/// What convinces the remote cannot be read.
pub fn command(
    directory: &Path,
    configuration: &Path,
    remote: &Remote,
) -> Result<Command, SecretError> {
    let mut settings = remote.credentials().git_settings(remote.location())?;
    settings.push((format!("remote.{REMOTE}.url"), remote.location().to_owned()));
    settings.push((format!("remote.{REMOTE}.tagOpt"), "--no-tags".to_owned()));
    let mut command = local_command(directory, configuration);
    command
        .env("GIT_SSH_COMMAND", remote.credentials().ssh_command())
        .env("GIT_SSH_VARIANT", "ssh")
        .env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (number, (key, value)) in settings.into_iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{number}"), key);
        command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    Ok(command)
}

/// A command on the bare repository `directory` that knows of no remote.
pub fn local_command(directory: &Path, configuration: &Path) -> Command {
    let mut command = Command::new("git");
    command.env_clear();
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("LC_ALL", "C")
        .env("GIT_DIR", directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", configuration)
        .env("GIT_ALLOW_PROTOCOL", ALLOWED_PROTOCOLS)
        .env("GIT_PROTOCOL_FROM_USER", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "/bin/false")
        .env("SSH_ASKPASS", "/bin/false")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_OPTIONAL_LOCKS", "0");
    command.current_dir(directory);
    command
}

/// The configuration that git reads from a file; no secret is in it.
pub fn configuration(remotes: &[Remote]) -> String {
    let mut text = String::from(
        "[core]\n\thooksPath = /dev/null\n\tfsmonitor = false\n\tbigFileThreshold = 16m\n\
         [transfer]\n\tfsckObjects = true\n\
         [fetch]\n\tunpackLimit = 1\n\twriteCommitGraph = false\n\trecurseSubmodules = false\n\
         [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n\
         [http]\n\tfollowRedirects = false\n\
         [credential]\n\thelper =\n",
    );
    for path in remotes.iter().filter_map(Remote::local_path) {
        // The operator named this repository, so whoever owns it is trusted with
        // the commits; git would otherwise read only this user's repositories.
        let directory = quote(&path.display().to_string());
        let git_directory = quote(&format!("{}/.git", path.display()));
        text.push_str(&format!(
            "[safe]\n\tdirectory = {directory}\n\tdirectory = {git_directory}\n"
        ));
    }
    text
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
