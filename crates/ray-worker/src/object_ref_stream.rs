//! The items of one generator task, as the process that submitted it sees them.
//!
//! ```text
//!   an item's place:   (not there) --- on_item ---> unread --- take, consume ---> read
//!                           |                          \--- drop_consumer ---> dropped
//!                           +--- finish ---> lost (if later ones came), or behind the end
//!
//!   the stream:        open --- finish ---> ended
//!                       \                     \
//!                        +--- drop_consumer ---+---> may be forgotten once both have happened
//! ```
//! Items have numbers from 0, and so names of their own before they exist ([`item_id`]). They arrive
//! in order, but for those of a task that is tried again: the new attempt begins with item 0, and what is
//! known already changes nothing.
//!
//! A producer with a limit pauses while it has sent that many items more than it knows to be read. It is
//! told what was read ([`ObjectRefStream::due_ack`]) when it pauses, or half of its limit was read: not once
//! for each item.

use std::collections::BTreeSet;
use std::ops::Range;

use ray_core::id::{ObjectId, TaskId};

/// The object that is this item of a generator task. Its return value, which is there when it has ended, is
/// the return of index 0.
pub fn item_id(task_id: TaskId, index: u64) -> ObjectId {
    ObjectId::for_return(task_id, index.saturating_add(1))
}

/// What an arrival means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// An item that was not known.
    New,
    /// It was known already: an earlier attempt sent it too.
    Known,
    /// It is of an attempt that was given up.
    Late,
}

/// What is at the place of the next item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The item of this number, which is read now.
    Item(u64),
    /// Nothing yet.
    NotYet,
    /// Nothing, and there will be nothing.
    End,
}

/// Items were to be passed over of which some may still come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotReady;

/// What the end of a task means for its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Items that did not come though later ones did.
    pub lost: Vec<u64>,
    /// Places behind the last item that someone may refer to.
    pub behind: Range<u64>,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub struct ObjectRefStream {
    /// How many unread items make the producer pause; 0 if nothing does.
    limit: u64,
    /// The next item to be read.
    read: u64,
    /// All items below this one have come.
    written: u64,
    /// Items that came before one below them.
    ahead: BTreeSet<u64>,
    /// Places below this one may have been given out before they were read.
    peeked: u64,
    /// The attempt whose items come now.
    attempt: u32,
    /// How many items this attempt has sent.
    sent: u64,
    /// How many items the producer of this attempt knows to be read.
    acked: u64,
    ended: bool,
    dropped: bool,
}

impl ObjectRefStream {
    /// The stream of a task whose producer pauses at `limit` unread items; 0 for never.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// An item came, of this attempt. `current` is the task's attempt; `None` if it has ended.
    pub fn on_item(&mut self, attempt: u32, current: Option<u32>, index: u64) -> Arrival {
        if current != Some(attempt) || self.ended {
            return Arrival::Late;
        }
        if attempt != self.attempt {
            (self.attempt, self.sent, self.acked) = (attempt, 0, 0);
        }
        self.sent = self.sent.max(index.saturating_add(1));
        if self.dropped {
            // The producer does not wait for who will not come.
            self.read = self.read.max(self.sent);
        }
        if index < self.written || self.ahead.contains(&index) {
            return Arrival::Known;
        }
        if index == self.written {
            self.written += 1;
            while self.ahead.remove(&self.written) {
                self.written += 1;
            }
        } else {
            self.ahead.insert(index);
        }
        Arrival::New
    }

    /// The task raised, and is not tried again: the exception is its last item. Returns the place.
    pub fn append(&mut self) -> u64 {
        let index = self.end();
        if index == self.written {
            self.written += 1;
        } else {
            self.ahead.insert(index);
        }
        index
    }

    /// The task has ended, and no item comes any more. Every place is an item or behind the end now.
    pub fn finish(&mut self) -> Finished {
        let end = self.end();
        let lost = (self.written..end).filter(|index| !self.ahead.contains(index)).collect();
        self.ended = true;
        self.written = end;
        self.ahead.clear();
        Finished { lost, behind: end..self.peeked.max(end) }
    }

    /// The place behind the last item that came.
    fn end(&self) -> u64 {
        self.ahead.last().map_or(self.written, |&last| last + 1)
    }

    /// Reads the next item.
    pub fn take(&mut self) -> Next {
        if self.read < self.written {
            self.read += 1;
            return Next::Item(self.read - 1);
        }
        if self.ended { Next::End } else { Next::NotYet }
    }

    /// Gives out the places of the next items, without reading them. They may lie behind the end.
    pub fn peek(&mut self, count: u64) -> Range<u64> {
        let places = self.read..self.read.saturating_add(count);
        self.peeked = self.peeked.max(places.end);
        places
    }

    /// Whether there is an item at this place, or will never be one.
    pub fn is_ready(&self, index: u64) -> bool {
        index < self.written || self.ended || self.ahead.contains(&index)
    }

    /// Whether this place is behind the last item, for good.
    pub const fn is_behind(&self, index: u64) -> bool {
        self.ended && index >= self.written
    }

    /// Whether the place of this item may have been given out before it was read.
    pub const fn was_peeked(&self, index: u64) -> bool {
        index < self.peeked
    }

    /// Passes over the next `count` places. Returns those that are items.
    ///
    /// # Errors
    /// If one of them is neither an item nor behind the end; then nothing is passed over.
    pub fn consume(&mut self, count: u64) -> Result<Range<u64>, NotReady> {
        let (from, to) = (self.read, self.read.saturating_add(count));
        if to > self.written && !self.ended {
            return Err(NotReady);
        }
        self.read = to;
        Ok(from.min(self.written)..to.min(self.written))
    }

    /// Whether everything was read, and nothing more comes.
    pub const fn is_exhausted(&self) -> bool {
        self.ended && self.read >= self.written
    }

    /// Whether the task has ended.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Nobody reads any more: what comes counts as read. Returns the items that nobody has read; none if it
    /// was said before.
    pub fn drop_consumer(&mut self) -> Vec<u64> {
        if std::mem::replace(&mut self.dropped, true) {
            return Vec::new();
        }
        let unread = self.read.min(self.written)..self.written;
        self.read = self.read.max(self.sent);
        unread.chain(self.ahead.iter().copied()).collect()
    }

    /// Whether nobody reads any more.
    pub const fn is_dropped(&self) -> bool {
        self.dropped
    }

    /// How many items are unread.
    pub fn unread(&self) -> u64 {
        if self.dropped {
            return 0;
        }
        self.written.saturating_sub(self.read) + self.ahead.len() as u64
    }

    /// How many items were read, if the producer has to be told now; it counts as told.
    pub fn due_ack(&mut self) -> Option<u64> {
        if self.limit == 0 || self.read <= self.acked || self.ended {
            return None;
        }
        let pauses = self.sent.saturating_sub(self.acked) >= self.limit;
        if !pauses && self.read - self.acked < self.limit.div_ceil(2) {
            return None;
        }
        self.acked = self.read;
        Some(self.read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream_of(count: u64) -> ObjectRefStream {
        let mut stream = ObjectRefStream::new(0);
        for index in 0..count {
            assert_eq!(stream.on_item(0, Some(0), index), Arrival::New);
        }
        stream
    }

    #[test]
    fn items_are_read_in_order_until_the_end() {
        let mut stream = stream_of(2);
        assert_eq!(
            [stream.take(), stream.take(), stream.take()],
            [Next::Item(0), Next::Item(1), Next::NotYet]
        );
        assert_eq!(stream.finish(), Finished { lost: vec![], behind: 2..2 });
        assert_eq!(stream.take(), Next::End);
        assert!(stream.is_exhausted());
    }

    #[test]
    fn a_second_attempt_changes_nothing_that_is_known_and_goes_on_behind_it() {
        let mut stream = stream_of(3);
        assert_eq!(stream.take(), Next::Item(0));
        let arrivals: Vec<Arrival> = (0..4).map(|index| stream.on_item(1, Some(1), index)).collect();
        assert_eq!(arrivals, [Arrival::Known, Arrival::Known, Arrival::Known, Arrival::New]);
        assert_eq!(stream.on_item(0, Some(1), 4), Arrival::Late);
        stream.finish();
        assert_eq!(
            [stream.take(), stream.take(), stream.take(), stream.take()],
            [Next::Item(1), Next::Item(2), Next::Item(3), Next::End]
        );
    }

    #[test]
    fn what_is_sent_out_of_order_waits_and_what_never_comes_is_lost() {
        let mut stream = stream_of(1);
        assert_eq!(stream.on_item(0, Some(0), 3), Arrival::New);
        assert_eq!(stream.on_item(0, Some(0), 1), Arrival::New);
        assert_eq!(
            [stream.take(), stream.take(), stream.take()],
            [Next::Item(0), Next::Item(1), Next::NotYet]
        );
        assert_eq!(stream.finish(), Finished { lost: vec![2], behind: 4..4 });
        assert_eq!([stream.take(), stream.take(), stream.take()], [Next::Item(2), Next::Item(3), Next::End]);
    }

    #[test]
    fn an_exception_is_the_last_item_behind_those_of_all_attempts() {
        let mut stream = stream_of(3);
        stream.on_item(1, Some(1), 0);
        assert_eq!(stream.append(), 3);
        assert_eq!(stream.finish().behind, 4..4);
    }

    #[test]
    fn places_can_be_given_out_before_there_is_an_item_or_an_end() {
        let mut stream = stream_of(1);
        assert_eq!(stream.peek(3), 0..3);
        assert_eq!([stream.is_ready(0), stream.is_ready(1)], [true, false]);
        assert!(stream.was_peeked(2) && !stream.was_peeked(3));
        assert_eq!(stream.consume(2), Err(NotReady));
        assert_eq!(stream.consume(1), Ok(0..1));
        assert_eq!(stream.finish(), Finished { lost: vec![], behind: 1..3 });
        assert!(stream.is_ready(1) && stream.is_behind(1) && !stream.is_behind(0));
        assert_eq!(stream.consume(5), Ok(1..1));
        assert_eq!((stream.peek(1), stream.take()), (6..7, Next::End));
        assert_eq!(stream.unread(), 0);
    }

    #[test]
    fn dropping_the_consumer_gives_up_what_is_unread_once() {
        let mut stream = stream_of(4);
        stream.take();
        stream.on_item(0, Some(0), 7);
        assert_eq!(stream.drop_consumer(), [1, 2, 3, 7]);
        assert_eq!(stream.drop_consumer(), Vec::<u64>::new());
        assert!(stream.is_dropped());
        for index in 4..9 {
            stream.on_item(0, Some(0), index);
        }
        assert_eq!(stream.finish().lost, Vec::<u64>::new(), "what was given up has come");
    }

    #[test]
    fn a_producer_is_told_of_reads_when_it_pauses_or_half_its_limit_was_read() {
        let mut stream = ObjectRefStream::new(4);
        let mut sent = 0;
        let mut send = |stream: &mut ObjectRefStream| {
            stream.on_item(0, Some(0), sent);
            sent += 1;
        };
        send(&mut stream);
        stream.take();
        assert_eq!(stream.due_ack(), None);
        send(&mut stream);
        stream.take();
        assert_eq!(stream.due_ack(), Some(2));
        assert_eq!(stream.due_ack(), None);
        (0..4).for_each(|_| send(&mut stream));
        assert_eq!(stream.due_ack(), None);
        stream.take();
        // It has sent 6 and knows of 2: it pauses.
        assert_eq!(stream.due_ack(), Some(3));
    }

    #[test]
    fn the_producer_of_a_new_attempt_is_told_again() {
        let mut stream = ObjectRefStream::new(1);
        stream.on_item(0, Some(0), 0);
        stream.take();
        assert_eq!(stream.due_ack(), Some(1));
        stream.on_item(1, Some(1), 0);
        assert_eq!(stream.due_ack(), Some(1));
    }

    /// What may happen to a stream.
    #[derive(Debug, Clone)]
    enum Event {
        /// The producer sends its next item, if its limit lets it.
        Send,
        /// The frame that was sent first, or the one behind it, arrives.
        Arrive {
            swapped: bool,
            twice: bool,
        },
        Take,
        Peek(u64),
        Consume(u64),
        /// The producer is lost with what it has sent, and the task tried again.
        Retry,
        DropConsumer,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => Just(Event::Send),
            8 => (any::<bool>(), any::<bool>()).prop_map(|(swapped, twice)| Event::Arrive { swapped, twice }),
            8 => Just(Event::Take),
            2 => (1..4u64).prop_map(Event::Peek),
            2 => (1..4u64).prop_map(Event::Consume),
            1 => Just(Event::Retry),
            1 => Just(Event::DropConsumer),
        ]
    }

    proptest! {
        #[test]
        fn every_item_is_read_once_in_order_whatever_happens(
            limit in 0..5u64,
            total in 0..20u64,
            events in prop::collection::vec(event(), 0..200),
        ) {
            let mut stream = ObjectRefStream::new(limit);
            let (mut attempt, mut sent, mut told) = (0, 0, 0);
            let mut frames: Vec<(u32, u64)> = Vec::new();
            // Numbers of items for which the consumer holds a handle, through the stream or itself.
            let mut held = BTreeSet::new();
            let mut read = 0;
            let arrive = |stream: &mut ObjectRefStream, held: &mut BTreeSet<u64>, attempt, (of, index): (u32, u64)| {
                match stream.on_item(of, Some(attempt), index) {
                    Arrival::New if !stream.is_dropped() => assert!(held.insert(index), "{index} came twice"),
                    Arrival::New | Arrival::Known => {}
                    Arrival::Late => assert_ne!(of, attempt),
                }
            };
            for event in events {
                match event {
                    Event::Send if sent < total && (limit == 0 || sent.saturating_sub(told) < limit) => {
                        frames.push((attempt, sent));
                        sent += 1;
                    }
                    Event::Send => {}
                    Event::Arrive { swapped, twice } => {
                        let at = usize::from(swapped && frames.len() > 1);
                        if let Some(&frame) = frames.get(at) {
                            arrive(&mut stream, &mut held, attempt, frame);
                            if !twice {
                                frames.remove(at);
                            }
                        }
                    }
                    Event::Take if !stream.is_dropped() => {
                        if let Next::Item(index) = stream.take() {
                            prop_assert_eq!(index, read);
                            prop_assert!(held.remove(&index));
                            read += 1;
                        }
                    }
                    Event::Consume(count) if !stream.is_dropped() => {
                        if let Ok(items) = stream.consume(count) {
                            prop_assert_eq!(items.clone(), read..read + count);
                            items.for_each(|index| assert!(held.remove(&index)));
                            read += count;
                        }
                    }
                    Event::Peek(count) if !stream.is_dropped() => {
                        prop_assert_eq!(stream.peek(count).start, read);
                    }
                    Event::Take | Event::Consume(_) | Event::Peek(_) => {}
                    Event::Retry => {
                        attempt += 1;
                        (sent, told) = (0, 0);
                        if attempt % 2 == 0 {
                            frames.clear();
                        }
                    }
                    Event::DropConsumer => {
                        stream.drop_consumer().iter().for_each(|index| assert!(held.remove(index)));
                        prop_assert!(held.is_empty());
                    }
                }
                if let Some(read) = stream.due_ack() {
                    told = read;
                }
                prop_assert_eq!(stream.unread(), held.len() as u64);
            }
            // From here on nothing is lost: the rest is sent and read, and nobody waits for the other for ever.
            loop {
                for frame in std::mem::take(&mut frames) {
                    arrive(&mut stream, &mut held, attempt, frame);
                }
                while !stream.is_dropped() && let Next::Item(index) = stream.take() {
                    prop_assert_eq!(index, read);
                    prop_assert!(held.remove(&index));
                    read += 1;
                }
                if let Some(read) = stream.due_ack() {
                    told = read;
                }
                if sent == total {
                    break;
                }
                prop_assert!(limit == 0 || sent.saturating_sub(told) < limit, "the producer pauses for ever");
                frames.push((attempt, sent));
                sent += 1;
            }
            let finished = stream.finish();
            prop_assert_eq!(finished.lost, Vec::<u64>::new());
            prop_assert_eq!(stream.take(), Next::End);
            prop_assert_eq!(held.len(), 0);
            prop_assert!(stream.is_dropped() || read == total);
        }
    }
}
