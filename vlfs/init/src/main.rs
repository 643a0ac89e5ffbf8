//! `strata-init`: the first process of a VA.
//!
//! The machine driver starts this program outside the VA and it works its way
//! in; it is never copied into the VA's tree. Six forms, each one step:
//!
//! ```text
//! strata-init in-cgroup CGROUP -- PROGRAM [ARG…]         join a cgroup, become PROGRAM
//! strata-init conceal CGROUP [keep FROM TO]… [hide DIR]… [release MOUNT]… -- PROGRAM [ARG…]
//!                                                         the same with directories hidden from PROGRAM
//! strata-init start NETWORK CGROUP ROOT HOSTNAME [-- CMD [ARG…]]
//!                                                         make the VA's namespaces, leave `pid1` in them;
//!                                                         NETWORK is `host` or `private`
//! strata-init pid1 ROOT HOSTNAME [-- CMD [ARG…]]          make ROOT the root, then be PID 1
//! strata-init exec CGROUP PID -- CMD [ARG…]               run CMD in the namespaces of PID
//! strata-init script CGROUP GROUP PID -- [ARG…]           the same with the script on standard input, in GROUP
//! ```
//!
//! `--also CGROUP` before any form joins one more cgroup: hosts with the hybrid layout
//! limit memory in a hierarchy of its own. `start` and `pid1` answer on standard output with one line, `error: …` or `entered`
//! once the VA can be entered; then the appliance's command waits for the end of standard
//! input, and the answer to that is `ready` or `error: …`. What the VA prints goes to
//! standard error. `exec` exits with the
//! command's status, 128 + signal, 127 or 126 where it cannot be run, and 125
//! where the VA cannot be entered.
//!
//! As `/init` of a boot environment, the first process of a machine, it takes no form and
//! does all that lies between the kernel and the appliance ([`boot`], `docs/boot.md`).
//!
//! Making namespaces ([`namespaces`]), filling a root with the kernel's file
//! systems ([`root`], which takes the root as an argument) and being PID 1
//! ([`pid1`]) do not know of one another, so that a boot environment can use the
//! last two without the first. Only that one reads the store.

mod boot;
mod capabilities;
mod conceal;
mod error;
mod namespaces;
mod pid1;
mod root;
mod services;
mod system;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use error::InitError;
use namespaces::Network;

const USAGE: &str = "usage: strata-init in-cgroup CGROUP -- PROGRAM [ARG…]
       strata-init conceal CGROUP [keep FROM TO]… [hide DIR]… [release MOUNT]… -- PROGRAM [ARG…]
       strata-init start host|private CGROUP ROOT HOSTNAME [-- COMMAND [ARG…]]
       strata-init pid1 ROOT HOSTNAME [-- COMMAND [ARG…]]
       strata-init exec CGROUP PID -- COMMAND [ARG…]
       strata-init script CGROUP GROUP PID -- [ARG…]
`strata va` starts this program; it is not meant to be started by hand.";

/// The VA could not be entered.
const EXIT_NOT_ENTERED: u8 = 125;

fn main() -> ExitCode {
    if boot::is_asked_for(std::env::args_os().next().as_deref()) {
        boot::run();
    }
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let separator = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let command: Vec<OsString> = words.drain(separator..).skip(1).collect();
    let texts: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    if let Err(error) = system::keep_descriptors_from_children() {
        eprintln!("strata-init: cannot keep open files from the VA: {error}");
        return ExitCode::from(EXIT_NOT_ENTERED);
    }
    let texts = match texts.as_deref() {
        Some(["--also", cgroup, rest @ ..]) => match namespaces::join_cgroup(Path::new(cgroup)) {
            Ok(()) => Some(rest),
            Err(error) => return fail(Err(error)),
        },
        texts => texts,
    };
    match texts {
        Some(["in-cgroup", cgroup]) => fail(in_cgroup(Path::new(cgroup), &command)),
        Some(["conceal", cgroup, places @ ..]) => {
            fail(conceal::run(Path::new(cgroup), places, &command))
        }
        Some(["start", network @ ("host" | "private"), cgroup, root, hostname]) => {
            let network = match *network {
                "private" => Network::Private,
                _ => Network::Host,
            };
            let (cgroup, root) = (Path::new(cgroup), Path::new(root));
            answer(namespaces::start(network, cgroup, root, hostname, &command))
        }
        Some(["pid1", root, hostname]) => {
            match namespaces::enter_root(Path::new(root), hostname)
                .and_then(|()| pid1::be_ready())
                .map(|()| say("entered"))
                .and_then(|()| pid1::wait_for_leave())
                .and_then(|()| pid1::Appliance::start(&command))
            {
                Ok(appliance) => {
                    say("ready");
                    let_go();
                    appliance.run()
                }
                Err(error) => answer(Err(error)),
            }
        }
        Some(["exec", cgroup, pid]) => code_of(namespaces::exec(Path::new(cgroup), pid, &command)),
        Some(["script", cgroup, group, pid]) => {
            code_of(namespaces::script(Path::new(cgroup), Path::new(group), pid, &command))
        }
        Some([boot::clock::FORM]) => boot::clock::keep(),
        Some([boot::services::FORM]) => boot::services::first_process(),
        Some(["--help" | "-h"]) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Joins the cgroup and becomes the program; returns only on failure.
fn in_cgroup(cgroup: &Path, command: &[OsString]) -> Result<(), InitError> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| InitError::Usage(USAGE.to_owned()))?;
    namespaces::join_cgroup(cgroup)?;
    let source = std::process::Command::new(program).args(arguments).exec();
    Err(InitError::Command { program: program.to_string_lossy().into_owned(), source })
}

fn fail(result: Result<(), InitError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strata-init: {error}");
            ExitCode::from(EXIT_NOT_ENTERED)
        }
    }
}

/// Reports a failure to whoever reads standard output.
fn answer(result: Result<(), InitError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", error.to_string().replace('\n', " ")));
            let_go();
            ExitCode::from(EXIT_NOT_ENTERED)
        }
    }
}

/// The exit code of what was run in the VA.
fn code_of(result: Result<ExitCode, InitError>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(InitError::Command { program, source }) => {
            eprintln!("strata-init: cannot run {program:?} in the VA: {source}");
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            ExitCode::from(if missing { 127 } else { 126 })
        }
        Err(error) => fail(Err(error)),
    }
}

/// One line to whoever started the VA.
fn say(line: &str) {
    let mut output = std::io::stdout();
    if let Err(error) = writeln!(output, "{line}").and_then(|()| output.flush()) {
        eprintln!("strata-init: nobody reads the answer {line:?}: {error}");
    }
}

/// Lets go of the pipe, so that its reader sees the end: standard output becomes the console.
fn let_go() {
    if let Err(error) = rustix::stdio::dup2_stdout(rustix::stdio::stderr()) {
        eprintln!("strata-init: standard output stays the pipe: {error}");
    }
}
