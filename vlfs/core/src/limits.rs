//! Upper bounds on everything that is read from outside.
//!
//! A limit here is a promise to the operator: nothing that a repository, a
//! package, a git commit or a VA says can make Strata read or hold more.

/// Bytes of one layer definition file.
pub const LDF_BYTES: usize = 1 << 20;
/// Bytes of one layer's metadata.
pub const METADATA_BYTES: usize = 1 << 20;
/// Bytes of one repository database, uncompressed (all of Debian is 52 MB).
pub const DATABASE_BYTES: usize = 512 << 20;
/// Bytes of one layer's manifest (a kernel package of 11,742 entries has 2 MB).
pub const MANIFEST_BYTES: usize = 512 << 20;
/// Bytes of a generation's `layers` file.
pub const GENERATION_BYTES: usize = 8 << 20;
/// Bytes of one VA's report; a VA is not trusted to be brief.
pub const REPORT_BYTES: usize = 64 << 10;
/// Bytes of an exported inventory, uncompressed: databases and manifests of a store.
pub const INVENTORY_BYTES: usize = 1 << 30;
/// Bytes of `strata.toml`, `appliances.toml`, a `.modes` and a `.data` file.
pub const CONFIGURATION_BYTES: usize = 4 << 20;
/// Things that one pass may remove without a confirmation.
pub const REMOVALS: u32 = 1_000_000;
/// Health checks of one composition.
pub const HEALTH_CHECKS: usize = 32;
/// Data directories of one composition.
pub const DATA_PATHS: usize = 64;
/// Files that a GitOps repository may hold where Strata looks at them.
pub const SOURCE_FILES: usize = 500_000;
/// Bytes of all those files together.
pub const SOURCE_BYTES: usize = 1 << 30;
/// Bytes of one file of a `templates/<name>/` tree.
pub const SOURCE_FILE_BYTES: usize = 256 << 20;
/// Bytes of a name: a repository, layer, template, ring or VA.
pub const NAME_BYTES: usize = 200;
/// Bytes of a version string.
pub const VERSION_BYTES: usize = 256;
/// Bytes of a path inside a layer (PATH_MAX less the NUL).
pub const PATH_BYTES: usize = 4095;
/// Bytes of one component of a path (NAME_MAX).
pub const COMPONENT_BYTES: usize = 255;
/// Bytes of one extended attribute's value (XATTR_SIZE_MAX).
pub const XATTR_BYTES: usize = 64 << 10;
/// Depth of `@` references between layer definition files.
pub const REFERENCE_DEPTH: usize = 32;
/// Layers of one composition.
pub const COMPOSITION_LAYERS: usize = 4096;
/// Directories between a layer's root and the deepest entry.
pub const TREE_DEPTH: usize = 256;
/// Entries of one layer (a kernel's headers have 12,000, TeX Live 130,000).
pub const LAYER_ENTRIES: usize = 2_000_000;
/// Bytes of the files of one layer, unpacked.
pub const LAYER_BYTES: u64 = 64 << 30;
/// Bytes of a package's control archive, unpacked, and of a unit's scripts.
pub const CONTROL_BYTES: u64 = 64 << 20;
/// Bytes of one extension header of a tar archive: a long name, PAX records.
pub const TAR_EXTENSION_BYTES: u64 = 1 << 20;
/// Bytes of one program or shared library that is looked at for what it needs.
pub const ELF_BYTES: u64 = 1 << 30;
/// Segments of one sparse file in a tar archive.
pub const SPARSE_SEGMENTS: usize = 1 << 16;
/// Bytes of a repository's root or snapshot with its signatures.
pub const SIGNED_BYTES: usize = 256 << 10;
/// Signatures of one such document.
pub const SIGNATURES: usize = 16;
/// Keys of one role.
pub const ROLE_KEYS: usize = 16;
/// Bytes of one public key with its comment (an RSA key of 16,384 bits has 2,800).
pub const PUBLIC_KEY_BYTES: usize = 8 << 10;
/// The highest version of such a document.
pub const SIGNED_VERSION: u32 = 1 << 30;
/// Changes of keys that are followed from the pinned keys to those of today.
pub const ROOT_CHANGES: u32 = 1024;
/// Bytes of a repository's URL.
pub const LOCATION_BYTES: usize = 2 << 10;
/// Bytes of the certificates that a repository's server is known by.
pub const CERTIFICATES_BYTES: usize = 1 << 20;
/// Bytes of the credentials for a repository.
pub const CREDENTIALS_BYTES: usize = 16 << 10;
