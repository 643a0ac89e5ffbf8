//! A `Release` file (the signed part of `InRelease`): what an archive is, until
//! when that holds, and the digests of its indexes.

use std::collections::BTreeMap;

use strata_core::deb822::{self, Stanza, StanzaError};
use strata_core::position::Located;

use super::{Sha256, Sha256Error};

/// Bytes of a `Release` file; Debian's has 200 KiB.
pub const RELEASE_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    #[error("it has {0} bytes, the limit is {max}", max = RELEASE_BYTES)]
    TooLarge(usize),
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    #[error("it must hold one stanza; it holds {0}")]
    Stanzas(usize),
    #[error("{0}: {1:?} is no date such as `Sat, 10 Jun 2023 08:53:32 UTC`")]
    Date(&'static str, String),
    #[error("it has no list of SHA-256 digests")]
    NoDigests,
    #[error("a line of its SHA256 list is not `digest size path`: {0:?}")]
    Line(String),
    #[error(transparent)]
    Digest(#[from] Sha256Error),
}

/// What is said of one file of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexFile {
    pub sha256: Sha256,
    pub bytes: u64,
}

/// Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Release {
    pub origin: Option<String>,
    pub label: Option<String>,
    pub suite: Option<String>,
    pub codename: Option<String>,
    pub date: Option<i64>,
    pub valid_until: Option<i64>,
    /// Not to be preferred to other archives unless asked for.
    pub not_automatic: bool,
    /// As that, but newer versions of what came from it are taken.
    pub but_automatic_upgrades: bool,
    pub by_hash: bool,
    /// By path below the directory of the release.
    pub files: BTreeMap<String, IndexFile>,
}

impl Release {
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: &[u8]) -> Result<Self, Located<ReleaseError>> {
        let here = |error| Located::new(1, 1, error);
        if text.len() > RELEASE_BYTES {
            return Err(here(ReleaseError::TooLarge(text.len())));
        }
        let stanzas = deb822::parse(text).map_err(|fault| fault.map(ReleaseError::from))?;
        let [stanza] = stanzas.as_slice() else {
            return Err(here(ReleaseError::Stanzas(stanzas.len())));
        };
        let text = |name| stanza.get(name).map(|field| field.value.to_owned());
        let yes = |name| stanza.get(name).is_some_and(|f| f.value.eq_ignore_ascii_case("yes"));
        Ok(Release {
            origin: text("Origin"),
            label: text("Label"),
            suite: text("Suite"),
            codename: text("Codename"),
            date: date(stanza, "Date")?,
            valid_until: date(stanza, "Valid-Until")?,
            not_automatic: yes("NotAutomatic"),
            but_automatic_upgrades: yes("ButAutomaticUpgrades"),
            by_hash: yes("Acquire-By-Hash"),
            files: files(stanza)?,
        })
    }

    /// `label/codename`, as [`strata_core::metadata::Metadata::archive`] holds it.
    pub fn archive(&self) -> Option<String> {
        let label = self.label.as_deref().or(self.origin.as_deref());
        let name = self.codename.as_deref().or(self.suite.as_deref());
        let archive = [label, name].into_iter().flatten().collect::<Vec<_>>().join("/");
        (!archive.is_empty()).then_some(archive)
    }

    /// The priority that apt gives an archive which nothing is said about.
    pub fn priority(&self) -> u32 {
        match (self.not_automatic, self.but_automatic_upgrades) {
            (false, _) => 500,
            (true, true) => 100,
            (true, false) => 1,
        }
    }
}

fn files(stanza: &Stanza<'_>) -> Result<BTreeMap<String, IndexFile>, Located<ReleaseError>> {
    let Some(field) = stanza.get("SHA256") else {
        return Err(Located::new(stanza.line, 1, ReleaseError::NoDigests));
    };
    let mut files = BTreeMap::new();
    for line in field.value.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let offset = line.as_ptr() as usize - field.value.as_ptr() as usize;
        let bad = || ReleaseError::Line(line.chars().take(80).collect());
        let words: Vec<_> = line.split_whitespace().collect();
        let [sha256, bytes, path] = words[..] else { return Err(field.locate(offset, bad())) };
        let sha256 = sha256.parse().map_err(|e: Sha256Error| field.locate(offset, e.into()))?;
        let bytes = bytes.parse().map_err(|_| field.locate(offset, bad()))?;
        files.insert(path.to_owned(), IndexFile { sha256, bytes });
    }
    Ok(files)
}

fn date(stanza: &Stanza<'_>, name: &'static str) -> Result<Option<i64>, Located<ReleaseError>> {
    let Some(field) = stanza.get(name) else { return Ok(None) };
    match seconds(field.value) {
        Some(seconds) => Ok(Some(seconds)),
        None => {
            let text = field.value.chars().take(64).collect();
            Err(field.locate(0, ReleaseError::Date(name, text)))
        }
    }
}

/// `[Weekday,] day Month year hh:mm:ss zone`, where the zone is UTC by any of its
/// names, as the format of repositories demands.
fn seconds(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let words: Vec<_> = text.split_whitespace().collect();
    let [day, month, year, time, zone] = words[..] else { return None };
    if !matches!(zone, "UTC" | "GMT" | "Z" | "+0000") {
        return None;
    }
    let day: i64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    let year: i64 = year.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut parts = time.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let within = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..61).contains(&second);
    if !within || parts.next().is_some() {
        return None;
    }
    let days = days_since_1970(year, i64::try_from(month).ok()? + 1, day);
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Of a date of the Gregorian calendar. Years are counted from March, so that a
/// leap day is the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_month = (153 * month + 2) / 5;
    365 * year + year / 4 - year / 100 + year / 400 + before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "Origin: Debian\nLabel: Debian-Security\nSuite: oldstable-security\nCodename: bookworm-security\nDate: Sat, 10 Jun 2023 08:53:32 UTC\nValid-Until: Sat, 17 Jun 2023 08:53:32 UTC\nAcquire-By-Hash: yes\nMD5Sum:\n 0 1 x\nSHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/binary-amd64/Packages\n";

    #[test]
    fn what_an_archive_is() {
        let release = Release::parse(RELEASE.as_bytes()).expect("valid");
        assert_eq!(release.archive().as_deref(), Some("Debian-Security/bookworm-security"));
        assert_eq!(release.date, Some(1_686_387_212));
        assert_eq!(release.valid_until, Some(1_686_387_212 + 7 * 86_400));
        assert_eq!(release.priority(), 500);
        let file = release.files["main/binary-amd64/Packages"];
        assert_eq!(file, IndexFile { sha256: Sha256::of(b""), bytes: 0 });
    }

    #[test]
    fn dates() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(seconds("29 Feb 2024 12:00:00 +0000"), Some(1_709_208_000));
        assert_eq!(seconds("Fri, 01 Mar 2024 00:00:00 GMT"), Some(1_709_251_200));
        for bad in ["", "1 Jan 2024", "1 Jan 2024 00:00:00 CET", "32 Jan 2024 0:0:0 UTC"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn faults_are_located() {
        let fault = |text: &str| Release::parse(text.as_bytes()).expect_err("a fault");
        assert_eq!(fault("Origin: x\n").error, ReleaseError::NoDigests);
        let line = fault("SHA256:\n e3b0 5\n");
        assert_eq!((line.line, line.column), (2, 2));
        let date = fault("Origin: x\nDate: today\nSHA256:\n");
        assert_eq!(date.error, ReleaseError::Date("Date", "today".to_owned()));
        assert_eq!(date.line, 2);
    }
}
