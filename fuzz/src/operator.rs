//! What a client may change of a primary: its slots and settings, as `shard/slots.rs`, `shard/settings.rs`
//! and `node/control.rs` do it, for one shard whose device always obeys.

use std::time::Duration;

use towline::config::RetainMax;
use towline::limits;
use towline::protocol::gate::CommitGate;
use towline::protocol::history::History;
use towline::protocol::policy::{CommitPolicy, Requirement};
use towline::protocol::primary::Primary;
use towline::protocol::retention::{Limits, Log};
use towline::protocol::settings::{SettingChange, Settings, SettingsError};
use towline::protocol::slots::{SlotError, Slots};
use towline::{AckLevel, Lsn, Seq, ShardId, SystemId, Term};
use towline_wire::handshake::NodeName;
use towline_wire::message::{Ack, ControlRequest, ErrorCode, ErrorHead, SlotAction, SlotRequest};
use towline_wire::superblock::{COPY, SLOTS_MAX, SlotEntry};

use crate::superblock::{Owned, owned};

const SYSTEM: SystemId = SystemId([1; 16]);
const SEGMENT_BYTES: u64 = limits::SEGMENT_BYTES_MIN;
const RETAIN_MAX_MIN: u64 = limits::RETAIN_MAX_SEGMENTS_MIN * SEGMENT_BYTES;
const SECOND: u64 = 1_000_000_000;

/// Replicas that are configured at the beginning.
pub const REPLICAS: usize = 2;

/// A primary with what may be changed of it.
pub struct Operator {
    /// Slots, and the gate.
    pub primary: Primary,
    /// In force.
    pub settings: Settings,
    /// The shard's clock, which no replica's silence stops.
    pub now_ns: u64,
    links: u64,
    checks: u32,
}

/// A name that an operator might give.
#[must_use]
pub fn name(n: u8) -> NodeName {
    NodeName::new(&format!("r{n}")).expect("a name")
}

impl Operator {
    /// A primary whose commits wait for `n` replicas unless they say otherwise.
    #[must_use]
    pub fn new(n: u8) -> Self {
        let names: Vec<_> = (0..REPLICAS as u8).map(name).collect();
        let commit = match n {
            0 => CommitPolicy::Local,
            n => CommitPolicy::AckN { n, level: AckLevel::Flushed },
        };
        let settings = Settings {
            version: 1,
            replicas: names.clone(),
            commit,
            deadline: Duration::from_secs(30),
            retain_max: RetainMax::Auto,
            slot_idle_max: None,
            min_replicas: 0,
            min_replicas_age: Duration::from_secs(10),
            catch_up_max: None,
            link_window_bytes: 32 << 20,
            lag_target: None,
        };
        let need = settings.need().expect("two are configured");
        let gate = CommitGate::new(need, names.len(), Lsn(0), Lsn(0));
        let identity = (SYSTEM, ShardId(0), 1);
        let primary = Primary::new(identity, Term(1), History::default(), gate, Slots::fresh(&names));
        Self { primary, settings, now_ns: SECOND, links: 0, checks: 0 }
    }

    /// What a commit waits for that does not say.
    #[must_use]
    pub fn need(&self) -> Requirement {
        self.settings.need().expect("settings that cannot hold are refused")
    }

    /// Why no append is taken now: how many replicas were heard lately.
    #[must_use]
    pub fn too_few_fresh(&self) -> Option<u8> {
        let (n, age) = (usize::from(self.settings.min_replicas), self.settings.min_replicas_age);
        let fresh = self.primary.slots().heard_within(age, self.now_ns);
        let is_open = self.now_ns < self.primary.slots().fresh_until(n, age);
        assert_eq!(is_open, fresh >= n, "the append's quick look and the count do not agree");
        (!is_open).then_some(fresh.min(255) as u8)
    }

    /// Makes or removes a slot.
    ///
    /// # Errors
    /// What the client is told.
    pub fn slot(&mut self, request: &SlotRequest) -> Result<(), SlotError> {
        let before = self.entries();
        let p = &mut self.primary;
        let done = match request.action {
            SlotAction::Create => p.make_slot(request.name, false, Lsn(0), self.now_ns).map(drop),
            SlotAction::CreateTemporary => p.make_slot(request.name, true, Lsn(0), self.now_ns).map(drop),
            SlotAction::Drop => p.remove_slot(request.name, self.now_ns),
        };
        if let Err(e) = &done {
            assert_eq!(self.entries(), before, "what was refused has changed something");
            told(ErrorCode::SlotRefused, 0, &e.to_string());
        }
        done
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// What the client is told.
    pub fn control(&mut self, request: &ControlRequest) -> Result<(), SettingsError> {
        let change = SettingChange::from_wire(request).expect("no decoder lets it through");
        let again = ControlRequest { action: change.to_wire(), ..*request };
        assert_eq!(SettingChange::from_wire(&again), Some(change), "a change is another one on the wire");
        let (before, entries) = (self.settings.clone(), self.entries());
        let done = self.change(change, request.if_version);
        match &done {
            Ok(()) => assert_eq!(self.settings.version, before.version.saturating_add(1)),
            Err(e) => {
                assert!(self.settings == before && self.entries() == entries, "what was refused has changed something");
                told(ErrorCode::ControlRefused, self.settings.version, &e.to_string());
            }
        }
        done
    }

    fn change(&mut self, change: SettingChange, if_version: u64) -> Result<(), SettingsError> {
        let next = self.settings.with(change, if_version, RETAIN_MAX_MIN)?;
        // As `may_change` does it for all shards.
        let has = |name: &NodeName| self.primary.slots().of(*name).is_some();
        let new = next.replicas.iter().filter(|n| !has(n)).count();
        if self.primary.slots().iter().count() + new > SLOTS_MAX {
            return Err(SlotError::TooMany.into());
        }
        self.primary.prepare(&next.replicas, Lsn(0), self.now_ns).expect("there is room for its slot");
        if next.replicas.len() <= 12 {
            // What the superblock says before the change is in force is what a start would find.
            let written = Settings::of_superblock(&next.entry(), &self.primary.slots().entries(), next.links());
            assert_eq!(written.map(sorted), Some(sorted(next.clone())));
        }
        self.settings = next;
        self.primary.configure(self.need(), self.now_ns);
        Ok(())
    }

    /// The device has come so far, and so does every replica with a slot but each third one.
    pub fn acknowledge(&mut self, durable: Lsn, each_third_too: bool) {
        let valid: Vec<_> = self.primary.slots().iter().filter(|(_, s)| s.is_valid()).map(|(n, _)| n).collect();
        for slot in valid.into_iter().filter(|n| each_third_too || n % 3 != 2) {
            let s = self.primary.slots().get(slot).expect("it was there");
            let (link, has) = (s.link, s.at.flushed);
            let link = link.unwrap_or_else(|| {
                self.links += 1;
                self.primary.attach(slot, (self.links, 7), has, self.now_ns).expect("nobody else serves it");
                self.links
            });
            let ack = Ack { received: durable, flushed: durable, applied: durable, applied_seq: Seq(0), echo_us: 0 };
            self.primary.on_sent(slot, link, durable);
            self.primary.on_ack(slot, link, &ack, self.now_ns).expect("it was sent");
        }
    }

    /// Links end; a slot for one link goes with it.
    pub fn links_end(&mut self) {
        let served: Vec<_> = self.primary.slots().iter().filter_map(|(n, s)| Some((n, s.link?))).collect();
        for (slot, link) in served {
            self.primary.detach(slot, link, self.now_ns);
        }
    }

    /// A second later: slots go that nobody has used, or that hold too much.
    pub fn later(&mut self, log: &Log) {
        self.now_ns += SECOND;
        self.primary.expire_slots(self.settings.slot_idle_max, self.now_ns);
        let cap = match self.settings.retain_max {
            RetainMax::Auto => Some(limits::RETAIN_MAX_SEGMENTS_AUTO * SEGMENT_BYTES),
            RetainMax::Bytes(bytes) => Some(bytes.max(RETAIN_MAX_MIN)),
            RetainMax::Unlimited => None,
        };
        let limits = Limits { keep: Some(0), cap, segment_bytes: SEGMENT_BYTES };
        let slots = self.primary.slots();
        let recycling = limits.keep_below(log, limits.recycle(log, slots.holding()), slots.holding_below());
        assert!(cap.is_some() || recycling.lost.is_empty(), "a slot is lost for a cap that is not set");
        self.primary.lose_for_cap(&recycling.lost, self.now_ns);
        assert!(recycling.below <= log.commit && recycling.below <= log.durable);
        assert!(self.primary.slots().holding().all(|(_, at)| at >= recycling.below), "a slot's log is let go of");
        for lost in self.primary.take_lost() {
            assert!(self.primary.slots().of(lost.name).is_none_or(|s| !self.is_counted(s)), "a lost slot counts");
        }
    }

    /// Whether what a slot's replica has counts for commits.
    fn is_counted(&self, slot: usize) -> bool {
        let is_valid = self.primary.slots().get(slot).is_some_and(|s| s.is_valid());
        !is_valid && self.primary.gate.slot(slot).is_some_and(|at| at.received > Lsn(0))
    }

    /// Lost slots of configured replicas are made anew, as an operator would.
    pub fn mend(&mut self) {
        for name in self.settings.replicas.clone() {
            let slot = self.primary.slots().of(name).expect("a configured replica has a slot");
            if !self.primary.slots().get(slot).expect("it was found").is_valid() {
                self.primary.make_slot(name, false, Lsn(0), self.now_ns).expect("it is lost");
            }
        }
    }

    fn entries(&self) -> Vec<SlotEntry> {
        self.primary.slots().entries()
    }

    /// What holds whatever was asked for. With many slots not everything is looked at each time.
    pub fn check(&mut self) {
        let count = self.primary.slots().iter().count();
        assert!(count <= SLOTS_MAX && self.settings.replicas.len() <= limits::REPLICAS_MAX);
        assert_eq!(self.settings.check(RETAIN_MAX_MIN), Ok(()));
        self.checks += 1;
        if count <= 12 || self.checks.is_multiple_of(64) {
            self.check_slots();
        }
        if self.checks.is_multiple_of(64) {
            self.survives_a_start();
        }
    }

    /// At the end, if anything was asked for.
    pub fn check_all(&self) {
        if self.checks > 0 {
            self.check_slots();
            self.survives_a_start();
        }
    }

    fn check_slots(&self) {
        let slots = self.primary.slots();
        let mut names: Vec<_> = slots.iter().map(|(_, s)| s.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "a name is there twice");
        let configured: Vec<_> = slots.configured().map(|(_, s)| s.name).collect();
        assert!(configured.len() == self.settings.replicas.len());
        assert!(configured.iter().all(|n| self.settings.replicas.contains(n)), "others have slots than are configured");
        for (n, s) in slots.iter() {
            let counted = self.primary.gate.slot(n);
            let is_configured = configured.contains(&s.name);
            assert_eq!(counted, is_configured.then_some(s.vouched), "the gate counts what the slot does not say");
            assert!(s.sent >= s.at.received || s.link.is_none());
        }
    }

    /// What the superblock says of slots and settings is what the next start has.
    fn survives_a_start(&self) {
        let superblock = Owned {
            generation: 1,
            system: SYSTEM,
            shard: ShardId(0),
            shard_count: 1,
            term: Term(1),
            own_term: Term(1),
            segment_bytes: SEGMENT_BYTES,
            oldest_lsn: Lsn(0),
            base: None,
            floor_lsn: self.primary.gate.durable(),
            commit_lsn: self.primary.gate.commit(),
            in_flight_bytes_max: 1 << 20,
            name: NodeName::NONE,
            history: Vec::new(),
            slots: self.entries(),
            settings: Some(self.settings.entry()),
        };
        let mut copy = vec![0; COPY];
        superblock.encode(&mut copy);
        let read = owned(&copy).expect("what was written is read");
        assert_eq!(read, superblock);
        let found = read.settings.expect("they are there");
        let found = Settings::of_superblock(&found, &read.slots, self.settings.links()).expect("a policy");
        assert_eq!(sorted(found.clone()), sorted(self.settings.clone()));
        let (slots, gone) = Slots::new(&found.replicas, &read.slots, true, Lsn(0), 0);
        let by_name = |mut entries: Vec<SlotEntry>| {
            entries.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
            entries
        };
        assert_eq!((by_name(slots.entries()), gone), (by_name(read.slots), Vec::new()), "a start finds other slots");
    }
}

/// The order of replicas means nothing.
fn sorted(mut settings: Settings) -> Settings {
    settings.replicas.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    settings
}

/// A refusal reaches the client as it is.
fn told(code: ErrorCode, arg: u64, text: &str) {
    let (head, cut) = ErrorHead { code, arg }.to_bytes(text);
    assert_eq!(cut, text, "an error's text is too long for its frame");
    let payload = [&head[..], cut.as_bytes()].concat();
    assert_eq!(ErrorHead::check(&payload), Ok((ErrorHead { code, arg }, text)));
}
