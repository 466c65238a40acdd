//! What the seeds of a run came across: a simulation that never met something proves nothing about it.

/// What happened, over many seeds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub lost: u64,
    pub refused: u64,
    pub stale: u64,
    pub duplicates: u64,
    pub crashes: u64,
    pub leaders: u64,
    pub adopted: u64,
    /// Results that met another task's at their destination.
    pub taken: u64,
    /// Wishes to publish that had to wait for another task's publisher.
    pub held: u64,
    pub publish_failures: u64,
    pub restarts: u64,
    pub revoked: u64,
    /// Changes of leader to a clock that was behind.
    pub backwards: u64,
    /// Replicas of services that became ready.
    pub served: u64,
    /// Steps of an exchange that were applied, and that came too late.
    pub exchanged: u64,
    pub exchange_refused: u64,
    /// Services whose number of replicas was changed.
    pub scaled: u64,
    /// Versions of services that gave way to a newer one.
    pub replaced: u64,
    pub entries: u64,
}

impl Tally {
    pub fn add(&mut self, more: &Tally) {
        self.completed += more.completed;
        self.failed += more.failed;
        self.cancelled += more.cancelled;
        self.lost += more.lost;
        self.refused += more.refused;
        self.stale += more.stale;
        self.duplicates += more.duplicates;
        self.crashes += more.crashes;
        self.leaders += more.leaders;
        self.adopted += more.adopted;
        self.taken += more.taken;
        self.held += more.held;
        self.publish_failures += more.publish_failures;
        self.restarts += more.restarts;
        self.revoked += more.revoked;
        self.backwards += more.backwards;
        self.served += more.served;
        self.exchanged += more.exchanged;
        self.exchange_refused += more.exchange_refused;
        self.scaled += more.scaled;
        self.replaced += more.replaced;
        self.entries += more.entries;
    }

    pub fn counts(&self) -> [(&'static str, u64); 20] {
        [
            ("a completed task", self.completed),
            ("a failed task", self.failed),
            ("a cancelled task", self.cancelled),
            ("a lost attempt", self.lost),
            ("a refused entry", self.refused),
            ("a stale report", self.stale),
            ("a repeated report", self.duplicates),
            ("a crash", self.crashes),
            ("a result adopted by a successor", self.adopted),
            ("a destination that another task had filled", self.taken),
            ("a publisher that waited for another", self.held),
            ("a publication that failed", self.publish_failures),
            ("a restart in good order", self.restarts),
            ("a revoked member", self.revoked),
            ("a leader whose clock was behind its predecessor's", self.backwards),
            ("a replica that became ready", self.served),
            ("an exchange of replicas", self.exchanged),
            ("an exchange that was refused", self.exchange_refused),
            ("a service that was scaled", self.scaled),
            ("a version that gave way to a newer one", self.replaced),
        ]
    }
}
