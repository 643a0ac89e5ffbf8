//! Links of a store as data: where a VA's link may point.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::GenerationId;
use crate::names::{CompositionName, RingName};

/// Where a VA's link points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VaTarget {
    /// It follows a ring of a composition.
    Ring { composition: CompositionName, ring: RingName },
    /// It is pinned to one generation.
    Pinned { composition: CompositionName, generation: GenerationId },
}

impl VaTarget {
    pub fn composition(&self) -> &CompositionName {
        match self {
            VaTarget::Ring { composition, .. } | VaTarget::Pinned { composition, .. } => {
                composition
            }
        }
    }

    /// The text of the link at `va/<mac>`.
    pub fn to_path(&self) -> PathBuf {
        match self {
            VaTarget::Ring { composition, ring } => {
                format!("../rings/{composition}/{ring}/{composition}.ldf").into()
            }
            VaTarget::Pinned { composition, generation } => {
                format!("../generations/{generation}/{composition}.ldf").into()
            }
        }
    }

    /// Reads the text of a link; `None` for one that Strata did not make.
    pub fn from_path(path: &Path) -> Option<Self> {
        let parts: Vec<_> = path.to_str()?.split('/').collect();
        let target = match parts.as_slice() {
            ["..", "rings", composition, ring, _] => {
                VaTarget::Ring { composition: composition.parse().ok()?, ring: ring.parse().ok()? }
            }
            ["..", "generations", generation, file] => VaTarget::Pinned {
                composition: file.strip_suffix(".ldf")?.parse().ok()?,
                generation: generation.parse().ok()?,
            },
            _ => return None,
        };
        (target.to_path() == path).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_reads_back_and_a_foreign_one_does_not() {
        let ring = VaTarget::Ring {
            composition: "web".parse().expect("valid"),
            ring: "canary".parse().expect("valid"),
        };
        assert_eq!(ring.to_path(), Path::new("../rings/web/canary/web.ldf"));
        assert_eq!(VaTarget::from_path(&ring.to_path()), Some(ring));
        for foreign in ["../rings/web/canary/other.ldf", "/etc/passwd", "../rings/../x/y", ""] {
            assert_eq!(VaTarget::from_path(Path::new(foreign)), None, "{foreign}");
        }
    }
}
