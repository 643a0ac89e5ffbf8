//! Which unit is integrated first.
//!
//! "A pre-dependency dictates that the dependency has to be integrated before the
//! dependent layer"; "a regular dependency does not dictate order" (§5.2). So
//! Pre-Depends always come first, and Depends wherever they make no cycle, which
//! they may.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::Metadata;
use crate::names::LayerName;
use crate::relation::{Dependency, Relation};

/// The positions of `units` in the order in which they are integrated. Equal input
/// gives equal output; what nothing orders stays as it was. A cycle of Pre-Depends,
/// which no order satisfies, is broken at its first unit.
pub fn integration_order(units: &[&Metadata]) -> Vec<usize> {
    let mut by_name: BTreeMap<&LayerName, Vec<usize>> = BTreeMap::new();
    for (at, unit) in units.iter().enumerate() {
        let provided = unit.provides.iter().map(|provided| &provided.name);
        for name in provided.chain([&unit.layer]) {
            by_name.entry(name).or_default().push(at);
        }
    }
    let targets = |dependencies: &[Dependency], from: usize| -> BTreeSet<usize> {
        let relations = dependencies.iter().flat_map(|dependency| &dependency.alternatives);
        relations
            .flat_map(|relation| {
                let named = by_name.get(&relation.name).into_iter().flatten().copied();
                named.filter(|at| *at != from && answers(units[*at], relation))
            })
            .collect()
    };
    let hard: Vec<_> =
        units.iter().enumerate().map(|(at, unit)| targets(&unit.pre_depends, at)).collect();
    let all: Vec<BTreeSet<usize>> = units
        .iter()
        .enumerate()
        .map(|(at, unit)| &targets(&unit.depends, at) | &hard[at])
        .collect();
    let mut order = Vec::with_capacity(units.len());
    let everything: Vec<usize> = (0..units.len()).collect();
    for component in components(&all, &everything) {
        // What depends on each other in a circle: only Pre-Depends count.
        let inside: BTreeSet<usize> = component.iter().copied().collect();
        let within: Vec<BTreeSet<usize>> = hard.iter().map(|to| to & &inside).collect();
        order.extend(components(&within, &component).into_iter().flatten());
    }
    order
}

/// Whether a unit is what a relation means. Which of several is, composition has
/// seen to; for the order each of them counts.
fn answers(unit: &Metadata, relation: &Relation) -> bool {
    unit.layer == relation.name && relation.admits(&unit.version)
        || unit.provides.iter().any(|provided| provided.name == relation.name)
}

/// The strongly connected components of `of` along `edges` (node to what it needs),
/// what is needed first; each component sorted. Tarjan's algorithm, without recursion.
fn components(edges: &[BTreeSet<usize>], of: &[usize]) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let mut index = vec![NEW; edges.len()];
    let mut low = vec![0; edges.len()];
    let mut on_stack = vec![false; edges.len()];
    let (mut stack, mut found, mut next) = (Vec::new(), Vec::new(), 0);
    for start in of {
        if index[*start] != NEW {
            continue;
        }
        let mut calls = vec![(*start, edges[*start].iter())];
        (index[*start], low[*start]) = (next, next);
        next += 1;
        stack.push(*start);
        on_stack[*start] = true;
        while let Some((at, rest)) = calls.last_mut() {
            let at = *at;
            match rest.next() {
                Some(to) if index[*to] == NEW => {
                    (index[*to], low[*to]) = (next, next);
                    next += 1;
                    stack.push(*to);
                    on_stack[*to] = true;
                    calls.push((*to, edges[*to].iter()));
                }
                Some(to) if on_stack[*to] => low[at] = low[at].min(index[*to]),
                Some(_) => {}
                None => {
                    calls.pop();
                    if let Some((above, _)) = calls.last() {
                        low[*above] = low[*above].min(low[at]);
                    }
                    if low[at] == index[at] {
                        let mut component = Vec::new();
                        while let Some(member) = stack.pop() {
                            on_stack[member] = false;
                            component.push(member);
                            if member == at {
                                break;
                            }
                        }
                        component.sort_unstable();
                        found.push(component);
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::LayerKind;
    use crate::relation::parse_dependencies;
    use proptest::prelude::*;

    fn unit(name: &str, pre_depends: &str, depends: &str) -> Metadata {
        let version = "1".parse().expect("valid");
        let mut unit = Metadata::new(name.parse().expect("valid"), version, LayerKind::Software);
        unit.pre_depends = parse_dependencies(pre_depends).expect("valid");
        unit.depends = parse_dependencies(depends).expect("valid");
        unit
    }

    fn order(units: &[Metadata]) -> Vec<&str> {
        let all: Vec<_> = units.iter().collect();
        integration_order(&all).into_iter().map(|at| units[at].layer.as_str()).collect()
    }

    #[test]
    fn what_is_needed_comes_first() {
        let units = [
            unit("app", "lib", "tool"),
            unit("lib", "", "libc"),
            unit("libc", "", ""),
            unit("tool", "", ""),
        ];
        assert_eq!(order(&units), ["libc", "lib", "tool", "app"]);
        let units = [unit("b", "", ""), unit("a", "", "")];
        assert_eq!(order(&units), ["b", "a"], "what nothing orders stays");
    }

    /// As libc6 and libgcc-s1 of Debian do.
    #[test]
    fn depends_may_go_in_a_circle_and_pre_depends_hold_in_it() {
        let units = [unit("a", "b", ""), unit("b", "", "c"), unit("c", "", "a")];
        let order = order(&units);
        let at = |name| order.iter().position(|other| *other == name).expect("in it");
        assert!(at("b") < at("a"), "{order:?}");
        let units = [unit("a", "b", ""), unit("b", "a", "")];
        let all: Vec<_> = units.iter().collect();
        assert_eq!(integration_order(&all), [0, 1]);
    }

    #[test]
    fn what_is_provided_counts() {
        let mut mta = unit("postfix", "", "");
        mta.provides = crate::relation::parse_relations("mail-agent").expect("valid");
        assert_eq!(order(&[unit("app", "mail-agent", ""), mta]), ["postfix", "app"]);
    }

    proptest! {
        /// Edges from higher to lower numbers make no cycle: every one of them holds. Depends
        /// in the other direction make cycles: Pre-Depends hold all the same, and nothing is lost.
        #[test]
        fn pre_depends_hold_whatever_depends_say(
            count in 1..12usize,
            hard in prop::collection::vec((0..12usize, 0..12usize), 0..20),
            soft in prop::collection::vec((0..12usize, 0..12usize), 0..20),
        ) {
            let mut units: Vec<_> = (0..count).map(|n| unit(&format!("u{n}"), "", "")).collect();
            let hard: Vec<_> = hard.into_iter().filter(|(a, b)| b < a && *a < count).collect();
            let need = |to: usize| parse_dependencies(&format!("u{to}")).expect("valid");
            for (from, to) in &hard {
                units[*from].pre_depends.extend(need(*to));
            }
            let soft: Vec<_> = soft.into_iter().filter(|(a, b)| *a < count && *b < count).collect();
            for (from, to) in &soft {
                units[*from].depends.extend(need(*to));
            }
            let all: Vec<_> = units.iter().collect();
            let order = integration_order(&all);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            let place = |unit: usize| order.iter().position(|at| *at == unit).expect("in it");
            for (from, to) in &hard {
                prop_assert!(place(*to) < place(*from));
            }
            if soft.iter().all(|(from, to)| to < from) {
                for (from, to) in &soft {
                    prop_assert!(place(*to) < place(*from));
                }
            }
        }
    }
}
