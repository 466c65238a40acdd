//! What is to go so that a cache fits its bound. No clock, no disk: numbers in, a decision out.

use std::collections::BTreeMap;

/// A file's number: two names with one number are one file, and take its bytes once.
pub(super) type Content = u64;

/// What a cache holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Stock {
    /// Bytes on the disk, by file.
    pub contents: BTreeMap<Content, u64>,
    /// Views, and pulls that came to no end.
    pub items: Vec<Item>,
}

/// Something that may be evicted, as a whole.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// When it was used last, in any unit.
    pub used: u64,
    /// Whether somebody uses it.
    pub in_use: bool,
    /// Its files.
    pub holds: Vec<Content>,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether contents that no item holds go. They go first, all of them.
    pub unheld: bool,
    /// Items by their place in [`Stock::items`], in the order they go.
    pub items: Vec<usize>,
}

impl Stock {
    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        self.contents.values().sum()
    }

    /// How many items hold each content.
    fn holders(&self) -> BTreeMap<Content, usize> {
        let mut holders: BTreeMap<_, _> = self.contents.keys().map(|content| (*content, 0)).collect();
        for content in self.items.iter().flat_map(|item| distinct(&item.holds)) {
            *holders.entry(content).or_default() += 1;
        }
        holders
    }
}

fn distinct(holds: &[Content]) -> impl Iterator<Item = Content> + use<> {
    holds.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter()
}

/// What goes so that at most `bytes_max` are left: contents without a holder, then the least recently used items. None in
/// use goes, whatever is asked; and none goes once it is enough.
pub(super) fn plan(stock: &Stock, bytes_max: u64) -> Plan {
    let mut left = stock.bytes();
    let mut plan = Plan::default();
    if left <= bytes_max {
        return plan;
    }
    let mut holders = stock.holders();
    let bytes = |content: &Content| stock.contents.get(content).copied().unwrap_or(0);
    let unheld: u64 = holders.iter().filter(|(_, n)| **n == 0).map(|(content, _)| bytes(content)).sum();
    plan.unheld = unheld > 0;
    left -= unheld;
    let mut may_go: Vec<usize> = (0..stock.items.len()).filter(|i| !stock.items[*i].in_use).collect();
    may_go.sort_by_key(|i| stock.items[*i].used);
    for index in may_go {
        if left <= bytes_max {
            break;
        }
        for content in distinct(&stock.items[index].holds) {
            let others = holders.entry(content).or_default();
            *others = others.saturating_sub(1);
            if *others == 0 {
                left = left.saturating_sub(bytes(&content));
            }
        }
        plan.items.push(index);
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(used: u64, in_use: bool, holds: &[Content]) -> Item {
        Item { used, in_use, holds: holds.to_vec() }
    }

    /// What is left of a stock once a plan is carried out.
    fn after(stock: &Stock, plan: &Plan) -> Stock {
        let gone = |i: &usize| plan.items.contains(i);
        let kept = (0..stock.items.len()).filter(|i| !gone(i));
        let mut left = Stock { items: kept.map(|i| stock.items[i].clone()).collect(), ..stock.clone() };
        let (held, held_before) = (left.holders(), stock.holders());
        left.contents.retain(|content, _| {
            let freed = held[content] == 0 && held_before[content] > 0;
            let unheld = held_before[content] == 0 && plan.unheld;
            !freed && !unheld
        });
        left
    }

    #[test]
    fn the_least_recently_used_go_and_shared_contents_with_the_last_of_them() {
        let contents = BTreeMap::from([(1, 10), (2, 10), (3, 10), (4, 5)]);
        // The second and third share content 2; nobody holds 4.
        let items = vec![item(30, false, &[1]), item(10, false, &[2]), item(20, false, &[2, 3])];
        let stock = Stock { contents, items };
        assert_eq!(plan(&stock, 35), Plan::default());
        assert_eq!(plan(&stock, 34), Plan { unheld: true, items: vec![] });
        // The oldest alone frees nothing.
        assert_eq!(plan(&stock, 29), Plan { unheld: true, items: vec![1, 2] });
        assert_eq!(plan(&stock, 9), Plan { unheld: true, items: vec![1, 2, 0] });
        let mut used = stock;
        used.items[2].in_use = true;
        assert_eq!(plan(&used, 0), Plan { unheld: true, items: vec![1, 0] });
    }

    fn stocks() -> impl Strategy<Value = Stock> {
        let item = (0u64..20, any::<bool>(), prop::collection::vec(0u64..12, 0..6));
        let items = prop::collection::vec(item, 0..10);
        (prop::collection::vec(0u64..100, 12), items).prop_map(|(bytes, items)| Stock {
            contents: (0..).zip(bytes).collect(),
            items: items.into_iter().map(|(used, in_use, holds)| Item { used, in_use, holds }).collect(),
        })
    }

    proptest! {
        /// E1 none in use goes. E2 it fits, or nothing may go any more. E3 nothing goes without need. E4 what stays was
        /// used later than what goes. E5 a content that an item holds stays. E6 planning again changes nothing.
        #[test]
        fn evictions(stock in stocks(), bytes_max in 0u64..1000) {
            let chosen = plan(&stock, bytes_max);
            let left = after(&stock, &chosen);
            prop_assert!(chosen.items.iter().all(|i| !stock.items[*i].in_use), "E1");
            let nothing_may_go = left.items.iter().all(|item| item.in_use);
            prop_assert!(left.bytes() <= bytes_max || nothing_may_go, "E2");
            if let Some((_, all_but_one)) = chosen.items.split_last() {
                let one_less = Plan { items: all_but_one.to_vec(), ..chosen.clone() };
                prop_assert!(after(&stock, &one_less).bytes() > bytes_max, "E3");
            }
            if stock.bytes() <= bytes_max {
                prop_assert_eq!(&chosen, &Plan::default(), "E3");
            }
            let newest_gone = chosen.items.iter().map(|i| stock.items[*i].used).max();
            let oldest_kept = (0..stock.items.len())
                .filter(|i| !chosen.items.contains(i) && !stock.items[*i].in_use)
                .map(|i| stock.items[i].used)
                .min();
            if let (Some(gone), Some(kept)) = (newest_gone, oldest_kept) {
                prop_assert!(gone <= kept, "E4");
            }
            for content in left.items.iter().flat_map(|item| &item.holds) {
                prop_assert!(left.contents.contains_key(content), "E5");
            }
            prop_assert!(plan(&left, bytes_max).items.is_empty(), "E6");
        }
    }
}
