//! The files that keep what is open below them after their last handle: the ones
//! that were opened last, up to a limit.
//!
//! The queue holds nodes weakly. A node that the kernel forgot is swept out of it: even
//! a weak reference keeps a node's memory, and there would be as much of that as the
//! limit allows, of files that are long gone.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use super::node::Node;

/// The queue is swept after as many entries more as it had, and not before this many.
const FEWEST: usize = 256;

#[derive(Debug)]
pub struct Kept {
    limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// Oldest first, each with the node's turn at that time: an entry whose node
    /// was put in again since counts no more.
    entries: VecDeque<(u64, Weak<Node>)>,
    next_turn: u64,
    /// Entries that are put in before the next sweep.
    until_sweep: usize,
}

impl Kept {
    pub fn new(limit: usize) -> Kept {
        let queue = Queue { entries: VecDeque::new(), next_turn: 1, until_sweep: FEWEST };
        Kept { limit, queue: Mutex::new(queue) }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while held")
    }

    /// Puts a node in as the newest. Returns the one that is to let go for it.
    pub fn push(&self, node: &Arc<Node>) -> Option<Arc<Node>> {
        let mut queue = self.queue();
        let turn = queue.next_turn;
        queue.next_turn += 1;
        node.kept_turn.store(turn, Ordering::Relaxed);
        queue.entries.push_back((turn, Arc::downgrade(node)));
        queue.until_sweep = queue.until_sweep.saturating_sub(1);
        if queue.until_sweep == 0 {
            queue.entries.retain(|(turn, node)| live(*turn, node).is_some());
            let left = queue.entries.len().max(FEWEST);
            queue.entries.shrink_to(2 * left);
            queue.until_sweep = left;
        }
        while queue.entries.len() > self.limit {
            let (turn, oldest) = queue.entries.pop_front()?;
            if let Some(oldest) = live(turn, &oldest) {
                return Some(oldest);
            }
        }
        None
    }

    /// The nodes in the queue that the kernel still knows.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.queue().entries.iter().filter_map(|(turn, node)| live(*turn, node)).collect()
    }
}

fn live(turn: u64, node: &Weak<Node>) -> Option<Arc<Node>> {
    node.upgrade().filter(|node| node.kept_turn.load(Ordering::Relaxed) == turn)
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::super::node::Upper;
    use super::*;

    fn node(id: u64) -> Arc<Node> {
        Arc::new(Node::new(id, id, FileType::RegularFile, Upper::None))
    }

    #[test]
    fn the_oldest_lets_go_and_one_that_was_opened_again_is_new() {
        let kept = Kept::new(3);
        let nodes: Vec<_> = (0..5).map(node).collect();
        for node in &nodes[..3] {
            assert!(kept.push(node).is_none());
        }
        assert!(kept.push(&nodes[0]).is_none());
        let gone: Vec<_> =
            nodes[3..].iter().filter_map(|node| kept.push(node)).map(|node| node.id).collect();
        assert_eq!(gone, [1, 2]);
    }

    #[test]
    fn files_that_are_gone_keep_no_memory() {
        let kept = Kept::new(16_384);
        let stays = node(0);
        kept.push(&stays);
        for id in 1..10_000 {
            assert!(kept.push(&node(id)).is_none());
        }
        assert!(kept.queue().entries.len() <= FEWEST + 1);
        assert_eq!(kept.nodes().len(), 1);
    }
}
