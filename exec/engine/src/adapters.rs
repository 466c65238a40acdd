//! Adapters by name, and which of them requests still need: one that is unloaded stays in the model until the last
//! request with it has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::forward::AdapterId;

/// Takes an adapter out of its model. Called once, from the thread on which the last request with it ended, or from the
/// one that unloads it.
pub type Release = Box<dyn FnOnce(AdapterId) + Send>;

/// Why an adapter is not loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// There is one of this name.
    #[error("adapter {0} is loaded already; unload it first")]
    Exists(String),
    /// There is no such adapter, or it is leaving.
    #[error("adapter {id} is not loaded; loaded are: {loaded}")]
    Unknown {
        /// Its id.
        id: u32,
        /// Those there are.
        loaded: String,
    },
}

/// Adapters that a model has. They may be asked from any thread.
#[derive(Default)]
pub struct Adapters {
    state: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// Those that new requests can use.
    names: BTreeMap<String, AdapterId>,
    uses: BTreeMap<AdapterId, Use>,
}

struct Use {
    requests: usize,
    leaving: bool,
    release: Release,
}

/// A request's hold on its adapter.
pub struct InUse {
    adapters: Arc<Adapters>,
    id: AdapterId,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.adapters.state();
        if let Some(used) = state.uses.get_mut(&self.id) {
            used.requests -= 1;
        }
        release(state, self.id);
    }
}

impl Adapters {
    fn state(&self) -> MutexGuard<'_, Loaded> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names and ids of those that new requests can use.
    pub fn loaded(&self) -> BTreeMap<String, AdapterId> {
        self.state().names.clone()
    }

    /// The model has this adapter: requests can use it from now on.
    ///
    /// # Errors
    /// [`AdapterError::Exists`]
    pub fn add(&self, name: &str, id: AdapterId, release: Release) -> Result<(), AdapterError> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(AdapterError::Exists(name.to_owned()));
        }
        state.names.insert(name.to_owned(), id);
        state.uses.insert(id, Use { requests: 0, leaving: false, release });
        Ok(())
    }

    /// No new request can use it from now on; it is released when no request needs it. Its name is free.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`]
    pub fn remove(&self, id: AdapterId) -> Result<(), AdapterError> {
        let mut state = self.state();
        let Some(used) = state.uses.get_mut(&id).filter(|used| !used.leaving) else {
            let loaded: Vec<String> = state.names.iter().map(|(name, id)| format!("{name} ({})", id.0)).collect();
            let loaded = if loaded.is_empty() { "none".to_owned() } else { loaded.join(", ") };
            return Err(AdapterError::Unknown { id: id.0, loaded });
        };
        used.leaving = true;
        state.names.retain(|_, other| *other != id);
        release(state, id);
        Ok(())
    }

    /// A request begins to need it; `None` if it isn't there for new ones.
    pub fn hold(self: &Arc<Self>, id: AdapterId) -> Option<InUse> {
        let mut state = self.state();
        let used = state.uses.get_mut(&id).filter(|used| !used.leaving)?;
        used.requests += 1;
        Some(InUse { adapters: Arc::clone(self), id })
    }
}

/// Releases it if it is leaving and nobody needs it, unlocked: what is called may take its time.
fn release(mut state: MutexGuard<'_, Loaded>, id: AdapterId) {
    if state.uses.get(&id).is_some_and(|used| used.leaving && used.requests == 0) {
        let gone = state.uses.remove(&id);
        drop(state);
        gone.into_iter().for_each(|used| (used.release)(id));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn one_that_leaves_stays_until_its_last_request_ends() {
        let adapters = Arc::new(Adapters::default());
        let (released, log) = channel();
        let add = |id: u32| {
            let released = released.clone();
            let release: Release = Box::new(move |id| released.send(id).expect("a reader"));
            adapters.add("a", AdapterId(id), release)
        };
        add(0).expect("the name is free");
        assert_eq!(add(1), Err(AdapterError::Exists("a".to_owned())));
        let holds = [adapters.hold(AdapterId(0)), adapters.hold(AdapterId(0))].map(|hold| hold.expect("it is there"));
        assert_eq!(adapters.remove(AdapterId(0)), Ok(()));
        assert!(adapters.hold(AdapterId(0)).is_none(), "new requests can't use it");
        add(2).expect("the name is free again");
        let [first, second] = holds;
        drop(first);
        assert!(log.try_recv().is_err(), "one request still needs it");
        drop(second);
        assert_eq!(log.try_recv(), Ok(AdapterId(0)));
        let error = adapters.remove(AdapterId(0)).expect_err("gone");
        assert_eq!(error.to_string(), "adapter 0 is not loaded; loaded are: a (2)");
        assert_eq!(adapters.remove(AdapterId(2)), Ok(()));
        assert_eq!(log.try_recv(), Ok(AdapterId(2)), "nobody needed it");
        assert!(adapters.loaded().is_empty());
    }
}
