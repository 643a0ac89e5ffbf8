//! The white-outs of a configuration layer: what it hides in all layers below it (§4.2,
//! §5.5; `docs/formats.md`, "White-outs of a layer").

use crate::limits;
use crate::manifest::{escape, path_order, unescape};
use crate::position::Located;

/// Where a unit keeps them, below its directory `scripts`.
pub const FILE: &str = "whiteouts";
const HEADER: &str = "strata-whiteouts 1";
/// Bytes of the file.
pub const FILE_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhiteoutsError {
    #[error("the file has {0} bytes, the limit is {FILE_BYTES}")]
    TooLarge(usize),
    #[error("the first line must be `{HEADER}`")]
    Header,
    #[error("the last line has no end")]
    Unended,
    #[error("the path is not written in the one way that is allowed")]
    Form,
    #[error("the path is not a path inside a layer")]
    Path,
    #[error("paths must be in the order of their components, and none below another")]
    Order,
}

/// Hidden paths, relative to the root, in order; none is below another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whiteouts(Vec<Vec<u8>>);

impl Whiteouts {
    /// Of any paths; those below others are implied by these.
    pub fn new(mut paths: Vec<Vec<u8>>) -> Self {
        paths.retain(|path| is_path(path));
        paths.sort_by(|a, b| path_order(a, b));
        let mut kept: Vec<Vec<u8>> = Vec::with_capacity(paths.len());
        for path in paths {
            if kept.last().is_none_or(|above| !holds(above, &path)) {
                kept.push(path);
            }
        }
        Whiteouts(kept)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// The text of the file.
    pub fn print(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for path in &self.0 {
            text.push('/');
            escape(&mut text, path, false);
            text.push('\n');
        }
        text
    }

    /// # Errors
    /// Anything but canonical text, with its line.
    pub fn parse(text: &[u8]) -> Result<Self, Located<WhiteoutsError>> {
        if text.len() > FILE_BYTES {
            return Err(Located::new(1, 1, WhiteoutsError::TooLarge(text.len())));
        }
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let header = lines.next().and_then(|line| line.strip_suffix(b"\n"));
        if header != Some(HEADER.as_bytes()) {
            return Err(Located::new(1, 1, WhiteoutsError::Header));
        }
        let mut paths: Vec<Vec<u8>> = Vec::new();
        for (number, line) in (2..).zip(lines) {
            let fault = |error| Located::new(number, 1, error);
            let line = line.strip_suffix(b"\n").ok_or(fault(WhiteoutsError::Unended))?;
            let written = line.strip_prefix(b"/").ok_or(fault(WhiteoutsError::Path))?;
            let path = unescape(written, "path").map_err(|_| fault(WhiteoutsError::Form))?;
            let mut again = String::new();
            escape(&mut again, &path, false);
            if again.as_bytes() != written {
                return Err(fault(WhiteoutsError::Form));
            }
            if !is_path(&path) {
                return Err(fault(WhiteoutsError::Path));
            }
            if let Some(above) = paths.last()
                && (holds(above, &path) || path_order(above, &path).is_ge())
            {
                return Err(fault(WhiteoutsError::Order));
            }
            paths.push(path);
        }
        Ok(Whiteouts(paths))
    }
}

/// Whether `path` is `above` or below it.
fn holds(above: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn is_path(path: &[u8]) -> bool {
    let component = |name: &[u8]| {
        !matches!(name, b"" | b"." | b"..")
            && name.len() <= limits::COMPONENT_BYTES
            && !name.contains(&0)
    };
    path.len() <= limits::PATH_BYTES && path.split(|byte| *byte == b'/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = include_str!("../golden/whiteouts");

    #[test]
    fn golden() {
        let whiteouts = Whiteouts::parse(GOLDEN.as_bytes()).expect("the golden file");
        let paths: Vec<&[u8]> = whiteouts.iter().collect();
        assert_eq!(paths, [&b"etc/a b"[..], b"etc/rc0.d", b"etc/rc0.d-old", b"usr/sbin/x\xff"]);
        assert_eq!(whiteouts.print(), GOLDEN);
    }

    #[test]
    fn paths_below_others_are_implied() {
        let paths =
            ["b/c", "a", "b", "a/b", "", "../x", "a-b", "/c"].map(|p| p.as_bytes().to_vec());
        let whiteouts = Whiteouts::new(paths.into());
        assert_eq!(whiteouts.iter().collect::<Vec<_>>(), [&b"a"[..], b"a-b", b"b"]);
    }

    #[test]
    fn faults_are_told_with_their_line() {
        for (text, line, error) in [
            ("", 1, WhiteoutsError::Header),
            ("strata-whiteouts 2\n", 1, WhiteoutsError::Header),
            ("strata-whiteouts 1\n/a", 2, WhiteoutsError::Unended),
            ("strata-whiteouts 1\na\n", 2, WhiteoutsError::Path),
            ("strata-whiteouts 1\n/\n", 2, WhiteoutsError::Path),
            ("strata-whiteouts 1\n/a/../b\n", 2, WhiteoutsError::Path),
            ("strata-whiteouts 1\n/\\x61\n", 2, WhiteoutsError::Form),
            ("strata-whiteouts 1\n/b\n/a\n", 3, WhiteoutsError::Order),
            ("strata-whiteouts 1\n/a\n/a/b\n", 3, WhiteoutsError::Order),
            ("strata-whiteouts 1\n/a\n/a\n", 3, WhiteoutsError::Order),
        ] {
            let fault = Whiteouts::parse(text.as_bytes()).expect_err(text);
            assert_eq!((fault.line, fault.error), (line, error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(paths in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let whiteouts = Whiteouts::new(paths);
            prop_assert_eq!(Whiteouts::parse(whiteouts.print().as_bytes()), Ok(whiteouts));
        }

        #[test]
        fn mutations_never_panic(at in 0..GOLDEN.len(), byte: u8) {
            let mut text = GOLDEN.as_bytes().to_vec();
            text[at] = byte;
            if let Ok(whiteouts) = Whiteouts::parse(&text) {
                prop_assert_eq!(whiteouts.print().into_bytes(), text);
            }
        }
    }
}
