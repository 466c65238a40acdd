//! What happens in a run, for those who listen: its records in order, and between them what its model says as it says it.
//! Nobody who listens slowly holds the run up, and nobody misses a word: what is new is read from one list.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{event::Record, model::Delta};

/// What a listener hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Something that happened. It is in the log.
    Record(Record),
    /// A piece of an answer that is coming. It is nowhere else.
    Saying {
        /// Which answer.
        step: u32,
        /// The piece.
        delta: Delta,
    },
}

/// The list, and who waits for more.
#[derive(Debug)]
pub struct Feed {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    items: Vec<Item>,
    ended: bool,
}

#[derive(Debug)]
enum Item {
    Record(Record),
    /// It grows until the next item comes.
    Saying {
        step: u32,
        is_thought: bool,
        text: String,
    },
}

/// A listener.
#[derive(Debug)]
pub struct Follower {
    feed: Arc<Feed>,
    item: usize,
    /// Bytes of the item that were heard.
    heard: usize,
    changed: watch::Receiver<u64>,
}

impl Feed {
    /// With what has happened.
    pub fn new(records: Vec<Record>) -> Arc<Self> {
        let items = records.into_iter().map(Item::Record).collect();
        Arc::new(Self { state: Mutex::new(State { items, ended: false }), changed: watch::Sender::new(0) })
    }

    /// Of a run in which nothing happens any more.
    pub fn ended(records: Vec<Record>) -> Arc<Self> {
        let feed = Self::new(records);
        feed.end();
        feed
    }

    /// Something happened.
    pub fn push(&self, record: Record) {
        self.state().items.push(Item::Record(record));
        self.change();
    }

    /// A model says something.
    pub fn say(&self, step: u32, delta: Delta) {
        let (is_thought, piece) = match delta {
            Delta::Text(text) => (false, text),
            Delta::Thought(text) => (true, text),
        };
        let mut state = self.state();
        match state.items.last_mut() {
            Some(Item::Saying { step: of, is_thought: kind, text }) if (*of, *kind) == (step, is_thought) => {
                text.push_str(&piece);
            }
            Some(Item::Record(_) | Item::Saying { .. }) | None => {
                state.items.push(Item::Saying { step, is_thought, text: piece });
            }
        }
        drop(state);
        self.change();
    }

    /// Nothing more will happen here.
    pub fn end(&self) {
        self.state().ended = true;
        self.change();
    }

    /// What happened so far.
    pub fn records(&self) -> Vec<Record> {
        let state = self.state();
        let record = |item: &Item| match item {
            Item::Record(record) => Some(record.clone()),
            Item::Saying { .. } => None,
        };
        state.items.iter().filter_map(record).collect()
    }

    /// Listens from a record on.
    pub fn follow(self: &Arc<Self>, from: u64) -> Follower {
        let changed = self.changed.subscribe();
        let state = self.state();
        let is_there = |item: &Item| matches!(item, Item::Record(record) if record.n >= from);
        let item = state.items.iter().position(is_there).unwrap_or(state.items.len());
        drop(state);
        Follower { feed: self.clone(), item, heard: 0, changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Follower {
    /// What comes next; nothing, when nothing more will.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            self.changed.mark_unchanged();
            match self.heard_now() {
                Ok(told) => return Some(told),
                Err(true) => return None,
                Err(false) => {}
            }
            // The feed is held, so its sender is there.
            self.changed.changed().await.ok()?;
        }
    }

    /// What is there already, or whether it has ended.
    fn heard_now(&mut self) -> Result<Told, bool> {
        let state = self.feed.state();
        while let Some(item) = state.items.get(self.item) {
            match item {
                Item::Record(record) => {
                    self.item += 1;
                    return Ok(Told::Record(record.clone()));
                }
                Item::Saying { step, is_thought, text } if self.heard < text.len() => {
                    let piece = text[self.heard..].to_owned();
                    self.heard = text.len();
                    let delta = if *is_thought { Delta::Thought(piece) } else { Delta::Text(piece) };
                    return Ok(Told::Saying { step: *step, delta });
                }
                // It may grow.
                Item::Saying { .. } if self.item + 1 == state.items.len() => break,
                Item::Saying { .. } => {
                    self.item += 1;
                    self.heard = 0;
                }
            }
        }
        Err(state.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, VERSION};

    fn record(n: u64) -> Record {
        Record { v: VERSION, n, at: 0, event: Event::Warned { message: n.to_string() } }
    }

    async fn heard(mut follower: Follower) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(told) = follower.next().await {
            all.push(match told {
                Told::Record(record) => record.n.to_string(),
                Told::Saying { delta: Delta::Text(text), .. } => text,
                Told::Saying { delta: Delta::Thought(text), .. } => format!("({text})"),
            });
        }
        all
    }

    #[tokio::test]
    async fn the_quick_and_the_slow_hear_the_same_words_in_the_same_order() {
        let feed = Feed::new(vec![record(0), record(1)]);
        let quick = tokio::spawn(heard(feed.follow(0)));
        for piece in [Delta::Thought("hm".into()), Delta::Text("a".into()), Delta::Text("b".into())] {
            feed.say(1, piece);
            tokio::task::yield_now().await;
        }
        feed.push(record(2));
        feed.say(2, Delta::Text("c".into()));
        feed.push(record(3));
        let from_two = feed.follow(2);
        feed.end();
        assert_eq!(heard(feed.follow(0)).await, ["0", "1", "(hm)", "ab", "2", "c", "3"]);
        assert_eq!(quick.await.unwrap().concat(), "01(hm)ab2c3");
        assert_eq!(heard(from_two).await, ["2", "c", "3"]);
        assert_eq!(heard(feed.follow(9)).await.len(), 0);
    }
}
