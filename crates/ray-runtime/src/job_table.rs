//! Which jobs there are.
//!
//! ```text
//!            add              finish
//!   (none) -------> Running ----------> Finished
//! ```
//!
//! How many run is bounded; of the finished ones the last `history` are kept for those who ask.

use std::collections::VecDeque;

use ray_core::error::RayError;
use ray_core::id::JobId;

/// Whether a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Tasks may be submitted to it.
    Running,
    /// It was finished; what it still had under way was cancelled.
    Finished,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// The job.
    pub job_id: JobId,
    /// What whoever added it calls it.
    pub name: String,
    /// Whether it goes on.
    pub state: JobState,
}

/// Jobs that run at once.
const MAX_RUNNING: usize = 10_000;

#[derive(Debug)]
pub(crate) struct JobTable {
    /// In the order in which they were added.
    running: Vec<JobInfo>,
    /// In the order in which they finished.
    finished: VecDeque<JobInfo>,
    history: usize,
}

impl JobTable {
    pub(crate) fn new(history: usize) -> Self {
        Self { running: Vec::new(), finished: VecDeque::new(), history }
    }

    /// A new job begins.
    pub(crate) fn add(&mut self, job_id: JobId, name: String) -> Result<(), RayError> {
        if self.running.len() >= MAX_RUNNING {
            return Err(RayError::Overloaded { queue: "the job table", capacity: MAX_RUNNING });
        }
        self.running.push(JobInfo { job_id, name, state: JobState::Running });
        Ok(())
    }

    /// The job ends. Returns whether it ran: finishing a finished one again changes nothing.
    pub(crate) fn finish(&mut self, job_id: JobId) -> Result<bool, RayError> {
        let Some(at) = self.running.iter().position(|job| job.job_id == job_id) else {
            return match self.finished.iter().any(|job| job.job_id == job_id) {
                true => Ok(false),
                false => Err(RayError::NotFound { what: format!("job {job_id}") }),
            };
        };
        let job = self.running.remove(at);
        self.finished.push_back(JobInfo { state: JobState::Finished, ..job });
        if self.finished.len() > self.history {
            self.finished.pop_front();
        }
        Ok(true)
    }

    /// That tasks may be submitted to this job.
    pub(crate) fn check_running(&self, job_id: JobId) -> Result<(), RayError> {
        if self.running.iter().any(|job| job.job_id == job_id) {
            return Ok(());
        }
        match self.finished.iter().find(|job| job.job_id == job_id) {
            Some(job) => Err(RayError::InvalidArgument(format!("job {job_id} ({:?}) is finished", job.name))),
            None => Err(RayError::NotFound { what: format!("job {job_id}") }),
        }
    }

    /// The finished jobs in the order of their ends, then the running ones in the order of their
    /// beginnings.
    pub(crate) fn list(&self) -> Vec<JobInfo> {
        self.finished.iter().chain(&self.running).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    #[test]
    fn a_job_runs_until_it_is_finished() {
        let mut table = JobTable::new(10);
        table.add(job(1), "one".to_owned()).unwrap();
        table.add(job(2), "two".to_owned()).unwrap();
        table.check_running(job(1)).unwrap();
        assert!(table.finish(job(1)).unwrap());
        assert!(!table.finish(job(1)).unwrap());
        let error = table.check_running(job(1)).unwrap_err();
        assert!(error.to_string().contains("\"one\") is finished"), "{error}");
        let states: Vec<_> = table.list().iter().map(|job| (job.job_id, job.state)).collect();
        assert_eq!(states, [(job(1), JobState::Finished), (job(2), JobState::Running)]);
    }

    #[test]
    fn an_unknown_job_is_named() {
        let mut table = JobTable::new(10);
        for error in [table.finish(job(1)).unwrap_err(), table.check_running(job(1)).unwrap_err()] {
            assert!(error.to_string().contains(&job(1).hex()), "{error}");
        }
    }

    #[test]
    fn the_longest_finished_job_is_forgotten_first() {
        let mut table = JobTable::new(2);
        for number in 1..=3 {
            table.add(job(number), String::new()).unwrap();
            table.finish(job(number)).unwrap();
        }
        let ids: Vec<_> = table.list().iter().map(|job| job.job_id).collect();
        assert_eq!(ids, [job(2), job(3)]);
    }
}
