//! How the leases of one demand are shared among the nodes that may give them.
//!
//! What others have free is known late and roughly, so that a node may be asked for more than it has: what waits there
//! waits in line as at home, and what is granted too late goes back at once. A node that was once asked is asked on as
//! long as something lacks, lest it lose its place in the line whenever its room is taken for a moment.

use std::collections::BTreeMap;

use ray_core::id::NodeId;

/// How many leases each node is to be asked for.
pub(super) type Shares = BTreeMap<NodeId, u32>;

/// A node that may give leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Site {
    /// The node.
    pub(super) node_id: NodeId,
    /// Leases for which it has room now.
    pub(super) free: u32,
    /// Leases for which it has room when nothing else is there.
    pub(super) capacity: u32,
    /// Its place in the order in which nodes are asked: the smallest first.
    pub(super) rank: (bool, u32, u64),
}

/// Shares of `lacking` leases that this node has no room for: of those nodes that have room now, in their order.
pub(super) fn overflow(lacking: u32, mut sites: Vec<Site>, before: &Shares) -> Shares {
    let mut shares = Shares::new();
    if lacking == 0 {
        return shares;
    }
    sites.sort_by_key(|site| (site.rank, site.node_id));
    let mut left = lacking;
    for site in &sites {
        let share = left.min(site.free);
        let known = before.get(&site.node_id).copied().unwrap_or(0).min(lacking);
        if share.max(known) > 0 {
            shares.insert(site.node_id, share.max(known));
        }
        left -= share;
    }
    shares
}

/// Shares of `wanted` leases that cannot be on this node: as [`overflow`], and if the nodes have no room for all of
/// them now, each is asked for what it could ever give.
pub(super) fn abroad(wanted: u32, sites: Vec<Site>, before: &Shares) -> Shares {
    let free: u64 = sites.iter().map(|site| u64::from(site.free)).sum();
    let whole: Shares = sites.iter().map(|site| (site.node_id, site.capacity.min(wanted))).collect();
    let mut shares = overflow(wanted, sites, before);
    if free < u64::from(wanted) {
        shares.extend(whole.into_iter().filter(|&(_, share)| share > 0));
    }
    shares
}

/// Shares of `wanted` leases that are to be on different nodes, as evenly as can be: what is new goes to the node
/// that has room, and of these to the one with the smallest share. Shares that were given before stay.
pub(super) fn spread(wanted: u32, sites: &[Site], before: &Shares) -> Shares {
    let known = |site: &Site| before.get(&site.node_id).copied().unwrap_or(0);
    let mut shares: Shares = sites.iter().map(|site| (site.node_id, known(site))).collect();
    let mut given: u32 = shares.values().sum();
    if sites.is_empty() {
        return shares;
    }
    while given > wanted {
        let largest = shares.iter_mut().max_by_key(|(node_id, share)| (**share, **node_id));
        *largest.expect("some node has a share").1 -= 1;
        given -= 1;
    }
    let rounds = (wanted - given) / sites.len() as u32;
    shares.values_mut().for_each(|share| *share += rounds);
    given += rounds * sites.len() as u32;
    while given < wanted {
        let best = sites.iter().min_by_key(|site| {
            let share = shares[&site.node_id];
            (site.free == 0, share, site.rank, site.node_id)
        });
        *shares.get_mut(&best.expect("there are sites").node_id).expect("each site has a share") += 1;
        given += 1;
    }
    shares.retain(|_, share| *share > 0);
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn site(number: u8, free: u32, capacity: u32) -> Site {
        Site { node_id: node(number), free, capacity, rank: (false, 0, 0) }
    }

    fn shares(pairs: &[(u8, u32)]) -> Shares {
        pairs.iter().map(|&(number, share)| (node(number), share)).collect()
    }

    #[test]
    fn what_has_no_room_at_home_goes_where_there_is_some_in_order() {
        let mut busy = site(1, 2, 4);
        busy.rank.1 = 600_000;
        let sites = vec![busy, site(2, 0, 4), site(3, 1, 4)];
        assert_eq!(overflow(2, sites.clone(), &Shares::new()), shares(&[(1, 1), (3, 1)]));
        assert_eq!(overflow(9, sites.clone(), &Shares::new()), shares(&[(1, 2), (3, 1)]));
        assert_eq!(overflow(0, sites, &shares(&[(1, 2)])), Shares::new());
    }

    #[test]
    fn who_was_asked_is_asked_on_while_something_lacks_and_it_lives() {
        let before = shares(&[(1, 3), (2, 2)]);
        assert_eq!(overflow(2, vec![site(1, 0, 4)], &before), shares(&[(1, 2)]));
    }

    #[test]
    fn what_has_to_be_abroad_waits_in_all_lines_if_there_is_no_room() {
        let sites = vec![site(1, 1, 4), site(2, 0, 2), site(3, 0, 0)];
        assert_eq!(abroad(1, sites.clone(), &Shares::new()), shares(&[(1, 1)]));
        assert_eq!(abroad(3, sites, &Shares::new()), shares(&[(1, 3), (2, 2)]));
    }

    #[test]
    fn spreading_takes_turns_and_passes_by_who_has_no_room() {
        let sites = [site(1, 2, 2), site(2, 2, 2), site(3, 2, 2)];
        let first = spread(1, &sites, &Shares::new());
        assert_eq!(first, shares(&[(1, 1)]));
        let second = spread(2, &sites, &first);
        assert_eq!(second, shares(&[(1, 1), (2, 1)]));
        assert_eq!(spread(3, &sites, &second), shares(&[(1, 1), (2, 1), (3, 1)]));
        let full = [site(1, 0, 2), site(2, 1, 2)];
        assert_eq!(spread(1, &full, &Shares::new()), shares(&[(2, 1)]));
    }

    fn any_sites() -> impl Strategy<Value = Vec<Site>> {
        prop::collection::vec((0u32..5, 0u32..5, any::<bool>(), 0u32..3), 0..6).prop_map(|sites| {
            let site = |(number, (free, more, wastes, used)): (u8, (u32, u32, bool, u32))| Site {
                node_id: node(number),
                free,
                capacity: free + more,
                rank: (wastes, used, 0),
            };
            (1..).zip(sites).map(site).collect()
        })
    }

    fn any_shares() -> impl Strategy<Value = Shares> {
        prop::collection::btree_map((1u8..8).prop_map(node), 1u32..5, 0..4)
    }

    proptest! {
        #[test]
        fn no_more_is_asked_of_a_node_than_is_wanted_and_only_of_those_that_may(
            wanted in 0u32..12, sites in any_sites(), before in any_shares(),
        ) {
            let may = |shares: &Shares| shares.keys().all(|id| sites.iter().any(|site| site.node_id == *id));
            for shares in [overflow(wanted, sites.clone(), &before), abroad(wanted, sites.clone(), &before)] {
                prop_assert!(may(&shares));
                prop_assert!(shares.values().all(|&share| 0 < share && share <= wanted));
            }
            prop_assert!(may(&spread(wanted, &sites, &before)));
        }

        #[test]
        fn all_that_is_wanted_is_asked_for_if_anybody_can_give_it(
            wanted in 1u32..12, sites in any_sites(), before in any_shares(),
        ) {
            let free: u32 = sites.iter().map(|site| site.free).sum();
            let asked: u32 = overflow(wanted, sites.clone(), &before).values().sum();
            prop_assert!(asked >= wanted.min(free));
            let asked: u32 = abroad(wanted, sites.clone(), &before).values().sum();
            let capacity: u32 = sites.iter().map(|site| site.capacity).sum();
            prop_assert!(asked >= wanted.min(capacity));
            let asked: u32 = spread(wanted, &sites, &before).values().sum();
            prop_assert_eq!(asked, if sites.is_empty() { 0 } else { wanted });
        }

        #[test]
        fn shares_of_what_is_spread_differ_by_one_at_most(wanted in 0u32..40, count in 1u8..6) {
            let sites: Vec<_> = (1..=count).map(|number| site(number, 1, 1)).collect();
            let shares = spread(wanted, &sites, &Shares::new());
            let of = |site: &Site| shares.get(&site.node_id).copied().unwrap_or(0);
            let (least, most) = (sites.iter().map(of).min().unwrap(), sites.iter().map(of).max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }
}
