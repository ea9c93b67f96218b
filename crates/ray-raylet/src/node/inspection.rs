//! Questions to all processes of the node, until each has answered, is gone, or was waited for long enough.
//!
//! ```text
//!            open        last answer, last end, deadline
//!  (none) ---------> open -------------------------------> done: handed to who asked
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;

use super::effect::ClientId;

/// Questions that may be open at once; the oldest makes way, with the answers that it has.
const MAX_OPEN: usize = 64;

/// What came of a question to all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inspected<T> {
    /// Who asked.
    pub(crate) asker: T,
    /// The answers.
    pub(crate) reports: Vec<Bytes>,
    /// Those who did not answer in time.
    pub(crate) silent: Vec<ClientId>,
}

#[derive(Debug)]
struct Question<T> {
    asker: T,
    awaited: BTreeSet<ClientId>,
    reports: Vec<Bytes>,
    deadline: Instant,
}

/// Open questions, each with whoever asked it.
#[derive(Debug)]
pub(crate) struct Inspections<T> {
    open: BTreeMap<u64, Question<T>>,
    next: u64,
}

impl<T> Inspections<T> {
    pub(crate) const fn new() -> Self {
        Self { open: BTreeMap::new(), next: 1 }
    }

    /// A question to all of these. Returns its number, to be sent to them.
    pub(crate) fn open(&mut self, clients: &[ClientId], deadline: Instant, asker: T) -> u64 {
        let number = self.next;
        self.next += 1;
        let awaited = clients.iter().copied().collect();
        self.open.insert(number, Question { asker, awaited, reports: Vec::new(), deadline });
        number
    }

    /// A process answers. One that was not asked, or answers twice, changes nothing.
    pub(crate) fn on_answer(&mut self, client: ClientId, number: u64, report: Bytes) {
        if let Some(question) = self.open.get_mut(&number)
            && question.awaited.remove(&client)
        {
            question.reports.push(report);
        }
    }

    /// A process is gone.
    pub(crate) fn on_client_lost(&mut self, client: ClientId) {
        for question in self.open.values_mut() {
            question.awaited.remove(&client);
        }
    }

    /// When the next question has been open long enough.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.open.values().map(|question| question.deadline).min()
    }

    /// The questions that are done.
    pub(crate) fn take_done(&mut self, now: Instant) -> Vec<Inspected<T>> {
        let surplus = self.open.len().saturating_sub(MAX_OPEN);
        let too_many: BTreeSet<u64> = self.open.keys().take(surplus).copied().collect();
        let is_done = |(number, question): (&u64, &Question<T>)| {
            let done = question.awaited.is_empty() || question.deadline <= now || too_many.contains(number);
            done.then_some(*number)
        };
        let done: Vec<u64> = self.open.iter().filter_map(is_done).collect();
        let done = done.into_iter().filter_map(|number| self.open.remove(&number));
        done.map(|question| Inspected {
            asker: question.asker,
            reports: question.reports,
            silent: question.awaited.into_iter().collect(),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: ClientId = ClientId(1);
    const TWO: ClientId = ClientId(2);

    #[test]
    fn a_question_is_done_when_each_has_answered_or_is_gone_or_the_time_is_over() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut inspections = Inspections::new();
        let first = inspections.open(&[ONE, TWO], later, "first");
        let second = inspections.open(&[ONE], later, "second");
        inspections.on_answer(TWO, second, Bytes::from_static(b"not asked"));
        inspections.on_answer(ONE, first, Bytes::from_static(b"one"));
        inspections.on_answer(ONE, first, Bytes::from_static(b"again"));
        assert_eq!(inspections.take_done(start), []);
        assert_eq!(inspections.next_deadline(), Some(later));
        inspections.on_client_lost(TWO);
        let [done] = &inspections.take_done(start)[..] else { panic!("the first is done") };
        assert_eq!((done.asker, &done.reports[..]), ("first", &[Bytes::from_static(b"one")][..]));
        let [done] = &inspections.take_done(later)[..] else { panic!("its time is over") };
        assert_eq!((done.asker, &done.silent[..]), ("second", &[ONE][..]));
        assert_eq!(inspections.next_deadline(), None);
    }

    #[test]
    fn a_question_to_nobody_is_done_at_once_and_too_many_make_the_oldest_give_way() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut inspections = Inspections::new();
        inspections.open(&[], later, 0);
        assert_eq!(inspections.take_done(start).len(), 1);
        for asker in 1..=65 {
            inspections.open(&[ONE], later, asker);
        }
        let [done] = &inspections.take_done(start)[..] else { panic!("one has to give way") };
        assert_eq!((done.asker, &done.silent[..]), (1, &[ONE][..]));
    }
}
