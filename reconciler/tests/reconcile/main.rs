//! The reconciler on a real store and real git repositories.

mod passes;
#[allow(dead_code)]
mod support;
