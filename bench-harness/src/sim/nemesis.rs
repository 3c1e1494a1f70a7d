//! Who breaks things: events at random times, of the kinds that the run has drawn. What comes by
//! rates (errors of the disk, bytes that change on the way) is the world's part.

use std::time::Duration;

use towline::{RetainMax, SettingChange, ShardId};

use super::cluster::{Cluster, DATA, Role};
use super::operator::Ask;
use super::plan::{Fault, Plan};
use super::world::faults::JOB_NS;
use super::world::rng::Rng;
use super::world::{Faults, Lie};

/// The world's rates for a run.
#[must_use]
pub fn rates(plan: &Plan) -> Faults {
    let r = &mut Rng::new(plan.seed ^ 0x7261_7465);
    let mut f = Faults::default();
    let often = |fault: Fault, rate: f64| if plan.has(fault) { rate * plan.intensity } else { 0.0 };
    f.disk_ns = (20_000, [100_000, 400_000, 3_000_000][r.below(3) as usize]);
    f.slow_disk = often(Fault::SlowDisk, 0.01);
    f.write_error = often(Fault::WriteError, 0.002);
    f.read_error = often(Fault::ReadError, 0.002);
    f.short_write = often(Fault::ShortWrite, 0.03);
    f.net_ns = (20_000, [80_000, 500_000, 10_000_000][r.below(3) as usize]);
    f.send_buffer = [2048, 16 << 10, 128 << 10][r.below(3) as usize];
    f.chunks = r.chance(0.4);
    f.corrupt = often(Fault::Corruption, 0.002);
    f.double_ack = often(Fault::DoubleAck, 0.02);
    f.forged_ack = often(Fault::ForgedAck, 0.01);
    f.clock_jump = often(Fault::ClockJump, 0.001);
    f.random_order = r.chance(0.7);
    // From a source of its own, so that the rest of a run is what it was.
    let r = &mut Rng::new(plan.seed ^ 0x6865_6C64);
    f.held_ns = [(0, 0), (0, f.net_ns.1), (0, 20 * f.net_ns.1), (0, 2_000_000_000)][r.below(4) as usize];
    f.job_ns = [JOB_NS, 200_000, 2_000_000, 50_000_000][r.below(4) as usize];
    f.not_held = if r.chance(0.3) { 0.05 } else { 0.0 };
    f
}

/// Who breaks things.
pub struct Nemesis {
    kinds: Vec<Fault>,
    rng: Rng,
    every_ns: u64,
    next_ns: u64,
    /// What ends by itself: when, and what.
    later: Vec<(u64, Later)>,
}

#[derive(Clone, Copy, Debug)]
enum Later {
    /// The network is whole again.
    Heal,
    /// A disk has space again.
    Space(usize),
    /// An old primary is told.
    Tell(usize),
    /// A replica is given the right address.
    Redirect(usize),
}

impl Nemesis {
    /// For a run.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let by_event = [
            Fault::Kill,
            Fault::PowerLoss,
            Fault::CrashInCall,
            Fault::Restart,
            Fault::Pause,
            Fault::Partition,
            Fault::OneWay,
            Fault::Reset,
            Fault::DiskFull,
            Fault::BitRot,
            Fault::LostWrite,
            Fault::MisdirectedWrite,
            Fault::Promote,
            Fault::WrongAddress,
            Fault::Replace,
            Fault::AddReplica,
            Fault::RemoveReplica,
            Fault::SetPolicy,
            Fault::Repoint,
            Fault::SetFlow,
        ];
        let kinds = by_event.into_iter().filter(|f| plan.has(*f)).collect();
        let every_ns = plan.every.as_nanos() as u64;
        let mut rng = Rng::new(plan.seed ^ 0x6E65_6D65);
        let next_ns = rng.below(2 * every_ns);
        Self { kinds, rng, every_ns, next_ns, later: Vec::new() }
    }

    /// Breaks what is due.
    pub fn act(&mut self, c: &mut Cluster) {
        let now = c.world.now_ns();
        while let Some(at) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, what) = self.later.remove(at);
            Self::end(c, what);
        }
        if self.kinds.is_empty() {
            return;
        }
        if now < self.next_ns {
            c.world.alarm(self.next_ns);
            return;
        }
        self.next_ns = now + 1 + self.rng.below(2 * self.every_ns);
        let kind = self.kinds[self.rng.below(self.kinds.len() as u64) as usize];
        let n = self.rng.below(c.nodes.len() as u64) as usize;
        let other = self.rng.below(c.nodes.len() as u64) as usize;
        let (id, other_id) = (c.nodes[n].id, c.nodes[other].id);
        let back = [1_000_000, 30_000_000, 400_000_000, 3_000_000_000][self.rng.below(4) as usize];
        let is_silence = matches!(kind, Fault::Pause | Fault::Partition | Fault::OneWay);
        let back = match c.plan.long_silence && is_silence {
            true => [back, 10_000_000_000, 30_000_000_000][self.rng.below(3) as usize],
            false => back,
        };
        if is_silence && back > 3_000_000_000 {
            c.world.hit("long silence");
        }
        match kind {
            Fault::Kill if c.is_up(n) => c.crash(n, false, back),
            Fault::PowerLoss if c.is_up(n) => c.crash(n, true, back),
            Fault::CrashInCall if c.is_up(n) => {
                let calls = {
                    let most = [4, 40, 200][self.rng.below(3) as usize];
                    self.rng.below(most)
                };
                let power = self.rng.chance(0.5);
                c.note(|| format!("node {n} will crash in {calls} calls, power {power}"));
                c.world.crash_after_ops(id, calls, power);
            }
            Fault::Restart if c.serves(n) => {
                c.note(|| format!("node {n} is stopped in order"));
                c.nodes[n].control.stop();
            }
            Fault::Pause if c.is_up(n) => c.world.pause(id, back),
            Fault::Partition if n != other => {
                c.note(|| format!("nodes {n} and {other} do not hear each other"));
                c.world.partition(id, other_id, true);
                c.world.partition(other_id, id, true);
                self.later.push((now + back, Later::Heal));
            }
            Fault::OneWay if n != other => {
                c.note(|| format!("node {other} does not hear {n}"));
                c.world.partition(id, other_id, true);
                self.later.push((now + back, Later::Heal));
            }
            Fault::Reset if n != other => c.world.reset_links(id, other_id),
            Fault::DiskFull => {
                c.note(|| format!("node {n}'s disk is full"));
                c.world.set_space(id, Some(self.rng.below(200_000)));
                self.later.push((now + back, Later::Space(n)));
            }
            Fault::BitRot => self.rot(c, n),
            Fault::LostWrite => self.lie(c, n, Lie::Lost),
            Fault::MisdirectedWrite => self.lie(c, n, Lie::Elsewhere),
            Fault::Promote if c.plan.replicas > 0 => {
                let zombie = self.rng.chance(if c.plan.has(Fault::WrongAddress) { 0.9 } else { 0.5 });
                let back = if c.plan.has(Fault::WrongAddress) { 2_000_000_000 } else { back };
                // Until then it writes alone.
                let back = if c.plan.has(Fault::DropSlots) { back.max(1_000_000_000) } else { back };
                let old = c.primary;
                if c.nodes.iter().all(|n| !n.tainted) && c.promote(zombie) && zombie {
                    self.later.push((now + back, Later::Tell(old)));
                }
            }
            Fault::WrongAddress => {
                if let Some(n) = (0..c.nodes.len()).find(|n| c.give_wrong_address(*n)) {
                    self.later.push((now + back, Later::Redirect(n)));
                }
            }
            Fault::Replace if matches!(c.nodes[n].role, Role::Replica { .. }) && c.may_replace() => c.replace(n, back),
            Fault::AddReplica if n != c.primary && !c.is_reader(n) && !c.is_member(n) => {
                c.note(|| format!("node {n} is to be configured"));
                c.world.hit("replica added");
                let slot_first = self.rng.chance(0.5);
                c.add_replica(n, slot_first);
            }
            Fault::RemoveReplica if n != c.primary && !c.is_reader(n) && c.settings().is_some() && c.is_member(n) => {
                c.note(|| format!("node {n} is to be configured no more"));
                c.world.hit("replica removed");
                c.remove_replica(n);
            }
            Fault::SetPolicy => self.set_policy(c),
            Fault::SetFlow if c.settings().is_some() => {
                let change = self.flow(c);
                Self::set(c, change);
            }
            Fault::Repoint if c.is_reader(n) => c.repoint(n),
            _ => {}
        }
    }

    /// Changes what commits wait for, or when appends are refused.
    fn set_policy(&mut self, c: &Cluster) {
        let Some(settings) = c.settings() else { return };
        let configured = settings.replicas.len() as u64;
        let change = match self.rng.below(7) {
            0 => SettingChange::Deadline(Duration::from_millis([30, 300, 2000][self.rng.below(3) as usize])),
            1 => SettingChange::MinReplicas(self.rng.below(2) as u8),
            // One segment less than there must be: that is refused.
            6 => SettingChange::RetainMax(match self.rng.below(5) {
                0 => RetainMax::Auto,
                1 => RetainMax::Unlimited,
                n => RetainMax::Bytes(c.plan.retain_max_least + c.plan.segment_bytes * n - 3 * c.plan.segment_bytes),
            }),
            2 => SettingChange::SlotIdleMax(self.rng.chance(0.5).then_some(Duration::from_secs(3))),
            kind => {
                let text = match kind {
                    3 => "all".to_string(),
                    4 => "majority".to_string(),
                    _ if self.rng.chance(0.3) => "local".to_string(),
                    // One more than there may be: that is refused.
                    _ => format!("ack_n={}", 1 + self.rng.below(configured + 1)),
                };
                SettingChange::Commit(text.parse().expect("a policy of the grammar"))
            }
        };
        Self::set(c, change);
    }

    /// Another bound of what links may do.
    fn flow(&mut self, c: &Cluster) -> SettingChange {
        match self.rng.below(3) {
            // From the slowest rate that lets a run end in time.
            0 => SettingChange::CatchUpMax(
                self.rng.chance(0.7).then(|| u64::from(c.plan.shards) * ((1 << 20) << self.rng.below(4))),
            ),
            1 => SettingChange::LinkWindow([4 << 10, 64 << 10, 256 << 10, 32 << 20][self.rng.below(4) as usize]),
            _ => SettingChange::LagTarget(self.rng.chance(0.7).then(|| (4 << 10) << self.rng.below(8))),
        }
    }

    fn set(c: &Cluster, change: SettingChange) {
        c.note(|| format!("the settings are to change: {change:?}"));
        c.world.hit("settings changed");
        c.nodes[c.primary].control.ask(Ask::Set(change));
    }

    fn end(c: &mut Cluster, what: Later) {
        match what {
            Later::Heal => c.world.heal_network(),
            Later::Space(n) => c.world.set_space(c.nodes[n].id, None),
            Later::Tell(n) if n != c.primary && matches!(c.nodes[n].role, Role::Primary { .. }) => c.tell(n),
            Later::Redirect(n) if matches!(c.nodes[n].role, Role::Replica { of } if of != c.primary) => {
                c.crash(n, false, 1_000_000);
                c.nodes[n].role = Role::Replica { of: c.primary };
            }
            Later::Tell(_) | Later::Redirect(_) => {}
        }
    }

    /// Whether a disk may change what was written to it: only ever one of a replica that counts.
    fn may_harm(c: &Cluster, n: usize) -> bool {
        let another = c.nodes.iter().enumerate().any(|(o, node)| o != n && node.tainted);
        let is_replica = n != c.primary && !c.is_reader(n) && matches!(c.nodes[n].role, Role::Replica { .. });
        !another && is_replica && c.plan.replicas > 1
    }

    /// One of the next writes to a replica's disk is lost, or lands elsewhere.
    fn lie(&mut self, c: &mut Cluster, n: usize, lie: Lie) {
        if Self::may_harm(c, n) && !c.nodes[n].tainted {
            let writes = self.rng.below(12);
            c.note(|| format!("a write to node {n}'s disk goes wrong after {writes} others: {lie:?}"));
            c.taint(n);
            c.world.lie_about_a_write(c.nodes[n].id, writes, lie);
        }
    }

    /// Flips a bit of a segment on a replica's disk; only ever on one node of a run.
    fn rot(&mut self, c: &mut Cluster, n: usize) {
        if !Self::may_harm(c, n) {
            return;
        }
        let id = c.nodes[n].id;
        let shard = ShardId(self.rng.below(u64::from(c.plan.shards)) as u32);
        let part = format!("{DATA}/shard-{:04}/wal/", shard.0);
        let mut files = c.world.files(id);
        files.retain(|(path, len)| path.to_string_lossy().starts_with(&part) && *len > 0);
        if files.is_empty() {
            return;
        }
        let (path, len) = &files[self.rng.below(files.len() as u64) as usize];
        let at = self.rng.below(*len);
        c.note(|| format!("a bit of node {n} flips: {} at {at}", path.display()));
        c.taint(n);
        c.world.flip_bit(id, path, at, self.rng.below(8) as u8);
    }

    /// Nothing is broken any more.
    pub fn heal(&mut self, c: &mut Cluster) {
        c.note(|| "all is healed".into());
        self.kinds.clear();
        for (_, what) in std::mem::take(&mut self.later) {
            Self::end(c, what);
        }
        c.world.stop_faults();
        c.world.heal_network();
        c.quiet = true;
        super::handler::lock(&c.oracle).left = 0;
        for n in 0..c.nodes.len() {
            c.world.set_space(c.nodes[n].id, None);
        }
    }
}
