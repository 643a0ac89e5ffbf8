//! Which changes of a private layer are drift.
//!
//! A pattern is a path from the root without its slash. `*` stands for any bytes but
//! a slash, `**` as a component for any number of components.

use super::policy::DriftPolicy;

/// The pattern that stands for new setuid and setgid files.
pub const SETUID: &str = "setuid";

/// Whether a path matches a pattern.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_matches('/').split('/').collect();
    let path: Vec<&str> = path.trim_matches('/').split('/').collect();
    components(&pattern, &path)
}

fn components(pattern: &[&str], path: &[&str]) -> bool {
    // What matched so far of the path, for each beginning of the pattern: the cost
    // is the product of both, whatever the pattern.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        if *part == "**" {
            let first = reached.iter().position(|reached| *reached);
            if let Some(first) = first {
                next[first..].fill(true);
            }
        } else {
            for (at, component) in path.iter().enumerate() {
                next[at + 1] = reached[at] && one(part.as_bytes(), component.as_bytes());
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// One component: the last star is tried again further on.
fn one(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl DriftPolicy {
    /// Whether the change of a path is drift; `new_setuid`: it is new or changed, and
    /// its mode has setuid or setgid.
    pub fn is_drift(&self, path: &str, new_setuid: bool) -> bool {
        let watched = |pattern: &String| match pattern.as_str() {
            SETUID => new_setuid,
            pattern => matches(pattern, path),
        };
        self.watch.iter().any(watched) && !self.ignore.iter().any(|pattern| matches(pattern, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("etc/**", "etc/passwd", true),
            ("etc/**", "etc/ssl/private/key", true),
            ("/etc/**", "etc", true),
            ("etc/*", "etc/ssl/private", false),
            ("**/*.conf", "etc/a/b.conf", true),
            ("**/*.conf", "b.conf", true),
            ("**/*.conf", "b.config", false),
            ("usr/**/bin/*", "usr/local/bin/x", true),
            ("usr/**/bin/*", "usr/bin/x", true),
            ("e*c/p*s*d", "etc/passwd", true),
            ("etc", "etcetera", false),
            ("", "etc", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        let long = "a".repeat(4000);
        assert!(!matches(&"*a".repeat(300), &format!("{long}b")));
    }

    #[test]
    fn what_is_ignored_is_never_drift() {
        let strings = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        let policy = DriftPolicy {
            watch: strings(&["etc/**", "setuid"]),
            ignore: strings(&["etc/mtab"]),
            ..DriftPolicy::default()
        };
        assert!(policy.is_drift("etc/passwd", false));
        assert!(!policy.is_drift("etc/mtab", true));
        assert!(policy.is_drift("tmp/x", true) && !policy.is_drift("tmp/x", false));
    }
}
