//! Packages from the machine's own apt sources.
//!
//! [`plan`] asks apt which sources there are, fetches each source's release, has
//! its signature checked, fetches the indexes that it names by digest, and finds
//! the closure of what is asked for. [`download`] then fetches the packages.
//! Nothing that is not named, down a chain of digests, by a signed and valid
//! release is ever read as an index or a package.

mod cache;
mod configuration;
pub mod fetch;
mod signature;

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::Url;
use strata_core::{LayerName, LayerVersion, limits};
use strata_import::apt::auth::AuthError;
use strata_import::apt::closure::{Archive, ClosureError, Request};
use strata_import::apt::index::{self, Available};
use strata_import::apt::release::{IndexFile, RELEASE_BYTES, Release};
use strata_import::apt::sources::{SourceOptions, SourceOptionsError};
use strata_import::apt::{Sha256, keyring};
use strata_import::compression::Compression;
use strata_import::{Package, Provenance};
use tokio::task::JoinSet;

use crate::child::ChildError;
use crate::transfer::ATTEMPTS;
pub use cache::Cache;
pub use configuration::{Configuration, Target, targets};
use fetch::{FetchError, Fetcher, Order};
use signature::{Signed, signed_text};

/// How far ahead of our clock a release may be dated, in seconds.
const CLOCK_TOLERANCE_S: i64 = 300;
/// Suffixes of indexes, the preferred ones first.
const SUFFIXES: [&str; 5] = [".xz", ".zst", ".gz", ".lzma", ""];

#[derive(Debug, thiserror::Error)]
pub enum AptError {
    #[error("cannot run {program}: {source}")]
    Run { program: &'static str, source: std::io::Error },
    #[error("{program} failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("apt does not say what {0} is")]
    NoSetting(&'static str),
    #[error("apt's configuration: {source}")]
    Setting { source: SourceOptionsError },
    #[error("{path}: {source}")]
    Auth { path: PathBuf, source: AuthError },
    #[error("apt's sources cannot be listed: {reason}")]
    Targets { reason: String },
    #[error("apt has no source for the architecture {architecture}")]
    NoSources { architecture: String },
    #[error("the source {entry}: {source}")]
    Entry { entry: String, source: SourceOptionsError },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the source has no usable address: {0:?}")]
    Address(String),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the keyring {path}: {why}")]
    NoKeyring { path: PathBuf, why: String },
    #[error("the keyring {path}: {source}")]
    Keyring { path: PathBuf, source: keyring::ArmourError },
    #[error("{name}: apt trusts no key for it")]
    NoKeys { name: String },
    #[error("gpgv: {source}")]
    Gpgv { source: ChildError },
    #[error("{name} is not signed by a key that is trusted for it: {why}")]
    NotSigned { name: String, why: String },
    #[error("{name} is not signed: it has neither InRelease nor Release.gpg")]
    Unsigned { name: String },
    #[error("{name}: {reason}")]
    Release { name: String, reason: String },
    #[error("{name} was valid until {ago} ago; it may be an old state that somebody replays")]
    Expired { name: String, ago: String },
    #[error("{name} is dated {ahead} ahead of this machine's clock")]
    Future { name: String, ahead: String },
    #[error("{name}: {reason}")]
    Index { name: String, reason: String },
    #[error(transparent)]
    Closure(#[from] ClosureError),
    #[error("a task ended without a result")]
    Lost,
}

/// A package that is to be imported.
#[derive(Debug, Clone)]
pub struct Planned {
    pub layer: LayerName,
    pub version: LayerVersion,
    pub bytes: u64,
    order: Order,
    provenance: Provenance,
}

impl Planned {
    /// Where the cache has it for all imports.
    pub fn archive(&self) -> &Path {
        &self.order.to
    }
}

/// What was found.
#[derive(Debug)]
pub struct Plan {
    /// By name.
    pub packages: Vec<Planned>,
    /// Packages that all sources have together.
    pub available: usize,
    /// Packages of the indexes that no layer can be made of.
    pub passed_over: usize,
}

/// Where a package comes from.
#[derive(Debug)]
struct Source {
    archive: String,
    provenance: Provenance,
}

/// Finds what is to be imported for `requests`: with all that they depend on, or
/// only themselves.
///
/// # Errors
/// [`AptError`]; nothing was taken from a source that is not trusted.
pub async fn plan(
    configuration: &Configuration,
    fetcher: &Fetcher,
    cache: &Cache,
    requests: &[Request],
    dependencies: bool,
) -> Result<Plan, AptError> {
    let architecture = configuration.architecture()?.to_owned();
    let targets = targets(&architecture)?;
    let mut releases: Vec<(&str, &SourceOptions)> = Vec::new();
    for target in &targets {
        let release = (target.release_uri.as_str(), &target.options);
        if !releases.contains(&release) {
            releases.push(release);
        }
    }
    let mut set = JoinSet::new();
    for (number, (uri, options)) in releases.iter().enumerate() {
        let (fetcher, cache, configuration) =
            (fetcher.clone(), cache.clone(), configuration.clone());
        let (uri, options) = ((*uri).to_owned(), (*options).clone());
        set.spawn(async move {
            (number, release(&configuration, &fetcher, &cache, number, &uri, &options).await)
        });
    }
    let found = in_order(set).await?;
    let mut set = JoinSet::new();
    for (number, target) in targets.iter().enumerate() {
        let of = releases.iter().position(|r| *r == (&target.release_uri, &target.options));
        let Some(release) = of.and_then(|of| found.get(of)) else { return Err(AptError::Lost) };
        let (fetcher, cache, release) = (fetcher.clone(), cache.clone(), release.clone());
        let (target, architecture) = (target.clone(), architecture.clone());
        set.spawn(async move {
            let packages = packages(&fetcher, &cache, &release, &target, &architecture).await;
            (number, packages.map(|packages| (target, release, packages)))
        });
    }
    let mut archive = Archive::new();
    let mut passed_over = 0;
    for (target, release, (packages, skipped)) in in_order(set).await? {
        passed_over += skipped;
        let provenance = Provenance { origin: release.origin.clone(), archive: release.archive() };
        let source = Arc::new(Source { archive: target.archive_uri, provenance });
        archive.add(release.priority(), packages, &source);
    }
    let chosen = if dependencies { archive.closure(requests)? } else { archive.only(requests)? };
    let planned = chosen.iter().map(|(package, source)| planned(cache, package, source));
    let packages = planned.collect::<Result<_, _>>()?;
    Ok(Plan { packages, available: archive.len(), passed_over })
}

/// The results of numbered tasks by their numbers; the first error ends it.
async fn in_order<T: 'static>(
    mut set: JoinSet<(usize, Result<T, AptError>)>,
) -> Result<Vec<T>, AptError> {
    let mut results = Vec::new();
    while let Some(joined) = set.join_next().await {
        let (number, result) = joined.map_err(|_| AptError::Lost)?;
        results.push((number, result?));
    }
    results.sort_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// The verified, valid release of a source, which is the `number`th of all.
async fn release(
    configuration: &Configuration,
    fetcher: &Fetcher,
    cache: &Cache,
    number: usize,
    uri: &str,
    options: &SourceOptions,
) -> Result<Arc<Release>, AptError> {
    let url = |name: &str| address(&format!("{uri}{name}"));
    let name = fetch::shown(&url("")?);
    let order = |file: &str, to: &Path| {
        let (to, expected, max_bytes) = (to.to_owned(), None, RELEASE_BYTES as u64);
        Ok::<_, AptError>(Order { url: url(file)?, to, expected, max_bytes })
    };
    let own = |file: &str| cache.own(&format!("{number}-{file}"));
    let (new, signature) = (own("Release"), own("Release.gpg"));
    let text = match fetcher.fetch(&order("InRelease", &new)?).await {
        Ok(()) => Signed::Inline(&new),
        Err(FetchError::NotFound { .. }) => {
            fetcher.fetch(&order("Release.gpg", &signature)?).await.map_err(
                |error| match error {
                    FetchError::NotFound { .. } => AptError::Unsigned { name: name.clone() },
                    error => error.into(),
                },
            )?;
            fetcher.fetch(&order("Release", &new)?).await?;
            Signed::Detached { text: &new, signature: &signature }
        }
        Err(error) => return Err(error.into()),
    };
    let text = signed_text(&name, text, &options.signed_by, configuration)?;
    let release = {
        let _others_wait = cache.lock_lists()?;
        let seen = cache.lists().join(format!("{}Release", escaped(&name)));
        newest(&name, &text, &seen, &own("seen"))?
    };
    check_validity(&name, &release, options, configuration, now())?;
    Ok(Arc::new(release))
}

/// The release in `text`, or the one that was seen before where that is newer: a
/// mirror that lags behind, or somebody who replays an old state. What was seen
/// is kept at `seen`, as it was signed; it is written at `new`.
fn newest(name: &str, text: &[u8], seen: &Path, new: &Path) -> Result<Release, AptError> {
    let parse = |text: &[u8]| {
        Release::parse(text).map_err(|fault| {
            let reason = format!("the release file: {fault}");
            AptError::Release { name: name.to_owned(), reason }
        })
    };
    let release = parse(text)?;
    let before = std::fs::read(seen).ok().and_then(|text| parse(&text).ok());
    if let Some(before) = before.filter(|before| before.date > release.date) {
        tracing::warn!(
            source = name,
            "the source shows an older state than before; the newer counts"
        );
        return Ok(before);
    }
    std::fs::write(new, text)
        .and_then(|()| std::fs::rename(new, seen))
        .map_err(|source| AptError::Read { path: seen.to_owned(), source })?;
    Ok(release)
}

fn check_validity(
    name: &str,
    release: &Release,
    options: &SourceOptions,
    configuration: &Configuration,
    now: i64,
) -> Result<(), AptError> {
    let name = || name.to_owned();
    if let Some(date) = release.date
        && configuration.yes_no("Acquire::Check-Date", true)?
        && date > now + CLOCK_TOLERANCE_S
    {
        return Err(AptError::Future { name: name(), ahead: duration(date - now) });
    }
    let check = match options.check_valid_until {
        Some(check) => check,
        None => configuration.yes_no("Acquire::Check-Valid-Until", true)?,
    };
    if !check {
        return Ok(());
    }
    let label = release.label.as_deref().unwrap_or_default();
    let configured = configuration
        .get(&format!("Acquire::Max-ValidTime::{label}"))
        .or_else(|| configuration.get("Acquire::Max-ValidTime"))
        .and_then(|seconds| seconds.parse().ok())
        .filter(|seconds: &i64| *seconds > 0);
    let most = options.valid_until_max.or(configured);
    let by_age = release.date.zip(most).map(|(date, most)| date.saturating_add(most));
    match [release.valid_until, by_age].into_iter().flatten().min() {
        Some(until) if now > until => {
            Err(AptError::Expired { name: name(), ago: duration(now - until) })
        }
        _ => Ok(()),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn duration(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What one index of a source holds.
async fn packages(
    fetcher: &Fetcher,
    cache: &Cache,
    release: &Release,
    target: &Target,
    architecture: &str,
) -> Result<(Vec<Available>, usize), AptError> {
    let with = |suffix: &'static str| {
        let path = format!("{}{suffix}", target.path);
        release.files.get(&path).map(|file| (path, suffix, *file))
    };
    let name = fetch::shown(&address(&format!("{}{}", target.release_uri, target.path))?);
    let Some((path, suffix, file)) = SUFFIXES.into_iter().find_map(with) else {
        tracing::warn!(index = name, "the source's release has no such index; it is passed over");
        return Ok((Vec::new(), 0));
    };
    let IndexFile { sha256, bytes } = file;
    if bytes > limits::DATABASE_BYTES as u64 {
        let reason = format!("it has {bytes} bytes, the limit is {}", limits::DATABASE_BYTES);
        return Err(AptError::Index { name, reason });
    }
    let to = cache.lists().join(format!("{sha256}{suffix}"));
    let url = |by_hash: bool| {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let slash = if directory.is_empty() { "" } else { "/" };
        address(&match by_hash {
            true => format!("{}{directory}{slash}by-hash/SHA256/{sha256}", target.release_uri),
            false => format!("{}{path}", target.release_uri),
        })
    };
    let order = |url| Order { url, to: to.clone(), expected: Some(file), max_bytes: bytes };
    match fetcher.fetch(&order(url(release.by_hash)?)).await {
        Err(FetchError::NotFound { .. }) if release.by_hash => {
            fetcher.fetch(&order(url(false)?)).await?;
        }
        fetched => fetched?,
    }
    let architecture = architecture.to_owned();
    let parsed = tokio::task::spawn_blocking(move || {
        let text = unpacked(&to, suffix).map_err(|error| error.to_string())?;
        index::parse(&text, &architecture).map_err(|fault| fault.to_string())
    });
    parsed.await.map_err(|_| AptError::Lost)?.map_err(|reason| AptError::Index { name, reason })
}

fn unpacked(path: &Path, suffix: &str) -> std::io::Result<Vec<u8>> {
    let compression = Compression::from_suffix(suffix)
        .ok_or_else(|| std::io::Error::other("the compression is not known"))?;
    let mut text = Vec::new();
    let reader = compression.reader(std::fs::File::open(path)?)?;
    reader.take(limits::DATABASE_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn planned(cache: &Cache, package: &Available, source: &Source) -> Result<Planned, AptError> {
    let Available { metadata, filename, bytes, sha256 } = package;
    let path = filename.trim_start_matches("./");
    // A URL's own marks; everything else Url escapes.
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let url = address(&format!("{}{path}", source.archive))?;
    let expected = Some(IndexFile { sha256: *sha256, bytes: *bytes });
    let to = cache.archives().join(file_name(filename, *sha256));
    Ok(Planned {
        layer: metadata.layer.clone(),
        version: metadata.version.clone(),
        bytes: *bytes,
        order: Order { url, to, expected, max_bytes: *bytes },
        provenance: source.provenance.clone(),
    })
}

/// The name of a package in the cache: for people, and its digest.
fn file_name(filename: &str, sha256: Sha256) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    let last = filename.rsplit('/').next().unwrap_or_default();
    let name: String = last.chars().filter(|c| plain(*c)).take(120).collect();
    format!("{}-{name}", &sha256.to_string()[..16])
}

fn escaped(text: &str) -> String {
    let of = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.bytes().take(150).map(of).collect::<String>() + "_"
}

fn address(text: &str) -> Result<Url, AptError> {
    Url::parse(text).map_err(|_| AptError::Address(text.chars().take(200).collect()))
}

/// Fetches packages, the largest first, and hands each over with its number
/// once it is there.
pub async fn download(
    fetcher: &Fetcher,
    cache: &Cache,
    packages: &[Planned],
    deliver: impl Fn(usize, Result<Package, FetchError>),
) {
    let mut set = JoinSet::new();
    let mut by_size: Vec<_> = packages.iter().enumerate().collect();
    by_size.sort_by_key(|(_, planned)| std::cmp::Reverse(planned.bytes));
    for (number, planned) in by_size {
        let (fetcher, cache, order) = (fetcher.clone(), cache.clone(), planned.order.clone());
        set.spawn(async move { (number, fetch_and_keep(&fetcher, &cache, &order).await) });
    }
    while let Some(joined) = set.join_next().await {
        // A task that panicked has said so; its package is missed by its number.
        let Ok((number, fetched)) = joined else { continue };
        let Planned { layer, version, provenance, .. } = &packages[number];
        let package = |path| Package {
            path,
            expected: Some((layer.clone(), version.clone())),
            provenance: provenance.clone(),
        };
        deliver(number, fetched.map(package));
    }
}

/// Fetches a package and keeps it, whatever other imports do with the cache.
async fn fetch_and_keep(
    fetcher: &Fetcher,
    cache: &Cache,
    order: &Order,
) -> Result<PathBuf, FetchError> {
    let mut attempts = 0;
    loop {
        fetcher.fetch(order).await?;
        attempts += 1;
        match cache.keep(&order.to) {
            // Another import had it as well, and was done with it.
            Err(error) if error.kind() == ErrorKind::NotFound && attempts < ATTEMPTS => {}
            kept => {
                let path = order.to.clone();
                return kept.map_err(|source| FetchError::Disk { path, source });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_expire() {
        let options = SourceOptions::default();
        let configuration = Configuration::default();
        let valid = |release: &Release, options: &SourceOptions, now| {
            check_validity("x", release, options, &configuration, now).map_err(|e| e.to_string())
        };
        let release = Release { date: Some(1_000), valid_until: Some(2_000), ..Release::default() };
        assert_eq!(valid(&release, &options, 2_000), Ok(()));
        assert!(valid(&release, &options, 2_001).expect_err("expired").contains("1 s ago"));
        assert!(valid(&release, &options, 100).expect_err("early").contains("15 min ahead"));
        let never = SourceOptions { check_valid_until: Some(false), ..SourceOptions::default() };
        assert_eq!(valid(&release, &never, 9_000), Ok(()));
        let soon = SourceOptions { valid_until_max: Some(10), ..SourceOptions::default() };
        assert!(valid(&release, &soon, 1_011).is_err());
        let endless = Release { date: Some(1_000), ..Release::default() };
        assert_eq!(valid(&endless, &options, i64::MAX / 2), Ok(()));
    }

    /// What was handed over is there until this import is done with it.
    #[tokio::test(flavor = "current_thread")]
    async fn another_import_takes_nothing_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let source = directory.path().join("a.deb");
        std::fs::write(&source, "whole").expect("written");
        let cache = Cache::open(&directory.path().join("cache")).expect("a cache");
        let limits = fetch::FetchLimits {
            connections: 1,
            rate: None,
            deadline: std::time::Duration::from_secs(60),
        };
        let configuration = Configuration::default();
        let fetcher =
            Fetcher::new(&configuration, Default::default(), limits, Arc::new(|_bytes: u64| ()));
        let fetcher = fetcher.expect("a fetcher");
        let package = Available {
            metadata: strata_core::metadata::Metadata::new(
                "a".parse().expect("a name"),
                "1".parse().expect("a version"),
                strata_core::metadata::LayerKind::Software,
            ),
            filename: "a.deb".to_owned(),
            bytes: 5,
            sha256: Sha256::of(b"whole"),
        };
        let archive = format!("file:{}/", directory.path().display());
        let source = Source { archive, provenance: Provenance::default() };
        let planned = planned(&cache, &package, &source).expect("planned");
        let delivered = std::cell::Cell::new(0);
        download(&fetcher, &cache, std::slice::from_ref(&planned), |_, fetched| {
            std::fs::remove_file(planned.archive()).expect("another import is done with it");
            let path = fetched.expect("fetched").path;
            assert_eq!(std::fs::read_to_string(&path).expect("there"), "whole");
            cache.forget(planned.archive(), false);
            assert!(!path.exists());
            delivered.set(delivered.get() + 1);
        })
        .await;
        assert_eq!(delivered.get(), 1);
    }

    #[test]
    fn names_in_the_cache_stay_in_it() {
        let name = file_name("pool/../a/b_1%3a2~x.deb", Sha256::of(b""));
        assert_eq!(name, "e3b0c44298fc1c14-b_13a2~x.deb");
        assert_eq!(escaped("http://h/../d/"), "http%3a%2f%2fh%2f..%2fd%2f_");
    }
}
