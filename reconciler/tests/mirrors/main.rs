//! Repositories that are somewhere else, with real servers: nginx, vsftpd, s3s-fs, a plain
//! directory and `strata repo serve` itself. Needs root, and what `ci/setup` installs.

mod attacks;
mod collected;
mod interrupted;
mod lacking;
mod passes;
mod serving;
mod support;
mod transports;
