//! What the end-to-end tests of `tests/tests/` stand on.

pub mod source_tree;
