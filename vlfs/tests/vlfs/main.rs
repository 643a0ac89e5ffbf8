//! The file system against a reference model, and mounted for real.
//!
//! The mounts need root and `/dev/fuse`; without them the tests fail and say so.

mod bad_mounts;
mod borrowed;
mod crash;
mod damage;
mod data;
mod depth;
mod descriptors;
mod durable;
mod fixture;
mod forensics;
mod full_disk;
mod handles;
mod held_open;
mod hostile;
mod index;
mod interrupted;
mod life;
mod links;
mod model;
mod mounted;
mod permissions;
mod revert;
mod scripts;
mod soak;
mod store;
mod swapping;
mod twin;
mod upgrade;
mod verify;
mod workers;
