//! The commit gate once more, as plainly as it can be said: one list of waiters, every question
//! answered by looking at all of it, numbers instead of the engine's types. It shares no code with
//! `protocol::gate` and keeps no state that could be computed.

/// Who waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The number under which it was added.
    pub id: u64,
    /// Where its batch ends.
    pub end: u64,
    /// Replicas wanted.
    pub replicas: usize,
    /// The level wanted: 0 received, 1 flushed, 2 applied.
    pub level: usize,
    /// When it gives up.
    pub deadline: u64,
}

/// What became of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// To a commit, with so many acks.
    Committed(usize),
    /// To its deadline: durable here, acks so far.
    TimedOut(bool, usize),
}

/// The model.
pub struct Model {
    default_replicas: usize,
    default_level: usize,
    /// The primary's own device.
    pub durable: u64,
    /// The commit LSN.
    pub commit: u64,
    /// What each replica has said: received, flushed, applied.
    pub slots: Vec<[u64; 3]>,
    /// Everybody who waits, in the order in which they came.
    pub waiting: Vec<Waiting>,
    /// A newer primary reigns.
    pub frozen: bool,
}

impl Model {
    /// A gate over a log that is durable up to `durable`, of which `commit` was committed before.
    pub fn new(default: (usize, usize), slots: usize, durable: u64, commit: u64) -> Self {
        let mut model = Self {
            default_replicas: default.0,
            default_level: default.1,
            durable,
            commit,
            slots: vec![[0; 3]; slots],
            waiting: Vec::new(),
            frozen: false,
        };
        model.look();
        model
    }

    /// Replicas that vouch for `lsn` at `level`.
    pub fn acks(&self, level: usize, lsn: u64) -> usize {
        self.slots.iter().filter(|said| said[level] >= lsn).count()
    }

    /// Whether a commit up to `lsn` would hold now: the primary's own copy, and enough replicas.
    pub fn holds(&self, replicas: usize, level: usize, lsn: u64) -> bool {
        lsn <= self.durable && self.acks(level, lsn) >= replicas
    }

    /// Moves the commit LSN to the highest position that holds. Only where somebody stands can it
    /// begin to hold.
    fn look(&mut self) {
        if self.frozen {
            return;
        }
        let level = self.default_level.min(1);
        let stands = self.slots.iter().map(|said| said[level]).chain([self.durable]);
        let best = stands.filter(|lsn| self.holds(self.default_replicas, level, *lsn)).max();
        self.commit = self.commit.max(best.unwrap_or(0));
    }

    /// The device has come to `durable`.
    pub fn on_durable(&mut self, durable: u64) {
        self.durable = durable;
        self.look();
    }

    /// A replica says where it stands.
    pub fn on_ack(&mut self, slot: usize, said: [u64; 3]) {
        self.slots[slot] = said;
        self.look();
    }

    /// Takes out everybody whose requirement holds.
    pub fn complete(&mut self) -> Vec<(Waiting, Came)> {
        if self.frozen {
            return Vec::new();
        }
        let done = |m: &Self, w: &Waiting| m.holds(w.replicas, w.level, w.end);
        let out = self.waiting.iter().filter(|w| done(self, w));
        let out = out.map(|w| (*w, Came::Committed(self.acks(w.level, w.end)))).collect();
        let rest = self.waiting.iter().filter(|w| !done(self, w)).copied().collect();
        self.waiting = rest;
        out
    }

    /// Takes out everybody whose deadline has passed.
    pub fn expire(&mut self, now: u64) -> Vec<(Waiting, Came)> {
        let late = |w: &Waiting| w.deadline <= now;
        let out = self.waiting.iter().filter(|w| late(w));
        let out = out.map(|w| (*w, Came::TimedOut(w.end <= self.durable, self.acks(w.level, w.end)))).collect();
        self.waiting.retain(|w| !late(w));
        out
    }

    /// Whether somebody waits for what replicas have applied.
    pub fn wants_applied(&self) -> bool {
        self.waiting.iter().any(|w| w.replicas > 0 && w.level == 2)
    }
}
