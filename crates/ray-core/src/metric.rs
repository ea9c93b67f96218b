//! Metrics of programs: what is recorded, added up over processes, and shown in Prometheus' text format.
//!
//! A [`MetricTable`] stands in each process, where the changes since the last report wait, and on each
//! node, where they add up. Counters and histograms add over processes and outlive them; a gauge is its
//! process's own and goes with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// The last value counts.
    Gauge,
    /// Values by size.
    Histogram,
}

/// A metric, without values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricDescription {
    /// Its name, as Prometheus allows it.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it is.
    pub kind: MetricKind,
    /// Upper ends of a histogram's buckets, ascending; the last one, without end, is not among them.
    pub boundaries: Vec<f64>,
}

/// Names and values of tags, in the order of names.
pub type Tags = Vec<(String, String)>;

/// What was recorded of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MetricValue {
    /// A counter grew by this, or a gauge is this.
    Number(f64),
    /// Values of a histogram.
    Distribution {
        /// How many fell into each bucket; one more than there are boundaries.
        buckets: Vec<u64>,
        /// Their sum.
        sum: f64,
    },
}

/// What changed of one metric since the last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricChange {
    /// The metric.
    pub metric: MetricDescription,
    /// By tags.
    pub series: Vec<(Tags, MetricValue)>,
}

#[derive(Debug)]
struct Metric {
    description: MetricDescription,
    series: FxHashMap<Tags, MetricValue>,
}

/// Metrics by name, with at most so many series.
#[derive(Debug)]
pub struct MetricTable {
    metrics: BTreeMap<String, Metric>,
    series: usize,
    max_series: usize,
    /// Records and changes of series for which there was no room.
    refused: u64,
}

impl MetricTable {
    /// No metrics, and room for `max_series` of them.
    pub const fn new(max_series: usize) -> Self {
        Self { metrics: BTreeMap::new(), series: 0, max_series, refused: 0 }
    }

    /// Records a value. Returns false if there is no room for its series.
    pub fn record(&mut self, metric: &MetricDescription, tags: &Tags, value: f64) -> bool {
        let recorded = match metric.kind {
            MetricKind::Counter | MetricKind::Gauge => MetricValue::Number(value),
            MetricKind::Histogram => {
                let mut buckets = vec![0; metric.boundaries.len() + 1];
                buckets[metric.boundaries.partition_point(|&end| end < value)] = 1;
                MetricValue::Distribution { buckets, sum: value }
            }
        };
        self.add(metric, tags, &recorded)
    }

    /// Adds what another table took. Returns false if there is no room for the series.
    pub fn add(&mut self, metric: &MetricDescription, tags: &Tags, value: &MetricValue) -> bool {
        let found = self.metrics.get_mut(&metric.name).filter(|found| found.description.kind == metric.kind);
        if let Some(known) = found.and_then(|found| found.series.get_mut(tags)) {
            merge(metric.kind, known, value);
            return true;
        }
        let other_kind = self.metrics.get(&metric.name).is_some_and(|it| it.description.kind != metric.kind);
        if self.series >= self.max_series || other_kind {
            self.refused += 1;
            return false;
        }
        self.series += 1;
        let new = || Metric { description: metric.clone(), series: FxHashMap::default() };
        let entry = self.metrics.entry(metric.name.clone()).or_insert_with(new);
        entry.series.insert(tags.clone(), value.clone());
        true
    }

    /// What was recorded since this was called last; the table is empty afterwards.
    pub fn take(&mut self) -> Vec<MetricChange> {
        self.series = 0;
        let change = |metric: Metric| MetricChange {
            metric: metric.description,
            series: metric.series.into_iter().collect(),
        };
        std::mem::take(&mut self.metrics).into_values().map(change).collect()
    }

    /// Removes the series with this value of this tag.
    pub fn remove_tagged(&mut self, tag: &str, value: &str) {
        let has = |tags: &Tags| tags.iter().any(|(name, given)| name == tag && given == value);
        for metric in self.metrics.values_mut() {
            metric.series.retain(|tags, _| !has(tags));
        }
        self.metrics.retain(|_, metric| !metric.series.is_empty());
        self.series = self.metrics.values().map(|metric| metric.series.len()).sum();
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty()
    }

    /// How many records and changes found no room.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// All series in Prometheus' text format, names after `prefix`.
    pub fn render(&self, prefix: &str, out: &mut String) {
        for metric in self.metrics.values() {
            let description = &metric.description;
            let (kind, suffix) = match description.kind {
                MetricKind::Counter if description.name.ends_with("_total") => ("counter", ""),
                MetricKind::Counter => ("counter", "_total"),
                MetricKind::Gauge => ("gauge", ""),
                MetricKind::Histogram => ("histogram", ""),
            };
            let name = format!("{prefix}{}{suffix}", description.name);
            let _ = writeln!(out, "# HELP {name} {}", escape_help(&description.description));
            let _ = writeln!(out, "# TYPE {name} {kind}");
            let mut series: Vec<_> = metric.series.iter().collect();
            series.sort_by(|one, other| one.0.cmp(other.0));
            for (tags, value) in series {
                render_series(&name, &description.boundaries, tags, value, out);
            }
        }
    }
}

fn merge(kind: MetricKind, known: &mut MetricValue, value: &MetricValue) {
    match (known, value) {
        (MetricValue::Number(known), MetricValue::Number(value)) => match kind {
            MetricKind::Counter => *known += value,
            MetricKind::Gauge | MetricKind::Histogram => *known = *value,
        },
        (
            MetricValue::Distribution { buckets, sum },
            MetricValue::Distribution { buckets: more, sum: of_more },
        ) => {
            // Two processes that disagree about the boundaries agree at least about how many values came.
            for (at, count) in more.iter().enumerate() {
                let at = at.min(buckets.len().saturating_sub(1));
                if let Some(bucket) = buckets.get_mut(at) {
                    *bucket += count;
                }
            }
            *sum += of_more;
        }
        (known, value) => *known = value.clone(),
    }
}

fn render_series(name: &str, boundaries: &[f64], tags: &Tags, value: &MetricValue, out: &mut String) {
    match value {
        MetricValue::Number(value) => {
            let _ = writeln!(out, "{name}{} {}", labels(tags, None), number(*value));
        }
        MetricValue::Distribution { buckets, sum } => {
            let mut total = 0;
            for (at, count) in buckets.iter().enumerate() {
                total += count;
                let end = boundaries.get(at).map_or_else(|| "+Inf".to_owned(), |&end| number(end));
                let _ = writeln!(out, "{name}_bucket{} {total}", labels(tags, Some(&end)));
            }
            let _ = writeln!(out, "{name}_sum{} {}", labels(tags, None), number(*sum));
            let _ = writeln!(out, "{name}_count{} {total}", labels(tags, None));
        }
    }
}

fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value.is_nan() { "NaN".to_owned() } else { format!("{value:?}") }
}

fn labels(tags: &Tags, end: Option<&str>) -> String {
    let own = tags.iter().map(|(name, value)| format!("{name}=\"{}\"", escape_label(value)));
    let all: Vec<_> = own.chain(end.map(|end| format!("le=\"{end}\""))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn escape_help(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn describe(name: &str, kind: MetricKind, boundaries: &[f64]) -> MetricDescription {
        MetricDescription {
            name: name.to_owned(),
            description: "what\nit is".to_owned(),
            kind,
            boundaries: boundaries.to_vec(),
        }
    }

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn text(table: &MetricTable) -> String {
        let mut out = String::new();
        table.render("ray_", &mut out);
        out
    }

    #[test]
    fn each_kind_reads_as_prometheus_expects() {
        let mut table = MetricTable::new(10);
        table.record(&describe("calls", MetricKind::Counter, &[]), &tags(&[("a", "x\"\\\n")]), 2.0);
        table.record(&describe("calls", MetricKind::Counter, &[]), &tags(&[("a", "x\"\\\n")]), 1.5);
        table.record(&describe("level", MetricKind::Gauge, &[]), &tags(&[]), 7.0);
        table.record(&describe("level", MetricKind::Gauge, &[]), &tags(&[]), 3.0);
        let time = describe("time", MetricKind::Histogram, &[1.0, 10.0]);
        [0.5, 1.0, 5.0, 100.0].into_iter().for_each(|value| assert!(table.record(&time, &tags(&[]), value)));
        let expected = "\
# HELP ray_calls_total what\\nit is
# TYPE ray_calls_total counter
ray_calls_total{a=\"x\\\"\\\\\\n\"} 3.5
# HELP ray_level what\\nit is
# TYPE ray_level gauge
ray_level 3.0
# HELP ray_time what\\nit is
# TYPE ray_time histogram
ray_time_bucket{le=\"1.0\"} 2
ray_time_bucket{le=\"10.0\"} 3
ray_time_bucket{le=\"+Inf\"} 4
ray_time_sum 106.5
ray_time_count 4
";
        assert_eq!(text(&table), expected);
    }

    #[test]
    fn there_is_room_for_so_many_series_and_what_finds_none_is_counted() {
        let mut table = MetricTable::new(2);
        let calls = describe("calls", MetricKind::Counter, &[]);
        assert!(table.record(&calls, &tags(&[("a", "1")]), 1.0));
        assert!(table.record(&calls, &tags(&[("a", "2")]), 1.0));
        assert!(!table.record(&calls, &tags(&[("a", "3")]), 1.0));
        assert!(table.record(&calls, &tags(&[("a", "1")]), 1.0));
        assert_eq!(table.refused(), 1);
        table.remove_tagged("a", "1");
        assert!(table.record(&calls, &tags(&[("a", "3")]), 1.0));
        assert!(!table.record(&describe("calls", MetricKind::Gauge, &[]), &tags(&[("a", "3")]), 1.0));
    }

    proptest! {
        #[test]
        fn what_processes_record_adds_up_on_the_node(
            records in proptest::collection::vec((0usize..3, 0usize..3, 0u8..30, any::<bool>()), 0..60),
        ) {
            let metrics = [
                describe("calls", MetricKind::Counter, &[]),
                describe("level", MetricKind::Gauge, &[]),
                describe("time", MetricKind::Histogram, &[3.0, 9.0]),
            ];
            let (mut whole, mut process, mut node) =
                (MetricTable::new(100), MetricTable::new(100), MetricTable::new(100));
            let report = |process: &mut MetricTable, node: &mut MetricTable| {
                for change in process.take() {
                    for (tags, value) in &change.series {
                        assert!(node.add(&change.metric, tags, value));
                    }
                }
            };
            for (metric, tag, value, reports) in records {
                let tags = tags(&[("tag", &tag.to_string())]);
                whole.record(&metrics[metric], &tags, f64::from(value));
                process.record(&metrics[metric], &tags, f64::from(value));
                if reports {
                    report(&mut process, &mut node);
                }
            }
            report(&mut process, &mut node);
            prop_assert!(process.is_empty());
            prop_assert_eq!(text(&whole), text(&node));
        }
    }
}
