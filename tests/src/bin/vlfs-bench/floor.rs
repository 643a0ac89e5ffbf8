//! The kernel's floor: round trips to a FUSE server that does nothing.
//!
//! One file, attributes that the kernel may not keep, one thread that answers.
//! What a `stat` and an open and close cost here, no file system behind
//! `/dev/fuse` can go below on this machine.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::report::{Report, median};

const CALLS: u32 = 20_000;
const ROUNDS: usize = 5;

pub fn measure(work: &Path, report: &mut Report) -> Result<()> {
    let point = work.join("floor");
    std::fs::create_dir(&point)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).context("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = CString::new(data)?;
    let none = MountFlags::empty();
    rustix::mount::mount("floor", &point, "fuse", none, data.as_c_str())?;
    let server = std::thread::spawn(move || serve(File::from(device)));
    let measured = round_trips(&point.join("file"), report);
    rustix::mount::unmount(&point, UnmountFlags::DETACH)?;
    match server.join() {
        Ok(served) => served.and(measured),
        Err(_) => anyhow::bail!("the empty server panicked"),
    }
}

fn round_trips(file: &Path, report: &mut Report) -> Result<()> {
    let each = |call: &dyn Fn() -> Result<()>| -> Result<f64> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            (0..CALLS).try_for_each(|_| call())?;
            rounds.push(begin.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        }
        Ok(median(&rounds))
    };
    let stat = each(&|| Ok(file.symlink_metadata().map(drop)?))?;
    let open = each(&|| Ok(File::open(file).map(drop)?))?;
    report.figure("floor: GETATTR of an empty FUSE server", stat, "µs");
    report.figure("floor: OPEN and RELEASE of an empty FUSE server", open, "µs");
    Ok(())
}

fn serve(device: File) -> Result<()> {
    let mut buffer = vec![0_u8; (1 << 20) + 4096];
    loop {
        let length = match rustix::io::read(&device, &mut buffer[..]) {
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
            1 => (0, [&2_u64.to_ne_bytes()[..], &[0; 8], &LONG, &[0; 16], &attributes(2)].concat()),
            3 => (0, [&[0; 16][..], &attributes(field(16))].concat()),
            14 => (0, vec![0; 16]),
            18 => (0, Vec::new()),
            _ => (-Errno::NOSYS.raw_os_error(), Vec::new()),
        };
        let mut answer = u32::try_from(16 + body.len())?.to_ne_bytes().to_vec();
        answer.extend_from_slice(&error.to_ne_bytes());
        answer.extend_from_slice(&request[8..16]);
        answer.extend_from_slice(&body);
        match rustix::io::write(&device, &answer) {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Seconds that a name may be kept.
const LONG: [u8; 8] = 86_400_u64.to_ne_bytes();

/// `struct fuse_init_out`: the kernel's version, nothing negotiated.
fn initialised(major: u32, minor: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for value in [major, minor, 0, 0, 0x0030_0040, 1 << 20, 1, 256] {
        out.extend_from_slice(&u32::to_ne_bytes(value));
    }
    out.resize(64, 0);
    out
}

/// `struct fuse_attr` of the root directory or of the file.
fn attributes(node: u32) -> Vec<u8> {
    let mut out = u64::from(node).to_ne_bytes().to_vec();
    out.resize(60, 0);
    for value in [if node == 1 { 0o040_755 } else { 0o100_644 }, 1, 0, 0, 0, 4096, 0_u32] {
        out.extend_from_slice(&value.to_ne_bytes());
    }
    out
}
