//! What one run of the simulator is: everything drawn from its seed before it starts.
//!
//! Swarm style (Groce et al., "Swarm Testing", 2012): not only how often each fault comes is drawn,
//! but also which faults come at all, so that a run may go deep into one kind without the others
//! getting in its way.

use std::time::Duration;

use towline::{CommitPolicy, Compress, Retain, RetainMax, TooFewReplicas, ZeroCopy};

use super::world::rng::Rng;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// The power goes: what was not durable survives in part.
    PowerLoss,
    /// A crash at one of the next calls to the disk, also in the middle of an open.
    CrashInCall,
    /// An orderly stop and start.
    Restart,
    /// A process that stands still for a while.
    Pause,
    /// Two nodes do not hear each other.
    Partition,
    /// One node does not hear another.
    OneWay,
    /// Connections are reset.
    Reset,
    /// A disk that is slow at times.
    SlowDisk,
    /// Writes that fail.
    WriteError,
    /// Reads that fail.
    ReadError,
    /// Writes that write a part.
    ShortWrite,
    /// A disk that is full for a while.
    DiskFull,
    /// Bits that flip on a replica's disk.
    BitRot,
    /// Writes to a replica's disk that are said to be done and are not.
    LostWrite,
    /// Writes to a replica's disk that land elsewhere on it.
    MisdirectedWrite,
    /// Bytes that change on the way.
    Corruption,
    /// Acks that come twice.
    DoubleAck,
    /// Acks for what was never sent.
    ForgedAck,
    /// Clocks that jump.
    ClockJump,
    /// A replica is made the primary.
    Promote,
    /// A replica that follows a new primary is started with the old one's address.
    WrongAddress,
    /// A replica's folder is lost and made anew.
    Replace,
    /// A replica that is not configured is, with a slot that was made before or without.
    AddReplica,
    /// A replica is configured no more.
    RemoveReplica,
    /// The default policy, its deadline, the idle expiry or the write gate is changed.
    SetPolicy,
    /// A reader is told to follow another node.
    Repoint,
    /// The cap on catch-up, the windows of links or the lag target are changed.
    SetFlow,
    /// A primary that lives on beside a new one, and does not know, keeps no log for its replicas any more.
    DropSlots,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::Kill,
        Self::PowerLoss,
        Self::CrashInCall,
        Self::Restart,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Reset,
        Self::SlowDisk,
        Self::WriteError,
        Self::ReadError,
        Self::ShortWrite,
        Self::DiskFull,
        Self::BitRot,
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::Corruption,
        Self::DoubleAck,
        Self::ForgedAck,
        Self::ClockJump,
        Self::Promote,
        Self::WrongAddress,
        Self::Replace,
        Self::AddReplica,
        Self::RemoveReplica,
        Self::SetPolicy,
        Self::Repoint,
        Self::SetFlow,
        Self::DropSlots,
    ];

    /// Changes that an operator makes while all goes on.
    const SETTINGS: [Self; 3] = [Self::AddReplica, Self::RemoveReplica, Self::SetPolicy];

    /// What is drawn from sources of their own, so that other runs are what they were before it.
    const LATER: [Self; 3] = [Self::Repoint, Self::SetFlow, Self::DropSlots];

    /// Disks that lie about a write.
    const LIES: [Self; 2] = [Self::LostWrite, Self::MisdirectedWrite];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        let mut out = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('-');
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }
}

/// What may be left out of a run to make it shorter: the same seed otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Less {
    /// These faults do not come.
    pub without: Vec<Fault>,
    /// No more appends than this.
    pub appends: Option<u64>,
    /// No more replicas than this.
    pub replicas: Option<usize>,
    /// No more shards than this.
    pub shards: Option<u32>,
    /// No more clients than this.
    pub clients: Option<usize>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything comes from.
    pub seed: u64,
    /// Shards.
    pub shards: u32,
    /// Replicas.
    pub replicas: usize,
    /// Replicas that only read, and follow another one.
    pub readers: usize,
    /// Cores of each node.
    pub cores: usize,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments ready ahead.
    pub segments_ahead: usize,
    /// Writes in flight.
    pub write_depth: usize,
    /// Bytes of a batch.
    pub batch_bytes: usize,
    /// Bytes of the largest record.
    pub record_max: usize,
    /// Bytes of recent batches in memory.
    pub live_window: usize,
    /// How long a batch may wait.
    pub linger: Duration,
    /// What is kept.
    pub retain: Retain,
    /// What slots may hold of it.
    pub retain_max: RetainMax,
    /// The least cap that is taken.
    pub retain_max_least: u64,
    /// How long a slot may be without a link.
    pub slot_idle_max: Option<Duration>,
    /// Bytes in each second that a replica which catches up is sent.
    pub catch_up_max: Option<u64>,
    /// Bytes of a link that may be under way.
    pub link_window: usize,
    /// How far the commit quorum may be behind before batches wait.
    pub lag_target: Option<u64>,
    /// How links compress.
    pub compress: Compress,
    /// How many replicas must have acknowledged lately for an append, and what is lately.
    pub min_replicas: (u8, Duration),
    /// The operator makes lost slots anew at once, not only in the end.
    pub slots_anew: bool,
    /// Replicas whose log is too old give it up and begin anew.
    pub rebuild: bool,
    /// Embedders have state: they let go of the log themselves, and replicas that come later get a snapshot.
    pub snapshots: bool,
    /// The policy of a commit that does not say.
    pub policy: CommitPolicy,
    /// The deadline of a commit that does not say.
    pub deadline: Duration,
    /// Whether batches are sent without a copy.
    pub zero_copy: ZeroCopy,
    /// What is done while too few replicas are connected.
    pub too_few: TooFewReplicas,
    /// Policies that commits ask for.
    pub policies: Vec<Option<CommitPolicy>>,
    /// Tasks that append on their shard's core.
    pub local_clients: usize,
    /// Tasks that append through a handle, some across shards.
    pub handle_clients: usize,
    /// Appends without an outcome, for each client.
    pub window: usize,
    /// Appends in all.
    pub appends: u64,
    /// Longest pause between two appends.
    pub think: Duration,
    /// Handlers that are given what is flushed, not only what is committed.
    pub deliver_flushed: bool,
    /// The faults that come.
    pub faults: Vec<Fault>,
    /// How often each of them comes, relative to the usual.
    pub intensity: f64,
    /// Mean time between two events.
    pub every: Duration,
    /// Some pauses and partitions are longer than the silence after which a link is given up.
    pub long_silence: bool,
    /// The longest that the first part of the run takes.
    pub at_most: Duration,
}

impl Plan {
    /// Draws a run from its seed.
    #[must_use]
    pub fn draw(seed: u64, less: &Less) -> Self {
        let r = &mut Rng::new(seed ^ 0x706C_616E);
        // Many shards and large records are dear, and show little that few and small ones do not.
        let shards = [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 8][r.below(16) as usize];
        let replicas = [0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5, 6][r.below(12) as usize];
        let segment_bytes = (64 << 10) * [1, 1, 1, 2, 4][r.below(5) as usize];
        let batch_bytes = 4096 * [1, 2, 4, 8, 16][r.below(5) as usize] as usize;
        let record_max = [512, 512, 4000, 4000, 20_000, 20_000, 90_000, 200_000][r.below(8) as usize];
        let retain = if r.chance(0.7) { Retain::All } else { Retain::Bytes(64 << 10) };
        let quiet = r.chance(0.08);
        let each = 0.1 + 0.5 * r.unit();
        let mut faults: Vec<Fault> = Vec::new();
        let of_its_own = |f: &Fault| Fault::SETTINGS.contains(f) || Fault::LIES.contains(f) || Fault::LATER.contains(f);
        for fault in Fault::ALL.into_iter().filter(|f| !of_its_own(f)) {
            let drawn = r.chance(each);
            if drawn && !quiet && !less.without.contains(&fault) {
                faults.push(fault);
            }
        }
        if faults.contains(&Fault::WrongAddress)
            && !faults.contains(&Fault::Promote)
            && !less.without.contains(&Fault::Promote)
        {
            // There is no old primary otherwise.
            faults.push(Fault::Promote);
        }
        let policy_of = |r: &mut Rng, replicas: usize| -> CommitPolicy {
            let level = ["", ":flushed", ":received", ":applied", ":flushed"][r.below(5) as usize];
            let text = match r.below(6) {
                0 => "local".to_string(),
                1 => "majority".to_string(),
                2 => "all".to_string(),
                _ if replicas == 0 => "local".to_string(),
                _ => format!("ack_n={}{level}", 1 + r.below(replicas as u64)),
            };
            let text = if replicas == 0 { "local".to_string() } else { text };
            text.parse().expect("a policy of the grammar")
        };
        let replicas = less.replicas.map_or(replicas, |most| replicas.min(most));
        let policy = policy_of(r, replicas);
        let mut policies = vec![None];
        for _ in 0..r.below(3) {
            policies.push(Some(policy_of(r, replicas)));
        }
        // From a source of its own, so that the rest of a run is what it was before there were slots.
        let s = &mut Rng::new(seed ^ 0x736C_6F74);
        let retain_max_least = if let Retain::Bytes(keep) = retain { keep } else { 0 } + 2 * segment_bytes;
        let retain_max = match s.below(4) {
            0 => RetainMax::Auto,
            1 => RetainMax::Unlimited,
            _ => RetainMax::Bytes(retain_max_least + segment_bytes * s.below(3)),
        };
        let slot_idle_max = s.chance(0.2).then(|| Duration::from_secs(2 + s.below(3)));
        let slots_anew = s.chance(0.5);
        let zero_copy = [ZeroCopy::Auto, ZeroCopy::Off, ZeroCopy::Always][s.below(3) as usize];
        let f = &mut Rng::new(seed ^ 0x666C_6F77);
        // For each shard: what was missed must come within the deadline of the last appends.
        let catch_up_max = f.chance(0.3).then(|| u64::from(shards) * ((1 << 20) << f.below(4)));
        let link_window = [4 << 10, 64 << 10, 256 << 10, 32 << 20][f.below(4) as usize];
        let lag_target = f.chance(0.3).then(|| (4 << 10) << f.below(8));
        let compress = if f.chance(0.4) { Compress::Lz4 } else { Compress::Off };
        // From one of their own again.
        let s = &mut Rng::new(seed ^ 0x7365_7474);
        let (members, policies_change) = (s.chance(0.3), s.chance(0.3));
        for fault in Fault::SETTINGS {
            let drawn = if fault == Fault::SetPolicy { policies_change } else { members };
            if drawn && !quiet && !less.without.contains(&fault) {
                faults.push(fault);
            }
        }
        let gated = if s.chance(0.35) { (1 + s.below(2) as usize).min(replicas) } else { 0 };
        let min_replicas = (gated as u8, Duration::from_millis(2000 + s.below(1500)));
        let rebuild = s.chance(0.5);
        // And again.
        let s = &mut Rng::new(seed ^ 0x736E_6170);
        let snapshots = !matches!(retain, Retain::All) && s.chance(0.6);
        let replaces = snapshots && s.chance(0.6) && !quiet && !less.without.contains(&Fault::Replace);
        if replaces && !faults.contains(&Fault::Replace) {
            faults.push(Fault::Replace);
        }
        let s = &mut Rng::new(seed ^ 0x6361_7363);
        let readers = if replicas > 0 { [0, 0, 0, 1, 2, 3][s.below(6) as usize] } else { 0 };
        if readers > 0 && s.chance(0.5) && !quiet && !less.without.contains(&Fault::Repoint) {
            faults.push(Fault::Repoint);
        }
        // And again.
        let s = &mut Rng::new(seed ^ 0x7369_6C65);
        let silences = [Fault::Pause, Fault::Partition, Fault::OneWay];
        let long_silence = s.chance(0.15) && silences.iter().any(|f| faults.contains(f));
        let s = &mut Rng::new(seed ^ 0x6C69_6573);
        for fault in Fault::LIES {
            let drawn = replicas > 1 && s.chance(0.2);
            if drawn && !quiet && !less.without.contains(&fault) {
                faults.push(fault);
            }
        }
        let s = &mut Rng::new(seed ^ 0x6C69_6E6B);
        let may = |fault: Fault| !quiet && !less.without.contains(&fault);
        if s.chance(0.2) && may(Fault::SetFlow) {
            faults.push(Fault::SetFlow);
        }
        let drops = s.chance(0.7) && !matches!(retain, Retain::All) && faults.contains(&Fault::Promote);
        if drops && may(Fault::DropSlots) {
            faults.push(Fault::DropSlots);
        }
        let clients = 1 + r.below(4) as usize;
        let appends = 20 + r.below(240);
        // There are appends before, meanwhile and after.
        let slowly = if long_silence { 1_000_000 } else { 0 };
        Self {
            seed,
            shards: less.shards.map_or(shards, |most| shards.min(most)),
            replicas,
            readers,
            cores: [1, 1, 1, 2, 3][r.below(5) as usize],
            segment_bytes,
            segments_ahead: 1 + r.below(3) as usize,
            write_depth: [1, 2, 4, 8][r.below(4) as usize],
            batch_bytes,
            record_max,
            live_window: [0, 16 << 10, 256 << 10][r.below(3) as usize],
            linger: Duration::from_micros(if r.chance(0.2) { r.below(2000) } else { 0 }),
            retain,
            retain_max,
            retain_max_least,
            slot_idle_max,
            slots_anew,
            zero_copy,
            catch_up_max,
            link_window,
            lag_target,
            compress,
            min_replicas,
            rebuild,
            snapshots,
            policy,
            deadline: Duration::from_millis([30, 300, 2000][r.below(3) as usize]),
            too_few: if r.chance(0.2) { TooFewReplicas::Refuse } else { TooFewReplicas::Wait },
            policies,
            local_clients: less.clients.map_or(clients, |most| clients.min(most)),
            handle_clients: if less.clients.is_none() && r.chance(0.15) { 1 } else { 0 },
            window: 1 + r.below(24) as usize,
            appends: less.appends.map_or(appends, |most| appends.min(most)),
            think: Duration::from_micros([0, 300, 5000, 50_000][r.below(4) as usize].max(slowly)),
            deliver_flushed: r.chance(0.25) && !snapshots,
            faults,
            intensity: [0.3, 1.0, 3.0][r.below(3) as usize],
            every: Duration::from_millis([20, 100, 400][r.below(3) as usize] * if long_silence { 20 } else { 1 }),
            long_silence,
            at_most: Duration::from_secs(if long_silence { 45 } else { 8 }),
        }
    }

    /// Whether calls to the disk may fail.
    #[must_use]
    pub fn has_disk_errors(&self) -> bool {
        [Fault::WriteError, Fault::ReadError, Fault::DiskFull, Fault::ShortWrite].iter().any(|f| self.has(*f))
    }

    /// Whether a fault comes.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
