//! Whether a forge sent a request: a signature over the body, or a token.
//!
//! The body is taken in pieces and never kept, and nothing of it is read: a request
//! says no more than "look now". Everything secret is compared in constant time.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secret::Secret;

/// How old a signed time may be, in seconds (Standard Webhooks).
const TOLERANCE_S: u64 = 300;
/// Signatures of one request that are tried, as while keys change there are two.
const SIGNATURES: usize = 4;
/// Bytes of a delivery's id.
const ID_BYTES: usize = 200;

/// The programs whose webhooks are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forge {
    GitHub,
    GitLab,
    Gitea,
    Forgejo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is no signature or token")]
    Missing,
    #[error("the signature or token is wrong")]
    Wrong,
    #[error("the request was signed too long ago, or a clock is wrong")]
    Old,
}

/// What tells the requests of one forge from others'.
#[derive(Debug)]
pub struct Verifier {
    forge: Forge,
    secret: Secret,
}

/// A request under way.
pub struct Checking {
    /// `None` where the headers alone have proved it.
    mac: Option<Hmac<Sha256>>,
    expected: Vec<Vec<u8>>,
    delivery: Option<String>,
}

impl Verifier {
    pub fn new(forge: Forge, secret: Secret) -> Self {
        Verifier { forge, secret }
    }

    /// Reads the headers of a request; the body follows.
    ///
    /// # Errors
    /// No body could make it good.
    pub fn begin(&self, headers: &HeaderMap, now_s: u64) -> Result<Checking, Refused> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let hexadecimal = |name: &str, prefix: &str| {
            let digits = text(name)?.strip_prefix(prefix)?;
            decode_hexadecimal(digits)
        };
        let (signature, id) = match self.forge {
            Forge::GitHub => (hexadecimal("x-hub-signature-256", "sha256="), "x-github-delivery"),
            Forge::Gitea => (hexadecimal("x-gitea-signature", ""), "x-gitea-delivery"),
            Forge::Forgejo => (hexadecimal("x-forgejo-signature", ""), "x-forgejo-delivery"),
            Forge::GitLab => return self.begin_gitlab(headers, now_s),
        };
        let expected = vec![signature.ok_or(Refused::Missing)?];
        let mac = Some(keyed(self.secret.expose().as_bytes()));
        Ok(Checking { mac, expected, delivery: delivery(text(id)) })
    }

    /// GitLab sends its secret token as it is, or signs with a key `whsec_…` as
    /// Standard Webhooks says.
    fn begin_gitlab(&self, headers: &HeaderMap, now_s: u64) -> Result<Checking, Refused> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(key) = self.secret.expose().strip_prefix("whsec_") else {
            let token = headers.get("x-gitlab-token").ok_or(Refused::Missing)?;
            // Digests are compared, so that not even the length shows.
            let (given, known) =
                (Sha256::digest(token.as_bytes()), Sha256::digest(self.secret.expose()));
            if !bool::from(given.ct_eq(&known)) {
                return Err(Refused::Wrong);
            }
            let delivery = delivery(text("idempotency-key"));
            return Ok(Checking { mac: None, expected: Vec::new(), delivery });
        };
        let key = STANDARD.decode(key).map_err(|_| Refused::Wrong)?;
        let id = text("webhook-id").ok_or(Refused::Missing)?;
        let time = text("webhook-timestamp").ok_or(Refused::Missing)?;
        let signatures = text("webhook-signature").ok_or(Refused::Missing)?;
        let signed_at: u64 = time.parse().map_err(|_| Refused::Wrong)?;
        if signed_at.abs_diff(now_s) > TOLERANCE_S {
            return Err(Refused::Old);
        }
        let signatures = signatures.split(' ').filter_map(|text| text.strip_prefix("v1,"));
        let expected: Vec<_> =
            signatures.filter_map(|text| STANDARD.decode(text).ok()).take(SIGNATURES).collect();
        if expected.is_empty() {
            return Err(Refused::Missing);
        }
        let mut mac = keyed(&key);
        for part in [id, ".", time, "."] {
            mac.update(part.as_bytes());
        }
        Ok(Checking { mac: Some(mac), expected, delivery: delivery(Some(id)) })
    }
}

impl Checking {
    /// Whether the body has to be read.
    pub fn needs_body(&self) -> bool {
        self.mac.is_some()
    }

    pub fn update(&mut self, piece: &[u8]) {
        if let Some(mac) = &mut self.mac {
            mac.update(piece);
        }
    }

    /// The id of the delivery, where the forge gives one.
    ///
    /// # Errors
    /// The signature is not that of the headers and the body.
    pub fn finish(self) -> Result<Option<String>, Refused> {
        let Some(mac) = self.mac else { return Ok(self.delivery) };
        let good = |expected: &Vec<u8>| mac.clone().verify_slice(expected).is_ok();
        match self.expected.iter().any(good) {
            true => Ok(self.delivery),
            false => Err(Refused::Wrong),
        }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn delivery(id: Option<&str>) -> Option<String> {
    id.filter(|id| !id.is_empty() && id.len() <= ID_BYTES).map(str::to_owned)
}

fn decode_hexadecimal(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of GitHub's documentation.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn check(
        forge: Forge,
        secret: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> Result<Option<String>, Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        let mut checking = Verifier::new(forge, Secret::from(secret)).begin(&map, 1_000_000)?;
        body.chunks(5).for_each(|piece| checking.update(piece));
        checking.finish()
    }

    #[test]
    fn signatures_over_the_body() {
        let hub = format!("sha256={SIGNATURE}");
        for (forge, header, id, signature) in [
            (Forge::GitHub, "x-hub-signature-256", "x-github-delivery", hub.as_str()),
            (Forge::Gitea, "x-gitea-signature", "x-gitea-delivery", SIGNATURE),
            (Forge::Forgejo, "x-forgejo-signature", "x-forgejo-delivery", SIGNATURE),
        ] {
            let good = [(header, signature), (id, "72d3162e")];
            assert_eq!(check(forge, SECRET, &good, BODY), Ok(Some("72d3162e".to_owned())));
            assert_eq!(check(forge, SECRET, &good, b"Hello, World?"), Err(Refused::Wrong));
            assert_eq!(check(forge, "another", &good, BODY), Err(Refused::Wrong));
            assert_eq!(check(forge, SECRET, &[], BODY), Err(Refused::Missing));
            let cut = &signature[..signature.len() - 2];
            assert_eq!(check(forge, SECRET, &[(header, cut)], BODY), Err(Refused::Missing));
        }
        let sha1 = [("x-hub-signature", "sha1=0000000000000000000000000000000000000000")];
        assert_eq!(check(Forge::GitHub, SECRET, &sha1, BODY), Err(Refused::Missing));
    }

    #[test]
    fn the_token_of_gitlab() {
        let token = [("x-gitlab-token", "t0ken"), ("idempotency-key", "7")];
        assert_eq!(check(Forge::GitLab, "t0ken", &token, BODY), Ok(Some("7".to_owned())));
        assert_eq!(check(Forge::GitLab, "t0ken ", &token, BODY), Err(Refused::Wrong));
        assert_eq!(check(Forge::GitLab, "t0ken", &[], BODY), Err(Refused::Missing));
        // No other forge takes a token that travels as it is.
        assert_eq!(check(Forge::GitHub, "t0ken", &token, BODY), Err(Refused::Missing));
    }

    #[test]
    fn the_signature_of_gitlab() {
        let key = STANDARD.encode([7_u8; 32]);
        let secret = format!("whsec_{key}");
        let sign = |time: &str| {
            let mut mac = keyed(&[7; 32]);
            mac.update(format!("msg_1.{time}.").as_bytes());
            mac.update(BODY);
            format!("v1,AAAA v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let headers = |time: &'static str| {
            [("webhook-id", "msg_1".to_owned()), ("webhook-timestamp", time.to_owned())]
                .into_iter()
                .chain([("webhook-signature", sign(time))])
                .collect::<Vec<_>>()
        };
        let run = |headers: &[(&'static str, String)], body: &[u8]| {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            check(Forge::GitLab, &secret, &headers, body)
        };
        assert_eq!(run(&headers("1000100"), BODY), Ok(Some("msg_1".to_owned())));
        assert_eq!(run(&headers("1000100"), b"other"), Err(Refused::Wrong));
        assert_eq!(run(&headers("1000301"), BODY), Err(Refused::Old));
        assert_eq!(run(&headers("999699"), BODY), Err(Refused::Old));
        let mut moved = headers("1000100");
        moved[1].1 = "1000101".to_owned();
        assert_eq!(run(&moved, BODY), Err(Refused::Wrong), "the time is signed");
        // Where a key was set, a token does not do.
        let token = [("x-gitlab-token", secret.clone())];
        assert_eq!(run(&token, BODY), Err(Refused::Missing));
    }
}
