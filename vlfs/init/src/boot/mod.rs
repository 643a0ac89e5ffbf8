//! The first process of a boot environment: from a bare kernel to the appliance.
//!
//! ```text
//! kernel file systems → modules → network, where a share is on it → store → reports → address and link → private disk
//!   → VLFS → the appliance's own first program, or the services of its tree
//! ```
//!
//! This program is then `/init` of the initramfs that `strata boot build` made
//! (`docs/boot.md`). What is missing is told on the console and, as soon as it can be,
//! in the VA's report, and waited for ever longer: a file server may come up after its
//! machines, and a VA may be provisioned while its machine waits. Nothing here knows
//! of the namespaces of a VA without a hypervisor, and nothing there of this.

pub mod clock;
mod disk;
mod error;
mod identity;
mod modules;
mod mounts;
mod network;
mod options;
mod places;
pub mod services;
mod switch;
mod vlfs;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::system::RebootCommand;
use strata_core::MacAddr;
use strata_core::report::{self, Report, ServingState};
use strata_store::Store;

use error::BootError;
use options::Options;
use switch::{First, Processes};

use crate::error::Context;

/// Devices come up in this time; what is missing longer is told.
const TOLD_AFTER: Duration = Duration::from_secs(1);
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long a last message stays on the console.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whether this process is the first one of a boot environment.
pub fn is_asked_for(program: Option<&std::ffi::OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name());
    rustix::process::getpid().is_init() && name.is_some_and(|name| name == "init")
}

/// Boots the appliance. Switches the machine off where that is given up.
pub fn run() -> ! {
    let mut machine = Machine::new();
    let error = match machine.boot() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    console(&error.to_string());
    machine.report(&error);
    console("giving up: the machine is switched off");
    std::thread::sleep(LAST_WORDS);
    if let Err(error) = switch_off() {
        console(&error.to_string());
    }
    // The kernel panics when its first process ends.
    loop {
        std::thread::sleep(LONGEST_WAIT);
    }
}

/// One message to whoever looks at the machine.
fn console(message: &str) {
    // With a closed console there is nobody to tell.
    let _nobody = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("strata: {message}\n").as_bytes(),
    );
}

/// Ends the machine, with everything on disk.
fn switch_off() -> Result<(), BootError> {
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::PowerOff).context("switch off", "the machine")?;
    Ok(())
}

/// What never is: the appliance has taken over.
enum Never {}

/// What is known of the machine so far.
struct Machine {
    started: SystemTime,
    begun: Instant,
    give_up: Option<Duration>,
    mac: Option<MacAddr>,
    /// Where reports go, once there is such a place.
    reports: Option<PathBuf>,
    /// Holds that place where its path leads elsewhere by now.
    place: Option<File>,
}

impl Machine {
    fn new() -> Self {
        let (started, begun) = (SystemTime::now(), Instant::now());
        Machine { started, begun, give_up: None, mac: None, reports: None, place: None }
    }

    fn boot(&mut self) -> Result<Never, BootError> {
        mounts::kernel_file_systems()?;
        let path = Path::new("/proc/cmdline");
        let line = std::fs::read_to_string(path)
            .map_err(|source| BootError::Read { path: path.to_owned(), source })?;
        let options = Options::parse(&line)?;
        self.give_up = options.give_up;
        if let Some(hostname) = &options.hostname {
            rustix::system::sethostname(hostname.as_bytes()).context("set", "the host name")?;
        }
        let lists = [places::MODULE_ORDER, places::NFS_MODULE_ORDER];
        for list in &lists[..if options.need_network() { 2 } else { 1 }] {
            for refused in modules::load(Path::new(places::MODULES), list)? {
                console(&format!("a kernel module was not loaded: {refused}"));
            }
        }
        if options.need_network() {
            self.wait_for("the network", || {
                network::bring_up(&options, &identity::interfaces(Path::new("/sys"))?)
            })?;
        }
        self.wait_for("the store", || mounts::share(&options.store, places::STORE, false))?;
        if let Some(reports) = &options.reports {
            self.wait_for("the place of reports", || {
                mounts::share(reports, places::REPORTS, true)
            })?;
            self.reports = Some(places::REPORTS.into());
        }
        let mac = self.find_mac(&options)?;
        self.mac = Some(mac);
        self.wait_for("the private disk", || {
            let disks = disk::disks(Path::new("/sys"), Path::new("/dev"))?;
            mounts::disk(&disk::choose(&disks, options.disk.as_deref(), mac)?)
        })?;
        let reports = self.reports.take().unwrap_or_else(|| places::OWN_REPORTS.into());
        std::fs::create_dir_all(&reports)
            .map_err(|source| BootError::Read { path: reports.clone(), source })?;
        self.reports = Some(reports.clone());
        let daemon = self.wait_for("the VLFS", || vlfs::mount(mac, &reports))?;
        let first = switch::first_program(Path::new(places::ROOT), options.init.as_deref())?;
        self.start(&first, daemon, &reports)
    }

    /// The address of the machine that has a generation in the store. Where only one
    /// could be, it is known for reports before its VA is there.
    fn find_mac(&mut self, options: &Options) -> Result<MacAddr, BootError> {
        let identity = options.identity.clone();
        let mut only = None;
        let (begun, give_up) = (self.begun, self.give_up);
        let mut patience = Patience::new(begun, give_up);
        loop {
            let found = identity::interfaces(Path::new("/sys")).and_then(|interfaces| {
                if let [interface] = interfaces.as_slice() {
                    only = Some(interface.mac);
                }
                if let options::Identity::Mac(mac) = &identity {
                    only = Some(*mac);
                }
                let store = Store::open(Path::new(places::STORE))?;
                identity::choose(&identity, &interfaces, |mac| Ok(store.desired(mac)?.is_some()))
            });
            self.mac = only;
            match found {
                Ok(mac) => return Ok(mac),
                Err(error) => self.endure(&mut patience, "the VA of this machine", error)?,
            }
        }
    }

    /// Tries until it is done, ever later, and tells what is missing.
    fn wait_for<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, BootError>,
    ) -> Result<T, BootError> {
        let mut patience = Patience::new(self.begun, self.give_up);
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => self.endure(&mut patience, what, error)?,
            }
        }
    }

    fn endure(
        &self,
        patience: &mut Patience,
        what: &str,
        error: BootError,
    ) -> Result<(), BootError> {
        let Some(wait) = patience.next(error.may_pass()) else { return Err(error) };
        if wait >= TOLD_AFTER {
            console(&format!("{what}: {error}"));
            console(&format!("next try in {wait:?}"));
            self.report(&error);
        }
        std::thread::sleep(wait);
        Ok(())
    }

    /// Hands the machine over to the appliance.
    fn start(&mut self, first: &First, daemon: Child, reports: &Path) -> Result<Never, BootError> {
        clock::start();
        match first {
            First::Program(program) => {
                // Should the program not run, its VA's report is past the new root.
                let place = File::open(reports)
                    .map_err(|source| BootError::Read { path: reports.to_owned(), source })?;
                self.reports = Some(format!("/proc/self/fd/{}", place.as_raw_fd()).into());
                self.place = Some(place);
                switch::enter(Path::new(places::ROOT), Processes::Same)?;
                Err(switch::become_program(program))
            }
            First::Services => {
                services::supervise(daemon)?;
                // Switched off: this is not reached.
                loop {
                    std::thread::sleep(LONGEST_WAIT);
                }
            }
        }
    }

    /// Says in the VA's report why it does not come up, once there is a place for it.
    fn report(&self, error: &BootError) {
        let (Some(mac), Some(reports)) = (self.mac, &self.reports) else { return };
        let milliseconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let report = Report {
            version: report::VERSION,
            mac,
            state: ServingState::Failed,
            generation: None,
            composition: None,
            layers: 0,
            desired: None,
            error: Some(error.to_string()),
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            mount_point: places::ROOT.to_owned(),
            swaps: 0,
            started_at_ms: milliseconds(self.started),
            written_at_ms: milliseconds(SystemTime::now()),
            interval_s: u32::try_from(LONGEST_WAIT.as_secs()).unwrap_or(u32::MAX),
            scripts: None,
        };
        if let Err(error) = strata_store::write_report(reports, &report) {
            console(&format!("the report cannot be written: {error}"));
        }
    }
}

/// How long to wait before the next try, and whether there is one.
#[derive(Debug)]
struct Patience {
    begun: Instant,
    give_up: Option<Duration>,
    wait: Duration,
}

impl Patience {
    fn new(begun: Instant, give_up: Option<Duration>) -> Self {
        Patience { begun, give_up, wait: SHORTEST_WAIT }
    }

    /// `None` when there is no further try.
    fn next(&mut self, may_pass: bool) -> Option<Duration> {
        let given_up = self.give_up.is_some_and(|limit| self.begun.elapsed() >= limit);
        if !may_pass || given_up {
            return None;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_ever_later_and_end_when_they_should() {
        let mut patience = Patience::new(Instant::now(), None);
        let waits: Vec<_> = (0..11).map_while(|_| patience.next(true)).collect();
        let milliseconds: Vec<_> = waits.iter().map(Duration::as_millis).collect();
        let expected = [50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000];
        assert_eq!(milliseconds, expected);
        assert_eq!(patience.next(false), None, "what waiting does not mend ends at once");
        let mut hurried = Patience::new(Instant::now(), Some(Duration::ZERO));
        assert_eq!(hurried.next(true), None);
    }

    #[test]
    fn only_the_first_process_of_a_machine_boots_one() {
        // This process has another number.
        assert!(!is_asked_for(Some("/init".as_ref())));
    }
}
