//! Places where a test kills the process, to prove that whatever was left behind is taken up again.
//!
//! `MLOC_FAILPOINT=NAME` dies (SIGKILL) at the first time that place is reached, `NAME#3` at the third, `@7` at the
//! seventh place reached whatever its name: counting up until nothing dies any more tries them all. Only in debug
//! builds and with the feature `failpoints`.

/// Every place of this crate, of `mloc-runtime`, of `mloc-store` and of `mloc-modules`.
pub const ALL: &[&str] = &[
    "file.written",
    "file.synced",
    "file.renamed",
    "file.folder",
    "checkpoint.begin",
    "checkpoint.files",
    "checkpoint.sealed",
    "checkpoint.sync",
    "checkpoint.manifest",
    "checkpoint.removed",
    "checkpoint.rename",
    "checkpoint.parent",
    "checkpoint.event",
    "checkpoint.prune",
    "result.sync",
    "result.write",
    "result.event",
    "journal.before",
    "journal.after",
    "attempt.run_file",
    "attempt.forked",
    "attempt.spawned",
    "attempt.push",
    "attempt.pushed",
    "attempt.publish",
    "attempt.published",
    "store.file.written",
    "store.file.synced",
    "store.file.renamed",
    "store.folder.synced",
    "store.manifest.placed",
    "store.checkpoint.prune",
    "store.pull.chunk",
    "store.pull.whole",
    "store.pull.renamed",
    "store.git.received",
    "store.git.written",
    "store.git.placed",
    "store.cache.blob",
    "store.cache.built",
    "store.cache.placed",
    "store.cache.cleared",
    "store.cache.evicted",
    "store.upload.part",
    "store.upload.done",
    "finetune.step",
    "finetune.evaluated",
];

/// Dies here when the environment says so.
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub fn reached(place: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    /// The name (`None`: any) and how many times it is to be reached.
    static CHOSEN: LazyLock<Option<(Option<String>, u64)>> = LazyLock::new(|| {
        let text = std::env::var("MLOC_FAILPOINT").ok()?;
        if let Some(nth) = text.strip_prefix('@') {
            return Some((None, nth.parse().ok()?));
        }
        match text.split_once('#') {
            Some((name, nth)) => Some((Some(name.to_owned()), nth.parse().ok()?)),
            None => Some((Some(text), 1)),
        }
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);

    debug_assert!(ALL.contains(&place), "failpoint {place} is not in the list");
    let Some((name, nth)) = &*CHOSEN else { return };
    let counts = name.as_ref().is_none_or(|name| name == place);
    if counts && REACHED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        eprintln!("failpoint {place}: dying as asked");
        // SIGKILL: neither a destructor nor an exit handler runs, as when the machine or the OOM killer does it.
        if nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}

/// Nothing, in release builds.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn reached(_place: &str) {}
