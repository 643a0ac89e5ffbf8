//! The order of RPM packages' versions (rpm's `rpmvercmp` and
//! `docs/man/rpm-version.7`), which is not Debian's: separators mean nothing,
//! and a number is newer than a word.
//!
//! Such a version is written `[epoch:]version_release`; the underscore, which
//! Debian's versions cannot have, says which order is meant. An empty release, as
//! in a constraint on a version alone, is equal to any.

use std::cmp::Ordering;

/// Whether a version is well formed; `None` where it is none of rpm's.
pub(super) fn check(text: &str) -> Option<bool> {
    let Some((before, release)) = text.split_once('_') else {
        return text.contains('^').then_some(false);
    };
    let (epoch, version) = before.split_once(':').unwrap_or(("0", before));
    let plain = |part: &str| !part.contains(['_', ':', '-']);
    let number = epoch.parse::<u32>().is_ok() && epoch.bytes().all(|b| b.is_ascii_digit());
    let starts_well = version.starts_with(|c: char| c.is_ascii_alphanumeric());
    Some(number && starts_well && plain(version) && plain(release))
}

/// Compares two well formed versions.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let ((a_epoch, a_version, a_release), (b_epoch, b_version, b_release)) = (parts(a), parts(b));
    a_epoch.cmp(&b_epoch).then_with(|| segments(a_version, b_version)).then_with(|| match a_release
        .is_empty()
        || b_release.is_empty()
    {
        true => Ordering::Equal,
        false => segments(a_release, b_release),
    })
}

fn parts(text: &str) -> (u32, &str, &str) {
    let (before, release) = text.split_once('_').unwrap_or((text, ""));
    let (epoch, version) = before.split_once(':').unwrap_or(("0", before));
    (epoch.parse().unwrap_or(0), version, release)
}

/// Segments of digits and of letters in turn. `~` is older than the end, `^` newer
/// than the end and older than anything else.
fn segments(a: &str, b: &str) -> Ordering {
    let separator = |c: char| !c.is_ascii_alphanumeric() && c != '~' && c != '^';
    let (mut a, mut b) = (a, b);
    loop {
        (a, b) = (a.trim_start_matches(separator), b.trim_start_matches(separator));
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (None, None) => {}
        }
        match (a.strip_prefix('^'), b.strip_prefix('^')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => {
                return if b.is_empty() { Ordering::Greater } else { Ordering::Less };
            }
            (None, Some(_)) => {
                return if a.is_empty() { Ordering::Less } else { Ordering::Greater };
            }
            (None, None) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let digits = a.starts_with(|c: char| c.is_ascii_digit());
        let same = |c: char| if digits { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let (a_segment, a_rest) = a.split_at(a.find(|c| !same(c)).unwrap_or(a.len()));
        let (b_segment, b_rest) = b.split_at(b.find(|c| !same(c)).unwrap_or(b.len()));
        if b_segment.is_empty() {
            // A number is newer than a word.
            return if digits { Ordering::Greater } else { Ordering::Less };
        }
        let order = match digits {
            true => {
                let (a, b) = (a_segment.trim_start_matches('0'), b_segment.trim_start_matches('0'));
                a.len().cmp(&b.len()).then_with(|| a.cmp(b))
            }
            false => a_segment.cmp(b_segment),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::LayerVersion;

    #[test]
    fn order_of_rpm() {
        // Each older than the next.
        for list in [
            &["1.0~rc1_1", "1.0_1", "1.0^git1_1", "1.0.1_1", "1.1_1", "1.10_1", "1:0.1_1"][..],
            &["1_1.el9", "1_1.1", "1_2"],
            &["1a_1", "1.0_1"],
            &["1.0~~_1", "1.0~_1", "1.0_1"],
            &["2.0.a_1", "2.0.1_1"],
        ] {
            for pair in list.windows(2) {
                assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
                assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
            }
        }
        for (a, b) in
            [("1.0_1", "1-0_1"), ("1.05_1", "1.5_01"), ("1.0_", "1.0_7"), ("0:1_1", "1_1")]
        {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn what_is_well_formed() {
        for good in ["1_1", "2:3.0.7_18.el9", "1.0^20240101git~x_0.1", "1.0_"] {
            assert!(LayerVersion::new(good).is_ok(), "{good}");
        }
        for bad in ["1^1", "_1", "1_1_1", "1-1_1", "a:1_1", "~1_1", "1_a:b"] {
            assert!(LayerVersion::new(bad).is_err(), "{bad}");
        }
        let of = |text: &str| LayerVersion::new(text).expect("valid");
        assert!(of("9-1") < of("1_1"), "two systems never mix");
    }
}
