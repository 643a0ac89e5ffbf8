//! A `Packages` index: what an archive has, one stanza a package.

use strata_core::deb822::{self, Stanza, StanzaError};
use strata_core::limits;
use strata_core::metadata::Metadata;
use strata_core::position::Located;

use super::Sha256;
use crate::control;

/// A package that can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    pub metadata: Metadata,
    /// Below the root of the archive; relative and free of `..`.
    pub filename: String,
    pub bytes: u64,
    pub sha256: Sha256,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    #[error("it has {0} bytes, the limit is {max}", max = limits::DATABASE_BYTES)]
    TooLarge(usize),
    #[error(transparent)]
    Stanza(#[from] StanzaError),
}

/// What an index holds for machines of `architecture`, in its order, and the
/// number of packages that no layer can be made of, as their names, versions or
/// relations are not understood.
///
/// # Errors
/// It is no deb822 text.
pub fn parse(
    text: &[u8],
    architecture: &str,
) -> Result<(Vec<Available>, usize), Located<IndexError>> {
    if text.len() > limits::DATABASE_BYTES {
        return Err(Located::new(1, 1, IndexError::TooLarge(text.len())));
    }
    let stanzas = deb822::parse(text).map_err(|fault| fault.map(IndexError::from))?;
    let mut packages = Vec::with_capacity(stanzas.len());
    let mut passed_over = 0;
    for stanza in &stanzas {
        let fits = |name: &str| name == architecture || name == "all";
        if !stanza.get("Architecture").is_some_and(|field| fits(field.value)) {
            continue;
        }
        match available(stanza) {
            Some(package) => packages.push(package),
            None => passed_over += 1,
        }
    }
    Ok((packages, passed_over))
}

fn available(stanza: &Stanza<'_>) -> Option<Available> {
    let value = |name| stanza.get(name).map(|field| field.value);
    let filename = value("Filename")?;
    let harmless = |name: &str| !matches!(name, "" | "..");
    let package = || value("Package").unwrap_or_default().to_owned();
    if !filename.trim_start_matches("./").split('/').all(harmless) {
        tracing::warn!(package = package(), filename, "a package's file name is refused");
        return None;
    }
    let metadata = match control::from_stanza(stanza) {
        Ok(metadata) => metadata,
        Err(error) => {
            tracing::debug!(package = package(), %error, "a package of the index is passed over");
            return None;
        }
    };
    let bytes = value("Size")?.parse().ok()?;
    let sha256 = value("SHA256")?.parse().ok()?;
    Some(Available { metadata, filename: filename.to_owned(), bytes, sha256 })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn stanza(name: &str, version: &str, more: &str) -> String {
        let digest = Sha256::of(b"");
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{more}Filename: pool/{name}.deb\nSize: 7\nSHA256: {digest}\n\n"
        )
    }

    #[test]
    fn packages_of_the_architecture() {
        let text =
            stanza("a", "1", "Depends: b\n") + &stanza("c", "1", "").replace("amd64", "arm64");
        let (packages, passed_over) = parse(text.as_bytes(), "amd64").expect("an index");
        assert_eq!(passed_over, 0);
        let [a] = packages.as_slice() else { panic!("{packages:?}") };
        assert_eq!(a.metadata.layer.as_str(), "a");
        assert_eq!((a.filename.as_str(), a.bytes), ("pool/a.deb", 7));
    }

    #[test]
    fn what_is_not_understood_is_counted() {
        let out = stanza("up", "1", "").replace("pool/", "pool/../../");
        let text = stanza("a", "1_x", "") + &out + &stanza("b", "1", "");
        let (packages, passed_over) = parse(text.as_bytes(), "amd64").expect("an index");
        assert_eq!((packages.len(), passed_over), (1, 2));
    }
}
