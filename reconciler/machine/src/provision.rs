//! Provisioning VAs (§4.3): a record and a link, nothing copied.
//!
//! The directory `machines/<name>` claims the name and the link `va/<mac>` the
//! address, each with one system call that lets one of two commands win. The link
//! comes last: a record without one is a VA by halves, which the same command
//! completes when it is given again. One lock over the store keeps one command's
//! halves from being another's (`registry`).
//!
//! The VAs that a commit declares have their link from the reconciler; whoever
//! names the address of one and what its link names gives it its record.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_core::rollout::policy::base_ring;
use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_store::{StoreError, VaTarget};

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::record::{self, Driver, RecordError, VaRecord};

/// The ring of whoever does not care.
const COMMON_RING: &str = "everyone";
/// From this many on, one sync of the file system is cheaper than one a file.
const BATCH: usize = 8;
/// Digits of a number in a name.
const DIGITS: usize = 4;
/// VAs of one command.
const COUNT_LIMIT: u32 = 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    #[error("there is a VA {0} already")]
    Exists(VaName),
    #[error("the MAC address {mac} belongs to {}", owner.as_ref().map_or("a VA without a record", VaName::as_str))]
    MacTaken { mac: MacAddr, owner: Option<VaName> },
    #[error("a commit declares the VA of {mac}, which follows {}", place(target))]
    Linked { mac: MacAddr, target: VaTarget },
    #[error("a commit declares a VA {name}, with the MAC address {mac}")]
    Declared { name: VaName, mac: MacAddr },
    #[error(
        "the template {composition} has not been rolled out to the ring {ring}{}",
        listed(available)
    )]
    NoRing { composition: CompositionName, ring: RingName, available: Vec<RingName> },
    #[error("the template {0} has not been rolled out to any ring")]
    NoTemplate(CompositionName),
    #[error("the template {composition} is in several rings{}", listed(available))]
    WhichRing { composition: CompositionName, available: Vec<RingName> },
    #[error("{0} VAs are more than one command makes (limit {COUNT_LIMIT})")]
    TooMany(u32),
    #[error("a name is {0:?}: {1}")]
    Name(String, strata_core::names::NameError),
    #[error("another command has been changing which VAs there are for {0:?}")]
    Busy(Duration),
    #[error("the private layer {0} is in use: the VA runs on another host")]
    InUse(PathBuf),
    #[error("another command is cloning a VA to the name {0}")]
    Cloning(VaName),
    #[error("the private layer {path} cannot be copied: {reason}")]
    Copy { path: PathBuf, reason: String },
    #[error("the record cannot be written: {0}")]
    Record(#[from] RecordError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn place(target: &VaTarget) -> String {
    match target {
        VaTarget::Ring { composition, ring } => format!("{composition} in the ring {ring}"),
        VaTarget::Pinned { composition, generation } => {
            format!("{composition} pinned to {}", generation.short())
        }
    }
}

fn listed(rings: &[RingName]) -> String {
    let names: Vec<&str> = rings.iter().map(RingName::as_str).collect();
    if names.is_empty() { String::new() } else { format!("; its rings: {}", names.join(", ")) }
}

/// Where a VA's link leads when no batch of its ring is under way (`docs/rollouts.md`,
/// "Batches").
#[must_use]
pub fn without_batch(target: VaTarget) -> VaTarget {
    match target {
        VaTarget::Ring { composition, ring } => {
            VaTarget::Ring { composition, ring: base_ring(&ring).0 }
        }
        VaTarget::Pinned { .. } => target,
    }
}

/// What to provision.
#[derive(Debug, Clone)]
pub struct ProvisionRequest {
    pub composition: CompositionName,
    /// The ring `everyone` or the only one where none is given.
    pub ring: Option<RingName>,
    /// Random where none is given; only for one VA.
    pub mac: Option<MacAddr>,
    /// The VA's name; with `count` (or without a name: of the template) the
    /// beginning of names that go on with a number.
    pub name: Option<VaName>,
    pub count: Option<u32>,
    pub driver: Driver,
    /// Only for one VA.
    pub private: Option<PathBuf>,
}

/// What was provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    pub record: VaRecord,
    /// An earlier command had left it by halves.
    pub completed: bool,
}

impl Machines<'_> {
    /// Provisions VAs; all are durable when it returns. `progress` hears the steps
    /// done and those there are, two for each VA.
    ///
    /// # Errors
    /// The template has no generation in the ring, a name or address is taken, or
    /// the store cannot be written. VAs by halves are completed by the next
    /// command for their names.
    pub fn provision(
        &self,
        request: &ProvisionRequest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<Provisioned>, ProvisionError> {
        let count = request.count.unwrap_or(1);
        if count > COUNT_LIMIT {
            return Err(ProvisionError::TooMany(count));
        }
        let ring = self.choose_ring(&request.composition, request.ring.as_ref())?;
        let _lock = self.registry_lock()?;
        self.sweep()?;
        let target =
            VaTarget::Ring { composition: request.composition.clone(), ring: ring.clone() };
        if let Some(mac) = request.mac {
            self.refuse_taken(mac, request.name.as_ref(), &target)?;
        }
        let names = self.choose_names(request, count)?;
        let batch = names.len() >= BATCH;
        let (mut done, steps) = (0, 2 * names.len() as u64);
        let mut step = || {
            done += 1;
            progress(done, steps);
        };
        let mut entropy = Entropy::open()?;
        let mut provisioned = Vec::with_capacity(names.len());
        for name in names {
            let record = VaRecord {
                version: record::VERSION,
                name,
                mac: match request.mac {
                    Some(mac) => mac,
                    None => entropy.mac()?,
                },
                composition: request.composition.clone(),
                ring: ring.clone(),
                driver: request.driver,
                private: request.private.clone().unwrap_or_else(|| request.driver.private()),
            };
            provisioned.push(self.claim_name(record, batch)?);
            step();
        }
        self.settle(batch, &self.store().machines())?;
        for va in &mut provisioned {
            self.claim_address(va, &target, request.mac, &mut entropy)?;
            step();
        }
        self.settle(batch, &self.store().root().join("va"))?;
        Ok(provisioned)
    }

    /// The ring that a new VA follows: the one `wanted`, or the one that goes without saying.
    pub(crate) fn choose_ring(
        &self,
        composition: &CompositionName,
        wanted: Option<&RingName>,
    ) -> Result<RingName, ProvisionError> {
        let composition = composition.clone();
        let mut available: Vec<RingName> = Vec::new();
        for (name, ring) in self.store().rings()?.into_keys() {
            if name == composition && !base_ring(&ring).1 {
                available.push(ring);
            }
        }
        let common = available.iter().find(|ring| ring.as_str() == COMMON_RING);
        match (wanted, common, available.as_slice()) {
            (_, _, []) => Err(ProvisionError::NoTemplate(composition)),
            (Some(ring), _, _) if available.contains(ring) => Ok(ring.clone()),
            (Some(ring), _, _) => {
                Err(ProvisionError::NoRing { composition, ring: ring.clone(), available })
            }
            (None, Some(common), _) => Ok(common.clone()),
            (None, None, [only]) => Ok(only.clone()),
            (None, None, _) => Err(ProvisionError::WhichRing { composition, available }),
        }
    }

    /// The names to provision: free ones, and those left by halves.
    fn choose_names(
        &self,
        request: &ProvisionRequest,
        count: u32,
    ) -> Result<Vec<VaName>, ProvisionError> {
        if let (Some(name), None) = (&request.name, request.count) {
            self.refuse_declared(name, request.mac)?;
            return Ok(vec![name.clone()]);
        }
        let base = request.name.as_ref().map_or(request.composition.as_str(), VaName::as_str);
        let present: BTreeSet<VaName> = self.names()?.into_iter().collect();
        let mut names = Vec::new();
        for number in 1_u64.. {
            if names.len() >= count as usize {
                break;
            }
            let text = format!("{base}-{number:0DIGITS$}");
            let name =
                VaName::new(text.as_str()).map_err(|error| ProvisionError::Name(text, error))?;
            let is_free = match present.contains(&name) {
                false => true,
                true => match self.is_half(&name) {
                    // Whose record is damaged has its name all the same.
                    Err(ProvisionError::Machine(MachineError::Record { .. })) => false,
                    is_half => is_half?,
                },
            };
            if is_free && self.declared(&name).is_none() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Whether a name's directory is what an interrupted command left.
    fn is_half(&self, name: &VaName) -> Result<bool, ProvisionError> {
        Ok(self.present(name)? != Present::Whole)
    }

    /// What stands in the place of a name.
    fn present(&self, name: &VaName) -> Result<Present, ProvisionError> {
        let path = self.directory(name).join("va.json");
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
            // Power was lost before it was on disk.
            Ok(metadata) if metadata.len() == 0 => return Ok(Present::Nothing),
            result => result.at("stat", &path)?,
        };
        let record = self.record(name)?;
        Ok(match self.store().va_target(record.mac) {
            // Somebody put something else in the place of its link.
            Err(error) if error.is_foreign_link() => Present::Whole,
            target => match target? {
                Some(_) => Present::Whole,
                None => Present::Half,
            },
        })
    }

    /// Makes the directory and the record of a VA, or takes over a half.
    fn claim_name(&self, record: VaRecord, batch: bool) -> Result<Provisioned, ProvisionError> {
        let directory = self.directory(&record.name);
        let path = directory.join("va.json");
        let disk = self.store().disk();
        let made = match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            result => result.at("create", &directory).map(|()| true)?,
        };
        if made && batch {
            disk.create_file(&path, record.print()?.as_bytes(), 0o644)?;
            return Ok(Provisioned { record, completed: false });
        }
        if !made && !self.is_half(&record.name)? {
            return Err(ProvisionError::Exists(record.name));
        }
        disk.write_file(&path, record.print()?.as_bytes(), 0o644)?;
        Ok(Provisioned { record, completed: !made })
    }

    /// Makes the link that brings the VA to life.
    pub(crate) fn claim_address(
        &self,
        va: &mut Provisioned,
        target: &VaTarget,
        wanted: Option<MacAddr>,
        entropy: &mut Entropy,
    ) -> Result<(), ProvisionError> {
        loop {
            match (self.store().claim_va(va.record.mac, target), wanted) {
                (Ok(()), _) => return Ok(()),
                (Err(StoreError::MacTaken(_)), None) => {
                    va.record.mac = entropy.mac()?;
                    let path = self.directory(&va.record.name).join("va.json");
                    self.store().disk().write_file(&path, va.record.print()?.as_bytes(), 0o644)?;
                }
                (Err(StoreError::MacTaken(mac)), Some(_)) => {
                    // No other record has the address: it was looked for under the lock.
                    let found = self.store().va_target(mac)?.map(without_batch);
                    if found.as_ref() == Some(target) {
                        return Ok(());
                    }
                    let directory = self.directory(&va.record.name);
                    fs::remove_dir_all(&directory).at("remove", &directory)?;
                    return Err(found
                        .map_or(ProvisionError::MacTaken { mac, owner: None }, |target| {
                            ProvisionError::Linked { mac, target }
                        }));
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
    }

    /// A name that a commit gives to the VA of one address is no other's.
    pub(crate) fn refuse_declared(
        &self,
        name: &VaName,
        mac: Option<MacAddr>,
    ) -> Result<(), ProvisionError> {
        match self.declared(name) {
            Some(declared) if mac != Some(declared) => {
                Err(ProvisionError::Declared { name: name.clone(), mac: declared })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// An address is taken by a record, or by a declared VA that follows another target.
    pub(crate) fn refuse_taken(
        &self,
        mac: MacAddr,
        name: Option<&VaName>,
        wanted: &VaTarget,
    ) -> Result<(), ProvisionError> {
        let target = self.store().va_target(mac)?.map(without_batch);
        let Some(target) = target else { return Ok(()) };
        match self.find(mac)?.map(|record| record.name) {
            Some(owner) if Some(&owner) == name => Err(ProvisionError::Exists(owner)),
            Some(owner) => Err(ProvisionError::MacTaken { mac, owner: Some(owner) }),
            None if target == *wanted => Ok(()),
            None => Err(ProvisionError::Linked { mac, target }),
        }
    }

    pub(crate) fn settle(&self, batch: bool, directory: &Path) -> Result<(), ProvisionError> {
        if batch {
            self.store().sync()?;
        } else {
            self.store().disk().sync_directory(directory)?;
        }
        Ok(())
    }
}

/// What stands in the place of a VA.
#[derive(PartialEq, Eq)]
enum Present {
    /// A directory at most.
    Nothing,
    /// A record without a link.
    Half,
    Whole,
}

/// Random addresses.
pub(crate) struct Entropy(File);

impl Entropy {
    pub(crate) fn open() -> Result<Self, MachineError> {
        let path = Path::new("/dev/urandom");
        File::open(path).map(Entropy).at("open", path)
    }

    pub(crate) fn mac(&mut self) -> Result<MacAddr, MachineError> {
        let mut bits = [0; 6];
        self.0.read_exact(&mut bits).at("read", Path::new("/dev/urandom"))?;
        Ok(MacAddr::locally_administered(bits))
    }
}
