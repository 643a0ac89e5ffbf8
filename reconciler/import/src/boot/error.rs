//! Why no boot environment could be made.

use std::io;
use std::path::PathBuf;

use strata_store::StoreError;

use crate::deb::DebError;
use crate::infer::elf::ElfError;
use crate::rooted::RootedError;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Package { path: PathBuf, source: DebError },
    #[error(transparent)]
    Directory(#[from] RootedError),
    #[error("{path} has {bytes} bytes, the limit is {limit}")]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{path} holds more than {limit} names")]
    TooManyNames { path: PathBuf, limit: usize },
    #[error("there is no kernel in {}", listed(.0))]
    NoKernel(Vec<PathBuf>),
    #[error("there are several kernels: {}", .0.join(", "))]
    SeveralKernels(Vec<String>),
    #[error("there is no kernel {wanted}; there are: {}", found.join(", "))]
    OtherKernels { wanted: String, found: Vec<String> },
    #[error("the module {path}: {reason}")]
    Module { path: String, reason: String },
    #[error("the module {module} needs {needed}, which is neither in the kernel nor beside it")]
    Dependency { module: String, needed: String },
    #[error("the kernel {release} has no {what}")]
    Lacks { release: String, what: &'static str },
    #[error("the kernel {release} has no module {module}, and it is not built in")]
    NoModule { release: String, module: String },
    #[error("the modules have more than {limit} bytes together")]
    ModuleBytes { limit: u64 },
    #[error("{path}: {source}")]
    Elf { path: PathBuf, source: ElfError },
    #[error("{path} is no program")]
    NoProgram { path: PathBuf },
    #[error("{path} is no static program: it needs {needs}")]
    Dynamic { path: PathBuf, needs: String },
    #[error("{path} is for another processor than the kernel's modules")]
    OtherProcessor { path: PathBuf },
    #[error("{action} {path}: {source}")]
    Write { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the description {path} makes no sense: {source}")]
    Description { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}
