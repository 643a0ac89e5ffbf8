//! The order of versions is dpkg's (§5.2). Thousands of pairs: `ci/proof versions`.

use strata_tests::versions::{dpkg_order, our_order, pairs};

#[test]
fn versions_are_ordered_as_dpkg_orders_them() {
    for (a, b) in pairs(1, 300) {
        assert_eq!(our_order(&a, &b), dpkg_order(&a, &b).expect("dpkg's answer"), "{a} {b}");
    }
}

#[test]
fn the_pairs_are_of_all_orders() {
    let orders: std::collections::BTreeSet<_> =
        pairs(1, 300).iter().map(|(a, b)| our_order(a, b)).collect();
    assert_eq!(orders.len(), 3);
}
