//! Running one script in the VA, to its end or its time limit.
//!
//! The script is no file of the VA's: its text goes in as a sealed memory file on the
//! standard input of `strata-init script`, which enters the VA's namespaces, root,
//! control group and capabilities first. This runs on a thread of its own: scripts
//! use the mounted file system, whose request threads must never wait for them.

use std::fs::File;
use std::io::{self, PipeReader, Read as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use strata_core::scripts::outcome::{Outcome, printable};

use super::place::Place;
use crate::stop::Stop;
use crate::takeover::{program_path, sealed};

/// How often the time limit and the VA are looked at.
const TICK: Duration = Duration::from_millis(100);
/// What lies between two looks counts for no more: the daemon was suspended.
const LONGEST_TICK: Duration = Duration::from_millis(500);
/// From SIGTERM to SIGKILL at the time limit.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of output that are kept, the last ones.
const OUTPUT_BYTES: usize = 64 << 10;
/// Bytes of `strata-init` and of a script.
const PROGRAM_BYTES: u64 = 64 << 20;

/// Who runs scripts: a [`Place`], or a stand-in of a test that cuts a change short.
pub trait Runner: std::fmt::Debug + Send + Sync {
    /// The VA's first process; `None` while it does not run or cannot be entered yet.
    fn first_process(&self) -> Option<u32>;
    /// Runs a script in the VA whose first process is `init`, until it ends, its limit is
    /// reached, the VA ends or `stop` is said.
    fn run(&self, init: u32, order: &Order<'_>, stop: &Stop) -> Ended;
}

impl Runner for Place {
    fn first_process(&self) -> Option<u32> {
        Place::first_process(self)
    }

    fn run(&self, init: u32, order: &Order<'_>, stop: &Stop) -> Ended {
        run(self, init, order, stop)
    }
}

/// What is to be run.
#[derive(Debug)]
pub struct Order<'a> {
    /// The script's name and what its arguments are.
    pub arguments: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    pub text: &'a [u8],
    pub limit: Duration,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub outcome: Outcome,
    pub output: String,
    pub took: Duration,
}

/// Time in which the VA is suspended does not count.
fn run(place: &Place, init: u32, order: &Order<'_>, stop: &Stop) -> Ended {
    let mut output = Tail::default();
    let mut took = Duration::ZERO;
    let outcome = match start(place, init, order) {
        Err(error) => {
            output.push(format!("it could not be started: {error}\n").as_bytes());
            place.remove_group();
            Outcome::NotRun
        }
        Ok((child, pipe)) => {
            let mut watch = Watch { place, limit: order.limit, stop, ended: None };
            let followed = watch.follow(child, &pipe, &mut output, &mut took);
            watch.finish(followed, pipe, &mut output)
        }
    };
    // Not that of the VA's own end: what its first process took with it.
    let gone = outcome != Outcome::Succeeded && place.first_process() != Some(init);
    let outcome = if gone || stop.is_stopped() && outcome != Outcome::Succeeded {
        Outcome::Interrupted
    } else {
        outcome
    };
    Ended { outcome, output: printable(&String::from_utf8_lossy(&output.bytes())), took }
}

fn start(place: &Place, init: u32, order: &Order<'_>) -> io::Result<(Child, PipeReader)> {
    let program = sealed("strata-init", File::open(&place.program)?, PROGRAM_BYTES)?;
    let text = sealed("script", order.text, PROGRAM_BYTES)?;
    place.make_group()?;
    let (reader, writer) = io::pipe()?;
    rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    let mut command = Command::new(program_path(&program));
    command.arg0("strata-init").arg("script").arg(&place.cgroup).arg(place.group());
    command.arg(init.to_string()).arg("--").args(&order.arguments);
    command.env_clear().envs(order.environment.iter().map(|(name, value)| (*name, value)));
    command.stdin(Stdio::from(text)).stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn()?;
    Ok((child, reader))
}

/// Why a script is ended from outside.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Limit,
    Stop,
}

/// One script under way.
struct Watch<'a> {
    place: &'a Place,
    limit: Duration,
    stop: &'a Stop,
    ended: Option<Cut>,
}

impl Watch<'_> {
    /// Reads what it prints until it has ended.
    fn follow(
        &mut self,
        mut child: Child,
        pipe: &PipeReader,
        output: &mut Tail,
        took: &mut Duration,
    ) -> io::Result<ExitStatus> {
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let mut last = Instant::now();
        let mut open = true;
        loop {
            let timeout = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            let mut waited = vec![PollFd::new(&pidfd, PollFlags::IN)];
            if open {
                waited.push(PollFd::new(pipe, PollFlags::IN));
            }
            match poll(&mut waited, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            open = open && output.read(pipe)?;
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            let now = Instant::now();
            if !self.place.is_frozen() {
                *took += now.duration_since(last).min(LONGEST_TICK);
            }
            last = now;
            if self.stop.is_stopped() && self.ended.is_none() {
                self.ended = Some(Cut::Stop);
                self.place.kill()?;
            } else if *took >= self.limit + GRACE {
                self.place.kill()?;
            } else if *took >= self.limit && self.ended.is_none() {
                self.ended = Some(Cut::Limit);
                self.place.ask_to_end();
            }
        }
    }

    /// What came of it; and what it left is dealt with.
    fn finish(
        &self,
        followed: io::Result<ExitStatus>,
        pipe: PipeReader,
        output: &mut Tail,
    ) -> Outcome {
        let outcome = match (followed, self.ended) {
            (_, Some(Cut::Limit)) => Outcome::TimeLimit,
            (_, Some(Cut::Stop)) => Outcome::Interrupted,
            (Ok(status), None) => match (status.code(), status.signal()) {
                (Some(0), _) => Outcome::Succeeded,
                (Some(code), _) => Outcome::Exit(code),
                (None, signal) => Outcome::Signal(signal.unwrap_or_default()),
            },
            (Err(error), None) => {
                output.push(format!("it could not be followed: {error}\n").as_bytes());
                Outcome::NotRun
            }
        };
        let open = output.read(&pipe).unwrap_or(false);
        let dealt = match outcome {
            Outcome::Succeeded | Outcome::Exit(_) | Outcome::Signal(_) => self.place.give_rest(),
            Outcome::TimeLimit | Outcome::Interrupted | Outcome::NotRun => self.place.kill(),
        };
        if let Err(error) = dealt
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "what a script left running stays in its control group");
        }
        self.place.remove_group();
        if open {
            drain(pipe);
        }
        outcome
    }
}

/// Reads on what a service prints that a script started and whose output it did not
/// take care of: without a reader, printing would end it.
fn drain(mut pipe: PipeReader) {
    let body = move || {
        let blocking = rustix::fs::fcntl_setfl(&pipe, OFlags::empty());
        let read =
            blocking.map_err(io::Error::from).and_then(|()| io::copy(&mut pipe, &mut io::sink()));
        if let Err(error) = read {
            tracing::debug!(%error, "the output of a service is read no more");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("script-output".to_owned()).spawn(body) {
        tracing::warn!(%error, "the output of a service is not read");
    }
}

/// The last bytes of an output.
#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * OUTPUT_BYTES {
            self.kept.drain(..self.kept.len() - OUTPUT_BYTES);
            self.cut = true;
        }
    }

    /// Takes what is there, at most so much that a flood cannot keep the caller. Returns
    /// whether more may come.
    fn read(&mut self, mut pipe: &PipeReader) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        for _ in 0..16 {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => self.push(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn bytes(&self) -> Vec<u8> {
        let from = self.kept.len().saturating_sub(OUTPUT_BYTES);
        let mut bytes = Vec::new();
        if self.cut || from > 0 {
            bytes.extend_from_slice("…\n".as_bytes());
        }
        bytes.extend_from_slice(&self.kept[from..]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_the_end_is_kept() {
        let mut tail = Tail::default();
        for n in 0..100_000 {
            tail.push(format!("{n}\n").as_bytes());
            assert!(tail.kept.len() <= 2 * OUTPUT_BYTES);
        }
        let text = String::from_utf8(tail.bytes()).expect("text");
        assert!(text.starts_with('…') && text.ends_with("99999\n"));
        assert!(text.len() <= OUTPUT_BYTES + 8);
        tail = Tail::default();
        tail.push(b"short");
        assert_eq!(tail.bytes(), b"short");
    }
}
