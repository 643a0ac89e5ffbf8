//! An operator's command as the audit log keeps it: what was asked for, without what may
//! be a secret.
//!
//! Kept are the names of the command and of its options, with their values; credentials
//! in URLs are left out. Of a command line that is handed on, to a VA or to a build, only the
//! program and the number of its arguments are kept: that is where people write passwords, and the
//! log is for ever. It has no digest of them either: a short secret is found by trying.
//!
//! What stands in the environment was not typed, and is not kept.

use std::ffi::OsStr;

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::secret::without_credentials;

/// Characters of a command that are kept.
const CHARACTERS: usize = 4 << 10;
/// What is shorter is no secret, and would be found in any text.
const SECRET_BYTES: usize = 3;

/// What is kept of a command, and what must not be.
pub struct CommandLine {
    text: String,
    /// Longest first.
    withheld: Vec<String>,
}

impl CommandLine {
    /// Of arguments that were parsed for `command`.
    pub fn of(command: &clap::Command, matches: &ArgMatches) -> Self {
        let (mut words, mut withheld) = (Vec::new(), Vec::new());
        let (mut command, mut matches) = (command, matches);
        loop {
            words.extend(given(command, matches, &mut withheld));
            let Some((name, below)) = matches.subcommand() else { break };
            words.push(name.to_owned());
            let Some(found) = command.find_subcommand(name) else { break };
            (command, matches) = (found, below);
        }
        let text = words.join(" ");
        let text = text.chars().filter(|c| !c.is_control()).take(CHARACTERS).collect();
        withheld.retain(|secret| secret.len() >= SECRET_BYTES);
        withheld.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        CommandLine { text, withheld }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the command had to say, without what it was given and is not kept.
    pub fn clean(&self, message: &str) -> String {
        let clean = without_credentials(message);
        self.withheld.iter().fold(clean, |clean, secret| clean.replace(secret, "…"))
    }
}

/// The options and arguments that were typed for this command itself, in their order.
fn given(command: &clap::Command, matches: &ArgMatches, withheld: &mut Vec<String>) -> Vec<String> {
    let mut given: Vec<(usize, String)> = Vec::new();
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
        let id = argument.get_id().as_str();
        // Asking for one that is not there is an error of the program.
        let typed = matches.ids().any(|found| found.as_str() == id)
            && matches.value_source(id) == Some(ValueSource::CommandLine);
        if !typed {
            continue;
        }
        let at: Vec<_> = matches.indices_of(id).into_iter().flatten().collect();
        let first = at.first().copied().unwrap_or(usize::MAX);
        let values: Vec<_> = matches.get_raw(id).into_iter().flatten().collect();
        if argument.is_last_set() || argument.is_trailing_var_arg_set() {
            given.push((first, handed_on(&values, withheld)));
            continue;
        }
        let long = argument.get_long().map(|long| format!("--{long}"));
        let name = long.or_else(|| argument.get_short().map(|short| format!("-{short}")));
        if !argument.get_action().takes_values() {
            given.extend(name.map(|name| (first, name)));
            continue;
        }
        for (number, value) in values.into_iter().enumerate() {
            let value = without_credentials(&value.to_string_lossy());
            let text =
                name.as_ref().map_or_else(|| value.clone(), |name| format!("{name} {value}"));
            given.push((at.get(number).copied().unwrap_or(usize::MAX), text));
        }
    }
    given.sort();
    given.into_iter().map(|(_, text)| text).collect()
}

/// A command line that is somebody else's.
fn handed_on(words: &[&OsStr], withheld: &mut Vec<String>) -> String {
    let Some((program, arguments)) = words.split_first() else { return "--".to_owned() };
    let mut withhold = |word: &OsStr| {
        let word = word.to_string_lossy();
        // Of `--password=x` and `PASSWORD=x` the value alone may be told by a message.
        withheld.extend(word.split_once('=').map(|(_, value)| value.to_owned()));
        withheld.push(word.into_owned());
    };
    let mut text = match program.to_str().filter(|program| is_plain(program)) {
        Some(program) => format!("-- {program}"),
        None => {
            withhold(program);
            "-- (a program)".to_owned()
        }
    };
    arguments.iter().for_each(|word| withhold(word));
    match arguments.len() {
        0 => {}
        1 => text.push_str(" (1 argument, not kept)"),
        count => text.push_str(&format!(" ({count} arguments, not kept)")),
    }
    text
}

/// Whether the word is the name of a program, and no line of shell and no variable.
fn is_plain(program: &str) -> bool {
    program.chars().all(|c| c.is_alphanumeric() || "/._+-".contains(c))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn parsed(words: &[&str]) -> CommandLine {
        let words = std::iter::once("strata").chain(words.iter().copied());
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(words).expect("arguments of strata");
        CommandLine::of(&command, &matches)
    }

    #[test]
    fn what_was_asked_for_is_kept_in_its_order() {
        for words in [
            &["va", "pin", "w1", "--reason", "a look", "--store", "/s"][..],
            &["va", "pin", "--store", "/s", "--reason", "a look", "w1"],
            &["rollout", "promote", "web", "--all", "--reason", "a fix", "--store", "/s"],
            &["va", "stop", "w1", "w2", "--store", "/s"],
            &["reconcile", "now", "--wait", "--store", "/s"],
        ] {
            assert_eq!(parsed(words).text(), words.join(" "));
        }
        assert_eq!(
            parsed(&["--log", "debug", "va", "stop", "w1", "--store=/s"]).text(),
            "va stop w1 --store /s"
        );
    }

    #[test]
    fn nothing_of_a_command_line_that_is_handed_on_is_kept_but_its_program() {
        for (words, kept) in [
            (
                &["va", "exec", "w1", "--store", "/s", "--", "mysql", "-p", "s3cret"][..],
                "va exec w1 --store /s -- mysql (2 arguments, not kept)",
            ),
            (
                &["va", "exec", "--store", "/s", "w1", "mysql", "-ps3cret"],
                "va exec --store /s w1 -- mysql (1 argument, not kept)",
            ),
            (
                &["va", "exec", "--store", "/s", "w1", "--", "TOKEN=s3cret"],
                "va exec --store /s w1 -- (a program)",
            ),
            (
                &["va", "exec", "--store", "/s", "w1", "--", "login s3cret"],
                "va exec --store /s w1 -- (a program)",
            ),
            (
                &["va", "start", "w1", "--store", "/s", "--", "/usr/sbin/app", "--key=s3cret"],
                "va start w1 --store /s -- /usr/sbin/app (1 argument, not kept)",
            ),
            (
                &[
                    "layer",
                    "build",
                    "--name",
                    "n",
                    "--version",
                    "1",
                    "--store",
                    "/s",
                    "--",
                    "make",
                    "install",
                    "TOKEN=s3cret",
                ],
                "layer build --name n --version 1 --store /s -- make (2 arguments, not kept)",
            ),
            (
                &["va", "start", "w1", "--store", "/s", "--", "true"],
                "va start w1 --store /s -- true",
            ),
        ] {
            let line = parsed(words);
            assert_eq!(line.text(), kept);
            assert!(!line.text().contains("s3cret"));
            let said = line.clean(&format!("cannot run `{}`", words.join(" ")));
            assert!(said.starts_with("cannot run") && !said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn urls_lose_their_credentials() {
        let line = parsed(&[
            "layer",
            "import",
            "https://ann:s3cret@example.org/a@b?token=s3cret",
            "a@b",
            "x\ny",
            "--store",
            "/s",
        ]);
        assert_eq!(line.text(), "layer import https://example.org/a@b?… a@b xy --store /s");
    }

    /// A secret has no place in the arguments of a program, where all processes see it.
    #[test]
    fn no_option_takes_a_secret() {
        fn look(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                let secret = ["password", "secret", "token", "credential"];
                if secret.iter().any(|word| id.contains(word)) {
                    found.push(format!("{path} {id}"));
                }
            }
            for below in command.get_subcommands() {
                look(below, &format!("{path} {}", below.get_name()), found);
            }
        }
        let mut found = Vec::new();
        look(&Cli::command(), "strata", &mut found);
        // Its token names removals; everybody may know it.
        assert_eq!(found, ["strata rollout confirm token"]);
    }
}
