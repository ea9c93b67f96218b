//! Which jobs there are and how they ended.
//!
//! ```text
//!   add ──> RUNNING ── finish, or the driver's node died ──> FINISHED
//! ```
//!
//! Finished jobs are kept to a bound; the one that finished first is forgotten first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ray_core::id::{JobId, NodeId, WorkerId};

use crate::clock::Now;

/// What a driver says about its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// The job.
    pub job_id: JobId,
    /// The driver's command line or script.
    pub entrypoint: String,
    /// Where the names of its actors count.
    pub namespace: String,
    /// The driver's process.
    pub driver_pid: u32,
    /// The driver, if it is a core worker.
    pub driver_worker_id: Option<WorkerId>,
    /// The driver's node; the job ends with it.
    pub node_id: Option<NodeId>,
    /// What users note about it.
    pub metadata: BTreeMap<String, String>,
}

/// Whether a job runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Its driver is there.
    Running,
    /// It ended.
    Finished {
        /// Why.
        reason: String,
        /// When, in milliseconds since the epoch.
        end_ms: u64,
    },
}

/// One job as everyone may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// What its driver said about it.
    pub spec: JobSpec,
    /// Whether it runs.
    pub state: JobState,
    /// When it was added, in milliseconds since the epoch.
    pub start_ms: u64,
}

impl JobInfo {
    /// A running job of which only the id is known.
    fn unknown(job_id: JobId, now: Now) -> Self {
        let spec = JobSpec {
            job_id,
            entrypoint: String::new(),
            namespace: String::new(),
            driver_pid: 0,
            driver_worker_id: None,
            node_id: None,
            metadata: BTreeMap::new(),
        };
        Self { spec, state: JobState::Running, start_ms: now.unix_ms }
    }
}

/// What follows from a change of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEffect {
    /// A job is new: keep it and tell everyone.
    Started(Arc<JobInfo>),
    /// A job ended: keep that, tell everyone, and end what belongs to it.
    Finished(Arc<JobInfo>),
    /// A finished job is not kept any longer.
    Forget(JobId),
}

/// All jobs.
#[derive(Debug)]
pub struct JobTable {
    jobs: BTreeMap<JobId, Arc<JobInfo>>,
    /// Finished jobs, the one that finished first in front.
    finished: VecDeque<JobId>,
    finished_kept: usize,
}

impl JobTable {
    /// An empty table that keeps the last `finished_kept` finished jobs.
    pub fn new(finished_kept: usize) -> Self {
        Self::restore(finished_kept, [])
    }

    /// The table that was kept.
    pub fn restore(finished_kept: usize, jobs: impl IntoIterator<Item = JobInfo>) -> Self {
        let jobs: BTreeMap<_, _> = jobs.into_iter().map(|job| (job.spec.job_id, Arc::new(job))).collect();
        let mut finished: Vec<_> = jobs
            .iter()
            .filter_map(|(&job_id, job)| match job.state {
                JobState::Running => None,
                JobState::Finished { end_ms, .. } => Some((end_ms, job_id)),
            })
            .collect();
        finished.sort_unstable();
        Self { jobs, finished: finished.into_iter().map(|(_, id)| id).collect(), finished_kept }
    }

    /// Takes a job in. A job that is known already is left as it is.
    pub fn add(&mut self, spec: JobSpec, now: Now, out: &mut Vec<JobEffect>) {
        let job_id = spec.job_id;
        if self.jobs.contains_key(&job_id) {
            return;
        }
        let job = Arc::new(JobInfo { spec, state: JobState::Running, start_ms: now.unix_ms });
        out.push(JobEffect::Started(Arc::clone(&job)));
        self.jobs.insert(job_id, job);
    }

    /// Ends a job. Ending it twice changes nothing. A job that is not known is noted as finished, so that
    /// what is said about it later, because it was under way for longer, comes too late.
    pub fn finish(&mut self, job_id: JobId, reason: &str, now: Now, out: &mut Vec<JobEffect>) {
        let job = self.jobs.entry(job_id).or_insert_with(|| Arc::new(JobInfo::unknown(job_id, now)));
        if job.state != JobState::Running {
            return;
        }
        Arc::make_mut(job).state = JobState::Finished { reason: reason.to_owned(), end_ms: now.unix_ms };
        out.push(JobEffect::Finished(Arc::clone(job)));
        self.finished.push_back(job_id);
        while self.finished.len() > self.finished_kept {
            let Some(oldest) = self.finished.pop_front() else { break };
            self.jobs.remove(&oldest);
            out.push(JobEffect::Forget(oldest));
        }
    }

    /// A node died: the jobs whose driver was there end.
    pub fn on_node_dead(&mut self, node_id: NodeId, reason: &str, now: Now, out: &mut Vec<JobEffect>) {
        let there = |job: &&Arc<JobInfo>| job.state == JobState::Running && job.spec.node_id == Some(node_id);
        for job_id in self.jobs.values().filter(there).map(|job| job.spec.job_id).collect::<Vec<_>>() {
            self.finish(job_id, &format!("the driver's node {node_id} died: {reason}"), now, out);
        }
    }

    /// Whether the job is known to have ended.
    pub fn is_finished(&self, job_id: &JobId) -> bool {
        self.jobs.get(job_id).is_some_and(|job| job.state != JobState::Running)
    }

    /// All jobs, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<JobInfo>> {
        self.jobs.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_ms: u64) -> Now {
        Now { elapsed: std::time::Duration::ZERO, unix_ms }
    }

    fn spec(n: u8) -> JobSpec {
        JobSpec {
            job_id: JobId::from_bytes([n; 16]),
            entrypoint: "main.py".to_owned(),
            namespace: "n".to_owned(),
            driver_pid: 1,
            driver_worker_id: None,
            node_id: Some(NodeId::from_bytes([n; 16])),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn a_job_starts_once_and_ends_once() {
        let mut table = JobTable::new(10);
        let mut out = Vec::new();
        let job_id = spec(1).job_id;
        table.add(spec(1), at(1), &mut out);
        table.add(spec(1), at(2), &mut out);
        assert!(!table.is_finished(&job_id));
        table.finish(job_id, "done", at(3), &mut out);
        table.finish(job_id, "again", at(4), &mut out);
        table.add(spec(1), at(5), &mut out);
        let [JobEffect::Started(started), JobEffect::Finished(finished)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!((started.start_ms, &started.state), (1, &JobState::Running));
        assert_eq!(finished.state, JobState::Finished { reason: "done".to_owned(), end_ms: 3 });
        assert!(table.is_finished(&job_id));
    }

    #[test]
    fn a_job_that_ended_before_it_was_added_stays_ended() {
        let mut table = JobTable::new(10);
        let mut out = Vec::new();
        table.finish(spec(1).job_id, "done", at(1), &mut out);
        table.add(spec(1), at(2), &mut out);
        assert!(matches!(&out[..], [JobEffect::Finished(_)]), "{out:?}");
        assert!(table.is_finished(&spec(1).job_id));
    }

    #[test]
    fn a_job_ends_with_its_drivers_node_and_says_so() {
        let mut table = JobTable::new(10);
        let mut out = Vec::new();
        table.add(spec(1), at(1), &mut out);
        table.add(spec(2), at(1), &mut out);
        out.clear();
        table.on_node_dead(NodeId::from_bytes([1; 16]), "power", at(2), &mut out);
        let [JobEffect::Finished(job)] = &out[..] else { panic!("{out:?}") };
        assert!(matches!(&job.state, JobState::Finished { reason, .. } if reason.ends_with("died: power")));
        assert!(!table.is_finished(&spec(2).job_id));
    }

    #[test]
    fn the_job_that_finished_first_is_forgotten_first_also_after_a_restart() {
        let mut table = JobTable::new(2);
        let mut out = Vec::new();
        for n in [3, 1, 2] {
            table.add(spec(n), at(0), &mut out);
            table.finish(spec(n).job_id, "done", at(10 - u64::from(n)), &mut out);
        }
        assert_eq!(out.last(), Some(&JobEffect::Forget(spec(3).job_id)));
        let mut table = JobTable::restore(2, table.iter().map(|job| JobInfo::clone(job)));
        out.clear();
        table.add(spec(4), at(20), &mut out);
        table.finish(spec(4).job_id, "done", at(21), &mut out);
        assert_eq!(out.last(), Some(&JobEffect::Forget(spec(2).job_id)), "2 ended at 8, 1 at 9");
    }
}
