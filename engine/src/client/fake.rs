//! A node for tests: a thread on 127.0.0.1 that speaks the protocol through the wire crate alone,
//! so that the client is not tested against itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::handshake::{FEATURES, Hello, Refusal, Verdict, Welcome};
use towline_wire::message::{AppendHead, CommitStatus, Committed, ErrorCode, ErrorHead, Heartbeat, TailRequest};
use towline_wire::{BatchFields, Chain, Lsn, PROTOCOL_VERSION, Seq, ShardId, SystemId, Term, batch, record};

pub(super) const SYSTEM: SystemId = SystemId([7; 16]);
pub(super) const TERM: Term = Term(3);
pub(super) const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A node that serves one connection.
pub(super) struct Fake {
    pub(super) addr: String,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Serves one connection with `serve`, which runs in its own thread.
    pub(super) fn new(serve: impl FnOnce(Peer) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let thread = thread::spawn(move || serve(Peer { stream: listener.accept().unwrap().0 }));
        Self { addr, thread: Some(thread) }
    }

    /// Waits for the node's end; what it asserted counts.
    pub(super) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

pub(super) fn welcome(verdict: Verdict) -> Welcome {
    Welcome {
        protocol: PROTOCOL_VERSION,
        verdict,
        depth: 0,
        shard_count: 4,
        heartbeat_ms: 20_000,
        system: SYSTEM,
        features: FEATURES,
        term: TERM,
        tail: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
        segment_bytes: 64 << 20,
        time_us: 1,
        record_bytes_max: RECORD_BYTES_MAX,
    }
}

/// The node's end of a connection.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
}

impl Peer {
    /// Takes the preamble and the hello.
    pub(super) fn hello(&mut self) -> Hello {
        let mut preamble = [0; 8];
        self.stream.read_exact(&mut preamble).unwrap();
        assert_eq!(preamble, frame::PREAMBLE);
        let (head, payload) = self.read().unwrap();
        assert_eq!(head.kind, FrameKind::Hello);
        Hello::check(&payload).unwrap()
    }

    /// Takes the hello and says welcome.
    pub(super) fn accept(&mut self) -> Hello {
        self.accept_with(&welcome(Verdict::Client))
    }

    pub(super) fn accept_with(&mut self, welcome: &Welcome) -> Hello {
        let hello = self.hello();
        self.send(FrameKind::Welcome, 0, &welcome.to_bytes());
        hello
    }

    pub(super) fn refuse(&mut self, cause: Refusal, text: &str) {
        self.accept_with(&welcome(Verdict::Refused(cause)));
        self.error(ErrorCode::Refused, 0, text);
    }

    pub(super) fn send(&mut self, kind: FrameKind, arg: u64, payload: &[u8]) {
        self.stream.write_all(&frame_bytes(kind, arg, payload)).unwrap();
    }

    pub(super) fn error(&mut self, code: ErrorCode, arg: u64, text: &str) {
        let (head, text) = ErrorHead { code, arg }.to_bytes(text);
        self.send(FrameKind::Error, 0, &[&head[..], text.as_bytes()].concat());
    }

    pub(super) fn heartbeat(&mut self, tail: u64, commit: u64) {
        let beat = Heartbeat { term: TERM, tail: Lsn(tail), tail_seq: Seq(0), commit_lsn: Lsn(commit), time_us: 1 };
        self.send(FrameKind::Heartbeat, 0, &beat.to_bytes());
    }

    /// The next frame; `None` at the connection's end.
    pub(super) fn read(&mut self) -> Option<(FrameHead, Vec<u8>)> {
        let mut head = [0; frame::HEADER];
        self.stream.read_exact(&mut head).ok()?;
        let head = FrameHead::check(&head).unwrap();
        let mut payload = vec![0; head.len];
        self.stream.read_exact(&mut payload).ok()?;
        head.check_payload(&payload).unwrap();
        Some((head, payload))
    }

    /// The next append request with its records; `None` when the client says goodbye or is gone.
    pub(super) fn append(&mut self) -> Option<(AppendHead, Vec<Vec<u8>>)> {
        let (head, payload) = self.read()?;
        if head.kind == FrameKind::Goodbye {
            return None;
        }
        assert_eq!(head.kind, FrameKind::Append);
        let (head, records) = AppendHead::check(&payload).unwrap();
        Some((head, records.map(<[u8]>::to_vec).collect()))
    }

    pub(super) fn tail_request(&mut self) -> TailRequest {
        let (head, payload) = self.read().unwrap();
        assert_eq!(head.kind, FrameKind::Tail);
        TailRequest::check(&payload).unwrap()
    }

    pub(super) fn reply(&mut self, outcome: &Committed) {
        self.send(FrameKind::Committed, 0, &outcome.to_bytes());
    }
}

pub(super) fn frame_bytes(kind: FrameKind, arg: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::header(kind, 0, arg, payload)[..], payload].concat()
}

/// The outcome "committed" for a request.
pub(super) fn committed(head: &AppendHead, first_seq: u64) -> Committed {
    Committed {
        request: head.request,
        term: TERM,
        lsn: Lsn(4096 * (head.request + 1)),
        first_seq: Seq(first_seq),
        record_count: head.record_count,
        status: CommitStatus::Committed,
        acks: 2,
        wanted: 2,
        durable_here: true,
    }
}

/// A log being written, batch by batch.
pub(super) struct Log {
    pub(super) fields: BatchFields,
}

impl Log {
    pub(super) fn new(shard: u32) -> Self {
        let fields = BatchFields {
            system: SYSTEM,
            shard: ShardId(shard),
            term: TERM,
            lsn: Lsn::ZERO,
            first_seq: Seq(0),
            record_count: 0,
            timestamp_us: 1_000,
            prev_chain: Chain::GENESIS,
            durable_lsn: Lsn::ZERO,
            commit_lsn: Lsn::ZERO,
        };
        Self { fields }
    }

    /// The next batch's bytes.
    pub(super) fn batch(&mut self, records: &[&[u8]]) -> Vec<u8> {
        let body: usize = records.iter().map(|r| record::encoded_len(r.len())).sum();
        let mut bytes = vec![0; batch::HEADER + body];
        let mut at = batch::HEADER;
        for r in records {
            at += record::encode(r, &mut bytes[at..]);
        }
        self.fields.record_count = records.len() as u32;
        let chain = batch::seal(&self.fields, &mut bytes);
        self.fields.prev_chain = chain;
        self.fields.lsn.0 += towline_wire::round_up_to_block(bytes.len() as u64);
        self.fields.first_seq.0 += records.len() as u64;
        bytes
    }

    /// Where the log ends.
    pub(super) fn end(&self) -> u64 {
        self.fields.lsn.0
    }
}
