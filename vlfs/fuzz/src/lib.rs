//! What must hold of the file system whatever it is sent and whatever stands in its
//! private directory: it answers or refuses, and touches nothing else. One function a
//! fuzz target of `targets/`.

pub mod place;

use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use strata_vlfs::fuse::device::Device;
use strata_vlfs::fuse::latency::IdleLatency;
use strata_vlfs::fuse::session::Session;

use place::{Damage, Place, ROOT, TARGETS, use_everything, used};

/// Requests, damages of one input.
const STEPS: usize = 48;
/// FALLOCATE: a random length would fill the disk.
const FALLOCATE: u8 = 43;

/// Bytes, taken from the front; zeroes and nothing once they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }
}

/// Requests as the kernel writes them: for each a byte of opcode, one of the node, one
/// of the body's length, and the body.
pub fn requests(input: &[u8]) {
    let mut input = Input(input);
    let place = Place::new();
    let vfs = Arc::new(place.open().expect("a sound private directory"));
    // Answers go nowhere: what the kernel makes of them is not its concern here.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).expect("opened");
    let device = Device::adopt(null).expect("open");
    let session = Session::new(vfs, device, false, IdleLatency::open(None), 0);
    for unique in 1..STEPS as u64 {
        if input.0.is_empty() {
            break;
        }
        let (opcode, node, body) = (input.byte(), input.byte(), input.bytes());
        if opcode == FALLOCATE {
            continue;
        }
        let mut message = Vec::with_capacity(40 + body.len());
        message.extend(u32::try_from(40 + body.len()).expect("short").to_ne_bytes());
        message.extend(u32::from(opcode).to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend((u64::from(node % 16) + ROOT).to_ne_bytes());
        // The caller's user, group and process, and no extensions.
        message.extend([0; 16]);
        message.extend(body);
        let _too_old_at_worst = session.handle(&message);
    }
    place.check_outside();
}

/// A private directory that somebody else wrote: for each damage a byte of its kind,
/// one of its place, and the length and bytes of what is put there.
pub fn private_directory(input: &[u8]) {
    let mut input = Input(input);
    let place = Place::new();
    used(&place);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        let (kind, at) = (input.byte(), usize::from(input.byte()) % TARGETS.len());
        let damage = match kind % 7 {
            0 => Damage::Remove(at),
            1 => Damage::Link(at, kind > 127),
            2 => Damage::Fifo(at),
            3 => Damage::Device(at),
            4 => Damage::Directory(at),
            5 => Damage::Content(at, input.bytes().to_vec()),
            _ => Damage::Attribute(at, kind > 127, input.bytes().to_vec()),
        };
        damage.apply(&place.path("private"), &place.path("outside"));
    }
    // Twice: what the first mount left behind must open as well.
    for _ in 0..2 {
        if let Some(vfs) = place.open() {
            use_everything(&vfs, ROOT, 0);
        }
        place.check_outside();
    }
}
