//! What `strata.toml` says otherwise.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::stated::Stated;

/// One value that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// The path of its key, as in `rollout.ring[canary].soak`.
    pub key: String,
    /// As TOML; `None` where the base does not say it.
    pub from: Option<String>,
    /// `None` where the head does not say it.
    pub to: Option<String>,
}

/// By key.
pub(super) fn changes(base: &Stated, head: &Stated) -> Vec<SettingChange> {
    let keys: BTreeSet<_> = base.keys().chain(head.keys()).collect();
    let none = BTreeSet::new();
    let mut changes = Vec::new();
    for key in keys {
        let before = base.get(key).unwrap_or(&none);
        let after = head.get(key).unwrap_or(&none);
        let gone: Vec<_> = before.difference(after).collect();
        let new: Vec<_> = after.difference(before).collect();
        let mut change = |from: Option<&String>, to: Option<&String>| {
            let (key, from, to) = (key.clone(), from.cloned(), to.cloned());
            changes.push(SettingChange { key, from, to });
        };
        if let ([from], [to]) = (gone.as_slice(), new.as_slice()) {
            change(Some(from), Some(to));
            continue;
        }
        gone.into_iter().for_each(|from| change(Some(from), None));
        new.into_iter().for_each(|to| change(None, Some(to)));
    }
    changes
}
