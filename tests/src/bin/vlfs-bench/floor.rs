//! The kernel's floor: round trips to a FUSE server that does nothing.
//!
//! One thread that answers, and no file system behind it: what a `stat` and an
//! open cost here, none behind `/dev/fuse` can go below on this machine. Twice: with a
//! server that sleeps between requests, and with one that looks for them
//! while no processor may halt. And what needs no request at all: the kernel's own
//! work for names and attributes that it has, against a plain directory.

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use strata_tests::goals::median;

use crate::report::Report;

const CALLS: u32 = 20_000;
const ROUNDS: usize = 5;
/// Names whose attributes the kernel may keep, and may not.
const KEPT: &str = "kept";
const FRESH: &str = "fresh";
const DIRECTORIES: &str = "d/d/d";

pub fn measure(work: &Path, report: &mut Report) -> Result<()> {
    let native = work.join("floor-native");
    std::fs::create_dir_all(native.join(DIRECTORIES))?;
    for name in [KEPT, FRESH] {
        std::fs::write(native.join(DIRECTORIES).join(name), "")?;
    }
    let plain = round_trips(&native.join(DIRECTORIES))?;
    let asleep = served(work, false)?;
    let awake = {
        let latency = File::options().write(true).open("/dev/cpu_dma_latency");
        let mut latency = latency.context("/dev/cpu_dma_latency")?;
        latency.write_all(&0_i32.to_ne_bytes())?;
        served(work, true)?
    };
    for (how, [stat, open, warm, absent]) in [("asleep", asleep), ("awake", awake)] {
        let name = |what: &str| format!("floor, server {how}: {what}");
        report.figure(&name("GETATTR"), stat, "µs");
        report.figure(&name("OPEN and RELEASE"), open, "µs");
        report.figure(&name("open and close"), open / plain[1], "× native");
        report.figure(&name("stat without a request"), warm / plain[2], "× native");
        report.figure(&name("absent name without a request"), absent / plain[3], "× native");
    }
    Ok(())
}

fn served(work: &Path, looks: bool) -> Result<[f64; 4]> {
    let point = work.join(format!("floor-{looks}"));
    std::fs::create_dir(&point)?;
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::NONBLOCK, looks);
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).context("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = CString::new(data + ",default_permissions")?;
    let none = MountFlags::empty();
    rustix::mount::mount("floor", &point, "fuse", none, data.as_c_str())?;
    let server = std::thread::spawn(move || serve(&File::from(device)));
    let measured = round_trips(&point.join(DIRECTORIES));
    rustix::mount::unmount(&point, UnmountFlags::DETACH)?;
    match server.join() {
        Ok(served) => served.and(measured),
        Err(_) => anyhow::bail!("the empty server panicked"),
    }
}

/// Microseconds of a stat that asks, an open, a stat that does not, and of an absent name.
fn round_trips(directory: &Path) -> Result<[f64; 4]> {
    let each = |call: &dyn Fn() -> Result<()>| -> Result<f64> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            (0..CALLS).try_for_each(|_| call())?;
            rounds.push(begin.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        }
        Ok(median(&rounds))
    };
    let (kept, fresh) = (directory.join(KEPT), directory.join(FRESH));
    let absent = directory.join("absent");
    Ok([
        each(&|| Ok(fresh.symlink_metadata().map(drop)?))?,
        each(&|| Ok(File::open(&kept).map(drop)?))?,
        each(&|| Ok(kept.symlink_metadata().map(drop)?))?,
        each(&|| {
            anyhow::ensure!(absent.symlink_metadata().is_err(), "it is there");
            Ok(())
        })?,
    ])
}

/// Reads one request; a device that does not block is looked at for a while first.
fn read(device: &File, buffer: &mut [u8]) -> Result<usize, Errno> {
    let begin = Instant::now();
    loop {
        match rustix::io::read(device, &mut *buffer) {
            Err(Errno::AGAIN) if begin.elapsed().as_micros() < 50 => std::hint::spin_loop(),
            Err(Errno::AGAIN) => {
                rustix::event::poll(&mut [PollFd::new(device, PollFlags::IN)], None)?;
            }
            other => return other,
        }
    }
}

fn serve(device: &File) -> Result<()> {
    let mut buffer = vec![0_u8; (1 << 20) + 4096];
    loop {
        let length = match read(device, &mut buffer) {
            Ok(length) => length,
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let request = &buffer[..length];
        let field = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| request[at + byte]));
        let (error, body) = match field(4) {
            2 | 42 => continue,
            26 => (0, initialised(field(40), field(44))),
            1 => (0, found(field(16), request.get(40..).unwrap_or_default())),
            3 => (0, [&kept(field(16))[..], &[0; 8], &attributes(field(16))].concat()),
            14 => (0, vec![0; 16]),
            18 => (0, Vec::new()),
            _ => (-Errno::NOSYS.raw_os_error(), Vec::new()),
        };
        let mut answer = u32::try_from(16 + body.len())?.to_ne_bytes().to_vec();
        answer.extend_from_slice(&error.to_ne_bytes());
        answer.extend_from_slice(&request[8..16]);
        answer.extend_from_slice(&body);
        match rustix::io::write(device, &answer) {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Seconds that names and attributes may be kept.
const LONG: [u8; 8] = 86_400_u64.to_ne_bytes();
/// The node of the file whose attributes may not be kept, and of the one whose may;
/// directories have numbers from 10 on, their depth.
const FRESH_NODE: u32 = 3;
const KEPT_NODE: u32 = 2;

fn kept(node: u32) -> [u8; 8] {
    if node == FRESH_NODE { [0; 8] } else { LONG }
}

/// `struct fuse_entry_out` of a name in the directory `parent`.
fn found(parent: u32, name: &[u8]) -> Vec<u8> {
    let node = match name.first() {
        Some(b'd') => parent + 10,
        Some(b'k') => KEPT_NODE,
        Some(b'f') => FRESH_NODE,
        // Node 0: there is none, and the kernel may keep that.
        _ => 0,
    };
    let node_number = u64::from(node).to_ne_bytes();
    [&node_number[..], &[0; 8], &LONG, &kept(node), &[0; 8], &attributes(node)].concat()
}

/// `struct fuse_init_out`: the kernel's version, hardly anything negotiated.
fn initialised(major: u32, minor: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for value in [major, minor, 0, 0, 0x0030_0040, 1 << 20, 1, 256] {
        out.extend_from_slice(&u32::to_ne_bytes(value));
    }
    out.resize(64, 0);
    out
}

/// `struct fuse_attr` of a node.
fn attributes(node: u32) -> Vec<u8> {
    let is_file = matches!(node, KEPT_NODE | FRESH_NODE);
    let mut out = u64::from(node).to_ne_bytes().to_vec();
    out.resize(60, 0);
    for value in [if is_file { 0o100_644 } else { 0o040_755 }, 1, 0, 0, 0, 4096, 0_u32] {
        out.extend_from_slice(&value.to_ne_bytes());
    }
    out
}
