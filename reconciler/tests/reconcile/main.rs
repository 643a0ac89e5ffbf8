//! The reconciler on a real store and real git repositories.

mod audit;
mod cli;
mod daemon;
mod disk;
mod held;
mod hostile;
mod links;
mod lost_state;
mod mirror;
mod passes;
mod plan;
mod put_back;
mod refusals;
mod reload;
mod resolve;
mod reverts;
mod rollouts;
mod sequences;
mod servers;
#[path = "../telling/sink.rs"]
#[allow(dead_code, reason = "mail is for the tests of telling")]
mod sink;
mod sources;
mod support;
mod traces;
mod transports;
mod triggers;
mod trust;
mod update;
mod usability;
mod verification;
mod views;
