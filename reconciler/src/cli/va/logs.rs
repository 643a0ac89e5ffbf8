//! `strata va logs`.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use strata_core::VaName;
use strata_core::printable::printable_lines;
use strata_core::status::RunState;
use strata_machine::Machines;

use super::machine_failure;
use crate::cli::output::print_live;
use crate::cli::{Failure, Outcome, StoreArgs, print_bytes};

/// How often to look for more.
const LOOK: Duration = Duration::from_millis(200);

/// Show what a VA's console has shown since its last start
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va logs web-03
  strata va logs --follow vm-01        # until it has stopped
  strata va logs web-03 | less -R

On a terminal, what would steer it is written as an escape: whoever runs in the VA wrote it. Into a file or a
pipe goes what was written, and so it does with --raw. The run before is in console.log.1 in the VA's directory.")]
pub struct LogsArgs {
    name: VaName,
    /// Go on with what comes, until the VA has stopped
    #[arg(long)]
    follow: bool,
    /// Also what steers a terminal, colours for example
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &LogsArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let record = machines.record(&args.name).map_err(machine_failure)?;
    let Some(mut console) = machines.console(&args.name).map_err(machine_failure)? else {
        return Ok(Outcome::Done);
    };
    let mut harmless = (!args.raw && std::io::stdout().is_terminal()).then(Harmless::default);
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Asked before what there is is read: nothing comes after the end.
        let ended = args.follow
            && machines.run_state(&record).map_err(machine_failure)? == RunState::Stopped;
        loop {
            match console.read(&mut buffer).map_err(Failure::new)? {
                0 => break,
                length => {
                    let read = match &mut harmless {
                        Some(harmless) => print_live(harmless.take(&buffer[..length]).as_bytes())?,
                        None => print_live(&buffer[..length])?,
                    };
                    if !read {
                        return Ok(Outcome::Done);
                    }
                }
            }
        }
        if ended || !args.follow {
            if let Some(harmless) = harmless {
                print_bytes(harmless.end().as_bytes())?;
            }
            return Ok(Outcome::Done);
        }
        std::thread::sleep(LOOK);
    }
}

/// Makes what a VA wrote harmless to a terminal, piece by piece as it comes.
#[derive(Debug, Default)]
struct Harmless {
    /// The beginning of a character or of a line's end, whose rest has not come yet.
    rest: Vec<u8>,
}

impl Harmless {
    fn take(&mut self, piece: &[u8]) -> String {
        self.rest.extend_from_slice(piece);
        let (mut text, mut used) = (String::new(), 0);
        for chunk in self.rest.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let broken = chunk.invalid();
            let is_last = used + broken.len() == self.rest.len();
            let unfinished =
                std::str::from_utf8(broken).is_err_and(|error| error.error_len().is_none());
            if broken.is_empty() || (is_last && unfinished) {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += broken.len();
        }
        // A console ends its lines with both.
        if text.ends_with('\r') {
            text.pop();
            used -= 1;
        }
        self.rest.drain(..used);
        printable_lines(&text.replace("\r\n", "\n")).into_owned()
    }

    /// What is left where nothing more comes.
    fn end(self) -> String {
        printable_lines(&String::from_utf8_lossy(&self.rest)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_steers_no_terminal_however_it_is_cut() {
        let written = b"login: \x1b[2J\x1b[31m\xc3\xa4\r\n\xff\tb\xe2\x80\xae\r\rc\xc3";
        let shown = "login: \\u{1b}[2J\\u{1b}[31mä\n\u{fffd}\tb\\u{202e}\\r\\rc\u{fffd}";
        for size in 1..=written.len() {
            let mut harmless = Harmless::default();
            let mut text: String = written.chunks(size).map(|piece| harmless.take(piece)).collect();
            text.push_str(&harmless.end());
            assert_eq!(text, shown, "pieces of {size}");
        }
    }
}
