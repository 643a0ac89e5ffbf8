//! The virtual layered file system (§5.5): an ordered union of read-only layers
//! under one private layer, whose layer set can be swapped while it is mounted.
//!
//! ```text
//! tree, whiteout, index, union pure: a layer's objects, hidden paths, the merged index, a VA's view
//! layer, private, backing      what is on disk: layers read, the private layer written
//! descent                      a walk through a tree of any depth
//! vfs                          the file system: every operation, with an errno; no FUSE
//! fuse, notify                 the kernel's protocol over it
//! set, follow                  layer sets opened, the VA's link followed
//! scripts                      layers' scripts, run in the VA around a swap (§5.1)
//! takeover                     another program in the daemon's place
//! gauges                       what the daemon costs, who holds what is gone
//! daemon, control, status      one mount's threads, and talking to them
//! data                         directories past the union, on the private disk (§6.4)
//! diff                         what the private layer holds, from outside (§4.5)
//! reset                        a fresh private layer, the old one kept
//! verify                       the layers against their manifests
//! ```

pub mod backing;
pub mod control;
pub mod daemon;
pub mod data;
pub mod descent;
pub mod diff;
pub mod follow;
pub mod fuse;
pub mod gauges;
pub mod index;
pub mod interrupt;
pub mod layer;
pub mod notify;
pub mod private;
pub mod proc;
pub mod reset;
pub mod scripts;
pub mod set;
pub mod status;
pub mod stop;
pub mod sys;
pub mod takeover;
pub mod tree;
pub mod union;
pub mod verify;
pub mod vfs;
pub mod whiteout;
