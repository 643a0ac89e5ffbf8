//! Runs the health checks of templates (`templates/<name>.health`).
//!
//! A few threads do the asking ([`queue`]), as a VA may answer late or never; the owner
//! of a [`Prober`] hands out work and picks up answers, and waits for neither. Commands
//! run in VAs of this host only: the machine layer reaches no other.

mod queue;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use strata_core::health_checks::{HealthCheck, Probe};
use strata_core::printable::printable;
use strata_core::rollout::health::CheckOutcome;
use strata_core::{CompositionName, GenerationId, MacAddr};
use strata_machine::{Machines, Programs, VaRecord};
use strata_store::Store;

use crate::child::{self, Bounds};
use crate::rollout::Checks;
use queue::{Job, Queue, Told};

/// An answer is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// What was not asked for again in this time is forgotten with the next commit.
const FORGET: Duration = Duration::from_secs(600);
/// The longest that anybody waits for all answers.
const LONGEST_WAIT: Duration = Duration::from_secs(900);
const CANCEL_POLL: Duration = Duration::from_millis(100);
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

/// A VA with one generation.
type Key = (MacAddr, GenerationId);

#[derive(Debug)]
struct Entry {
    composition: CompositionName,
    outcome: CheckOutcome,
    /// When it was last asked, or put in the line for that.
    asked: Instant,
    /// The question under way.
    ticket: Option<u64>,
}

#[derive(Debug)]
pub struct Prober {
    store: Arc<Store>,
    programs: Option<Programs>,
    list: Arc<CheckList>,
    entries: HashMap<Key, Entry>,
    /// Questions that were not answered yet and are still of interest.
    open: HashMap<u64, Key>,
    next_ticket: u64,
    queue: Queue,
    told: Receiver<Told>,
}

impl Prober {
    /// `programs`: what commands in VAs are run with.
    pub fn new(store: Arc<Store>, programs: Option<Programs>) -> Self {
        let (teller, told) = channel();
        Prober {
            store,
            programs,
            list: Arc::default(),
            entries: HashMap::new(),
            open: HashMap::new(),
            next_ticket: 0,
            queue: Queue::new(teller),
            told,
        }
    }

    /// Takes over the checks of another commit. Answers to questions that it does not
    /// ask otherwise hold on.
    pub fn use_list(&mut self, list: &Arc<CheckList>) {
        if Arc::ptr_eq(&self.list, list) {
            return;
        }
        let former = std::mem::replace(&mut self.list, list.clone());
        self.entries.retain(|(mac, _), entry| {
            former.checks.get(&entry.composition) == list.checks.get(&entry.composition)
                && former.labels.get(mac) == list.labels.get(mac)
                && (entry.ticket.is_some() || entry.asked.elapsed() < FORGET)
        });
        let entries = &self.entries;
        self.open.retain(|ticket, key| {
            entries.get(key).is_some_and(|entry| entry.ticket == Some(*ticket))
        });
        self.queue.keep(&self.open.keys().copied().collect::<BTreeSet<_>>());
    }

    fn pick_up(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            self.hear(told);
        }
    }

    fn hear(&mut self, told: Told) {
        let ticket = match &told {
            Told::Begun(ticket) | Told::Answered(ticket, _) => *ticket,
        };
        // Nobody asks this any more.
        let Some(key) = self.open.get(&ticket).copied() else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        match told {
            Told::Begun(_) => {
                entry.asked = Instant::now();
                if entry.outcome == CheckOutcome::Queued {
                    entry.outcome = CheckOutcome::UnderWay;
                }
            }
            Told::Answered(_, answer) => {
                entry.ticket = None;
                entry.outcome = match answer {
                    Ok(()) => CheckOutcome::Passed,
                    Err(why) => CheckOutcome::Failed(why),
                };
                self.open.remove(&ticket);
            }
        }
    }

    /// The checks of a VA, with its names and labels.
    fn checks_of(
        &self,
        checks: &[HealthCheck],
        mac: MacAddr,
        record: Option<&VaRecord>,
    ) -> Vec<HealthCheck> {
        let labels = self.list.labels.get(&mac);
        let address = mac.to_string();
        let value = |label: &str| match label {
            "mac" => Some(address.as_str()),
            "name" => record
                .map(|record| record.name.as_str())
                .or_else(|| labels?.get("name").map(String::as_str)),
            _ => labels?.get(label).map(String::as_str),
        };
        checks.iter().map(|check| check.for_va(value)).collect()
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
            .is_none_or(|entry| entry.ticket.is_none() && entry.asked.elapsed() > ASK_AGAIN);
        if due {
            let asked = Asked {
                checks: self.checks_of(checks, mac, record),
                record: record.cloned(),
                store: self.store.clone(),
                programs: self.programs.clone(),
            };
            let ticket = self.next_ticket;
            let work = move || asked.checks.iter().try_for_each(|check| run(check, &asked));
            let (composition, work) = (composition.clone(), Box::new(work));
            if self.queue.submit(Job { ticket, composition: composition.clone(), work }) {
                self.next_ticket += 1;
                let fresh = || Entry {
                    composition,
                    outcome: CheckOutcome::Queued,
                    asked: Instant::now(),
                    ticket: None,
                };
                self.entries.entry(key).or_insert_with(fresh).ticket = Some(ticket);
                self.open.insert(ticket, key);
            }
        }
        self.entries.get(&key).map_or(CheckOutcome::Queued, |entry| entry.outcome.clone())
    }

    fn wait(&mut self, cancelled: &AtomicBool) {
        let end = Instant::now() + LONGEST_WAIT;
        while !self.open.is_empty() && !cancelled.load(Ordering::Relaxed) {
            if Instant::now() > end {
                tracing::warn!(checks = self.open.len(), "not waiting longer for health checks");
                return;
            }
            match self.told.recv_timeout(CANCEL_POLL) {
                Ok(told) => self.hear(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// A VA that is asked.
struct Asked {
    checks: Vec<HealthCheck>,
    record: Option<VaRecord>,
    store: Arc<Store>,
    programs: Option<Programs>,
}

/// Tries a check until it passes or its tries are used up.
fn run(check: &HealthCheck, asked: &Asked) -> Result<(), String> {
    let mut tries = 0;
    loop {
        let deadline = Duration::from_millis(check.deadline_ms);
        let tried = match &check.probe {
            Probe::Command(words) => run_command(words, deadline, asked),
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

fn run_command(words: &[String], deadline: Duration, asked: &Asked) -> Result<(), String> {
    // A VA of another host is judged by its report and by the other checks.
    let Some(record) = &asked.record else { return Ok(()) };
    let programs = asked.programs.as_ref().ok_or("there is no strata-init beside strata")?;
    let machines = Machines::open(&asked.store).map_err(|error| error.to_string())?;
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
    let said = printable(said.trim());
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
            assert_eq!(ask(prober), CheckOutcome::Queued);
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                match ask(prober) {
                    CheckOutcome::Queued | CheckOutcome::UnderWay => {
                        assert!(Instant::now() < end, "no answer");
                    }
                    outcome => return outcome,
                }
                std::thread::yield_now();
            }
        };
        assert_eq!(settle(&mut prober, check), CheckOutcome::Passed);
        assert!(matches!(settle(&mut prober, failing), CheckOutcome::Failed(_)));
    }

    /// A prober with the templates `good` and `bad`, each with one check.
    fn two_templates(good: &str, bad: &str) -> (tempfile::TempDir, Prober, CheckList) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::init(directory.path()).expect("a store"));
        let check = |address: &str| HealthCheck {
            probe: Probe::Http(format!("http://{address}/")),
            deadline_ms: 60_000,
            retries: 0,
        };
        let name = |text: &str| text.parse().expect("valid");
        let checks = [(name("good"), vec![check(good)]), (name("bad"), vec![check(bad)])].into();
        let list = CheckList { checks, labels: BTreeMap::new() };
        (directory, Prober::new(store, None), list)
    }

    fn va(last: u8) -> MacAddr {
        MacAddr::locally_administered([2, 0, 0, 0, 0, last])
    }

    fn ask(prober: &mut Prober, composition: &str, last: u8) -> CheckOutcome {
        let generation = strata_core::Digest::of(composition.as_bytes());
        prober.outcome(&composition.parse().expect("valid"), va(last), None, generation)
    }

    #[test]
    fn a_template_whose_checks_hang_keeps_no_other_from_its_turn() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let silent_at = silent.local_addr().expect("bound").to_string();
        let (_directory, mut prober, list) = two_templates(&server(&["200"]), &silent_at);
        prober.use_list(&Arc::new(list));
        for last in 0..100 {
            assert_ne!(ask(&mut prober, "bad", last), CheckOutcome::Passed);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while ask(&mut prober, "good", 0) != CheckOutcome::Passed {
            assert!(Instant::now() < end, "it waits for those of the other template");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Time in the line is no time of the VA: it shows that it was not asked yet.
        assert_eq!(ask(&mut prober, "bad", 0), CheckOutcome::UnderWay);
        assert_eq!(ask(&mut prober, "bad", 99), CheckOutcome::Queued);
    }

    #[test]
    fn whoever_ends_soon_can_wait_for_the_answers() {
        let (_directory, mut prober, list) = two_templates(&server(&["200"]), "127.0.0.1:1");
        prober.use_list(&Arc::new(list));
        let (mut one, mut two) = (ask(&mut prober, "good", 0), ask(&mut prober, "bad", 0));
        assert_eq!((&one, &two), (&CheckOutcome::Queued, &CheckOutcome::Queued));
        prober.wait(&AtomicBool::new(false));
        (one, two) = (ask(&mut prober, "good", 0), ask(&mut prober, "bad", 0));
        assert_eq!(one, CheckOutcome::Passed);
        assert!(matches!(two, CheckOutcome::Failed(_)), "{two:?}");
    }

    #[test]
    fn a_commit_that_asks_the_same_keeps_the_answers() {
        let (_directory, mut prober, list) = two_templates(&server(&["200"]), "127.0.0.1:1");
        let mut other = CheckList { checks: list.checks.clone(), labels: BTreeMap::new() };
        other.checks.remove(&"bad".parse::<CompositionName>().expect("valid"));
        prober.use_list(&Arc::new(list));
        assert_eq!(ask(&mut prober, "good", 0), CheckOutcome::Queued);
        assert_eq!(ask(&mut prober, "bad", 0), CheckOutcome::Queued);
        prober.wait(&AtomicBool::new(false));
        prober.use_list(&Arc::new(other));
        assert_eq!(ask(&mut prober, "good", 0), CheckOutcome::Passed);
        assert_eq!(ask(&mut prober, "bad", 0), CheckOutcome::None);
    }
}
