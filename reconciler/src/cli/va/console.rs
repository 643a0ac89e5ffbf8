//! `strata va console`.

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios};
use strata_core::VaName;
use strata_machine::Machines;

use super::machine_failure;
use crate::cli::output::print_live;
use crate::cli::{Failure, Outcome, StoreArgs};

/// Ctrl-], as in telnet.
const DETACH: u8 = 0x1d;
/// What was typed and not taken is no more, in bytes.
const TYPED_BYTES: usize = 64 << 10;

/// Sit at the serial console of a running machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va console vm-01              # Ctrl-] leaves it
  printf 'reboot\\r' | strata va console vm-01

The machine goes on when you leave, and so does `strata va logs`, which has what you see and type. One at a time sits
at a console. The machine steers your terminal while you do: leave one that you do not trust to `strata va logs`.")]
pub struct ConsoleArgs {
    name: VaName,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &ConsoleArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let mut console = machines.sit_at_console(&args.name).map_err(machine_failure)?;
    let raw = RawTerminal::new().map_err(Failure::new)?;
    // From here on each key counts, and the terminal makes nothing of a line's end.
    let end_of_line = if raw.former.is_some() { "\r\n" } else { "\n" };
    eprint!("at the console of {}; Ctrl-] leaves it{end_of_line}", args.name);
    let end = converse(&mut console.stream);
    drop(raw);
    match end? {
        End::Left => eprintln!("\nleft the console of {}", args.name),
        End::Machine => eprintln!("\n{} has ended", args.name),
    }
    Ok(Outcome::Done)
}

/// Why nobody is at the console any more.
enum End {
    /// Who was there has left.
    Left,
    /// There is no console any more.
    Machine,
}

/// Passes on what is typed and shown.
fn converse(stream: &mut UnixStream) -> Result<End, Failure> {
    stream.set_nonblocking(true).map_err(Failure::new)?;
    let mut typed = Vec::new();
    let mut left = false;
    let mut buffer = vec![0; 4096];
    loop {
        if left && typed.is_empty() {
            return Ok(End::Left);
        }
        let stdin = rustix::stdio::stdin();
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !typed.is_empty());
        let listens = !left && typed.len() < TYPED_BYTES;
        let events = if listens { PollFlags::IN } else { PollFlags::empty() };
        let mut descriptors =
            [PollFd::new(&*stream, wanted), PollFd::from_borrowed_fd(stdin, events)];
        let waited = if listens { &mut descriptors[..] } else { &mut descriptors[..1] };
        match poll(waited, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.map_err(Failure::new)?,
        };
        let (console, terminal) = (descriptors[0].revents(), descriptors[1].revents());
        if console.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(End::Machine),
                Ok(length) if !print_live(&buffer[..length])? => return Ok(End::Left),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(End::Machine);
                }
                Err(error) => return Err(Failure::new(error)),
            }
        }
        if console.contains(PollFlags::OUT) {
            match stream.write(&typed) {
                Ok(length) => drop(typed.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Machine),
                Err(error) => return Err(Failure::new(error)),
            }
        }
        if listens && !terminal.is_empty() {
            let length = rustix::io::read(stdin, &mut buffer).map_err(Failure::new)?;
            let keys = &buffer[..length];
            let detached = keys.iter().position(|key| *key == DETACH);
            typed.extend_from_slice(&keys[..detached.unwrap_or(length)]);
            left = detached.is_some() || length == 0;
        }
    }
}

/// The terminal passes on each key, until this is dropped; nothing where there is none.
struct RawTerminal {
    former: Option<Termios>,
}

impl RawTerminal {
    fn new() -> rustix::io::Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(RawTerminal { former: None });
        }
        let former = rustix::termios::tcgetattr(&stdin)?;
        let mut raw = former.clone();
        raw.make_raw();
        // What was typed ahead is for the machine.
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(RawTerminal { former: Some(former) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(former) = &self.former
            && let Err(error) =
                rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, former)
        {
            eprintln!("the terminal stays as it is: {error}; type: stty sane");
        }
    }
}
