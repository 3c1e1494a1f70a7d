//! Towline's protocol as a client speaks it, for the loop that drives every network peer.

use std::collections::VecDeque;
use std::net::TcpStream;

use towline::ShardId;
use towline::wire::frame::{self, FrameHead, FrameKind};
use towline::wire::handshake::{Hello, Verdict};
use towline::wire::message::{AppendHead, CommitStatus, Committed, ErrorHead, WirePolicy};
use towline::wire::record;
use towline_bench::greeting::greet;

use super::super::drive::Protocol;

/// Bytes of encoded records in one request.
const REQUEST_BYTES: usize = 64 << 10;

/// Connects as a client of the first shard, and gives the stream past the welcome.
pub(super) fn open(addr: &str) -> Result<TcpStream, String> {
    let greeted = greet(addr, &Hello::client(ShardId(0))).map_err(|e| format!("connecting to Towline: {e}"));
    let (stream, welcome) = greeted?;
    match welcome.verdict {
        Verdict::Client => Ok(stream),
        other => Err(format!("Towline's welcome to a client says {other:?}")),
    }
}

/// The load of one connection: what there is room for goes as one request.
pub(super) struct Appends {
    /// One record, encoded.
    one: Vec<u8>,
    request: u64,
    /// When each request without an outcome was encoded.
    since: VecDeque<u64>,
}

impl Appends {
    pub(super) fn new(record: &[u8]) -> Self {
        let mut one = vec![0; record::encoded_len(record.len())];
        record::encode(record, &mut one);
        Self { one, request: 0, since: VecDeque::new() }
    }
}

impl Protocol for Appends {
    fn ask(&mut self, now_ns: u64, room: u64, out: &mut Vec<u8>) -> u64 {
        let records = room.min((REQUEST_BYTES / self.one.len()).max(1) as u64);
        let head = AppendHead {
            request: self.request,
            deadline_us: 0,
            record_count: records as u32,
            policy: WirePolicy::Default,
        };
        let at = out.len();
        out.extend_from_slice(&[0; frame::HEADER]);
        out.extend_from_slice(&head.to_bytes());
        (0..records).for_each(|_| out.extend_from_slice(&self.one));
        let header = frame::header(FrameKind::Append, 0, 0, &out[at + frame::HEADER..]);
        out[at..at + frame::HEADER].copy_from_slice(&header);
        self.request += 1;
        self.since.push_back(now_ns);
        records
    }

    fn answer(&mut self, input: &[u8], _: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
        let mut used = 0;
        while let Some(header) = input[used..].first_chunk::<{ frame::HEADER }>() {
            let head = FrameHead::check(header).map_err(|e| e.to_string())?;
            let Some(payload) = input[used + frame::HEADER..].get(..head.len) else { break };
            head.check_payload(payload).map_err(|e| e.to_string())?;
            used += frame::HEADER + head.len;
            match head.kind {
                FrameKind::Committed => {
                    let told = Committed::check(payload).map_err(|e| e.to_string())?;
                    let first = self.request - self.since.len() as u64;
                    if told.status != CommitStatus::Committed || told.request != first {
                        return Err(format!("request {first} was not committed, but {told:?}"));
                    }
                    let since = self.since.pop_front().ok_or("an outcome that was not asked for")?;
                    done(since, u64::from(told.record_count));
                }
                FrameKind::Heartbeat => {}
                FrameKind::Error => {
                    let (error, text) = ErrorHead::check(payload).map_err(|e| e.to_string())?;
                    return Err(format!("{:?}: {text}", error.code));
                }
                other => return Err(format!("Towline sent {other:?} to a client that appends")),
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use towline::wire::message::APPEND_HEAD;
    use towline::wire::{Lsn, Seq, Term};

    use super::*;

    fn outcome(request: u64, status: CommitStatus) -> Vec<u8> {
        let told = Committed {
            request,
            term: Term(1),
            lsn: Lsn(4096),
            first_seq: Seq(0),
            record_count: 3,
            status,
            acks: 2,
            wanted: 2,
            durable_here: true,
        };
        let payload = told.to_bytes();
        [&frame::header(FrameKind::Committed, 0, 0, &payload)[..], &payload].concat()
    }

    #[test]
    fn requests_are_as_large_as_there_is_room_and_outcomes_are_taken_in_order() {
        let mut load = Appends::new(&[7; 256]);
        let mut out = Vec::new();
        assert_eq!(load.ask(5, 3, &mut out), 3);
        let head = FrameHead::check(out[..frame::HEADER].try_into().unwrap()).unwrap();
        assert_eq!((head.kind, head.len), (FrameKind::Append, out.len() - frame::HEADER));
        head.check_payload(&out[frame::HEADER..]).unwrap();
        assert_eq!(out.len(), frame::HEADER + APPEND_HEAD + 3 * record::encoded_len(256));
        let most = load.ask(6, u64::MAX, &mut out);
        assert!(most as usize * record::encoded_len(256) <= REQUEST_BYTES);

        let mut told = Vec::new();
        let input = [outcome(0, CommitStatus::Committed), outcome(1, CommitStatus::Committed)].concat();
        let cut = input.len() - 1;
        let used = load.answer(&input[..cut], &mut out, &mut |since, records| told.push((since, records))).unwrap();
        assert_eq!((used, told), (input.len() / 2, vec![(5, 3)]));
        let no = load.answer(&outcome(2, CommitStatus::Committed), &mut out, &mut |_, _| {});
        assert!(no.unwrap_err().contains("request 1"), "an outcome out of turn");
        let no = load.answer(&outcome(1, CommitStatus::TimedOut), &mut out, &mut |_, _| {});
        assert!(no.unwrap_err().contains("not committed"));
    }
}
