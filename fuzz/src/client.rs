//! What a primary receives from clients: appends, tails, requests for status, slots and settings, and
//! whatever else somebody sends, in pieces of any size. The engine's framing, checks, builder, pipeline
//! and gate, put together as `shard/link/client.rs` does it; slots and settings are in `operator.rs`.
//! Who is refused ends its connection; what follows comes on the next one.

use std::collections::VecDeque;

use towline::protocol::builder::{BatchBuilder, buffer_for_encoded};
use towline::protocol::framing::{FIRST_BYTES, FrameBuffer};
use towline::protocol::gate::{Verdict, Waiter};
use towline::protocol::pipeline::Pipeline;
use towline::protocol::policy::Requirement;
use towline::protocol::retention::Log;
use towline::{CommitPolicy, Lsn, Seq, ShardId, SystemId, Term};
use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::message::{
    APPEND_HEAD, AppendHead, CommitStatus, Committed, ControlRequest, SlotRequest, TailRequest,
};
use towline_wire::{BatchFields, BatchView, Chain};

use crate::alloc::{live, nothing};
use crate::operator::Operator;
use crate::{asks, mend};

const BATCH: usize = 8192;
const RECORD_MAX: usize = 4096;
/// When commits are given up that can never be: whoever asked for them asked for more replicas than are left.
const LATE_NS: u64 = u64::MAX / 2;
/// How: the client's frames are made of few bytes each (`asks.rs`); else the bytes are its frames.
pub const ASKS: u8 = 7 << 5;

/// A byte of how, then what the client sends.
pub fn run(data: &[u8]) {
    let Some((&how, stream)) = data.split_first() else { return };
    let mut stream = if how & ASKS == ASKS { asks::frames(stream, false) } else { stream.to_vec() };
    if how & 1 == 0 {
        mend::frames(&mut stream);
    }
    frames(how, &stream);
}

/// Frames, in pieces.
pub fn frames(how: u8, stream: &[u8]) {
    let chunk = match how >> 1 & 15 {
        0 => usize::MAX,
        n => usize::from(n) * usize::from(n) * 7,
    };
    memory_follows(stream, chunk);
    let mut node = Node::new(how >> 5);
    receive(stream, chunk, |head, payload| node.frame(head, payload), |_, _| {});
    node.finish();
}

/// Feeds a connection and hands on whole frames, until one is refused or refuses.
fn receive(
    mut bytes: &[u8],
    chunk: usize,
    mut each: impl FnMut(FrameHead, &[u8]) -> bool,
    mut then: impl FnMut(usize, &FrameBuffer),
) {
    let mut frames = FrameBuffer::new(towline::limits::CLIENT_WINDOW_BYTES.max(APPEND_HEAD + RECORD_MAX));
    let mut received = 0;
    while !bytes.is_empty() {
        let Ok(room) = frames.room() else { return };
        let n = chunk.min(room.len()).min(bytes.len());
        assert!(n > 0, "there is always room");
        room[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        received += n;
        frames.received(n);
        then(received, &frames);
        while frames.missing() == Ok(0) {
            let Ok((head, payload)) = frames.take() else { return };
            if !each(head, payload) {
                return;
            }
        }
    }
}

/// A client that announces much and sends little takes little.
fn memory_follows(bytes: &[u8], chunk: usize) {
    let before = live();
    let mut steps = 0;
    let each = |head: FrameHead, payload: &[u8]| {
        steps += 1;
        nothing(|| match head.kind {
            FrameKind::Append => AppendHead::check(payload).is_ok(),
            FrameKind::Tail => TailRequest::check(payload).is_ok(),
            FrameKind::SlotRequest => SlotRequest::check(payload).is_ok(),
            FrameKind::ControlRequest => ControlRequest::check(payload).is_ok(),
            _ => true,
        })
    };
    receive(bytes, chunk, each, |received, _| {
        let taken = live() - before;
        assert!(taken <= 2 * received + FIRST_BYTES, "{taken} bytes taken for {received} received");
    });
    assert!(steps <= bytes.len() / frame::HEADER);
}

/// A request that was admitted.
struct Request {
    number: u64,
    first_seq: u64,
    records: Vec<Vec<u8>>,
    need: Requirement,
}

/// One shard of a primary, with devices and replicas that do as they are told.
struct Node {
    operator: Operator,
    open: BatchBuilder<Vec<u8>>,
    /// Keys of the requests in the open batch.
    in_open: Vec<u64>,
    pipeline: Pipeline,
    /// Ends of the batches that the device has not got yet.
    writing: VecDeque<(Lsn, Lsn)>,
    /// Where the last batch on the device starts.
    last_durable: Lsn,
    log: Vec<u8>,
    chain: Chain,
    next_seq: u64,
    requests: Vec<Request>,
    /// What went to the client.
    replies: Vec<u8>,
    /// Numbers of the requests that were refused, in the order of the refusals.
    refused: Vec<u64>,
    tailing: bool,
}

impl Node {
    fn new(default: u8) -> Self {
        Self {
            operator: Operator::new(default % 3),
            open: BatchBuilder::new(vec![0xee; BATCH]),
            in_open: Vec::new(),
            pipeline: Pipeline::new(Lsn(0), Lsn(0), 4, 4 * BATCH as u64),
            writing: VecDeque::new(),
            last_durable: Lsn(0),
            log: Vec::new(),
            chain: Chain::GENESIS,
            next_seq: 0,
            requests: Vec::new(),
            replies: Vec::new(),
            refused: Vec::new(),
            tailing: false,
        }
    }

    /// Whether the connection goes on.
    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> bool {
        let goes_on = self.request(head, payload);
        if matches!(head.kind, FrameKind::SlotRequest | FrameKind::ControlRequest) {
            self.complete();
            self.operator.check();
        }
        assert!(!self.operator.primary.gate.is_overdue(), "somebody waits for what holds");
        goes_on
    }

    fn request(&mut self, head: FrameHead, payload: &[u8]) -> bool {
        match head.kind {
            FrameKind::Append => self.append(payload),
            FrameKind::Tail if !self.tailing => {
                self.tailing = true;
                TailRequest::check(payload).is_ok_and(|t| TailRequest::check(&t.to_bytes()) == Ok(t))
            }
            FrameKind::StatusRequest => {
                self.time_passes();
                true
            }
            FrameKind::SlotRequest => {
                let Ok(request) = SlotRequest::check(payload) else { return false };
                assert_eq!(SlotRequest::check(&request.to_bytes()), Ok(request));
                self.tailing &= self.operator.slot(&request).is_ok();
                true
            }
            FrameKind::ControlRequest => {
                let Ok(request) = ControlRequest::check(payload) else { return false };
                assert_eq!(ControlRequest::check(&request.to_bytes()), Ok(request));
                self.tailing &= self.operator.control(&request).is_ok();
                true
            }
            _ => false,
        }
    }

    /// A second, in which a write is done, with what a shard does now and then.
    fn time_passes(&mut self) {
        self.close(0);
        if !self.writing.is_empty() {
            self.device_is_done();
        }
        let (appended, durable) = (self.pipeline.appended(), self.pipeline.durable());
        let commit = self.operator.primary.gate.commit();
        let (last_durable, trim_to) = (self.last_durable, Lsn(u64::MAX));
        self.operator.later(&Log { appended, durable, last_durable, commit, trim_to, archived: None });
        self.complete();
        self.operator.check();
    }

    fn append(&mut self, payload: &[u8]) -> bool {
        let Ok((head, records)) = AppendHead::check(payload) else { return false };
        let body = &payload[APPEND_HEAD..];
        let need = match CommitPolicy::from_wire(head.policy) {
            None => Ok(self.operator.need()),
            Some(policy) => policy.requirement(self.operator.settings.replicas.len()),
        };
        let Ok(need) = need else {
            self.refuse(&head, CommitStatus::PolicyImpossible);
            return true;
        };
        if records.clone().any(|r| r.len() > RECORD_MAX) {
            self.refuse(&head, CommitStatus::RecordTooLarge);
            return true;
        }
        if self.operator.too_few_fresh().is_some() {
            self.refuse(&head, CommitStatus::MinReplicas);
            return true;
        }
        if !self.open.fits(body.len()) {
            self.close(body.len());
        }
        self.open.push_encoded(body, head.record_count);
        self.in_open.push(self.requests.len() as u64);
        let records = records.map(<[u8]>::to_vec).collect();
        self.requests.push(Request { number: head.request, first_seq: self.next_seq, records, need });
        self.next_seq += u64::from(head.record_count);
        true
    }

    fn refuse(&mut self, head: &AppendHead, status: CommitStatus) {
        self.refused.push(head.request);
        self.reply(Committed {
            request: head.request,
            term: Term(0),
            lsn: Lsn(0),
            first_seq: Seq(0),
            record_count: head.record_count,
            status,
            acks: 0,
            wanted: 0,
            durable_here: false,
        });
    }

    fn reply(&mut self, c: Committed) {
        let payload = c.to_bytes();
        self.replies.extend_from_slice(&frame::header(FrameKind::Committed, 0, 0, &payload));
        self.replies.extend_from_slice(&payload);
    }

    /// Closes the open batch, and makes the next one with room for `next` bytes.
    fn close(&mut self, next: usize) {
        let open = BatchBuilder::new(vec![0xee; buffer_for_encoded(next).max(BATCH)]);
        let full = std::mem::replace(&mut self.open, open);
        if full.count() == 0 {
            return;
        }
        while !self.pipeline.may_write(full.disk_len() as u64) {
            self.device_is_done();
        }
        let start = self.pipeline.appended();
        let sealed = full.close(BatchFields {
            system: SystemId([1; 16]),
            shard: ShardId(0),
            term: Term(1),
            lsn: start,
            first_seq: Seq(self.requests[self.in_open[0] as usize].first_seq),
            record_count: 0,
            timestamp_us: 0,
            prev_chain: self.chain,
            durable_lsn: self.pipeline.durable(),
            commit_lsn: self.operator.primary.gate.commit(),
        });
        self.chain = sealed.chain;
        self.log.extend_from_slice(&sealed.buf[..sealed.disk_len]);
        let end = Lsn(start.0 + sealed.disk_len as u64);
        self.pipeline.write(start, end);
        self.writing.push_back((start, end));
        let gate = &mut self.operator.primary.gate;
        for key in self.in_open.drain(..) {
            let need = self.requests[key as usize].need;
            gate.wait(need, Waiter { end, lane: 0, first: key, count: 1, since_ns: 0, deadline_ns: LATE_NS });
        }
    }

    /// The newest write first, so that there are holes; then the replicas.
    fn device_is_done(&mut self) {
        let (start, end) = self.writing.pop_back().expect("something is in flight");
        self.last_durable = self.last_durable.max(start);
        if let Some(durable) = self.pipeline.complete(end) {
            let commit = self.operator.primary.gate.commit();
            self.operator.primary.gate.on_durable(durable);
            self.operator.acknowledge(durable, false);
            assert!(self.operator.primary.gate.commit() >= commit, "the commit LSN went back");
        }
        self.complete();
    }

    fn complete(&mut self) {
        let mut done = Vec::new();
        self.operator.primary.gate.complete(|w, v| done.push((*w, v)));
        self.outcomes(done);
    }

    fn outcomes(&mut self, done: Vec<(Waiter, Verdict)>) {
        for (w, verdict) in done {
            let request = &self.requests[w.first as usize];
            let (status, acks, wanted) = match verdict {
                // A share of the replicas that are configured now, if some left meanwhile.
                Verdict::Committed { acks } => (CommitStatus::Committed, acks, request.need.replicas.min(acks)),
                Verdict::TimedOut { acks, wanted, .. } => (CommitStatus::TimedOut, acks, wanted),
            };
            self.reply(Committed {
                request: request.number,
                term: Term(1),
                lsn: w.end,
                first_seq: Seq(request.first_seq),
                record_count: request.records.len() as u32,
                status,
                acks,
                wanted,
                durable_here: true,
            });
        }
    }

    /// Everything gets an answer, and the log holds what was sent.
    fn finish(mut self) {
        self.close(0);
        while !self.writing.is_empty() {
            self.device_is_done();
        }
        self.operator.links_end();
        self.operator.mend();
        self.operator.acknowledge(self.pipeline.durable(), true);
        self.complete();
        self.operator.check_all();
        let configured = self.operator.settings.replicas.len();
        let mut late = Vec::new();
        self.operator.primary.gate.expire(LATE_NS, |w, v| late.push((*w, v)));
        for (_, verdict) in &late {
            let Verdict::TimedOut { durable_here: true, acks, wanted } = *verdict else { panic!("{verdict:?}") };
            assert!(usize::from(wanted) > configured && usize::from(acks) == configured, "{verdict:?} was too early");
        }
        self.outcomes(late);
        let gate = &self.operator.primary.gate;
        assert_eq!((gate.waiting(), gate.commit()), (0, self.pipeline.appended()));
        let mut logged = Vec::new();
        let (mut rest, mut chain) = (&self.log[..], Chain::GENESIS);
        while !rest.is_empty() {
            let view = BatchView::check_on_disk(rest).expect("a batch that was just closed");
            assert_eq!(view.header().prev_chain(), chain);
            chain = view.header().chain();
            logged.extend(view.records().map(<[u8]>::to_vec));
            rest = &rest[view.header().disk_len() as usize..];
        }
        let sent: Vec<Vec<u8>> = self.requests.iter().flat_map(|r| r.records.iter().cloned()).collect();
        assert_eq!(logged, sent, "the log holds other records than the client sent");
        self.answers();
    }

    fn answers(&self) {
        let mut refused = self.refused.iter();
        let mut answered = vec![false; self.requests.len()];
        let mut rest = &self.replies[..];
        while let Some((header, behind)) = rest.split_first_chunk() {
            let head = FrameHead::check(header).expect("a frame of this node's");
            let (payload, behind) = behind.split_at(head.len);
            head.check_payload(payload).expect("whole");
            let c = Committed::check(payload).expect("sound");
            rest = behind;
            if !matches!(c.status, CommitStatus::Committed | CommitStatus::TimedOut) {
                assert_eq!(refused.next(), Some(&c.request));
                continue;
            }
            let same = |r: &Request| r.number == c.request && r.first_seq == c.first_seq.0;
            let at = self.requests.iter().position(same).expect("an answer without a request");
            assert!(!std::mem::replace(&mut answered[at], true), "two answers");
            assert!((c.acks >= c.wanted) == (c.status == CommitStatus::Committed));
            assert_eq!(self.requests[at].records.len() as u32, c.record_count);
        }
        assert!(answered.iter().all(|a| *a) && refused.next().is_none(), "a request without an answer");
    }
}
