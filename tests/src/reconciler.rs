//! A reconciler that is measured: what it prints of its passes and its log.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The unit of times in `proc_pid_stat(5)`: `USER_HZ`, which is 100 wherever Strata runs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A pass as its line of JSON says.
#[derive(Debug)]
pub struct Pass {
    pub result: String,
    pub total_ms: f64,
    /// Milliseconds by phase (`fetch`, `check`, `plan`, `apply`).
    pub phases: BTreeMap<String, f64>,
    seen: Instant,
}

impl Pass {
    /// # Errors
    /// The line is no report of a pass.
    pub fn parse(line: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let result = report["result"].as_str().context("a pass has a result")?.to_owned();
        let timings = report["timings"].as_object().context("a pass has timings")?;
        let mut phases: BTreeMap<_, _> = timings
            .iter()
            .filter_map(|(name, took)| Some((name.strip_suffix("_ms")?.to_owned(), took.as_f64()?)))
            .collect();
        let total_ms = phases.remove("total").context("a pass has a duration")?;
        Ok(Pass { result, total_ms, phases, seen: Instant::now() })
    }

    /// When it began, as near as its printed duration tells.
    pub fn begun(&self) -> Instant {
        let took = Duration::from_secs_f64(self.total_ms / 1000.0);
        self.seen.checked_sub(took).unwrap_or(self.seen)
    }
}

enum Line {
    Pass(Pass),
    Log(String),
    Strange(String),
}

/// `strata reconcile` in the background; ended when dropped.
pub struct Daemon {
    child: Child,
    lines: Receiver<Line>,
    /// Rings that the log called in sync and nobody waited for yet.
    in_sync: usize,
    log: Vec<String>,
}

impl Daemon {
    /// # Errors
    /// It cannot be started.
    pub fn start(strata: &Path, source: &Path, store: &Path) -> Result<Self> {
        let mut child = Command::new(strata)
            .args(["reconcile", "--output", "json", "--log", "info", "--source"])
            .arg(source)
            .arg("--store")
            .arg(store)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| strata.display().to_string())?;
        let (sender, lines) = channel();
        read(child.stdout.take().context("a pipe")?, sender.clone(), |line| {
            Pass::parse(&line).map_or(Line::Strange(line), Line::Pass)
        });
        read(child.stderr.take().context("a pipe")?, sender, Line::Log);
        Ok(Daemon { child, lines, in_sync: 0, log: Vec::new() })
    }

    fn next(&mut self, end: Instant) -> Result<Line> {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Line::Strange(line)) => bail!("the reconciler printed: {line}"),
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the reconciler took too long; its last words:\n{}", self.last_words())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the reconciler ended; its last words:\n{}", self.last_words())
            }
        }
    }

    fn last_words(&self) -> String {
        let from = self.log.len().saturating_sub(10);
        self.log.get(from..).unwrap_or_default().join("\n")
    }

    fn note(&mut self, line: String) {
        self.in_sync += usize::from(line.contains("ring in sync"));
        self.log.push(line);
    }

    /// Waits for the next pass that found anything new.
    ///
    /// # Errors
    /// None came, or the reconciler ended.
    pub fn wait_for_pass(&mut self, limit: Duration) -> Result<Pass> {
        let end = Instant::now() + limit;
        loop {
            match self.next(end)? {
                Line::Pass(pass) => {
                    ensure!(pass.result == "applied", "the pass: {}", pass.result);
                    return Ok(pass);
                }
                Line::Log(line) => self.note(line),
                Line::Strange(_) => {}
            }
        }
    }

    /// Waits until the log has called so many rings in sync, since the last call.
    ///
    /// # Errors
    /// It did not, or the reconciler ended.
    pub fn wait_for_sync(&mut self, rings: usize, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.in_sync < rings {
            if let Line::Log(line) = self.next(end)? {
                self.note(line);
            }
        }
        ensure!(self.in_sync == rings, "{} rings are in sync, {rings} moved", self.in_sync);
        self.in_sync = 0;
        Ok(())
    }

    /// Bytes of memory that it had at most.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peak_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
        Ok(kib * 1024)
    }

    /// Milliseconds of processor time that a second of `span` took.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn processor_time_idle(&self, span: Duration) -> Result<f64> {
        let before = self.processor_time()?;
        std::thread::sleep(span);
        Ok((self.processor_time()? - before) * 1000.0 / span.as_secs_f64())
    }

    /// Seconds, with those of ended children.
    fn processor_time(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).context(path)?;
        let fields = stat.rsplit(')').next().context("stat")?.split_whitespace();
        let ticks: u64 =
            fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// # Errors
    /// It does not end in good order.
    pub fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the reconciler: {status}\n{}", self.last_words());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail where it has ended, and then there is nothing to end.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn read(
    stream: impl Read + Send + 'static,
    sender: Sender<Line>,
    kind: impl Fn(String) -> Line + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(kind(line)).is_err() {
                return;
            }
        }
    });
}
