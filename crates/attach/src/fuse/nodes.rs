//! Inode numbers: what each stands for, for as long as the kernel remembers it.
//!
//! A number is derived from the path, so it is the same at every lookup and, but for collisions,
//! in every mount; two paths that collide get neighbouring numbers.
//!
//! **Invariants**: memory is bounded by what the kernel remembers; names that do not exist leave
//! nothing here.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use model::{MirrorName, VersionId};

/// The inode number of the mount's root.
pub(crate) const ROOT: u64 = 1;

/// Something that the mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// The mount's root.
    Root,
    /// A folder on the way to an image, or an image's own: its name without a trailing `/`.
    Folder(String),
    /// A version's file.
    Version(VersionId),
    /// The folder of mirrors.
    Mirrors,
    /// A mirror's file.
    Mirror(MirrorName),
}

impl Node {
    /// True for what has entries.
    pub(crate) fn is_folder(&self) -> bool {
        matches!(self, Node::Root | Node::Folder(_) | Node::Mirrors)
    }
}

#[derive(Debug)]
struct Entry {
    node: Node,
    lookup_count: u64,
}

/// The inode table.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    by_number: HashMap<u64, Entry>,
    by_node: HashMap<Node, u64>,
}

impl Nodes {
    /// What a number stands for.
    pub(crate) fn get(&self, number: u64) -> Option<Node> {
        if number == ROOT {
            return Some(Node::Root);
        }
        self.by_number.get(&number).map(|entry| entry.node.clone())
    }

    /// The number that the node has or would get. Remembers nothing.
    pub(crate) fn number(&self, node: &Node) -> u64 {
        if *node == Node::Root {
            return ROOT;
        }
        if let Some(number) = self.by_node.get(node) {
            return *number;
        }
        let mut number = derive(node);
        while number <= ROOT || self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        number
    }

    /// The node's number, remembered until the kernel has forgotten it as often as this was called.
    pub(crate) fn remember(&mut self, node: &Node) -> u64 {
        let number = self.number(node);
        if number != ROOT {
            let entry = self
                .by_number
                .entry(number)
                .or_insert_with(|| Entry { node: node.clone(), lookup_count: 0 });
            entry.lookup_count += 1;
            self.by_node.entry(node.clone()).or_insert(number);
        }
        number
    }

    /// The kernel forgets `count` lookups of a number.
    pub(crate) fn forget(&mut self, number: u64, count: u64) {
        let Some(entry) = self.by_number.get_mut(&number) else { return };
        entry.lookup_count = entry.lookup_count.saturating_sub(count);
        if entry.lookup_count == 0
            && let Some(entry) = self.by_number.remove(&number)
        {
            self.by_node.remove(&entry.node);
        }
    }
}

fn derive(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_lives_as_long_as_the_kernel_remembers_it() {
        let mut nodes = Nodes::default();
        let node = Node::Folder("debian".into());
        let expected = nodes.number(&node);
        assert_eq!(nodes.get(expected), None);
        assert_eq!((nodes.remember(&node), nodes.remember(&node)), (expected, expected));
        nodes.forget(expected, 1);
        assert_eq!(nodes.get(expected), Some(node.clone()));
        nodes.forget(expected, 1);
        assert_eq!(nodes.get(expected), None);
        assert_eq!(nodes.number(&node), expected);
        nodes.forget(expected, u64::MAX);
    }

    #[test]
    fn paths_that_collide_get_numbers_of_their_own() {
        let mut nodes = Nodes::default();
        let (node, other) = (Node::Folder("a".into()), Node::Folder("b".into()));
        let taken = derive(&node);
        nodes.by_number.insert(taken, Entry { node: other, lookup_count: 1 });
        assert_eq!(nodes.remember(&node), taken.wrapping_add(1));
        assert_eq!(nodes.get(taken.wrapping_add(1)), Some(node));
    }
}
