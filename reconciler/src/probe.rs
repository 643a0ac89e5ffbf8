//! Runs the health checks of templates (`templates/<name>.health`).
//!
//! A few threads do the asking, as a VA may answer late or never; the owner of a
//! [`Prober`] hands out work and picks up answers, and waits for neither. Commands
//! run in VAs of this host only: the machine layer reaches no other.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strata_core::health_checks::{HealthCheck, Probe};
use strata_core::rollout::health::CheckOutcome;
use strata_core::{CompositionName, GenerationId, MacAddr};
use strata_machine::{Machines, Programs, VaRecord};
use strata_store::Store;

use crate::child::{self, Bounds};
use crate::rollout::Checks;

/// Checks that run at a time.
const THREADS: usize = 8;
/// VAs that may wait for a thread.
const QUEUE: usize = 4_096;
/// An answer is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of one file that a check may write.
const FILE_BYTES: u64 = 1 << 20;
/// Bytes of a reason.
const REASON_BYTES: usize = 500;

/// The checks of a commit.
#[derive(Debug, Default)]
pub struct CheckList {
    pub checks: BTreeMap<CompositionName, Vec<HealthCheck>>,
    /// Names and labels of declared VAs.
    pub labels: BTreeMap<MacAddr, BTreeMap<String, String>>,
}

struct Job {
    key: (MacAddr, GenerationId),
    checks: Vec<HealthCheck>,
    record: Option<VaRecord>,
    store: Arc<Store>,
    programs: Option<Programs>,
}

type Answer = ((MacAddr, GenerationId), Result<(), String>);

#[derive(Debug)]
struct Entry {
    outcome: CheckOutcome,
    asked: Instant,
    under_way: bool,
}

#[derive(Debug)]
pub struct Prober {
    store: Arc<Store>,
    programs: Option<Programs>,
    list: Arc<CheckList>,
    entries: HashMap<(MacAddr, GenerationId), Entry>,
    threads: Option<(SyncSender<Job>, Receiver<Answer>)>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Prober {
    /// `programs`: what commands in VAs are run with.
    pub fn new(store: Arc<Store>, programs: Option<Programs>) -> Self {
        let (list, entries) = (Arc::default(), HashMap::new());
        Prober { store, programs, list, entries, threads: None }
    }

    /// Takes over the checks of another commit.
    pub fn use_list(&mut self, list: &Arc<CheckList>) {
        if !Arc::ptr_eq(&self.list, list) {
            self.list = list.clone();
            self.entries.clear();
        }
    }

    fn pick_up(&mut self) {
        let Some((_, answers)) = &self.threads else { return };
        for (key, answer) in answers.try_iter() {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.under_way = false;
                entry.outcome = match answer {
                    Ok(()) => CheckOutcome::Passed,
                    Err(why) => CheckOutcome::Failed(why),
                };
            }
        }
    }

    fn submit(&mut self, job: Job) -> bool {
        let (jobs, _) = self.threads.get_or_insert_with(start);
        match jobs.try_send(job) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Checks for Prober {
    fn outcome(
        &mut self,
        composition: &CompositionName,
        mac: MacAddr,
        record: Option<&VaRecord>,
        generation: GenerationId,
    ) -> CheckOutcome {
        let list = self.list.clone();
        let Some(checks) = list.checks.get(composition) else { return CheckOutcome::None };
        self.pick_up();
        let key = (mac, generation);
        let due = self
            .entries
            .get(&key)
            .is_none_or(|entry| !entry.under_way && entry.asked.elapsed() > ASK_AGAIN);
        if due {
            let labels = list.labels.get(&mac);
            let address = mac.to_string();
            let value = |label: &str| match label {
                "mac" => Some(address.as_str()),
                "name" => record
                    .map(|record| record.name.as_str())
                    .or_else(|| labels?.get("name").map(String::as_str)),
                _ => labels?.get(label).map(String::as_str),
            };
            let checks = checks.iter().map(|check| check.for_va(value)).collect();
            let (store, programs) = (self.store.clone(), self.programs.clone());
            let job = Job { key, checks, record: record.cloned(), store, programs };
            if self.submit(job) {
                let asked = Instant::now();
                let fresh = Entry { outcome: CheckOutcome::UnderWay, asked, under_way: true };
                let entry = self.entries.entry(key).or_insert(fresh);
                (entry.asked, entry.under_way) = (asked, true);
            }
        }
        self.entries.get(&key).map_or(CheckOutcome::UnderWay, |entry| entry.outcome.clone())
    }
}

fn start() -> (SyncSender<Job>, Receiver<Answer>) {
    let (jobs, queue) = sync_channel::<Job>(QUEUE);
    let (answers, answered) = channel();
    let queue = Arc::new(Mutex::new(queue));
    for number in 0..THREADS {
        let (queue, answers) = (queue.clone(), answers.clone());
        let work = move || work(&queue, &answers);
        let started = std::thread::Builder::new().name(format!("probe-{number}")).spawn(work);
        if let Err(error) = started {
            tracing::error!(%error, "no thread for health checks");
        }
    }
    (jobs, answered)
}

/// Ends when the prober is gone.
fn work(queue: &Mutex<Receiver<Job>>, answers: &Sender<Answer>) {
    loop {
        let job = queue.lock().expect("no panic while held").recv();
        let Ok(job) = job else { return };
        let answer = job.checks.iter().try_for_each(|check| run(check, &job));
        if answers.send((job.key, answer)).is_err() {
            return;
        }
    }
}

/// Tries a check until it passes or its tries are used up.
fn run(check: &HealthCheck, job: &Job) -> Result<(), String> {
    let mut tries = 0;
    loop {
        let deadline = Duration::from_millis(check.deadline_ms);
        let tried = match &check.probe {
            Probe::Command(words) => run_command(words, deadline, job),
            Probe::Http(url) => ask_http(url, deadline),
            Probe::Tcp(address) => connect(address, deadline),
        };
        match tried {
            Err(_) if tries < check.retries => {
                tries += 1;
                std::thread::sleep(RETRY);
            }
            tried => {
                return tried.map_err(|why| {
                    let mut text = format!("{}: {why}", check.probe);
                    let mut ends = (0..=REASON_BYTES.min(text.len())).rev();
                    let end = ends.find(|end| text.is_char_boundary(*end));
                    text.truncate(end.unwrap_or(0));
                    text
                });
            }
        }
    }
}

fn run_command(words: &[String], deadline: Duration, job: &Job) -> Result<(), String> {
    // A VA of another host is judged by its report and by the other checks.
    let Some(record) = &job.record else { return Ok(()) };
    let programs = job.programs.as_ref().ok_or("there is no strata-init beside strata")?;
    let machines = Machines::open(&job.store).map_err(|error| error.to_string())?;
    let words: Vec<_> = words.iter().map(Into::into).collect();
    let mut command =
        machines.exec(&record.name, &words, programs).map_err(|error| error.to_string())?;
    let cancelled = AtomicBool::new(false);
    let bounds = Bounds { deadline, file_bytes: FILE_BYTES, cancelled: &cancelled };
    let ended = child::run(command.command(), bounds).map_err(|error| error.to_string())?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let said: String = said.trim().chars().filter(|c| !c.is_control()).collect();
    Err(format!("{}{}{said}", ended.status, if said.is_empty() { "" } else { ": " }))
}

fn ask_http(url: &str, deadline: Duration) -> Result<(), String> {
    let configuration = ureq::Agent::config_builder()
        .timeout_global(Some(deadline))
        .max_redirects(0)
        .http_status_as_error(false)
        .build();
    let answer = ureq::Agent::from(configuration).get(url).call();
    let status = answer.map_err(|error| error.to_string())?.status();
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(format!("status {status}")),
    }
}

fn connect(address: &str, deadline: Duration) -> Result<(), String> {
    let resolved = address.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in resolved {
        match TcpStream::connect_timeout(&address, deadline) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers each request with a status from `statuses`; then nobody listens.
    fn server(statuses: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        std::thread::spawn(move || {
            for status in statuses {
                let (mut stream, _) = listener.accept().expect("a client");
                let _asked = stream.read(&mut [0; 4096]);
                let text = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                // A client that is content with the connection is gone by now.
                let _answered = stream.write_all(text.as_bytes());
            }
        });
        address
    }

    #[test]
    fn http_and_tcp() {
        let second = Duration::from_secs(5);
        let address = server(&["200", "302", "500", "", ""]);
        let url = format!("http://{address}/healthz");
        assert_eq!(ask_http(&url, second), Ok(()));
        assert_eq!(ask_http(&url, second), Ok(()), "a redirection is an answer");
        assert!(ask_http(&url, second).is_err_and(|why| why.contains("500")));
        assert!(ask_http(&url, second).is_err(), "no HTTP at all");
        assert_eq!(connect(&address, second), Ok(()));
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        assert!(connect(&closed.to_string(), second).is_err());
        assert!(connect("no.such.host.invalid:1", second).is_err());
        // Nobody ever answers here.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", silent.local_addr().expect("bound"));
        assert!(ask_http(&url, Duration::from_millis(50)).is_err());
    }

    #[test]
    fn a_va_is_asked_once_for_each_generation_and_waited_for_by_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::init(directory.path()).expect("a store"));
        let mut prober = Prober::new(store, None);
        let web: CompositionName = "web".parse().expect("valid");
        let mac = "52:54:00:00:00:01".parse().expect("valid");
        let generation = strata_core::Digest::of(b"one");
        let ask = |prober: &mut Prober| prober.outcome(&web, mac, None, generation);
        assert_eq!(ask(&mut prober), CheckOutcome::None);
        let address = server(&["200", "200"]);
        let check = HealthCheck {
            probe: Probe::Http(format!("http://{address}/{{name}}")),
            deadline_ms: 5_000,
            retries: 0,
        };
        let failing = HealthCheck { probe: Probe::Tcp("{gone}:1".to_owned()), ..check.clone() };
        let list = |check| CheckList {
            checks: [(web.clone(), vec![check])].into(),
            labels: [(mac, [("name".to_owned(), "web-1".to_owned())].into())].into(),
        };
        let settle = |prober: &mut Prober, check| {
            prober.use_list(&Arc::new(list(check)));
            assert_eq!(ask(prober), CheckOutcome::UnderWay);
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                match ask(prober) {
                    CheckOutcome::UnderWay => assert!(Instant::now() < end, "no answer"),
                    outcome => return outcome,
                }
                std::thread::yield_now();
            }
        };
        assert_eq!(settle(&mut prober, check), CheckOutcome::Passed);
        assert!(matches!(settle(&mut prober, failing), CheckOutcome::Failed(_)));
    }
}
