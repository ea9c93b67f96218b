//! Those who wait for objects: to read them, to know that they are there, or where they are on disk.

use std::collections::BTreeSet;
use std::time::Instant;

use ray_core::id::ObjectId;

use super::ObjectTable;
use super::answer::{Answer, ClientId, Effect, Outcome, Refusal};
use super::entry::Place;

/// What a reader can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Read the region only.
    Arena,
    /// Read the region, or the file of a spilled object.
    ArenaOrFile,
}

/// What a waiting request wants of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Read it.
    Pin(Reader),
    /// Know that it can be read.
    Arrival,
    /// Know where it is spilled to.
    Copy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) client: ClientId,
    pub(super) request: u64,
    pub(super) want: Want,
}

impl ObjectTable {
    /// A client wants to read these objects. Each is answered with `Ready` (or `OnDisk`) and pinned, at once
    /// or as soon as it is there, or with `Refused`. An id that is named twice counts once.
    pub fn on_get(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_ids: &[ObjectId],
        reader: Reader,
        out: &mut Vec<Effect>,
    ) {
        self.on_wanted(now, (client, request), object_ids, Want::Pin(reader), out);
    }

    /// A client wants to know when these objects can be read: each is answered with `Arrived`, at once or
    /// later, or with `Refused`.
    pub fn on_wait(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_ids: &[ObjectId],
        out: &mut Vec<Effect>,
    ) {
        self.on_wanted(now, (client, request), object_ids, Want::Arrival, out);
    }

    /// A client takes back what is not answered yet of a get, wait or spill.
    pub fn on_cancel(&mut self, now: Instant, client: ClientId, request: u64, out: &mut Vec<Effect>) {
        let Some(entry) = self.clients.get(&client) else { return };
        let range = (request, ObjectId::from_bytes([0; 28]))..=(request, ObjectId::NIL);
        let waiting: Vec<(u64, ObjectId)> = entry.waiting.range(range).copied().collect();
        for (request, object_id) in waiting {
            self.forget_waiter(client, request, object_id);
        }
        self.make_progress(now, out);
    }

    /// An object that this request waits for will not come. Nothing if it does not wait for it.
    pub fn on_unavailable(
        &mut self,
        (client, request): (ClientId, u64),
        object_id: ObjectId,
        refusal: &Refusal,
        out: &mut Vec<Effect>,
    ) {
        let of_request = |waiter: &&Waiter| (waiter.client, waiter.request) == (client, request);
        let waiter =
            self.waiters.get(&object_id).and_then(|waiters| waiters.iter().find(of_request)).cloned();
        if let Some(waiter) = waiter {
            self.answer_waiter(object_id, &waiter, Outcome::Refused(refusal.clone()), out);
        }
    }

    pub(super) fn on_wanted(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_ids: &[ObjectId],
        want: Want,
        out: &mut Vec<Effect>,
    ) {
        let distinct: BTreeSet<ObjectId> = object_ids.iter().copied().collect();
        // In the order given, for the least recently used are found by it.
        let mut left = distinct;
        for object_id in object_ids.iter().filter(|id| left.remove(id)) {
            let waiter = Waiter { client, request, want };
            if let Some(outcome) = self.answer_now(now, *object_id, &waiter, out) {
                out.push(Effect::Answer(Answer { client, request, object_id: *object_id, outcome }));
            } else {
                self.remember_waiter(*object_id, waiter, out);
            }
        }
        self.make_progress(now, out);
    }

    /// The outcome for this request, or `None` if it has to wait.
    fn answer_now(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        waiter: &Waiter,
        out: &mut Vec<Effect>,
    ) -> Option<Outcome> {
        let entry = self.entries.get(&object_id)?;
        match waiter.want {
            Want::Arrival => entry.place.is_sealed().then_some(Outcome::Arrived),
            Want::Copy => entry.place.url().map(|url| Outcome::Spilled { url: url.to_owned() }),
            Want::Pin(reader) => {
                let (size, is_on_disk) = (entry.size, matches!(entry.place, Place::Disk { .. }));
                if let Some(offset) = entry.place.readable_offset() {
                    self.pin(waiter.client, object_id);
                    return Some(Outcome::Ready { offset, size });
                }
                if is_on_disk { self.fetch(now, object_id, waiter.client, reader, out) } else { None }
            }
        }
    }

    /// Answers everybody whose wish is fulfilled by what the object is now.
    pub(super) fn serve_waiters(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&object_id) else { return };
        let (size, place) = (entry.size, entry.place.clone());
        for waiter in self.waiters.get(&object_id).cloned().unwrap_or_default() {
            let outcome = match waiter.want {
                Want::Arrival if place.is_sealed() => Outcome::Arrived,
                Want::Copy if place.url().is_some() => {
                    Outcome::Spilled { url: place.url().unwrap_or_default().to_owned() }
                }
                Want::Pin(_) if place.readable_offset().is_some() => {
                    self.pin(waiter.client, object_id);
                    Outcome::Ready { offset: place.readable_offset().unwrap_or_default(), size }
                }
                _ => continue,
            };
            self.answer_waiter(object_id, &waiter, outcome, out);
        }
    }

    /// Refuses everybody who waits for the object and wants what `concerns` says.
    pub(super) fn refuse_waiters(
        &mut self,
        object_id: ObjectId,
        concerns: impl Fn(Want) -> bool,
        refusal: &Refusal,
        out: &mut Vec<Effect>,
    ) {
        for waiter in self.waiters.get(&object_id).cloned().unwrap_or_default() {
            if concerns(waiter.want) {
                self.answer_waiter(object_id, &waiter, Outcome::Refused(refusal.clone()), out);
            }
        }
    }

    fn answer_waiter(
        &mut self,
        object_id: ObjectId,
        waiter: &Waiter,
        outcome: Outcome,
        out: &mut Vec<Effect>,
    ) {
        let Waiter { client, request, .. } = *waiter;
        self.forget_waiter(client, request, object_id);
        out.push(Effect::Answer(Answer { client, request, object_id, outcome }));
    }

    fn remember_waiter(&mut self, object_id: ObjectId, waiter: Waiter, out: &mut Vec<Effect>) {
        let Waiter { client, request, .. } = waiter;
        if self.waiter_count >= self.config.max_waiters {
            let capacity = self.config.max_waiters;
            let refusal = Refusal::Overloaded { queue: "the list of those who wait for objects", capacity };
            out.push(Effect::Answer(Answer {
                client,
                request,
                object_id,
                outcome: Outcome::Refused(refusal),
            }));
        } else if self.clients.entry(client).or_default().waiting.insert((request, object_id)) {
            self.waiters.entry(object_id).or_default().push(waiter);
            self.waiter_count += 1;
        }
    }

    pub(super) fn forget_waiter(&mut self, client: ClientId, request: u64, object_id: ObjectId) {
        if let Some(entry) = self.clients.get_mut(&client) {
            entry.waiting.remove(&(request, object_id));
        }
        let Some(waiters) = self.waiters.get_mut(&object_id) else { return };
        let before = waiters.len();
        waiters.retain(|waiter| (waiter.client, waiter.request) != (client, request));
        self.waiter_count -= before - waiters.len();
        if waiters.is_empty() {
            self.waiters.remove(&object_id);
        }
    }
}
