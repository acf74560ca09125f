//! What this process remembers of instances it works on: what it sent and when, and since when it waits.
//!
//! What must stay true: nothing here is needed to be right. Another process, or this one after a restart, knows none of
//! it and only sends what is not watched once more. It is forgotten when an operation has ended.

use crate::ports::ObjectRef;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After this long without a word an instance is forgotten: its operation went on elsewhere.
const FORGET: Duration = Duration::from_hours(1);
/// So many instances are remembered before old ones are looked for.
const MANY: usize = 256;

struct Note {
    touched: Instant,
    /// Hash and time of what the server took.
    sent: BTreeMap<ObjectRef, (String, Instant)>,
    /// What somebody else changed after it was sent.
    edited: BTreeSet<ObjectRef>,
    /// What was no longer wanted and is gone or going.
    pruned: BTreeSet<ObjectRef>,
    /// What people were told last, and since when it did not change.
    said: String,
    since: Instant,
    /// What the cluster reported, and when it was asked.
    events: Option<(Instant, Vec<Value>)>,
}

impl Note {
    fn new(now: Instant) -> Self {
        Self {
            touched: now,
            sent: BTreeMap::new(),
            edited: BTreeSet::new(),
            pruned: BTreeSet::new(),
            said: String::new(),
            since: now,
            events: None,
        }
    }
}

/// Notes on every instance this process works on.
#[derive(Default)]
pub(super) struct Notes(Mutex<HashMap<String, Note>>);

impl Notes {
    fn on<T>(&self, iid: &str, act: impl FnOnce(&mut Note) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if all.len() >= MANY && !all.contains_key(iid) {
            all.retain(|_, note| note.touched + FORGET > now);
        }
        let note = all.entry(iid.to_owned()).or_insert_with(|| Note::new(now));
        note.touched = now;
        act(note)
    }

    /// The server took an object with this hash.
    pub fn sent(&self, iid: &str, reference: &ObjectRef, hash: &str) {
        self.on(iid, |note| {
            let entry = (hash.to_owned(), Instant::now());
            note.sent.insert(reference.clone(), entry);
            note.edited.remove(reference);
        });
    }

    /// Somebody else changed an object: it has to be sent again, though it carries the right hash.
    pub fn edited(&self, iid: &str, reference: &ObjectRef) {
        self.on(iid, |note| note.edited.insert(reference.clone()));
    }

    /// Whether [`edited`](Self::edited) was said of it, and it was not sent since.
    pub fn is_edited(&self, iid: &str, reference: &ObjectRef) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(iid).is_some_and(|note| note.edited.contains(reference))
    }

    /// How long ago the server took an object with exactly this hash.
    pub fn age(&self, iid: &str, reference: &ObjectRef, hash: &str) -> Option<Duration> {
        self.on(iid, |note| {
            let (sent, at) = note.sent.get(reference)?;
            (sent == hash).then(|| at.elapsed())
        })
    }

    /// An object that is no longer wanted is gone or going.
    pub fn pruned(&self, iid: &str, reference: &ObjectRef) {
        self.on(iid, |note| {
            note.sent.remove(reference);
            note.pruned.insert(reference.clone());
        });
    }

    /// Whether [`pruned`](Self::pruned) was said of it.
    pub fn is_pruned(&self, iid: &str, reference: &ObjectRef) -> bool {
        self.on(iid, |note| note.pruned.contains(reference))
    }

    /// People are told `text`; how long they have been told the same.
    pub fn said(&self, iid: &str, text: &str) -> Duration {
        self.on(iid, |note| {
            if note.said != text {
                text.clone_into(&mut note.said);
                note.since = Instant::now();
            }
            note.since.elapsed()
        })
    }

    /// What the cluster reported of an instance, unless it is older than `fresh`.
    pub fn events(&self, iid: &str, fresh: Duration) -> Option<Vec<Value>> {
        self.on(iid, |note| {
            let (at, events) = note.events.as_ref()?;
            (at.elapsed() < fresh).then(|| events.clone())
        })
    }

    /// Remembers what the cluster reported of an instance.
    pub fn reported(&self, iid: &str, events: Vec<Value>) {
        self.on(iid, |note| note.events = Some((Instant::now(), events)));
    }

    /// The operation on an instance has ended.
    pub fn forget(&self, iid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(iid);
    }
}
