//! Chooses nodes for the bundles of a placement group, all together.
//!
//! | strategy | a node may hold | preferred |
//! |---|---|---|
//! | `StrictPack` | all bundles | the wished node, then the one that is used most |
//! | `Pack` | any number | few nodes |
//! | `Spread` | any number | many nodes |
//! | `StrictSpread` | one bundle | the nodes that are used least |
//!
//! `StrictSpread` is solved exactly, as a matching. `Pack` and `Spread` go by rules of thumb first; where these find no
//! place for a bundle, a search of bounded length does, if there is one. So a group waits for room that is there only
//! if it is found by a very long search.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ray_core::constraint::LabelSelector;
use ray_core::id::NodeId;
use ray_core::resource::{CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, Resources};

use crate::cluster_view::ClusterView;

/// Steps of the search for a place that the rules of thumb did not find.
const SEARCH_STEPS: usize = 20_000;

/// How the bundles of a group lie to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum GroupStrategy {
    /// On as few nodes as possible.
    #[default]
    Pack,
    /// On as many nodes as possible.
    Spread,
    /// On one node.
    StrictPack,
    /// On a node each.
    StrictSpread,
}

/// One set of resources to be reserved on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// What it takes.
    pub resources: Resources,
    /// What the node's labels have to be.
    pub selector: LabelSelector,
}

/// A placement group, or what it lacks.
#[derive(Debug, Clone, Copy)]
pub struct GroupRequest<'a> {
    /// How its bundles lie to one another.
    pub strategy: GroupStrategy,
    /// All of its bundles.
    pub bundles: &'a [Bundle],
    /// The nodes of those that have one.
    pub nodes: &'a [Option<NodeId>],
    /// With [`GroupStrategy::StrictPack`], the node to be preferred.
    pub soft_target: Option<NodeId>,
}

/// The answer to a [`GroupRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupDecision {
    /// A node for each bundle that had none, by its index. Nothing is taken yet.
    Placed(BTreeMap<u32, NodeId>),
    /// There is room for it, but not free. Ask again when the view has changed.
    Busy {
        /// What is not free.
        reason: String,
    },
    /// The cluster as it is can never hold it.
    Infeasible {
        /// What is missing.
        reason: String,
    },
}

/// A living node during the search.
#[derive(Debug, Clone)]
struct Site<'a> {
    node_id: NodeId,
    labels: &'a BTreeMap<String, String>,
    free: Resources,
    /// Millionths in use of the resource that is used most.
    utilisation: u64,
    /// Bundles of the group that are here.
    holds: usize,
}

impl Site<'_> {
    fn takes(&self, bundle: &Bundle) -> bool {
        self.free.can_satisfy(&bundle.resources) && bundle.selector.matches(self.labels)
    }

    fn take(&mut self, bundle: &Bundle) {
        self.free.subtract(&bundle.resources).expect("the caller has looked whether it fits");
        self.holds += 1;
    }

    fn give_back(&mut self, bundle: &Bundle) {
        self.free.add(&bundle.resources);
        self.holds -= 1;
    }
}

/// Bundle and site, by their indices.
type Choice = (usize, usize);

/// Looks for nodes for the bundles that have none.
pub fn place_group(view: &ClusterView, request: &GroupRequest<'_>) -> GroupDecision {
    let lacking: Vec<usize> = (0..request.bundles.len()).filter(|&at| request.nodes[at].is_none()).collect();
    let mut free = sites(view, request, |node| node.available());
    let unplaced = match place(&mut free, request, &lacking) {
        Ok(choices) => {
            let nodes = choices.into_iter().map(|(bundle, site)| (bundle as u32, free[site].node_id));
            return GroupDecision::Placed(nodes.collect());
        }
        Err(unplaced) => unplaced,
    };
    let mut total = sites(view, request, |node| node.total().clone());
    match place(&mut total, request, &lacking) {
        Ok(_) => GroupDecision::Busy { reason: explain(request, unplaced, "is free", "are free") },
        Err(unplaced) => {
            let reason =
                match total.iter().any(|site| request.bundles[unplaced].selector.matches(site.labels)) {
                    _ if total.is_empty() => "no node is alive".to_owned(),
                    true => explain(request, unplaced, "fits", "fit"),
                    false => {
                        let selector = &request.bundles[unplaced].selector;
                        format!("no node carries the labels that bundle {unplaced} asks for, {selector}")
                    }
                };
            GroupDecision::Infeasible { reason }
        }
    }
}

fn explain(request: &GroupRequest<'_>, unplaced: usize, one: &str, many: &str) -> String {
    let resources = &request.bundles[unplaced].resources;
    match request.strategy {
        GroupStrategy::StrictPack => {
            format!("all its bundles together, {}, {many} on no single node", sum(request.bundles))
        }
        GroupStrategy::StrictSpread => {
            format!("bundle {unplaced}, {resources}, {one} on no node without another bundle of the group")
        }
        GroupStrategy::Pack | GroupStrategy::Spread => {
            format!("bundle {unplaced}, {resources}, {one} on no node beside the others")
        }
    }
}

fn sites<'a>(
    view: &'a ClusterView,
    request: &GroupRequest<'_>,
    free: impl Fn(&crate::Node) -> Resources,
) -> Vec<Site<'a>> {
    let living = view.nodes().filter(|(_, node)| node.is_alive());
    let site = living.map(|(&node_id, node)| Site {
        node_id,
        labels: node.labels(),
        free: free(node),
        utilisation: utilisation(node.total(), &node.available()),
        holds: request.nodes.iter().filter(|&&at| at == Some(node_id)).count(),
    });
    site.collect()
}

fn utilisation(total: &Resources, free: &Resources) -> u64 {
    let used = |name| {
        let there = total.get(name).to_raw();
        ((there.saturating_sub(free.get(name).to_raw())) as u128 * 1_000_000)
            .checked_div(u128::from(there))
            .map_or(0, |share| share as u64)
    };
    [CPU, GPU, MEMORY, OBJECT_STORE_MEMORY].into_iter().map(used).max().unwrap_or_default()
}

fn sum(bundles: &[Bundle]) -> Resources {
    let mut sum = Resources::new();
    bundles.iter().for_each(|bundle| sum.add(&bundle.resources));
    sum
}

/// A site for each bundle that lacks one; on an error, a bundle for which there is none.
fn place(
    sites: &mut [Site<'_>],
    request: &GroupRequest<'_>,
    lacking: &[usize],
) -> Result<Vec<Choice>, usize> {
    let mut order = lacking.to_vec();
    // The largest first, for it has the fewest places to go.
    order.sort_by_key(|&at| {
        let shares = request.bundles[at].resources.iter().map(|(_, amount)| amount.to_raw());
        (Reverse(shares.max()), at)
    });
    match request.strategy {
        GroupStrategy::StrictPack => on_one_site(sites, request, &order, true),
        GroupStrategy::StrictSpread => on_a_site_each(sites, request, &order),
        GroupStrategy::Pack => on_one_site(sites, request, &order, false)
            .or_else(|_| on_few_sites(sites, request, &order))
            .or_else(|unplaced| search(sites, request, &order).ok_or(unplaced)),
        GroupStrategy::Spread => on_many_sites(sites, request, &order)
            .or_else(|unplaced| search(sites, request, &order).ok_or(unplaced)),
    }
}

fn on_one_site(
    sites: &[Site<'_>],
    request: &GroupRequest<'_>,
    order: &[usize],
    strict: bool,
) -> Result<Vec<Choice>, usize> {
    let bundles: Vec<_> = order.iter().map(|&at| request.bundles[at].clone()).collect();
    let all = sum(&bundles);
    let is_bound = strict && request.nodes.iter().any(Option::is_some);
    let fits = |site: &&Site<'_>| {
        (!is_bound || site.holds > 0)
            && site.free.can_satisfy(&all)
            && bundles.iter().all(|bundle| bundle.selector.matches(site.labels))
    };
    let rank = |site: &Site<'_>| {
        let wished = Some(site.node_id) == request.soft_target;
        (Reverse(wished), Reverse(site.holds), Reverse(site.utilisation), site.node_id)
    };
    let best = sites.iter().enumerate().filter(|(_, site)| fits(site)).min_by_key(|(_, site)| rank(site));
    match best {
        Some((site, _)) => Ok(order.iter().map(|&bundle| (bundle, site)).collect()),
        None => {
            // The bundle that no site takes even by itself says more than that they do not fit together.
            let alone = |&&at: &&usize| !sites.iter().any(|site| site.takes(&request.bundles[at]));
            Err(order.iter().find(alone).or_else(|| order.first()).copied().unwrap_or_default())
        }
    }
}

/// Fills the site that takes most of what is left, then the next.
fn on_few_sites(
    sites: &[Site<'_>],
    request: &GroupRequest<'_>,
    order: &[usize],
) -> Result<Vec<Choice>, usize> {
    let mut sites = sites.to_vec();
    let mut left = order.to_vec();
    let mut choices = Vec::new();
    while !left.is_empty() {
        let filled = sites.iter().map(|site| fill(site, request, &left)).enumerate();
        let best = filled.max_by_key(|(at, (site, taken))| {
            let held = site.holds - taken.len();
            (taken.len(), held, site.utilisation, Reverse(*at))
        });
        let Some((at, (site, taken))) = best.filter(|(_, (_, taken))| !taken.is_empty()) else {
            return Err(left[0]);
        };
        sites[at] = site;
        left.retain(|bundle| !taken.contains(bundle));
        choices.extend(taken.into_iter().map(|bundle| (bundle, at)));
    }
    Ok(choices)
}

/// The site with all that it takes of what is left.
fn fill<'a>(site: &Site<'a>, request: &GroupRequest<'_>, left: &[usize]) -> (Site<'a>, Vec<usize>) {
    let mut filled = site.clone();
    let mut taken = Vec::new();
    for &bundle in left {
        if filled.takes(&request.bundles[bundle]) {
            filled.take(&request.bundles[bundle]);
            taken.push(bundle);
        }
    }
    (filled, taken)
}

/// Each bundle on the site that holds the fewest.
fn on_many_sites(
    sites: &[Site<'_>],
    request: &GroupRequest<'_>,
    order: &[usize],
) -> Result<Vec<Choice>, usize> {
    let mut sites = sites.to_vec();
    let mut choices = Vec::new();
    for &bundle in order {
        let takes = sites.iter().enumerate().filter(|(_, site)| site.takes(&request.bundles[bundle]));
        let best = takes.min_by_key(|(at, site)| (site.holds, site.utilisation, *at)).map(|(at, _)| at);
        let at = best.ok_or(bundle)?;
        sites[at].take(&request.bundles[bundle]);
        choices.push((bundle, at));
    }
    Ok(choices)
}

/// A matching of bundles and sites that hold none of the group, by augmenting paths.
fn on_a_site_each(
    sites: &[Site<'_>],
    request: &GroupRequest<'_>,
    order: &[usize],
) -> Result<Vec<Choice>, usize> {
    let mut ranked: Vec<usize> = (0..sites.len()).filter(|&at| sites[at].holds == 0).collect();
    ranked.sort_by_key(|&at| (sites[at].utilisation, at));
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    for &bundle in order {
        let mut seen = vec![false; sites.len()];
        let takes = |bundle: usize, site: usize| sites[site].takes(&request.bundles[bundle]);
        if !augment(bundle, &ranked, &takes, &mut seen, &mut taken) {
            return Err(bundle);
        }
    }
    Ok(taken.into_iter().map(|(site, bundle)| (bundle, site)).collect())
}

fn augment(
    bundle: usize,
    ranked: &[usize],
    takes: &dyn Fn(usize, usize) -> bool,
    seen: &mut [bool],
    taken: &mut BTreeMap<usize, usize>,
) -> bool {
    for &site in ranked {
        if seen[site] || !takes(bundle, site) {
            continue;
        }
        seen[site] = true;
        let makes_way = match taken.get(&site).copied() {
            None => true,
            Some(other) => augment(other, ranked, takes, seen, taken),
        };
        if makes_way {
            taken.insert(site, bundle);
            return true;
        }
    }
    false
}

/// Tries all ways, up to a number of steps.
fn search(sites: &[Site<'_>], request: &GroupRequest<'_>, order: &[usize]) -> Option<Vec<Choice>> {
    let mut sites = sites.to_vec();
    let mut choices = Vec::new();
    let mut steps = 0;
    descend(&mut sites, request, order, &mut choices, &mut steps).then_some(choices)
}

fn descend(
    sites: &mut [Site<'_>],
    request: &GroupRequest<'_>,
    left: &[usize],
    choices: &mut Vec<Choice>,
    steps: &mut usize,
) -> bool {
    let Some((&bundle, left)) = left.split_first() else { return true };
    for at in 0..sites.len() {
        *steps += 1;
        if *steps > SEARCH_STEPS {
            return false;
        }
        if !sites[at].takes(&request.bundles[bundle]) {
            continue;
        }
        sites[at].take(&request.bundles[bundle]);
        choices.push((bundle, at));
        if descend(sites, request, left, choices, steps) {
            return true;
        }
        choices.pop();
        sites[at].give_back(&request.bundles[bundle]);
    }
    false
}
