//! Which keys a query sees, and which queries a key.

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;

/// Ranges, first and end: of the keys that each query sees, and of the queries that may see each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    queries: Vec<[u32; 2]>,
    keys: Vec<[u32; 2]>,
}

/// A [`Sight`] on a device: 32-bit whole numbers, first and end one after the other.
#[derive(Debug, Clone)]
pub struct SightBuffers {
    /// The keys that each query sees, `[queries, 2]`.
    pub queries: Buffer,
    /// The queries that may see each key, `[keys, 2]`.
    pub keys: Buffer,
}

impl Sight {
    /// Of the ranges of keys that queries see, among `keys` keys.
    ///
    /// # Panics
    ///
    /// If a range ends behind the last key.
    pub fn new(queries: Vec<[u32; 2]>, keys: usize) -> Self {
        let within = |range: &[u32; 2]| range[1] as usize <= keys;
        assert!(queries.iter().all(within), "a query sees a key beyond the {keys} there are");
        // The first query that sees a key, and one past the last: each the first to come by, from either side.
        let mut of_keys = vec![[0; 2]; keys];
        visit_once(queries.iter(), keys, |key, nth| of_keys[key][0] = nth as u32);
        visit_once(queries.iter().rev(), keys, |key, nth| of_keys[key][1] = (queries.len() - nth) as u32);
        Self { queries, keys: of_keys }
    }

    /// Of packed texts of these lengths: a token sees those of its text up to itself, at most `window` of them.
    pub fn packed(lengths: impl IntoIterator<Item = usize>, window: Option<usize>) -> Self {
        let mut queries = Vec::new();
        let mut start = 0;
        for length in lengths {
            for position in start..start + length {
                let first = window.map_or(start, |window| (position + 1).saturating_sub(window).max(start));
                queries.push([first as u32, position as u32 + 1]);
            }
            start += length;
        }
        Self::new(queries, start)
    }

    /// The range of keys that each query sees.
    pub fn of_queries(&self) -> &[[u32; 2]] {
        &self.queries
    }

    /// A range of queries for each key, all that see it among them.
    pub fn of_keys(&self) -> &[[u32; 2]] {
        &self.keys
    }

    /// Copies it to a device.
    pub fn to_device(&self, client: &Client) -> SightBuffers {
        let buffer = |ranges: &[[u32; 2]]| {
            let flat = ranges.as_flattened();
            Buffer::new(client.create_from_slice(u32::as_bytes(flat)), flat.len())
        };
        SightBuffers { queries: buffer(&self.queries), keys: buffer(&self.keys) }
    }
}

/// Calls `visit` once for each key in any of the ranges, with the index of the first range that it is in. Linear: a key
/// that was visited is skipped from then on.
fn visit_once<'a>(ranges: impl Iterator<Item = &'a [u32; 2]>, keys: usize, mut visit: impl FnMut(usize, usize)) {
    // The next key at or after this one that was not visited, as far as is known.
    let mut next: Vec<usize> = (0..=keys).collect();
    for (nth, [first, end]) in ranges.enumerate() {
        let mut key = unvisited(&mut next, *first as usize);
        while key < *end as usize {
            visit(key, nth);
            next[key] = key + 1;
            key = unvisited(&mut next, key);
        }
    }
}

fn unvisited(next: &mut [usize], from: usize) -> usize {
    let mut key = from;
    while next[key] != key {
        next[key] = next[next[key]];
        key = next[key];
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_know_who_sees_them() {
        let sight = Sight::packed([3, 0, 2], Some(2));
        assert_eq!(sight.of_queries(), [[0, 1], [0, 2], [1, 3], [3, 4], [3, 5]]);
        assert_eq!(sight.of_keys(), [[0, 2], [1, 3], [2, 3], [3, 5], [4, 5]]);
    }

    #[test]
    fn ranges_may_come_in_any_order_and_be_empty() {
        let queries = vec![[4, 6], [0, 0], [1, 5], [2, 2], [0, 2]];
        let sight = Sight::new(queries.clone(), 7);
        for (key, range) in sight.of_keys().iter().enumerate() {
            let seen_by: Vec<usize> = (0..queries.len())
                .filter(|query| (queries[*query][0] as usize..queries[*query][1] as usize).contains(&key))
                .collect();
            let expected = match (seen_by.first(), seen_by.last()) {
                (Some(first), Some(last)) => [*first as u32, *last as u32 + 1],
                _ => [0, 0],
            };
            assert_eq!(*range, expected, "key {key}");
        }
    }
}
