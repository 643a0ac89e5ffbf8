//! Where things are in the boot environment: the paths that `strata boot build` packs.

/// `strata-vlfs`.
pub const VLFS: &str = "/strata/vlfs";
/// This program.
pub const INIT: &str = "/init";
/// Kernel modules, and the files that name them in the order to load them: those of every
/// machine, and those that NFS needs beside them.
pub const MODULES: &str = "/strata/modules";
pub const MODULE_ORDER: &str = "order";
pub const NFS_MODULE_ORDER: &str = "order-nfs";
/// Mount points.
pub const STORE: &str = "/strata/store";
pub const REPORTS: &str = "/strata/reports";
pub const DISK: &str = "/strata/disk";
pub const ROOT: &str = "/strata/root";
/// On the private disk.
pub const PRIVATE: &str = "/strata/disk/private";
pub const INDEX: &str = "/strata/disk/index";
pub const OWN_REPORTS: &str = "/strata/disk/reports";
