//! What a package says of its libraries for those who link with them: `symbols`
//! (deb-symbols(5), as it stands in a built package) and `shlibs` (deb-shlibs(5)).
//!
//! Lines that say nothing of use are passed over: these files come from packages that
//! were installed for years, and a line that this reader does not know takes nothing away
//! from the others.

use std::collections::HashMap;

/// What stands for `(>= the version that is needed)` in a dependency of `symbols`.
pub const MINIMAL_VERSION: &str = "#MINVER#";

/// One library of a `symbols` file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Library {
    /// Dependencies: the first is everybody's, the others are those of some symbols.
    dependencies: Vec<String>,
    /// By `name@VERSION`: the version that has it first, and which dependency is meant.
    symbols: HashMap<String, (String, usize)>,
}

impl Library {
    /// The dependency of whoever needs the library.
    pub fn dependency(&self) -> Option<&str> {
        self.dependencies.first().map(String::as_str)
    }

    /// The dependency of whoever needs a symbol, and the version since which it is there.
    pub fn symbol(&self, name: &str) -> Option<(&str, &str)> {
        let (since, dependency) = self.symbols.get(name)?;
        Some((self.dependencies.get(*dependency)?, since))
    }

    /// The versions since which symbols of the first dependency are there.
    pub fn versions(&self) -> impl Iterator<Item = &str> {
        self.symbols.values().filter(|(_, dependency)| *dependency == 0).map(|(v, _)| v.as_str())
    }
}

/// The names of the libraries of a `symbols` file.
pub fn sonames(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(header).map(|(soname, _)| soname)
}

fn header(line: &str) -> Option<(&str, &str)> {
    let begins = line.chars().next()?;
    if begins.is_whitespace() || "|*#".contains(begins) {
        return None;
    }
    line.split_once(char::is_whitespace).map(|(soname, dependency)| (soname, dependency.trim()))
}

/// Reads one library of a `symbols` file; `None` where it is not in it.
pub fn library(text: &str, soname: &str) -> Option<Library> {
    let mut found: Option<Library> = None;
    let mut inside = false;
    for line in text.lines() {
        if let Some((name, dependency)) = header(line) {
            inside = name == soname;
            if inside {
                let library = found.get_or_insert_default();
                *library =
                    Library { dependencies: vec![dependency.to_owned()], ..Library::default() };
            }
            continue;
        }
        let Some(library) = found.as_mut().filter(|_| inside) else { continue };
        if let Some(other) = line.strip_prefix('|') {
            library.dependencies.push(other.trim().to_owned());
        } else if line.starts_with(' ') {
            let mut words = line.split_whitespace();
            let (Some(name), Some(since)) = (words.next(), words.next()) else { continue };
            let dependency = words.next().and_then(|id| id.parse().ok()).unwrap_or(0);
            library.symbols.insert(name.to_owned(), (since.to_owned(), dependency));
        }
    }
    found
}

/// The name and the version of a library's name, as `shlibs` files list them:
/// `libz.so.1` and `libdb-5.3.so`.
pub fn split_soname(soname: &str) -> Option<(&str, &str)> {
    let split = soname
        .rsplit_once(".so.")
        .filter(|(name, version)| !name.is_empty() && !version.is_empty());
    split.or_else(|| {
        let stem = soname.strip_suffix(".so")?;
        let at = stem.rmatch_indices('-').map(|(at, _)| at).find(|at| {
            *at > 0 && stem[at + 1..].starts_with(|first: char| first.is_ascii_digit())
        })?;
        Some((&stem[..at], &stem[at + 1..]))
    })
}

/// Lines of a `shlibs` file: type, name, version, dependencies.
fn shlibs_lines(text: &str) -> impl Iterator<Item = (Option<&str>, &str, &str, &str)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let mut rest = line;
        let mut word = || {
            let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
            rest = after.trim_start();
            Some(word).filter(|word| !word.is_empty())
        };
        let first = word()?;
        let (kind, name) = match first.strip_suffix(':') {
            Some(kind) => (Some(kind), word()?),
            None => (None, first),
        };
        let version = word()?;
        Some((kind, name, version, rest))
    })
}

/// The names and versions that a `shlibs` file lists for packages of kind `deb`.
pub fn shlibs_names(text: &str) -> impl Iterator<Item = (&str, &str)> {
    shlibs_lines(text)
        .filter(|(kind, ..)| matches!(kind, None | Some("deb")))
        .map(|(_, name, version, _)| (name, version))
}

/// The dependencies of whoever needs a library, by a `shlibs` file. A line of the kind
/// `deb` wins over one without a kind; those of other kinds (`udeb`) do not count.
pub fn shlibs_dependency<'t>(text: &'t str, soname: &str) -> Option<&'t str> {
    let (name, version) = split_soname(soname)?;
    let of_it = || shlibs_lines(text).filter(|line| (line.1, line.2) == (name, version));
    let of_kind = |wanted: Option<&str>| of_it().find(|line| line.0 == wanted).map(|line| line.3);
    of_kind(Some("deb")).or_else(|| of_kind(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "libc.so.6 libc6 #MINVER#\n| libc6 (>> 2.36), libc6 (<< 2.37)\n* Build-Depends-Package: libc6-dev\n GLIBC_2.2.5@GLIBC_2.2.5 2.2.5\n GLIBC_PRIVATE@GLIBC_PRIVATE 0 1\n#MISSING: 2.1# gone@Base 2.0\n memcpy@GLIBC_2.14 2.14\nlibm.so.6 libc6 #MINVER#\n cos@GLIBC_2.2.5 2.2.5\n";

    #[test]
    fn libraries_of_a_symbols_file() {
        assert_eq!(sonames(SYMBOLS).collect::<Vec<_>>(), ["libc.so.6", "libm.so.6"]);
        let libc = library(SYMBOLS, "libc.so.6").expect("there");
        assert_eq!(libc.dependency(), Some("libc6 #MINVER#"));
        assert_eq!(libc.symbol("memcpy@GLIBC_2.14"), Some(("libc6 #MINVER#", "2.14")));
        let private = libc.symbol("GLIBC_PRIVATE@GLIBC_PRIVATE");
        assert_eq!(private, Some(("libc6 (>> 2.36), libc6 (<< 2.37)", "0")));
        assert_eq!((libc.symbol("cos@GLIBC_2.2.5"), libc.symbol("gone@Base")), (None, None));
        let mut versions: Vec<_> = libc.versions().collect();
        versions.sort_unstable();
        assert_eq!(versions, ["2.14", "2.2.5"]);
        assert_eq!(library(SYMBOLS, "libx.so.1"), None);
    }

    #[test]
    fn names_of_libraries() {
        for (soname, wanted) in [
            ("libz.so.1", Some(("libz", "1"))),
            ("libcrypto.so.1.1", Some(("libcrypto", "1.1"))),
            ("libdb-5.3.so", Some(("libdb", "5.3"))),
            ("liba-b-2.40-system.so", Some(("liba-b", "2.40-system"))),
            ("libperl.so", None),
            ("plugin-x.so", None),
            (".so.1", None),
        ] {
            assert_eq!(split_soname(soname), wanted, "{soname}");
        }
    }

    #[test]
    fn lines_of_a_shlibs_file() {
        let text = "# a comment\nudeb: libz 1 zlib1g-udeb\nlibz\t1 zlib1g (>= 1:1.2),\tother\nlibz 1 later\nliba 2 liba2\ndeb: liba 2 liba2-deb | liba2\nlibself 0\n";
        let of = |soname| shlibs_dependency(text, soname);
        assert_eq!(of("libz.so.1"), Some("zlib1g (>= 1:1.2),\tother"));
        assert_eq!(of("liba.so.2"), Some("liba2-deb | liba2"));
        assert_eq!(of("libself.so.0"), Some(""));
        assert_eq!((of("libz.so.2"), of("libz.so")), (None, None));
        assert!(shlibs_names(text).any(|name| name == ("liba", "2")));
    }
}
