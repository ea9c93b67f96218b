//! Keys and values that must outlive a process: exported code, settings, what libraries leave for one
//! another.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// A value; cheap to clone.
pub type Value = Arc<[u8]>;

/// What follows from a change: the entry that has to be kept or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEffect {
    /// Keep this value.
    Put {
        /// The namespace.
        namespace: Vec<u8>,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Value,
    },
    /// Remove this key.
    Delete {
        /// The namespace.
        namespace: Vec<u8>,
        /// The key.
        key: Vec<u8>,
    },
}

/// All entries, by namespace and key.
#[derive(Debug, Default)]
pub struct Kv {
    namespaces: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Value>>,
}

impl Kv {
    /// Puts an entry back that was kept.
    pub fn restore(&mut self, namespace: Vec<u8>, key: Vec<u8>, value: Value) {
        self.namespaces.entry(namespace).or_default().insert(key, value);
    }

    /// Sets a value; an existing one is kept unless `overwrite`. Returns whether the key is new.
    pub fn put(
        &mut self,
        namespace: Vec<u8>,
        key: Vec<u8>,
        value: Value,
        overwrite: bool,
        out: &mut Vec<KvEffect>,
    ) -> bool {
        let entries = self.namespaces.entry(namespace.clone()).or_default();
        let known = entries.get(&key);
        let is_new = known.is_none();
        if known == Some(&value) || !(is_new || overwrite) {
            return false;
        }
        entries.insert(key.clone(), Arc::clone(&value));
        out.push(KvEffect::Put { namespace, key, value });
        is_new
    }

    /// The value of a key.
    pub fn get(&self, namespace: &[u8], key: &[u8]) -> Option<&Value> {
        self.namespaces.get(namespace)?.get(key)
    }

    /// Removes a key, or every key that begins with it. Returns how many were removed.
    pub fn delete(&mut self, namespace: &[u8], key: &[u8], prefix: bool, out: &mut Vec<KvEffect>) -> u64 {
        let doomed = if prefix { self.keys(namespace, key) } else { vec![key.to_vec()] };
        let Some(entries) = self.namespaces.get_mut(namespace) else { return 0 };
        let mut deleted = 0;
        for key in doomed {
            if entries.remove(&key).is_some() {
                deleted += 1;
                out.push(KvEffect::Delete { namespace: namespace.to_vec(), key });
            }
        }
        if entries.is_empty() {
            self.namespaces.remove(namespace);
        }
        deleted
    }

    /// The keys that begin with `prefix`, in order.
    pub fn keys(&self, namespace: &[u8], prefix: &[u8]) -> Vec<Vec<u8>> {
        let Some(entries) = self.namespaces.get(namespace) else { return Vec::new() };
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let matching = entries.range::<[u8], _>(from).take_while(|(key, _)| key.starts_with(prefix));
        matching.map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    #[test]
    fn a_value_is_kept_unless_it_is_to_be_overwritten() {
        let mut kv = Kv::default();
        let mut out = Vec::new();
        let mut put = |kv: &mut Kv, value: &str, overwrite| {
            kv.put(bytes("n"), bytes("k"), value.as_bytes().into(), overwrite, &mut out)
        };
        assert!(put(&mut kv, "one", false));
        assert!(!put(&mut kv, "two", false));
        assert_eq!(kv.get(b"n", b"k").unwrap()[..], *b"one");
        assert!(!put(&mut kv, "three", true));
        assert!(!put(&mut kv, "three", true), "the same once more");
        assert_eq!(kv.get(b"n", b"k").unwrap()[..], *b"three");
        assert_eq!(out.len(), 2);
        assert_eq!(kv.get(b"other", b"k"), None);
    }

    #[test]
    fn a_prefix_ends_where_the_keys_differ() {
        let mut kv = Kv::default();
        let mut out = Vec::new();
        for key in ["a", "ab", "abc", "b", ""] {
            kv.put(bytes("n"), bytes(key), Value::default(), true, &mut out);
        }
        assert_eq!(kv.keys(b"n", b"ab"), [bytes("ab"), bytes("abc")]);
        assert_eq!(kv.keys(b"n", b"").len(), 5);
        assert_eq!(kv.delete(b"n", b"a", false, &mut out), 1);
        assert_eq!(kv.delete(b"n", b"a", true, &mut out), 2);
        assert_eq!(kv.delete(b"n", b"", true, &mut out), 2);
        assert_eq!(kv.delete(b"n", b"", true, &mut out), 0);
        assert!(kv.namespaces.is_empty());
    }

    proptest! {
        #[test]
        fn what_was_kept_is_what_is_there(
            steps in prop::collection::vec((0u8..3, 0u8..3, "[ab]{0,3}", any::<u8>(), any::<bool>()), 0..60),
        ) {
            let mut kv = Kv::default();
            let mut kept = BTreeMap::new();
            for (kind, namespace, key, value, flag) in steps {
                let mut out = Vec::new();
                let (namespace, key) = (vec![namespace], key.into_bytes());
                if kind == 0 {
                    kv.delete(&namespace, &key, flag, &mut out);
                } else {
                    kv.put(namespace, key, Arc::new([value]), flag, &mut out);
                }
                for effect in out {
                    match effect {
                        KvEffect::Put { namespace, key, value } => drop(kept.insert((namespace, key), value)),
                        KvEffect::Delete { namespace, key } => drop(kept.remove(&(namespace, key))),
                    }
                }
                let flat = kv.namespaces.iter().flat_map(|(namespace, entries)| {
                    entries.iter().map(|(key, value)| ((namespace.clone(), key.clone()), Arc::clone(value)))
                });
                prop_assert_eq!(flat.collect::<BTreeMap<_, _>>(), kept.clone());
            }
        }
    }
}
