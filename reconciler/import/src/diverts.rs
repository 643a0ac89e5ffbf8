//! Diversions that a package makes, found in its scripts without running them.
//!
//! Found are calls of `dpkg-divert` whose path stands there as it is. A path that
//! a script computes is not found: such a package shares a path with another,
//! composition says so, and its layer can be built with `Diverts` by hand.

use strata_core::diversion::Diversion;

use crate::usr_merge;

/// The diversions that these scripts add, sorted, each once, at their places on
/// a system with a merged /usr.
pub fn of_scripts(scripts: &[Vec<u8>]) -> Vec<Diversion> {
    let mut found: Vec<_> = scripts.iter().flat_map(|script| of_script(script)).collect();
    found.sort();
    found.dedup();
    found
}

fn of_script(script: &[u8]) -> Vec<Diversion> {
    let text = String::from_utf8_lossy(script).replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let commands = lines.flat_map(|line| line.split([';', '&', '|', '(', ')', '`']));
    commands.filter_map(of_command).collect()
}

fn of_command(command: &str) -> Option<Diversion> {
    let mut words = command.split_whitespace().map(|word| word.trim_matches(['"', '\'']));
    words.find(|word| word.rsplit('/').next() == Some("dpkg-divert"))?;
    let (mut from, mut to) = (None, None);
    while let Some(word) = words.next() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("--remove" | "--list" | "--listpackage" | "--truename", _) => return None,
            ("--divert", "") => to = words.next(),
            ("--divert", given) => to = Some(given.trim_matches(['"', '\''])),
            ("--package" | "--admindir" | "--instdir" | "--root", "") => {
                words.next();
            }
            (option, _) if option.starts_with("--") => {}
            // Redirections of output.
            (other, _) if other.contains(['<', '>']) => {}
            _ => from = from.or(Some(word)),
        }
    }
    let from = merged(from?)?;
    let to = match to {
        Some(to) => merged(to)?,
        None => format!("{from}.distrib"),
    };
    Diversion::new(&from, &to).ok()
}

/// A literal path at its place below a merged /usr.
fn merged(path: &str) -> Option<String> {
    let relative = path.strip_prefix('/')?;
    if path.contains(['$', '*', '?', '[', '{', '~']) {
        return None;
    }
    String::from_utf8(usr_merge::merged(relative.as_bytes())).ok().map(|path| format!("/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(script: &str) -> Vec<String> {
        of_scripts(&[script.as_bytes().to_vec()]).iter().map(Diversion::to_string).collect()
    }

    #[test]
    fn literal_calls_are_found() {
        let script = "#!/bin/sh\n# dpkg-divert /no\nif [ \"$1\" = install ]; then\n  dpkg-divert --package p --rename \\\n    --divert /bin/x.real --add /bin/x >/dev/null || true\nfi\n/usr/sbin/dpkg-divert --quiet --add --no-rename \"/usr/share/a\"\n";
        let expected = ["/usr/bin/x => /usr/bin/x.real", "/usr/share/a => /usr/share/a.distrib"];
        assert_eq!(found(script), expected);
        assert_eq!(found("dpkg-divert --add --divert=/b '/a'"), ["/a => /b"]);
    }

    #[test]
    fn removed_and_computed_ones_are_not() {
        let script = "dpkg-divert --remove --rename /a\ndpkg-divert --add $file\nx=$(dpkg-divert --truename /a)\ndpkg-divert --add /usr/lib/$arch/x\ndpkg-divert --list /a\n";
        assert_eq!(found(script), Vec::<String>::new());
    }
}
