//! How the text of a file differs from its original: a unified diff, with bounds.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use similar::{Algorithm, TextDiff};
use strata_core::manifest::file_name;

use super::compare::open_regular;
use super::originals::Originals;

/// Larger files are not shown, in bytes.
pub const TEXT_BYTES: usize = 1 << 20;
/// What is not found in this time is told in larger pieces.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lines around a change.
const CONTEXT: usize = 3;

/// Said instead of a diff where the layers are not at hand.
pub const NO_LAYERS: &str = "The original is not at hand: name the store or the layers\n";

/// What a file holds, for showing.
enum Text {
    Lines(String),
    Binary,
    TooLarge(u64),
    Unreadable(Errno),
}

/// The unified diff of a file against its original, or a line that says why
/// there is none; `None` where both are the same or nothing is known of either.
pub fn show(
    path: &[u8],
    original: Option<(&Originals, (&str, &[u8]))>,
    own: Option<&OwnedFd>,
) -> Option<String> {
    let shown = super::shown(&String::from_utf8_lossy(path));
    let old = original.map(|(originals, (unit, path))| match originals.open(unit, path) {
        Ok(file) => read(&file),
        Err(errno) => Text::Unreadable(errno),
    });
    let new = own.map(|directory| match open_regular(directory, file_name(path)) {
        Ok(file) => read(&file),
        Err(errno) => Text::Unreadable(errno),
    });
    let (old_name, new_name) = (format!("a/{shown}"), format!("b/{shown}"));
    let nothing = || "/dev/null".to_owned();
    match (old, new) {
        (None, None) => None,
        (Some(Text::Unreadable(errno)), _) if own.is_some() => {
            Some(format!("The original of {shown} is not at hand: {errno}\n"))
        }
        (Some(Text::Unreadable(_)), _) => None,
        (_, Some(Text::Unreadable(errno))) => Some(format!("{shown} cannot be read: {errno}\n")),
        (Some(Text::TooLarge(size)), _) | (_, Some(Text::TooLarge(size))) => Some(format!(
            "{shown} or its original has {size} bytes: more than {TEXT_BYTES} are not shown\n"
        )),
        (Some(Text::Binary), _) | (_, Some(Text::Binary)) => {
            Some(format!("Binary file {shown} differs\n"))
        }
        (Some(Text::Lines(old)), Some(Text::Lines(new))) => {
            unified(&old, &new, &old_name, &new_name)
        }
        (None, Some(Text::Lines(new))) => unified("", &new, &nothing(), &new_name),
        (Some(Text::Lines(old)), None) => unified(&old, "", &old_name, &nothing()),
    }
}

fn unified(old: &str, new: &str, old_name: &str, new_name: &str) -> Option<String> {
    if old == new {
        return None;
    }
    let diff =
        TextDiff::configure().algorithm(Algorithm::Myers).timeout(PATIENCE).diff_lines(old, new);
    let text = diff.unified_diff().context_radius(CONTEXT).header(old_name, new_name).to_string();
    Some(text)
}

fn read(file: &OwnedFd) -> Text {
    let size = match rustix::fs::fstat(file) {
        Ok(stat) => u64::try_from(stat.st_size).unwrap_or(u64::MAX),
        Err(errno) => return Text::Unreadable(errno),
    };
    if size > TEXT_BYTES as u64 {
        return Text::TooLarge(size);
    }
    let mut bytes = vec![0; TEXT_BYTES + 1];
    let mut length = 0;
    while length < bytes.len() {
        match rustix::io::read(file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Text::Unreadable(errno),
        }
    }
    if length > TEXT_BYTES {
        return Text::TooLarge(length as u64);
    }
    bytes.truncate(length);
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Text::Lines(text),
        _ => Text::Binary,
    }
}
