//! Real VAs in real namespaces: needs root, cgroup v2 and overlayfs.
//!
//! The VLFS here is a stand-in (an overlayfs mount and a process that ends with
//! it), so that these tests judge the machine driver alone; the two together are
//! tested end to end in `tests/`.

mod fleet;
mod life;
mod lifecycle;
mod provisioning;
