//! The commands that talk to a mount.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use strata_vlfs::control::{self, Answer, Request};
use strata_vlfs::data::DataState;
use strata_vlfs::diff::shown;
use strata_vlfs::fuse::device;
use strata_vlfs::status::{Gauges, Status};

use super::mount::{Layers, check_layers};
use super::{Output, hinted};

/// The control socket of a mount, found in the mount table or, inside a VA, by
/// the mount's number.
pub(super) fn socket(mount_point: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(mount_point)?;
    let number = match device::device_number(&path) {
        Some(number) => number,
        None => {
            let canonical =
                std::fs::canonicalize(&path).with_context(|| path.display().to_string())?;
            device::device_number(&canonical).ok_or_else(|| not_mounted(mount_point))?
        }
    };
    let socket = control::socket_path(number);
    if socket.exists() { Ok(socket) } else { Err(not_mounted(mount_point)) }
}

fn not_mounted(mount_point: &Path) -> anyhow::Error {
    hinted(
        format!("{} is no mount of strata-vlfs", mount_point.display()),
        "`findmnt -t fuse.strata` lists mounts",
    )
}

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

pub(super) fn ask_status(mount_point: &Path) -> anyhow::Result<Status> {
    match control::ask(&socket(mount_point)?, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => Err(anyhow!("unexpected answer {other:?}")),
    }
}

pub fn status(mount_point: &Path, output: Output) -> anyhow::Result<u8> {
    let status = ask_status(mount_point)?;
    match output {
        Output::Json => print_json(&status)?,
        Output::Text => print(&status_text(&status))?,
    }
    Ok(0)
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    // Paths, versions and messages may hold what a terminal would obey.
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<19}{}", shown(value));
    };
    line("mount point", &status.mount_point.display().to_string());
    line("daemon", &format!("process {}, up {} s", status.pid, status.uptime_s));
    if let Some(mac) = &status.mac {
        line("VA", mac);
        line("composition", status.composition.as_deref().unwrap_or("-"));
        line("generation", status.generation.as_deref().unwrap_or("-"));
        line("desired", status.desired.as_deref().unwrap_or("-"));
    }
    line("error", status.error.as_deref().unwrap_or("none"));
    for file in &status.damaged_files {
        line("damaged", file);
    }
    if status.damaged_count > status.damaged_files.len() {
        line("damaged", &format!("{} files in all", status.damaged_count));
    }
    line("private", &status.private.display().to_string());
    for data in &status.data {
        line("data", &format!("{} ({})", data.path, data_state(data.state)));
    }
    super::scripts::status_lines(status.scripts.as_ref(), &mut line);
    line("passthrough", &status.passthrough);
    line("swaps", &status.swaps.to_string());
    line("open", &format!("{} files, {} directories", status.open_files, status.open_directories));
    line("index", &format!("{} paths, {} known to the kernel", status.paths, status.nodes));
    line("layers", &format!("{}, topmost first", status.layers.len()));
    for layer in &status.layers {
        line("", &format!("{} ({} paths)", layer.name, layer.paths));
    }
    for held in &status.held_layers {
        line("unlinked", &format!("{} (held by {} open files)", held.name, held.open_files));
        for process in &held.processes {
            line("", &format!("process {} ({})", process.pid, process.command));
        }
    }
    gauges_text(&status.gauges, &mut line);
    text
}

fn gauges_text(gauges: &Gauges, line: &mut impl FnMut(&str, &str)) {
    let bytes = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
    let memory = &gauges.memory;
    let text = format!(
        "{} resident, {} its own, {} of files",
        bytes(memory.resident),
        bytes(memory.private_dirty),
        bytes(memory.file_backed)
    );
    line("memory", &text);
    let limit = gauges.descriptors_limit.map_or("no limit".to_owned(), |n| format!("of {n}"));
    let descriptors = gauges.descriptors.map_or("unknown".to_owned(), |n| n.to_string());
    line("descriptors", &format!("{descriptors} {limit}"));
    let text = format!(
        "{} (at most {} without an open file)",
        gauges.backing_files, gauges.kept_files_limit
    );
    line("passed through", &text);
    line("workers", &format!("{} of {}", gauges.workers, gauges.workers_limit));
    let (exchange, answer) = (gauges.longest_exchange_us, gauges.longest_answer_in_swap_us);
    line("longest in a swap", &format!("{exchange} µs names waited, {answer} µs an answer"));
    let latency = &gauges.idle_latency;
    let held = format!("{}, {} times, {} ms in all", latency.state, latency.times, latency.held_ms);
    line("idle latency", &held);
    let requests = gauges.requests.iter().map(|(name, count)| format!("{count} {name}"));
    line("requests", &requests.collect::<Vec<_>>().join(", "));
}

fn data_state(state: DataState) -> &'static str {
    match state {
        DataState::Mounted => "mounted",
        DataState::Pending => "pending: mounted at the next start",
        DataState::Ending => "no longer declared: mounted until the next start",
    }
}

pub fn swap(mount_point: &Path, layers: &Layers, output: Output) -> anyhow::Result<u8> {
    let layers = layers.directories()?;
    if layers.is_empty() {
        return Err(hinted("no layers are given", "give --layer DIR once or more, topmost first"));
    }
    let status = ask_status(mount_point)?;
    check_layers(&layers, &status.private)?;
    if let Some(layer) = layers.iter().find(|layer| layer.starts_with(&status.mount_point)) {
        return Err(hinted(
            format!("the layer {} is in the mount itself", layer.display()),
            "a mount cannot be made of its own files: copy them elsewhere",
        ));
    }
    let answer = control::ask(&socket(mount_point)?, &Request::Swap { layers })?;
    let Answer::Swapped { names, directories } = &answer else {
        return Err(anyhow!("unexpected answer {answer:?}"));
    };
    match output {
        Output::Json => print_json(&answer)?,
        Output::Text => {
            print(&format!("swapped: {names} names in {directories} directories changed\n"))?
        }
    }
    Ok(0)
}

/// The mounted root above a path, and the path below it; empty for the root itself.
fn split_mount(path: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let Ok(root) = std::fs::canonicalize(path)
        && device::device_number(&root).is_some()
    {
        return Ok((root, PathBuf::new()));
    }
    let parent = path.parent().ok_or_else(|| anyhow!("{} has no parent", path.display()))?;
    let parent = std::fs::canonicalize(parent).with_context(|| parent.display().to_string())?;
    let name = path.file_name().ok_or_else(|| anyhow!("{} has no name", path.display()))?;
    let device = std::fs::symlink_metadata(&parent)?.dev();
    let mut root = parent.clone();
    while let Some(above) = root.parent() {
        if std::fs::symlink_metadata(above)?.dev() != device {
            break;
        }
        root = above.to_owned();
    }
    let below = parent.strip_prefix(&root)?.join(name);
    Ok((root, below))
}

pub fn revert(paths: &[PathBuf], recursive: bool) -> anyhow::Result<u8> {
    for path in paths {
        let path = std::path::absolute(path)?;
        let (root, below) = split_mount(&path)?;
        if device::device_number(&root).is_none() {
            return Err(hinted(
                format!("{} is in no mount of strata-vlfs", path.display()),
                "`findmnt -t fuse.strata` lists mounts",
            ));
        }
        if below.as_os_str().is_empty() && !recursive {
            return Err(hinted(
                format!("{} is the mount itself", path.display()),
                "`revert --recursive` takes all below it",
            ));
        }
        let done = match socket(&root) {
            Ok(socket) => {
                let path = below.as_os_str().as_bytes().to_vec();
                let request = Request::Revert { path, recursive };
                match control::ask(&socket, &request) {
                    Ok(Answer::Reverted { what }) => Ok(what),
                    Ok(other) => Err(anyhow!("unexpected answer {other:?}")),
                    Err(error) => Err(error.into()),
                }
            }
            // Inside the VA, or not root: ask the file system itself.
            Err(_) => revert_by_attribute(&path, recursive),
        };
        let what = done.with_context(|| path.display().to_string())?;
        print(&format!("{}: {what}\n", path.display()))?;
    }
    Ok(0)
}

fn revert_by_attribute(path: &Path, recursive: bool) -> anyhow::Result<String> {
    let parent = path.parent().ok_or_else(|| anyhow!("it has no parent"))?;
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let attribute = match (rustix::process::geteuid().is_root(), recursive) {
        (true, false) => "trusted.strata.revert",
        (true, true) => "trusted.strata.revert-tree",
        (false, false) => "user.strata.revert",
        (false, true) => return Err(hinted("only root may revert a tree", "revert its files")),
    };
    let none = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(parent, attribute, name.as_bytes(), none) {
        Ok(()) => Ok("reverted".to_owned()),
        Err(errno) => Err(anyhow!(control::revert_error(errno))),
    }
}
