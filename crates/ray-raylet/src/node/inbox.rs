//! What waits for the thread that owns the machine: commands, and notes of what was dropped.
//!
//! Commands wait in a bounded channel. A note is left by a `drop`, which can neither wait for room in a channel
//! nor let its note be lost. It is about a command that was sent before it, and means nothing until that
//! was taken:
//!
//! ```text
//! sender:  send a command           | leave a note about it        each wakes the thread
//! thread:  put the notes there are aside | take commands until there are none | take the notes put aside
//! ```
//! A look for notes after the last command would be too late: both may have come since.

use std::collections::VecDeque;

use ray_link::Waker;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use crate::sync::{Arc, Mutex, PoisonError};

/// No longer than there are requests, pins and writes under way.
type Notes<T> = Arc<Mutex<Vec<T>>>;

/// Where others put what is for the thread. Clones share one queue.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    commands: mpsc::Sender<T>,
    notes: Notes<T>,
    waker: Arc<Waker>,
}

/// Where the thread takes it, when the waker is readable.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    commands: mpsc::Receiver<T>,
    notes: Notes<T>,
    /// Put aside, until all commands that came before are taken.
    aside: VecDeque<T>,
}

/// Both ends; more than `capacity` commands make their senders wait.
pub(crate) fn inbox<T>(capacity: usize, waker: Arc<Waker>) -> (Outbox<T>, Inbox<T>) {
    let (sender, commands) = mpsc::channel(capacity);
    let notes = Notes::default();
    let outbox = Outbox { commands: sender, notes: Arc::clone(&notes), waker };
    (outbox, Inbox { commands, notes, aside: VecDeque::new() })
}

impl<T> Outbox<T> {
    /// Sends a command, when there is room.
    ///
    /// # Errors
    /// If the thread has ended.
    pub(crate) async fn send(&self, command: T) -> Result<(), SendError<T>> {
        self.commands.send(command).await?;
        self.waker.wake();
        Ok(())
    }

    /// Leaves a note, without waiting.
    pub(crate) fn note(&self, note: T) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        self.waker.wake();
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        let Self { commands, notes, waker } = self;
        Self { commands: commands.clone(), notes: Arc::clone(notes), waker: Arc::clone(waker) }
    }
}

impl<T> Inbox<T> {
    /// The next command or note, if there is one. Put the waker to rest before the first call.
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.aside.is_empty() {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            self.aside.extend(notes.drain(..));
        }
        self.commands.try_recv().ok().or_else(|| self.aside.pop_front())
    }
}
