//! The kernel's side: FUSE protocol 7.31 and later, spoken on `/dev/fuse` itself.
//!
//! A small protocol layer of our own, because the design needs what the `fuser`
//! crate (0.18) cannot say: a node number that differs from `st_ino` (the
//! private copy of a file that is open through the kernel), names that expire
//! without detaching what is mounted on them, and the flags of `OPEN`,
//! `SETATTR` and `SETXATTR` that take setuid away. No file system logic here.
//!
//! `device` opens and mounts, `root` says which directory is mounted, `wire` reads and writes the messages' fields, `session` is the
//! connection, `worker` takes requests and `answers` answers them, `turn` says whose turn it
//! is, `waiting` how it waits (`placement`: on which processor, `watch`: asleep or not), and
//! `latency` keeps processors from halting meanwhile; the calls that hand files to the
//! kernel are in `sys::ioctl`.

mod answers;
pub mod device;
pub mod gate;
pub mod latency;
mod placement;
pub mod requests;
pub mod root;
pub mod session;
pub mod turn;
mod waiting;
mod watch;
pub mod wire;
pub mod worker;
