//! QEMU's machine protocol (QMP), never longer than a deadline.
//!
//! One line of JSON each way; what QEMU tells in between by itself is passed over.
//! QEMU talks with one client at a time, so a connection is short: it is closed when
//! the value is dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

use crate::wait;

/// No answer is longer, in bytes.
const ANSWER_BYTES: usize = 4 << 20;
/// How often to look whether a machine has been handed over.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU did not answer on {0} in time")]
    Deadline(PathBuf),
    #[error("cannot talk to QEMU on {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("QEMU refuses {command}: {reason}")]
    Refused { command: String, reason: String },
    #[error("the answer of QEMU on {path} makes no sense: {text}")]
    Answer { path: PathBuf, text: String },
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Running,
    /// It stands still until it is told to go on.
    Paused,
    /// It will never go on by itself: its guest has crashed, or its disk has failed.
    Broken,
}

/// A connection.
pub struct Qmp {
    socket: OwnedFd,
    path: PathBuf,
    deadline: Instant,
    /// What was read behind the last line.
    rest: Vec<u8>,
}

impl Qmp {
    /// # Errors
    /// Nobody listens, or no answer comes by the deadline.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, QmpError> {
        let at = |source: io::Error| QmpError::Io { path: path.to_owned(), source };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| at(errno.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|errno| at(errno.into()))?;
        rustix::net::connect(&socket, &address).map_err(|errno| at(errno.into()))?;
        let mut qmp = Qmp { socket, path: path.to_owned(), deadline, rest: Vec::new() };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Answer { path: qmp.path, text: greeting.to_string() });
        }
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Gives a command and returns its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or no answer comes by the deadline.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("for no reason").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), reason });
            }
            if answer.get("event").is_none() {
                return Err(QmpError::Answer { path: self.path.clone(), text: answer.to_string() });
            }
        }
    }

    /// What the machine does now.
    ///
    /// # Errors
    /// As [`Qmp::call`].
    pub fn activity(&mut self) -> Result<Activity, QmpError> {
        let answer = self.call("query-status", &json!({}))?;
        match answer["status"].as_str() {
            Some("running" | "inmigrate" | "prelaunch" | "restore-vm" | "save-vm") => {
                Ok(Activity::Running)
            }
            Some("paused" | "suspended" | "postmigrate" | "finish-migrate" | "debug") => {
                Ok(Activity::Paused)
            }
            Some("shutdown" | "internal-error" | "io-error" | "guest-panicked" | "watchdog") => {
                Ok(Activity::Broken)
            }
            _ => Err(QmpError::Answer { path: self.path.clone(), text: answer.to_string() }),
        }
    }

    /// QEMU's name of the type that the machine is of, with its version: `pc-q35-10.0`.
    ///
    /// # Errors
    /// As [`Qmp::call`].
    pub fn machine_type(&mut self) -> Result<String, QmpError> {
        let answer = self.call("qom-get", &json!({ "path": "/machine", "property": "type" }))?;
        match answer.as_str().and_then(|name| name.strip_suffix("-machine")) {
            Some(name) => Ok(name.to_owned()),
            None => Err(QmpError::Answer { path: self.path.clone(), text: answer.to_string() }),
        }
    }

    /// Whether the machine has been handed over, to a file for example, and has not run since.
    ///
    /// # Errors
    /// As [`Qmp::call`].
    pub fn has_migrated(&mut self) -> Result<bool, QmpError> {
        Ok(self.call("query-status", &json!({}))?["status"] == "postmigrate")
    }

    /// Begins to hand the machine over.
    ///
    /// # Errors
    /// As [`Qmp::call`]; also where a device of the machine cannot be handed over.
    pub fn migrate(&mut self, to: &str) -> Result<(), QmpError> {
        // A file needs no consideration.
        self.call("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
        self.call("migrate", &json!({ "uri": to })).map(drop)
    }

    /// Waits until the machine is handed over, or taken over.
    ///
    /// # Errors
    /// As [`Qmp::call`]; also where that failed.
    pub fn await_migration(&mut self) -> Result<(), QmpError> {
        loop {
            let answer = self.call("query-migrate", &json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    let reason = answer["error-desc"].as_str().unwrap_or(status).to_owned();
                    return Err(QmpError::Refused { command: "migrate".to_owned(), reason });
                }
                _ => {}
            }
            if Instant::now() >= self.deadline {
                return Err(QmpError::Deadline(self.path.clone()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Stops handing the machine over, if that is under way.
    ///
    /// # Errors
    /// As [`Qmp::call`].
    pub fn cancel_migration(&mut self) -> Result<(), QmpError> {
        loop {
            let answer = self.call("query-migrate", &json!({}))?;
            match answer["status"].as_str() {
                None | Some("none" | "completed" | "failed" | "cancelled") => return Ok(()),
                Some("cancelling") => {}
                Some(_) => self.call("migrate_cancel", &json!({})).map(drop)?,
            }
            if Instant::now() >= self.deadline {
                return Err(QmpError::Deadline(self.path.clone()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Presses Ctrl-Alt-Del, with which a machine without anything installed is asked to
    /// end: its first process gets a signal.
    ///
    /// # Errors
    /// As [`Qmp::call`].
    pub fn ask_to_end(&mut self) -> Result<(), QmpError> {
        let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
        self.call("send-key", &json!({ "keys": keys })).map(|_nothing| ())
    }

    fn send(&self, mut rest: &[u8]) -> Result<(), QmpError> {
        let at = |source: io::Error| QmpError::Io { path: self.path.clone(), source };
        while !rest.is_empty() {
            if !wait::ready(&self.socket, PollFlags::OUT, self.deadline).map_err(at)? {
                return Err(QmpError::Deadline(self.path.clone()));
            }
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                sent => rest = &rest[sent.map_err(|errno| at(errno.into()))?..],
            }
        }
        Ok(())
    }

    /// The next line, as JSON.
    fn line(&mut self) -> Result<Value, QmpError> {
        let at = |source: io::Error| QmpError::Io { path: self.path.clone(), source };
        let mut buffer = [0; 4096];
        let end = loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if self.rest.len() > ANSWER_BYTES {
                return Err(at(io::Error::new(io::ErrorKind::FileTooLarge, "it is too long")));
            }
            if !wait::ready(&self.socket, PollFlags::IN, self.deadline).map_err(at)? {
                return Err(QmpError::Deadline(self.path.clone()));
            }
            match rustix::io::read(&self.socket, &mut buffer) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(0) => return Err(at(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => self.rest.extend_from_slice(&buffer[..length]),
                Err(errno) => return Err(at(errno.into())),
            }
        };
        let line: Vec<u8> = self.rest.drain(..=end).collect();
        serde_json::from_slice(&line).map_err(|_| QmpError::Answer {
            path: self.path.clone(),
            text: String::from_utf8_lossy(&line).trim_end().chars().take(200).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// Answers each line that comes with the next of `answers`; returns what came.
    fn with_answers<T>(
        answers: &'static [&'static str],
        talk: impl FnOnce(&Path) -> T,
    ) -> (T, Vec<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("bound");
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            writeln!(socket, "{GREETING}").expect("sent");
            let lines = BufReader::new(socket.try_clone().expect("a copy")).lines();
            let mut heard = Vec::new();
            for (line, answer) in lines.map_while(Result::ok).zip(answers) {
                heard.push(line);
                socket.write_all(answer.as_bytes()).expect("sent");
            }
            heard
        });
        let result = talk(&path);
        (result, server.join().expect("no panic"))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_command_gets_its_answer_past_what_is_told_in_between() {
        let answers = &[
            "{\"return\": {}}\n",
            "{\"event\": \"RESUME\", \"timestamp\": {}}\n{\"return\": {\"status\": \"paused\"}}\n",
            "{\"return\": {}}\n",
        ];
        let (activity, heard) = with_answers(answers, |path| {
            let mut qmp = Qmp::connect(path, soon()).expect("connected");
            let activity = qmp.activity().expect("an answer");
            qmp.ask_to_end().expect("an answer");
            activity
        });
        assert_eq!(activity, Activity::Paused);
        assert!(heard[0].contains("qmp_capabilities") && heard[1].contains("query-status"));
        assert!(heard[2].contains("\"data\":\"delete\""), "{heard:?}");
    }

    #[test]
    fn refusals_and_nonsense_are_told() {
        let refusal = &["{\"return\": {}}\n", "{\"error\": {\"desc\": \"no such thing\"}}\n"];
        let (told, _) = with_answers(refusal, |path| {
            Qmp::connect(path, soon()).and_then(|mut qmp| qmp.call("x", &json!({})))
        });
        assert_eq!(told.expect_err("refused").to_string(), "QEMU refuses x: no such thing");
        let (told, _) = with_answers(&["no JSON\n"], |path| Qmp::connect(path, soon()).err());
        assert!(matches!(told, Some(QmpError::Answer { .. })), "{told:?}");
    }

    #[test]
    fn who_does_not_answer_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp");
        let absent = Qmp::connect(&path, soon()).err();
        assert!(matches!(absent, Some(QmpError::Io { .. })), "{absent:?}");
        let _silent = UnixListener::bind(&path).expect("bound");
        let silent = Qmp::connect(&path, Instant::now() + Duration::from_millis(50)).err();
        assert!(matches!(silent, Some(QmpError::Deadline(_))), "{silent:?}");
    }
}
