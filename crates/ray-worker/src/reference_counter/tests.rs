//! Random programs of several processes that create, pass, return, store, drop and crash.
//!
//! The processes here follow the rules of handing references over, over channels that keep order per
//! pair but not across pairs. At every step nothing in use may have been freed; at the end, when all
//! handles are dropped and all messages delivered, nothing may be left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use ray_core::id::TaskId;

use super::*;

fn object(index: u64) -> ObjectId {
    ObjectId::for_put(TaskId::from_bytes([1; 16]), index)
}

fn owner(index: usize) -> Owner {
    Owner { worker_id: WorkerId::from_bytes([index as u8; 16]), node_id: NodeId::nil() }
}

#[test]
fn an_owned_object_goes_with_its_last_handle() {
    let (mut counter, mut out) = (ReferenceCounter::new(), Vec::new());
    counter.add_owned(object(0));
    assert!(counter.add_local(object(0)));
    counter.remove_local(object(0), &mut out);
    assert_eq!(out, []);
    counter.remove_local(object(0), &mut out);
    assert_eq!(out, [Effect::Free(object(0))]);
    assert!(!counter.add_local(object(0)));
}

#[test]
fn a_pending_task_keeps_its_argument() {
    let (mut counter, mut out) = (ReferenceCounter::new(), Vec::new());
    counter.add_owned(object(0));
    counter.add_submitted(object(0));
    counter.remove_local(object(0), &mut out);
    assert_eq!(out, []);
    counter.remove_submitted(object(0), &mut out);
    assert_eq!(out, [Effect::Free(object(0))]);
}

#[test]
fn an_outer_object_keeps_what_its_value_refers_to_however_deep() {
    let (mut counter, mut out) = (ReferenceCounter::new(), Vec::new());
    const DEPTH: u64 = 100_000;
    for index in 0..DEPTH {
        counter.add_owned(object(index));
        if index > 0 {
            counter.set_contained(object(index), vec![object(index - 1)]);
            counter.remove_local(object(index - 1), &mut out);
        }
    }
    assert_eq!(out, []);
    counter.remove_local(object(DEPTH - 1), &mut out);
    assert_eq!(out.len() as u64, DEPTH);
    assert!(counter.is_empty());
}

#[test]
fn a_grant_on_its_way_survives_the_return_of_an_earlier_one() {
    let (mut counter, mut out) = (ReferenceCounter::new(), Vec::new());
    let borrower = owner(9).worker_id;
    counter.add_owned(object(0));
    assert!(counter.grant(object(0), borrower));
    counter.remove_local(object(0), &mut out);
    // The borrower gives its first grant back while a second one is under way to it.
    assert!(counter.grant(object(0), borrower));
    counter.return_grants(object(0), borrower, 1, &mut out);
    assert_eq!(out, []);
    counter.return_grants(object(0), borrower, 1, &mut out);
    assert_eq!(out, [Effect::Free(object(0))]);
    assert!(!counter.grant(object(0), borrower));
}

#[test]
fn a_dead_borrower_keeps_nothing() {
    let (mut counter, mut out) = (ReferenceCounter::new(), Vec::new());
    counter.add_owned(object(0));
    counter.grant(object(0), owner(9).worker_id);
    counter.remove_local(object(0), &mut out);
    counter.on_worker_died(owner(9).worker_id, &mut out);
    assert_eq!(out, [Effect::Free(object(0))]);
}

const PROCESSES: usize = 4;

/// What travels between the model's processes.
#[derive(Debug, Clone)]
enum Message {
    /// A task with this reference as an argument. The sender covers it until `Done`.
    Call {
        argument: ObjectId,
        owner: Owner,
        keep: bool,
    },
    /// The reply to a call: the receiver of the call has a grant of its own, or has dropped it.
    Done {
        argument: ObjectId,
    },
    /// A reference in a reply, granted by its owner beforehand.
    Give {
        object_id: ObjectId,
        owner: Owner,
    },
    /// Asks the owner for a grant to `borrower`; `then` is sent once it is given.
    AskGrant {
        object_id: ObjectId,
        borrower: usize,
        asker: usize,
        then: Box<Then>,
    },
    Granted {
        then: Box<Then>,
    },
    ReturnGrants {
        object_id: ObjectId,
        grants: u32,
    },
}

/// What the asker does when the grant is there.
#[derive(Debug, Clone)]
enum Then {
    Reply { caller: usize, argument: ObjectId },
    Give { to: usize, object_id: ObjectId, owner: Owner },
}

#[derive(Default)]
struct Process {
    counter: ReferenceCounter,
    handles: Vec<ObjectId>,
    alive: bool,
}

struct World {
    processes: Vec<Process>,
    channels: BTreeMap<(usize, usize), VecDeque<Message>>,
    freed: BTreeSet<ObjectId>,
    owners: BTreeMap<ObjectId, usize>,
    /// Arguments whose receiver had asked for a grant of its own when the sender, which covered it, died.
    uncovered: BTreeSet<ObjectId>,
}

impl World {
    fn new() -> Self {
        let process = |_| Process { alive: true, ..Process::default() };
        Self {
            processes: (0..PROCESSES).map(process).collect(),
            channels: BTreeMap::new(),
            freed: BTreeSet::new(),
            owners: BTreeMap::new(),
            uncovered: BTreeSet::new(),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.processes[from].alive && self.processes[to].alive {
            self.channels.entry((from, to)).or_default().push_back(message);
        }
    }

    fn apply(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Free(object_id) => {
                    assert_eq!(self.owners[&object_id], at, "only the owner frees");
                    assert!(self.freed.insert(object_id), "{object_id} is freed twice");
                }
                Effect::ReturnGrants { owner, object_id, grants } if grants > 0 => {
                    let to = owner.worker_id.as_bytes()[0] as usize;
                    self.send(at, to, Message::ReturnGrants { object_id, grants });
                }
                Effect::ReturnGrants { .. } => {}
            }
        }
    }

    fn owner_of(&self, at: usize, object_id: ObjectId) -> Owner {
        self.processes[at].counter.borrowed_from(object_id).unwrap_or_else(|| owner(at))
    }

    fn create(&mut self, at: usize) {
        let object_id = object(self.owners.len() as u64);
        self.owners.insert(object_id, at);
        self.processes[at].counter.add_owned(object_id);
        self.processes[at].handles.push(object_id);
    }

    fn drop_handle(&mut self, at: usize, pick: usize) {
        let process = &mut self.processes[at];
        if process.handles.is_empty() {
            return;
        }
        let object_id = process.handles.swap_remove(pick % process.handles.len());
        let mut out = Vec::new();
        process.counter.remove_local(object_id, &mut out);
        self.apply(at, out);
    }

    fn nest(&mut self, at: usize, pick: usize) {
        let process = &mut self.processes[at];
        let Some(&inner) = process.handles.get(pick % process.handles.len().max(1)) else { return };
        self.create(at);
        let process = &mut self.processes[at];
        let outer = *process.handles.last().expect("one was just created");
        process.counter.set_contained(outer, vec![inner]);
    }

    fn call(&mut self, from: usize, to: usize, pick: usize, keep: bool) {
        let process = &mut self.processes[from];
        let Some(&argument) = process.handles.get(pick % process.handles.len().max(1)) else { return };
        // A dead owner's object is nobody's business any more.
        if from == to || !self.processes[to].alive {
            return;
        }
        self.processes[from].counter.add_submitted(argument);
        let owner = self.owner_of(from, argument);
        self.send(from, to, Message::Call { argument, owner, keep });
    }

    /// Hands a reference over in a reply: only when its owner has granted it to the receiver.
    fn give(&mut self, from: usize, to: usize, pick: usize) {
        let process = &self.processes[from];
        let Some(&object_id) = process.handles.get(pick % process.handles.len().max(1)) else { return };
        let owner = self.owner_of(from, object_id);
        self.grant_then(from, to, object_id, owner, Then::Give { to, object_id, owner });
    }

    fn grant_then(&mut self, asker: usize, borrower: usize, object_id: ObjectId, owner: Owner, then: Then) {
        let owner_index = owner.worker_id.as_bytes()[0] as usize;
        // While the grant is under way the asker itself holds on.
        self.processes[asker].counter.add_submitted(object_id);
        if owner_index == asker {
            if borrower != asker {
                self.processes[asker].counter.grant(object_id, self_id(borrower));
            }
            self.granted(asker, object_id, then);
        } else if owner_index == borrower {
            self.granted(asker, object_id, then);
        } else {
            let message = Message::AskGrant { object_id, borrower, asker, then: Box::new(then) };
            self.send(asker, owner_index, message);
        }
    }

    fn granted(&mut self, at: usize, object_id: ObjectId, then: Then) {
        match then {
            Then::Reply { caller, argument } => self.send(at, caller, Message::Done { argument }),
            Then::Give { to, object_id, owner } => self.send(at, to, Message::Give { object_id, owner }),
        }
        let mut out = Vec::new();
        self.processes[at].counter.remove_submitted(object_id, &mut out);
        self.apply(at, out);
    }

    fn deliver(&mut self, pick: usize) -> bool {
        self.channels.retain(|_, queue| !queue.is_empty());
        let Some(&(from, to)) = self.channels.keys().nth(pick % self.channels.len().max(1)) else {
            return false;
        };
        let message = self.channels.get_mut(&(from, to)).and_then(VecDeque::pop_front).expect("not empty");
        self.receive(from, to, message);
        true
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let mut out = Vec::new();
        match message {
            Message::Call { argument, owner, keep } => {
                self.processes[to].counter.add_borrowed(argument, owner, 0);
                if !keep {
                    self.processes[to].counter.remove_local(argument, &mut out);
                } else {
                    self.processes[to].handles.push(argument);
                }
                self.apply(to, out);
                if keep && self.processes[to].counter.lacks_grant(argument) {
                    let then = Then::Reply { caller: from, argument };
                    self.grant_then(to, to, argument, owner, then);
                } else {
                    self.send(to, from, Message::Done { argument });
                }
                return;
            }
            Message::Done { argument } => {
                self.processes[to].counter.remove_submitted(argument, &mut out);
            }
            Message::Give { object_id, owner } => {
                let grants = u32::from(owner.worker_id != self_id(to));
                self.processes[to].counter.add_borrowed(object_id, owner, grants);
                self.processes[to].handles.push(object_id);
            }
            Message::AskGrant { object_id, borrower, asker, then } => {
                let granted = self.processes[to].counter.grant(object_id, self_id(borrower));
                let is_there = granted || self.uncovered.contains(&object_id);
                assert!(is_there, "the asker holds {object_id}, so its owner has to have it");
                self.send(to, asker, Message::Granted { then });
            }
            Message::Granted { then } => {
                let object_id = match &*then {
                    Then::Reply { argument, .. } => *argument,
                    Then::Give { object_id, .. } => *object_id,
                };
                if matches!(*then, Then::Reply { .. }) {
                    self.processes[to].counter.add_grant(object_id);
                }
                self.granted(to, object_id, *then);
            }
            Message::ReturnGrants { object_id, grants } => {
                self.processes[to].counter.return_grants(object_id, self_id(from), grants, &mut out);
            }
        }
        self.apply(to, out);
    }

    /// Kills a process that owns nothing of the others', so that what it leaves can be judged.
    fn crash(&mut self, at: usize) {
        let owns_something = self.owners.values().any(|&owner| owner == at);
        let owed =
            self.channels.iter().any(|(&(from, to), queue)| (from == at || to == at) && !queue.is_empty());
        if owns_something || owed || self.processes.iter().filter(|process| process.alive).count() < 3 {
            return;
        }
        self.processes[at] = Process::default();
        for message in self.channels.values().flatten() {
            let (Message::AskGrant { then, .. } | Message::Granted { then }) = message else { continue };
            if let Then::Reply { caller, argument } = **then
                && caller == at
            {
                self.uncovered.insert(argument);
            }
        }
        for other in 0..PROCESSES {
            let mut out = Vec::new();
            self.processes[other].counter.on_worker_died(self_id(at), &mut out);
            self.apply(other, out);
        }
    }

    fn check(&self) {
        for (at, process) in self.processes.iter().enumerate() {
            for object_id in process.handles.iter().filter(|object_id| !self.uncovered.contains(object_id)) {
                assert!(!self.freed.contains(object_id), "process {at} still holds {object_id}");
                assert!(process.counter.contains(*object_id));
            }
        }
    }
}

fn self_id(at: usize) -> WorkerId {
    owner(at).worker_id
}

#[derive(Debug, Clone)]
enum Step {
    Create(usize),
    Drop(usize, usize),
    Nest(usize, usize),
    Call(usize, usize, usize, bool),
    Give(usize, usize, usize),
    Deliver(usize),
    Crash(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let at = 0..PROCESSES;
    // The last process never creates, so that it can crash with nothing of the others' lost.
    prop_oneof![
        2 => (0..PROCESSES - 1).prop_map(Step::Create),
        3 => (at.clone(), any::<usize>()).prop_map(|(at, pick)| Step::Drop(at, pick)),
        1 => (0..PROCESSES - 1, any::<usize>()).prop_map(|(at, pick)| Step::Nest(at, pick)),
        3 => (at.clone(), at.clone(), any::<usize>(), any::<bool>())
            .prop_map(|(from, to, pick, keep)| Step::Call(from, to, pick, keep)),
        3 => (at.clone(), at, any::<usize>()).prop_map(|(from, to, pick)| Step::Give(from, to, pick)),
        6 => any::<usize>().prop_map(Step::Deliver),
        1 => Just(Step::Crash(PROCESSES - 1)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_freed_early_and_nothing_stays(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Create(at) => world.create(at),
                Step::Drop(at, pick) => world.drop_handle(at, pick),
                Step::Nest(at, pick) => world.nest(at, pick),
                Step::Call(from, to, pick, keep) if world.processes[from].alive => world.call(from, to, pick, keep),
                Step::Give(from, to, pick) if world.processes[from].alive && from != to
                    && world.processes[to].alive => world.give(from, to, pick),
                Step::Call(..) | Step::Give(..) => {}
                Step::Deliver(pick) => drop(world.deliver(pick)),
                Step::Crash(at) => world.crash(at),
            }
            world.check();
        }
        loop {
            while world.deliver(0) { world.check(); }
            let Some(at) = world.processes.iter().position(|process| !process.handles.is_empty()) else { break };
            world.drop_handle(at, 0);
        }
        prop_assert_eq!(world.freed.len(), world.owners.len());
        for process in &world.processes {
            prop_assert!(process.counter.is_empty());
        }
    }
}
