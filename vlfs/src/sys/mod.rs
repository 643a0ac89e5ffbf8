//! What has no safe form in `rustix`: the one place of this crate with unsafe code.
//!
//! `ioctl` hands files to the kernel for passthrough; `map` reads a file through memory.
#![allow(
    unsafe_code,
    reason = "ioctls and mappings have no safe form; each block says why it holds"
)]

pub mod ioctl;
pub mod map;
