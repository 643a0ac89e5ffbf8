//! What comes from outside never makes the file system panic, hang or leave its
//! place: any bytes as requests, and private directories that somebody else wrote.
//!
//! `STRATA_CASES` is the number of cases, where a longer search is wanted.

use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use strata_vlfs::fuse::device::Device;
use strata_vlfs::fuse::latency::IdleLatency;
use strata_vlfs::fuse::session::Session;

use crate::fixture::cases;

#[path = "../../fuzz/src/place.rs"]
mod place;

use place::{Damage, Place, ROOT, TARGETS, use_everything, used};

/// One field of a message.
#[derive(Debug, Clone)]
enum Field {
    Small(u32),
    Long(u64),
    Name(Vec<u8>),
    Bytes(Vec<u8>),
}

fn field() -> impl Strategy<Value = Field> {
    let names =
        [b"a".as_slice(), b"d", b"b", b"e", b"..", b".", b"", b"../outside/secret", b"user.x"];
    prop_oneof![
        4 => (0..10_u32).prop_map(Field::Small),
        1 => any::<u32>().prop_map(Field::Small),
        4 => (0..6_u64).prop_map(Field::Long),
        1 => any::<u64>().prop_map(Field::Long),
        4 => proptest::sample::select(names.map(<[u8]>::to_vec).to_vec()).prop_map(Field::Name),
        1 => proptest::collection::vec(1_u8.., 250..300).prop_map(Field::Name),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Field::Bytes),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let node = prop_oneof![3 => Just(ROOT), 4 => 2..8_u64, 1 => any::<u64>()];
    // No FALLOCATE, which a random length would let fill the disk of the test.
    let opcode = prop_oneof![20 => 1..54_u32, 1 => any::<u32>()].prop_filter("", |n| *n != 43);
    (opcode, node, proptest::collection::vec(field(), 0..14)).prop_map(|(opcode, node, fields)| {
        let mut body = Vec::new();
        for field in fields {
            match field {
                Field::Small(number) => body.extend(number.to_ne_bytes()),
                Field::Long(number) => body.extend(number.to_ne_bytes()),
                Field::Name(name) => body.extend([&name[..], b"\0"].concat()),
                Field::Bytes(bytes) => body.extend(bytes),
            }
        }
        let length = u32::try_from(40 + body.len()).expect("small");
        let mut message = Vec::new();
        message.extend(length.to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(7_u64.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        // The caller's user, group and process, and no extensions.
        message.extend([0; 16]);
        message.extend(body);
        message
    })
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0..TARGETS.len();
    let texts = [
        "strata-journal 1\nrename work/1 upper/x\nend\n",
        "strata-journal 1\nrename upper/a ../outside/taken\nend\n",
        "strata-journal 1\nlink upper/a upper/../../outside/taken\nrename upper/d owner\nend\n",
        "strata-journal 1\nrename / upper\nlink %2e%2e/outside/secret upper/x\nend\n",
        "strata-private 2\n",
        "0123456789abcdef",
        "1 main/x 644 0 0 1 0.000000000",
    ];
    let content = prop_oneof![
        proptest::sample::select(texts.map(|text| text.as_bytes().to_vec()).to_vec()),
        proptest::collection::vec(any::<u8>(), 0..60),
    ];
    prop_oneof![
        at.clone().prop_map(Damage::Remove),
        (at.clone(), any::<bool>()).prop_map(|(at, file)| Damage::Link(at, file)),
        at.clone().prop_map(Damage::Fifo),
        at.clone().prop_map(Damage::Device),
        at.clone().prop_map(Damage::Directory),
        (at.clone(), content.clone()).prop_map(|(at, content)| Damage::Content(at, content)),
        (at, any::<bool>(), content).prop_map(|(at, ino, value)| Damage::Attribute(at, ino, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(150), max_shrink_iters: 400, failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_answered(
        messages in proptest::collection::vec(message(), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let place = Place::new();
        let vfs = Arc::new(place.open().expect("opened"));
        // Answers go nowhere: what the kernel makes of them is not its concern here.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).expect("opened");
        let device = Device::adopt(null).expect("open");
        let session = Session::new(vfs, device, false, IdleLatency::open(None), 0);
        for message in &messages {
            let _too_old_at_worst = session.handle(message);
            let _cut_short = session.handle(&message[..cut.index(message.len())]);
        }
        place.check_outside();
    }

    #[test]
    fn a_damaged_private_directory_does_no_harm(
        damages in proptest::collection::vec(damage(), 1..6),
    ) {
        let place = Place::new();
        used(&place);
        for damage in &damages {
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
}

/// What would be waited for without end is refused instead.
#[test]
fn regression_a_fifo_in_the_journal_is_damage() {
    let place = Place::new();
    used(&place);
    let at = TARGETS.iter().position(|target| *target == "journal/1").expect("listed");
    Damage::Fifo(at).apply(&place.path("private"), &place.path("outside"));
    assert!(place.open().is_none());
}

/// A FIFO is waited for nowhere, whatever else is damaged.
#[test]
fn regression_a_fifo_in_any_place_is_not_waited_for() {
    let older = b"strata-private 2\n".to_vec();
    let format = TARGETS.iter().position(|target| *target == "format").expect("listed");
    for at in 0..TARGETS.len() {
        for with in
            [None, Some(Damage::Remove(format)), Some(Damage::Content(format, older.clone()))]
        {
            let place = Place::new();
            used(&place);
            for damage in with.into_iter().chain([Damage::Fifo(at)]) {
                damage.apply(&place.path("private"), &place.path("outside"));
            }
            for _ in 0..2 {
                if let Some(vfs) = place.open() {
                    use_everything(&vfs, ROOT, 0);
                }
                place.check_outside();
            }
        }
    }
}
