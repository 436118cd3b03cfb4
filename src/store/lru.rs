//! A small least-recently-used map with weights.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Keeps the entries used last, up to a total weight. An entry heavier than that is not kept at all.
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_age: BTreeMap<u64, K>,
    clock: u64,
    weight: usize,
    weight_max: usize,
}

struct Entry<V> {
    value: V,
    used: u64,
    weight: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    /// Returns an empty map for entries of `weight_max` altogether.
    pub(crate) fn new(weight_max: usize) -> Self {
        Lru { entries: HashMap::new(), by_age: BTreeMap::new(), clock: 0, weight: 0, weight_max }
    }

    /// Returns a value and makes it the youngest.
    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.by_age.remove(&entry.used) {
            self.by_age.insert(self.clock, key);
        }
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// Puts a value in, as the youngest, and drops the oldest ones that there is no more room for.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        if weight > self.weight_max {
            return;
        }
        self.clock += 1;
        self.weight += weight;
        self.by_age.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { value, used: self.clock, weight });
        while self.weight > self.weight_max {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.weight -= entry.weight;
            }
        }
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.by_age.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// Returns the weight of all entries.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_oldest_go_first_and_weights_add_up() {
        let mut lru = Lru::new(10);
        lru.insert("a", 1, 4);
        lru.insert("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(1));
        lru.insert("c", 3, 4);
        assert_eq!(lru.get(&"b"), None, "a was used after b");
        assert_eq!((lru.get(&"a"), lru.get(&"c"), lru.weight()), (Some(1), Some(3), 8));
        lru.insert("a", 4, 1);
        assert_eq!((lru.get(&"a"), lru.weight()), (Some(4), 5));
        lru.insert("huge", 5, 11);
        assert_eq!((lru.get(&"huge"), lru.get(&"a"), lru.weight()), (None, Some(4), 5));
        assert_eq!(lru.remove(&"a"), Some(4));
        assert_eq!(lru.remove(&"a"), None);
        assert_eq!(lru.weight(), 4);
        lru.insert("d", 6, 10);
        assert_eq!((lru.get(&"c"), lru.get(&"d"), lru.weight()), (None, Some(6), 10));
    }
}
