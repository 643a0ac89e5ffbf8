//! What has no safe form in `rustix`: the one place of this crate with unsafe code.
//!
//! `ioctl` hands files to the kernel for passthrough; `map` reads a file through memory,
//! `schedule` asks for shorter or longer stretches of processor time.
#![allow(
    unsafe_code,
    reason = "these system calls have no safe form; each block says why it holds"
)]

pub mod ioctl;
pub mod map;
pub mod schedule;
