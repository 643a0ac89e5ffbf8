//! Which answer a request gets.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use strata_core::MacAddr;
use strata_import::boot::{self, INITRAMFS, KERNEL};
use strata_store::Store;

use super::vas::{Finder, VasError};
use super::{Options, script};
use crate::http_server::Handler;
use crate::http_server::files::{
    FileBody, Pace, SentFile, open_regular, plain, refused_method, send,
};

/// What every iPXE asks for first.
pub const FIRST_SCRIPT: &str = "boot.ipxe";
/// iPXE for firmware that has none: of a PC, of the UEFI kind with its own driver of the network
/// card, of the UEFI kind with iPXE's.
pub const IPXE_PROGRAMS: [&str; 3] = ["undionly.kpxe", "snponly.efi", "ipxe.efi"];

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Vas(#[from] VasError),
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error(
        "the {part} of {environment} has {found} bytes, not {expected} as its description says"
    )]
    Damaged { environment: String, part: &'static str, found: u64, expected: u64 },
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'p> {
    First,
    Machine(MacAddr),
    Part { environment: &'p str, part: &'static str },
    Ipxe(&'static str),
}

/// What a path asks for; `None` for anything else.
fn wanted(path: &str) -> Option<Wanted<'_>> {
    let (directory, name) = path.strip_prefix('/')?.rsplit_once('/').unwrap_or(("", &path[1..]));
    match directory {
        "" if name == FIRST_SCRIPT => Some(Wanted::First),
        "va" => name.strip_suffix(".ipxe")?.parse().ok().map(Wanted::Machine),
        "ipxe" => IPXE_PROGRAMS.into_iter().find(|known| *known == name).map(Wanted::Ipxe),
        _ => {
            let environment = directory.strip_prefix("boot/")?;
            let part = [KERNEL, INITRAMFS].into_iter().find(|known| *known == name)?;
            Some(Wanted::Part { environment, part })
        }
    }
}

/// What is served.
#[derive(Debug)]
pub(super) struct Files {
    store: Store,
    options: Options,
    vas: Finder,
    pace: Arc<Pace>,
}

enum Found {
    Script(String),
    File(SentFile),
    Nothing,
}

impl Files {
    pub(super) fn new(store: Store, options: Options) -> Self {
        let pace = Arc::new(Pace::new(options.bytes_per_second));
        Files { store, options, vas: Finder::default(), pace }
    }

    fn find(&self, path: &str) -> Result<Found, RequestError> {
        match wanted(path) {
            None => Ok(Found::Nothing),
            Some(Wanted::First) => Ok(Found::Script(script::first())),
            Some(Wanted::Machine(mac)) => self.machine(mac).map(Found::Script),
            Some(Wanted::Part { environment, part }) => self.part(environment, part),
            Some(Wanted::Ipxe(name)) => file(&self.options.ipxe.join(name), false),
        }
    }

    fn machine(&self, mac: MacAddr) -> Result<String, RequestError> {
        let Some(va) = self.vas.find(&self.store, mac)? else {
            tracing::warn!(%mac, "a machine asks that is no VA");
            return Ok(script::waiting(mac, "is no VA that a machine can boot into"));
        };
        let environments = boot::list(&self.options.environments)?;
        let Some(current) = environments.into_iter().find(|environment| environment.current) else {
            tracing::error!(%mac, "there is no boot environment: strata boot build");
            return Ok(script::waiting(mac, "has nothing to boot: strata boot build"));
        };
        let name = va.name.as_ref().map_or("", |name| name.as_str());
        tracing::info!(%mac, va = name, environment = current.name, "a machine boots");
        Ok(script::machine(mac, va.name.as_ref(), &current.name, &self.options.command_line))
    }

    /// A file of an environment that is whole, which is never changed.
    fn part(&self, environment: &str, part: &'static str) -> Result<Found, RequestError> {
        let environments = boot::list(&self.options.environments)?;
        let Some(known) = environments.into_iter().find(|known| known.name == environment) else {
            return Ok(Found::Nothing);
        };
        let found = file(&known.path.join(part), true)?;
        let expected = match part {
            KERNEL => known.description.kernel.bytes,
            _ => known.description.initramfs.bytes,
        };
        match &found {
            Found::File(SentFile { length, .. }) if *length != expected => {
                let (environment, found) = (known.name, *length);
                Err(RequestError::Damaged { environment, part, found, expected })
            }
            _ => Ok(found),
        }
    }
}

fn file(path: &Path, is_immutable: bool) -> Result<Found, RequestError> {
    use std::os::unix::fs::MetadataExt as _;
    match open_regular(path) {
        Ok((file, metadata)) => {
            let (inode, length, changed) = (metadata.ino(), metadata.len(), metadata.mtime());
            let etag = format!("\"{inode:x}-{changed:x}-{length:x}\"");
            Ok(Found::File(SentFile { file, length, etag, is_immutable }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(source) => Err(RequestError::File { path: path.display().to_string(), source }),
    }
}

impl Handler for Arc<Files> {
    type Body = FileBody;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<FileBody> {
        let (method, headers) = (request.method().clone(), request.headers().clone());
        if let Some(refused) = refused_method(&method) {
            return refused;
        }
        let path = request.uri().path().to_owned();
        let (files, asked) = (self.clone(), path.clone());
        let found = tokio::task::spawn_blocking(move || files.find(&asked)).await;
        let is_head = method == Method::HEAD;
        let answer = match found {
            Ok(Ok(Found::Script(text))) => text_answer(text, is_head),
            Ok(Ok(Found::File(file))) => send(file, &headers, is_head, Some(&self.pace)),
            Ok(Ok(Found::Nothing)) => plain(StatusCode::NOT_FOUND),
            Ok(Err(error)) => failed(&path, &error),
            Err(error) => failed(&path, &error),
        };
        tracing::debug!(%path, status = answer.status().as_u16(), "answered");
        answer
    }
}

fn failed(path: &str, error: &dyn std::fmt::Display) -> Response<FileBody> {
    tracing::error!(%path, %error, "a request cannot be answered");
    plain(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A script, which is made anew for each request.
fn text_answer(text: String, is_head: bool) -> Response<FileBody> {
    let mut answer = plain(StatusCode::OK);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_head {
        *answer.body_mut() =
            Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_a_path() {
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        let part = |part| Some(Wanted::Part { environment: "6.1-0123", part });
        for (path, expected) in [
            ("/boot.ipxe", Some(Wanted::First)),
            ("/va/52-54-00-12-34-56.ipxe", Some(Wanted::Machine(mac))),
            ("/va/52:54:00:12:34:56.ipxe", Some(Wanted::Machine(mac))),
            ("/boot/6.1-0123/kernel", part("kernel")),
            ("/boot/6.1-0123/initramfs", part("initramfs")),
            ("/ipxe/snponly.efi", Some(Wanted::Ipxe("snponly.efi"))),
            ("/ipxe/passwd", None),
            ("/boot/6.1-0123/environment.json", None),
            ("/va/52-54-00-12-34-56", None),
            ("/va/..%2fmachines.ipxe", None),
            ("/machines/web/disk.img", None),
            ("/va/", None),
            ("/", None),
            ("", None),
            ("boot.ipxe", None),
        ] {
            assert_eq!(wanted(path), expected, "{path}");
        }
        // Such an environment is in no list.
        let up = Some(Wanted::Part { environment: "..", part: "kernel" });
        assert_eq!(wanted("/boot/../kernel"), up);
    }
}
