//! Users that code runs as: one for each call that is on its way, so that none counts among another's processes.

use std::{
    collections::VecDeque,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use caps::{CapSet, Capability};
use tokio::sync::{Semaphore, SemaphorePermit};

/// As many numbers as systems give to nobody: 65520 to 65533.
const USERS: u32 = 14;

static PLACES: Semaphore = Semaphore::const_new(USERS as usize);
/// The one that was free longest comes first: what was killed under it counts until init has buried it.
static FREE: LazyLock<Mutex<VecDeque<u32>>> = LazyLock::new(|| Mutex::new((0..USERS).collect()));

/// A user no other call has, until it is dropped.
pub(super) struct User {
    /// Its number.
    pub uid: u32,
    place: u32,
    _permit: SemaphorePermit<'static>,
}

impl User {
    /// A user of `first` and those after it; none where this process may not become another. Waits for one that is free.
    pub async fn take(first: u32) -> Option<Self> {
        let has = |capability| caps::has_cap(None, CapSet::Permitted, capability).unwrap_or(false);
        if !has(Capability::CAP_SETUID) || !has(Capability::CAP_SETGID) {
            return None;
        }
        let permit = PLACES.acquire().await.ok()?;
        // There is one: there are no more permits than places.
        let place = free().pop_front()?;
        Some(Self { uid: first.saturating_add(place), place, _permit: permit })
    }
}

impl Drop for User {
    fn drop(&mut self) {
        free().push_back(self.place);
    }
}

fn free() -> MutexGuard<'static, VecDeque<u32>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}
