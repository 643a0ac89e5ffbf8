//! Pure decisions of Strata.
