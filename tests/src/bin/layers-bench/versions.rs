//! `ci/proof versions`: the order of versions against dpkg's, on thousands of
//! pairs.

use anyhow::Result;
use strata_tests::versions::{dpkg_order, our_order, pairs};

/// Compares `count` pairs. Returns whether all agree.
pub fn compare(count: usize, seed: u64) -> Result<bool> {
    let mut wrong = 0;
    for (at, (a, b)) in pairs(seed, count).iter().enumerate() {
        if at % 1000 == 0 {
            eprintln!("{at} of {count} pairs");
        }
        let (ours, dpkgs) = (our_order(a, b), dpkg_order(a, b)?);
        if ours != dpkgs {
            wrong += 1;
            println!("{a} {b}: Strata says {ours:?}, dpkg {dpkgs:?}");
        }
    }
    println!("{count} pairs of versions, {wrong} ordered unlike dpkg");
    Ok(wrong == 0)
}
