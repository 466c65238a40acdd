//! Places where a test makes the process die, to prove that whatever it left behind is taken up again.
//!
//! `MLOC_FAILPOINT=NAME` dies at that place; `MLOC_FAILPOINT=@N` at the Nth place reached, whatever its name: counting
//! N up until nothing dies any more tries them all.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

enum Chosen {
    None,
    Named(String),
    Nth(u64),
}

/// Dies here when the environment says so; costs a comparison otherwise.
pub(crate) fn reached(place: &str) {
    static CHOSEN: LazyLock<Chosen> = LazyLock::new(|| match std::env::var("MLOC_FAILPOINT") {
        Ok(text) => match text.strip_prefix('@').map(str::parse) {
            Some(Ok(n)) => Chosen::Nth(n),
            _ => Chosen::Named(text),
        },
        Err(_) => Chosen::None,
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let dies = match &*CHOSEN {
        Chosen::None => return,
        Chosen::Named(name) => name == place,
        Chosen::Nth(n) => REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *n,
    };
    if dies {
        tracing::error!(place, "failpoint: dying as asked");
        std::process::abort();
    }
}
