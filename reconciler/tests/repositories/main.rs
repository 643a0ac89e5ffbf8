//! Repositories (§5.4) as a user works with them, on the built program. Needs root:
//! layers keep owners.

mod collection;
mod killed;
mod local;
mod published;
mod sharing;
mod signed;
mod support;
