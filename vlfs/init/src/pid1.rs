//! Being PID 1: runs the appliance's command or services, reaps, and ends in good order.
//!
//! - SIGTERM, SIGINT and SIGPWR ask for the end: the command gets SIGTERM; once
//!   it has ended, or where there is none, every process gets SIGTERM. PID 1 ends
//!   when no process is left. Whoever asked sets the deadline and kills.
//! - A command that ends by itself ends the VA: the rest gets SIGTERM and
//!   [`GRACE`], then the kernel kills what is left with PID 1.
//! - Without a command the appliance's own services run ([`crate::services`]); one that
//!   ends is started again. Where there are none PID 1 waits to be asked.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::error::{Context, InitError};
use crate::services::{self, Patience, Service, State};
use crate::system::{self, Signals};

/// What the rest may take after the appliance's command has ended by itself.
const GRACE: Duration = Duration::from_secs(10);
/// How often PID 1 looks whether all are gone: a process whose parent is outside
/// the VA (`strata va exec`) ends without a SIGCHLD to PID 1.
const LOOK: Duration = Duration::from_millis(20);
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the first process is called once the VA can be entered: who runs something in
/// it (`strata-vlfs`) looks for this, and not for a number.
const READY_NAME: &std::ffi::CStr = c"va-ready";

/// Says to whoever looks that the VA can be entered.
///
/// # Errors
/// As prctl(2).
pub fn be_ready() -> Result<(), InitError> {
    rustix::thread::set_name(READY_NAME).context("name", "the VA's first process")
}

/// Waits until whoever starts the VA closes the other end of the standard input, and
/// until then for all that wants to run before the appliance's command.
///
/// # Errors
/// As read(2).
pub fn wait_for_leave() -> Result<(), InitError> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .context("wait for", "leave to begin")?;
    let null = std::fs::File::open("/dev/null").context("open", "/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("let go of", "the standard input")
}

/// The VA's own environment and, of the caller's, the terminal's type.
pub fn environment(command: &mut Command) {
    command.env_clear();
    command.env("PATH", PATH).env("HOME", "/root").env("container", "strata");
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
}

/// As shells have it: the status, or 128 + the signal.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// The VA as PID 1 sees it.
pub struct Appliance {
    signals: Signals,
    /// The appliance's command, while it runs.
    command: Option<Pid>,
    /// The appliance's services, where it was given no command.
    services: Vec<Service>,
    exit: ExitCode,
    /// Somebody asked for the end.
    asked: bool,
    /// Every process was told to end; with a deadline where nobody else has one.
    ending: Option<Option<Instant>>,
}

impl Appliance {
    /// Starts the appliance's command or, if there is none, its services.
    ///
    /// # Errors
    /// It cannot be run, or what runs before the services failed.
    pub fn start(command: &[OsString]) -> Result<Self, InitError> {
        let (command, services) = match command.split_first() {
            None => (None, start_services()?),
            Some((program, arguments)) => (Some(spawn(program, arguments)?), Vec::new()),
        };
        // Only now: children inherit blocked signals.
        let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];
        let signals = Signals::block(&signals).context("block", "signals")?;
        let exit = ExitCode::SUCCESS;
        Ok(Appliance { signals, command, services, exit, asked: false, ending: None })
    }

    /// Runs until the VA has ended.
    pub fn run(mut self) -> ExitCode {
        loop {
            self.reap();
            if let Some(deadline) = self.ending
                && (alone() || deadline.is_some_and(|deadline| Instant::now() >= deadline))
            {
                return self.exit;
            }
            let next = match self.ending {
                Some(_) => Some(LOOK),
                None => self.start_again(),
            };
            match self.signals.wait(next) {
                Some(libc::SIGCHLD) | None => {}
                Some(_) => self.ask(),
            }
        }
    }

    fn ask(&mut self) {
        self.asked = true;
        match self.command {
            Some(command) => tell(rustix::process::kill_process(command, Signal::TERM)),
            None => self.end(None),
        }
    }

    fn end(&mut self, deadline: Option<Instant>) {
        self.ending = Some(deadline);
        // kill(-1, …): every process but PID 1 itself. Stopped ones must go on to
        // see the signal.
        tell(rustix::process::kill_process_group(Pid::INIT, Signal::TERM));
        tell(rustix::process::kill_process_group(Pid::INIT, Signal::CONT));
    }

    /// Starts the services again whose time has come. Returns when to look next.
    fn start_again(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let mut next = None::<Duration>;
        for service in &mut self.services {
            let State::Waiting { until } = service.state else { continue };
            if until <= now {
                service.start();
            }
            if let State::Waiting { until } = service.state {
                let rest = until.saturating_duration_since(now);
                next = Some(next.map_or(rest, |next| next.min(rest)));
            }
        }
        next
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let status = ExitStatus::from_raw(status.as_raw());
            let ended = self.services.iter_mut().find(
                |service| matches!(service.state, State::Running { pid: own, .. } if own == pid),
            );
            if let Some(service) = ended {
                service.ended(&status.to_string());
            }
            if self.command != Some(pid) {
                continue;
            }
            self.command = None;
            self.exit = exit_code(status);
            if !self.asked {
                eprintln!("strata-init: the appliance's command ended by itself: {status}");
            }
            self.end(if self.asked { None } else { Some(Instant::now() + GRACE) });
        }
    }
}

impl Service {
    fn start(&mut self) {
        match spawn(self.program.as_os_str(), &[]) {
            Ok(pid) => self.state = State::Running { pid, since: Instant::now() },
            Err(error) => self.ended(&error.to_string()),
        }
    }

    fn ended(&mut self, how: &str) {
        let life = match self.state {
            State::Running { since, .. } => since.elapsed(),
            State::Waiting { .. } => Duration::ZERO,
        };
        let wait = self.patience.after(life);
        eprintln!("strata-init: {} ended ({how}); next start in {wait:?}", self.program.display());
        self.state = State::Waiting { until: Instant::now() + wait };
    }
}

/// Runs what comes before the services, each to its end, and starts them.
fn start_services() -> Result<Vec<Service>, InitError> {
    for program in services::programs(Path::new(services::START))? {
        let shown = program.display().to_string();
        let mut command = to_console(program.as_os_str(), &[])?;
        let ran = command.status();
        let status = ran.map_err(|source| InitError::Command { program: shown.clone(), source })?;
        if !status.success() {
            return Err(InitError::Start { program: shown, status: status.to_string() });
        }
    }
    let mut started = Vec::new();
    for program in services::programs(Path::new(services::SERVICES))? {
        let state = State::Waiting { until: Instant::now() };
        let mut service = Service { program, state, patience: Patience::new() };
        service.start();
        started.push(service);
    }
    Ok(started)
}

/// Whether PID 1 is the only process of the VA.
fn alone() -> bool {
    rustix::process::test_kill_process_group(Pid::INIT) == Err(Errno::SRCH)
}

/// That nobody was there to get a signal is no failure.
fn tell(sent: rustix::io::Result<()>) {
    if let Err(error) = sent
        && error != Errno::SRCH
    {
        eprintln!("strata-init: cannot send a signal: {error}");
    }
}

fn spawn(program: &OsStr, arguments: &[OsString]) -> Result<Pid, InitError> {
    let mut command = to_console(program, arguments)?;
    let child = command.spawn().map_err(|source| InitError::Command {
        program: program.to_string_lossy().into_owned(),
        source,
    })?;
    Ok(Pid::from_child(&child))
}

/// A program of the VA whose output goes to the console.
fn to_console(program: &OsStr, arguments: &[OsString]) -> Result<Command, InitError> {
    let console = rustix::io::dup(rustix::stdio::stderr()).context("copy", "the console")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::from(console));
    environment(&mut command);
    // A service that is started again must see the signals that PID 1 waits for.
    system::unblock_signals_in(&mut command);
    Ok(command)
}
