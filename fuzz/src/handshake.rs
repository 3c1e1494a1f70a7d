//! A primary and a replica that talk, and what happens to their frames. Every frame is a real one that
//! may be changed on its way, with its CRCs made right again; others are made up. Nothing may break
//! either side; and as long as nothing was changed, both come to hold one history.

use arbitrary::{Result, Unstructured};
use towline::protocol::framing::{FIRST_BYTES, FrameBuffer};
use towline::{Lsn, Seq, Term};
use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::message::Heartbeat;

use crate::alloc::measured;
use crate::mend;
use crate::node::{Ends, PrimaryNode, ReplicaNode, append, end_of, name};

/// Handshakes that it may take to find out what two histories share: one for each term that only the
/// replica's has, and one more.
const ROUNDS: u32 = 8;
/// What a side may take for a frame beside twice its bytes: its buffer, once, and its list of batches
/// and its history, which grow.
const FRAME_BYTES: usize = FIRST_BYTES + (16 << 10);

/// Two logs, then what happens.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(mut talk) = Talk::new(&mut u) else { return };
    while !u.is_empty() && talk.event(&mut u).is_ok() {
        talk.check();
    }
    talk.make_peace();
}

struct Talk {
    primary: PrimaryNode,
    replica: ReplicaNode,
    /// No frame was changed and none was made up so far.
    honest: bool,
    /// The primary's commit LSN in this reign.
    commit: Lsn,
}

impl Talk {
    /// A log that both share, and a tail of each.
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let (shape, known): (u8, u8) = (u.arbitrary()?, u.arbitrary()?);
        let mut log = Vec::new();
        let mut term = 1;
        for n in 0..shape % 4 {
            append(&mut log, Term(term), &[n; 3], Lsn(0), Lsn(0));
            term += u64::from(known >> n & 1);
        }
        let shared: Vec<Lsn> = [Lsn(0)].into_iter().chain(log.iter().map(|b| b.end.lsn)).collect();
        let commit = shared[usize::from(known >> 4) % shared.len()];
        let (mut theirs, mut ours) = (log.clone(), log);
        for n in 0..shape >> 2 & 3 {
            append(&mut theirs, Term(term + u64::from(n >> 1)), &[n; 5000], Lsn(0), Lsn(0));
        }
        let promised = Term(term + u64::from(shape >> 2 & 3));
        // Terms are never given twice.
        let reign = Term(promised.0 + 1);
        for n in 0..shape >> 4 & 3 {
            append(&mut ours, reign, &[n; 100], commit, commit);
        }
        let term = if shape >> 6 == 0 { promised } else { Term(promised.0.min(end_of(&theirs).last_term.0)) };
        Ok(Self {
            primary: PrimaryNode::new(ours, Term(reign.0 + u64::from(shape >> 7)), commit),
            replica: ReplicaNode::new(theirs, (Lsn(0), false), term, commit),
            honest: true,
            commit,
        })
    }

    fn event(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.arbitrary::<u8>()? % 16 {
            0 | 1 => self.hello(u),
            2 => self.append(u),
            3 => self.written(),
            4 | 5 => self.send_batch(u),
            6 => self.flushed(),
            7 => self.ack(u),
            8 => self.heartbeat(u),
            9 => self.made_up(u, true),
            10 => self.made_up(u, false),
            11 => {
                self.lost();
                Ok(())
            }
            12 => self.restart(),
            13 => self.applied(),
            14 => self.trim(u),
            _ => self.replica_restarts(u),
        }
    }

    fn hello(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.lost();
        self.replica.waiting = true;
        let asks_from = self.replica.asks_from.take();
        self.replica.replica.ask_from(asks_from);
        let payload = self.replica.replica.hello(name(0), 7).to_bytes();
        self.tell_primary(u, FrameKind::Hello, 0, 0, &payload)
    }

    fn append(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (len, fill) = (u.arbitrary::<u8>()?, u.arbitrary()?);
        if self.primary.primary.is_deposed() || self.primary.log.len() > 64 {
            return Ok(());
        }
        let (state, start) = (&mut self.primary.primary, end_of(&self.primary.log).lsn);
        state.history.begin(state.term, start);
        let (durable, commit) = (state.gate.durable(), state.gate.commit());
        append(&mut self.primary.log, state.term, &vec![fill; usize::from(len) * 40], durable, commit);
        Ok(())
    }

    fn written(&mut self) -> Result<()> {
        let next = self.primary.log.iter().find(|b| b.end.lsn > self.primary.primary.gate.durable());
        if let Some(end) = next.map(|b| b.end.lsn) {
            self.primary.primary.gate.on_durable(end);
        }
        Ok(())
    }

    fn send_batch(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some((slot, link, next)) = self.primary.serving else { return Ok(()) };
        let Some(batch) = self.primary.log.get(next).cloned() else { return Ok(()) };
        self.primary.serving = Some((slot, link, next + 1));
        self.primary.primary.on_sent(slot, link, batch.end.lsn);
        let commit = self.primary.primary.gate.commit();
        self.tell_replica(u, FrameKind::Batch, 0, commit.0, &batch.wire)
    }

    fn flushed(&mut self) -> Result<()> {
        let r = &mut self.replica.replica;
        let next = self.replica.log.iter().find(|b| b.end.lsn > r.flushed());
        if let Some(end) = next.map(|b| b.end.lsn) {
            r.on_flushed(end);
        }
        Ok(())
    }

    fn applied(&mut self) -> Result<()> {
        let r = &mut self.replica.replica;
        let done = self.replica.log.iter().rfind(|b| b.end.lsn <= r.committed());
        let end = done.map_or((Lsn(0), Seq(0)), |b| (b.end.lsn, b.end.next_seq));
        if end.0 > r.applied() {
            r.on_applied(end.0, end.1);
        }
        Ok(())
    }

    fn ack(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.replica.following {
            return Ok(());
        }
        let payload = self.replica.replica.ack(7).to_bytes();
        self.tell_primary(u, FrameKind::Ack, 0, 0, &payload)
    }

    fn heartbeat(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.primary.serving.is_none() {
            return Ok(());
        }
        let end = end_of(&self.primary.log);
        let (term, commit_lsn) = (self.primary.primary.term, self.primary.primary.gate.commit());
        let beat = Heartbeat { term, tail: end.lsn, tail_seq: end.next_seq, commit_lsn, time_us: 1 };
        self.tell_replica(u, FrameKind::Heartbeat, 1, 0, &beat.to_bytes())
    }

    /// Any frame, to either side.
    fn made_up(&mut self, u: &mut Unstructured<'_>, primary: bool) -> Result<()> {
        let kind = *u.choose(FrameKind::ALL)?;
        let (arg, len) = (u.arbitrary()?, usize::from(u.arbitrary::<u8>()?));
        let mut payload = u.bytes(len.min(u.len()).min(kind.payload_max()))?.to_vec();
        if kind == FrameKind::Batch {
            mend::batch(&mut payload);
        }
        self.honest = false;
        if primary {
            self.tell_primary(u, kind, 0, arg, &payload)
        } else {
            self.tell_replica(u, kind, 0, arg, &payload)
        }
    }

    /// The primary is started again: what was not on its device is gone.
    fn restart(&mut self) -> Result<()> {
        self.lost();
        let (durable, commit) = (self.primary.primary.gate.durable(), self.primary.primary.gate.commit());
        let mut log = std::mem::take(&mut self.primary.log);
        log.retain(|b| b.end.lsn <= durable);
        let Some(term) = self.primary.heard.max(self.primary.primary.term).0.checked_add(1) else {
            self.primary.log = log;
            return Err(arbitrary::Error::IncorrectFormat);
        };
        let oldest = self.primary.oldest;
        self.primary = PrimaryNode::new(log, Term(term), commit);
        self.primary.oldest = oldest;
        self.primary.primary.history.trim(oldest);
        Ok(())
    }

    fn replica_restarts(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.lost();
        let kept = if u.arbitrary()? { self.replica.replica.committed() } else { Lsn(0) };
        let (log, term) = (std::mem::take(&mut self.replica.log), self.replica.replica.term);
        // A log never ends below what is known to be committed; recovery would call that damage.
        self.replica = ReplicaNode::new(log, (self.replica.oldest, self.replica.has_base), term, kept);
        Ok(())
    }

    /// The primary lets go of a log's beginning that the replica may still need; or the replica of its own,
    /// down to a batch that may be all that is left, as a former primary's may.
    fn trim(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let n = usize::from(u.arbitrary::<u8>()?);
        let durable = self.primary.primary.gate.durable();
        let boundaries: Vec<Lsn> = self.primary.log.iter().map(|b| b.lsn).filter(|l| *l < durable).collect();
        if n % 4 == 0 && !boundaries.is_empty() {
            self.primary.oldest = self.primary.oldest.max(boundaries[n / 4 % boundaries.len()]);
            self.primary.primary.history.trim(self.primary.oldest);
        }
        let committed = self.replica.replica.committed();
        let boundaries: Vec<Lsn> = self.replica.log.iter().map(|b| b.lsn).filter(|l| *l <= committed).collect();
        if n % 4 == 1 && !boundaries.is_empty() {
            self.replica.trim(boundaries[n / 4 % boundaries.len()]);
        }
        Ok(())
    }

    /// A frame's bytes, changed or not.
    fn bytes(
        &mut self,
        u: &mut Unstructured<'_>,
        kind: FrameKind,
        flags: u8,
        arg: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let mut bytes = [&frame::header(kind, flags, arg, payload), payload].concat();
        let how: u8 = u.arbitrary().unwrap_or(0);
        if how >= 192 {
            self.honest = false;
            let at = usize::from(u.arbitrary::<u8>()?) * if bytes.len() > 300 { 20 } else { 1 } % bytes.len();
            let word = at / 8 * 8..(at / 8 * 8 + 8).min(bytes.len());
            match how % 4 {
                0 => bytes[at] ^= u.arbitrary::<u8>()?,
                1 => bytes[word].fill(0xff),
                2 => bytes[word.clone()]
                    .copy_from_slice(&(u.arbitrary::<u8>()? as u64 * 4096).to_le_bytes()[..word.len()]),
                _ => bytes[word.clone()].copy_from_slice(&(u.arbitrary::<u16>()? as u64).to_le_bytes()[..word.len()]),
            }
            if how % 8 < 7 {
                mend::frames(&mut bytes);
            }
        }
        Ok(bytes)
    }

    fn tell_primary(
        &mut self,
        u: &mut Unstructured<'_>,
        kind: FrameKind,
        flags: u8,
        arg: u64,
        payload: &[u8],
    ) -> Result<()> {
        let bytes = self.bytes(u, kind, flags, arg, payload)?;
        let answer = take(&mut self.primary, |node| &mut node.frames, &bytes, PrimaryNode::frame);
        match answer {
            Ok(Some(welcome)) => self.tell_replica(u, FrameKind::Welcome, 0, 0, &welcome.to_bytes())?,
            Ok(None) => {}
            Err(ends) => self.ended(ends),
        }
        Ok(())
    }

    fn tell_replica(
        &mut self,
        u: &mut Unstructured<'_>,
        kind: FrameKind,
        flags: u8,
        arg: u64,
        payload: &[u8],
    ) -> Result<()> {
        if !self.replica.waiting && !self.replica.following {
            return Ok(());
        }
        let bytes = self.bytes(u, kind, flags, arg, payload)?;
        let answer = take(
            &mut self.replica,
            |node| &mut node.frames,
            &bytes,
            |node, head, payload| node.frame(head, payload).map(|()| None::<()>),
        );
        if let Err(ends) = answer {
            self.ended(ends);
        }
        Ok(())
    }

    fn ended(&mut self, ends: Ends) {
        assert!(!self.honest || ends == Ends::Decided, "two honest nodes fell out: {ends:?}");
        self.lost();
    }

    fn lost(&mut self) {
        self.primary.lost();
        self.replica.lost();
    }

    /// What holds whatever came.
    fn check(&mut self) {
        let (p, r) = (&self.primary, &self.replica);
        let gate = &p.primary.gate;
        assert!(gate.commit() <= gate.durable() && gate.durable() <= end_of(&p.log).lsn);
        if let Some((slot, link, _)) = p.serving {
            let (at, s) = (gate.slot(slot).expect("it counts"), p.primary.slots().get(slot).expect("it is configured"));
            let within = s.vouched.flushed <= s.at.flushed && s.vouched.received <= s.at.received;
            assert!(s.vouched == at && within && s.restart <= gate.durable());
            assert!(s.link == Some(link) || p.primary.is_deposed());
            assert!(s.sent >= at.received && at.received >= at.flushed && at.flushed >= at.applied);
        }
        let ack = r.replica.ack(0);
        assert!(ack.received >= ack.flushed && ack.flushed >= ack.applied);
        assert_eq!(r.replica.received(), end_of(&r.log).lsn, "the state and the log end at two places");
        assert!(r.replica.committed() <= r.replica.flushed());
        if self.honest {
            self.check_honest();
        }
    }

    fn check_honest(&mut self) {
        let (p, r) = (&self.primary, &self.replica);
        assert!(p.primary.gate.commit() >= self.commit, "the commit LSN went back");
        self.commit = p.primary.gate.commit();
        assert!(!p.primary.is_deposed());
        assert!(r.cuts <= ROUNDS, "they do not come to a common history");
        if r.following {
            // Law 2: the replica holds a prefix of the primary's log.
            assert_eq!(r.log, p.log[..r.log.len()]);
            assert!(r.replica.committed() <= p.primary.gate.commit());
        }
        // Law 1: what counts as committed is in both logs, byte for byte.
        let whole = |b: &&crate::node::Stored| b.end.lsn <= self.commit;
        let committed = p.log.iter().take_while(whole).count();
        let needed = r.log.iter().take_while(whole).count();
        assert_eq!(r.log[..needed], p.log[..needed]);
        assert!(committed == needed || p.oldest > Lsn(0), "a commit that the only replica does not hold");
    }

    /// Two honest nodes that nobody disturbs come to follow, or need a copy.
    fn make_peace(&mut self) {
        if !self.honest {
            return;
        }
        let mut quiet = Unstructured::new(&[]);
        for _ in 0..=ROUNDS {
            self.hello(&mut quiet).expect("nothing is changed");
            if self.replica.following {
                break;
            }
        }
        assert!(self.replica.following || self.primary.oldest > Lsn(0), "no common history is found");
        while self.primary.serving.is_some_and(|(_, _, next)| next < self.primary.log.len()) {
            self.send_batch(&mut quiet).expect("nothing is changed");
            self.check();
        }
        if self.replica.following {
            assert_eq!(self.replica.log, self.primary.log);
        }
    }
}

/// Has a node take the bytes of frames; its last answer, or why the link ends. It needs no more memory than
/// twice the bytes.
fn take<N, A>(
    node: &mut N,
    frames: impl Fn(&mut N) -> &mut FrameBuffer,
    bytes: &[u8],
    each: impl Fn(&mut N, FrameHead, &[u8]) -> std::result::Result<Option<A>, Ends>,
) -> std::result::Result<Option<A>, Ends> {
    let (answer, peak, _) = measured(|| {
        put(frames(node), bytes)?;
        let mut answer = None;
        while frames(node).missing().map_err(|_| Ends::BadFrame)? == 0 {
            let (head, payload) = frames(node).take().map_err(|_| Ends::BadFrame)?;
            let payload = payload.to_vec();
            answer = each(node, head, &payload)?.or(answer);
        }
        Ok(answer)
    });
    assert!(peak <= 2 * bytes.len() + FRAME_BYTES, "{peak} bytes for a frame of {}", bytes.len());
    answer
}

/// Puts a frame's bytes into a connection's buffer.
fn put(frames: &mut FrameBuffer, mut bytes: &[u8]) -> std::result::Result<(), Ends> {
    while !bytes.is_empty() {
        let room = frames.room().map_err(|_| Ends::BadFrame)?;
        let n = room.len().min(bytes.len());
        room[..n].copy_from_slice(&bytes[..n]);
        frames.received(n);
        bytes = &bytes[n..];
    }
    Ok(())
}
