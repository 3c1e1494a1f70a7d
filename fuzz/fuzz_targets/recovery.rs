//! Segment recovery over any bytes: a log that a device gives back in whatever state. It must not
//! panic, must end at a prefix of whole batches, and, cut as it asks, must open to the same end.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use towline::protocol::builder::{BatchBuilder, buffer_for};
use towline::protocol::recovery::{Facts, LogSource, recover};
use towline::protocol::replica::LogEnd;
use towline::wire::batch::BatchFields;
use towline::{Lsn, Seq, ShardId, SystemId, Term};

const BLOCK: usize = 4096;
const SYSTEM: SystemId = SystemId([7; 16]);

struct Memory(Vec<u8>);

impl LogSource for Memory {
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]> {
        let from = usize::try_from(lsn.0).unwrap_or(usize::MAX).min(self.0.len());
        let to = from.saturating_add(len).min(self.0.len());
        Ok(&self.0[from..to])
    }
}

/// A log of a few batches, as the first byte says; the rest of the input is what happens to it.
fn log(batches: u8) -> (Vec<u8>, Vec<Lsn>) {
    let (mut bytes, mut end) = (Vec::new(), LogEnd::default());
    let mut ends = vec![Lsn(0)];
    for n in 0..batches % 12 {
        let payload = usize::from(n) * 1700;
        let mut b = BatchBuilder::new(vec![0; buffer_for(payload)]);
        b.push(&vec![n; payload]);
        let sealed = b.close(BatchFields {
            system: SYSTEM,
            shard: ShardId(1),
            term: Term(2 + u64::from(n / 5)),
            lsn: end.lsn,
            first_seq: end.next_seq,
            record_count: 0,
            timestamp_us: 1,
            prev_chain: end.chain,
            durable_lsn: Lsn(end.lsn.0.saturating_sub(2 * BLOCK as u64) / 4096 * 4096),
            commit_lsn: Lsn(0),
        });
        bytes.extend_from_slice(&sealed.buf[..sealed.disk_len]);
        end = LogEnd {
            lsn: Lsn(bytes.len() as u64),
            chain: sealed.chain,
            next_seq: Seq(end.next_seq.0 + 1),
            last_term: Term(2),
        };
        ends.push(end.lsn);
    }
    bytes.resize(bytes.len() + 8 * BLOCK, 0);
    (bytes, ends)
}

fuzz_target!(|input: &[u8]| {
    let Some((&batches, edits)) = input.split_first() else { return };
    let (mut bytes, ends) = log(batches);
    // Each edit: a place, a length, and what is done there (zeros, ones, noise, a copy from elsewhere).
    for edit in edits.chunks_exact(5) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) * 13 % bytes.len();
        let len = (usize::from(edit[2]) * 61 + 1).min(bytes.len() - at);
        match edit[3] % 4 {
            0 => bytes[at..at + len].fill(0),
            1 => bytes[at..at + len].fill(edit[4]),
            2 => bytes[at] ^= edit[4],
            _ => {
                let from = usize::from(edit[4]) * BLOCK % (bytes.len() - len + 1);
                bytes.copy_within(from..from + len, at);
            }
        }
    }
    let facts = Facts {
        system: SYSTEM,
        shard: ShardId(1),
        term: Term(4),
        own_term: Term(u64::from(batches >> 7) * 2),
        oldest: Lsn(0),
        floor: Lsn(0),
        commit: Lsn(0),
        in_flight_bytes_max: 4 * BLOCK as u64,
    };
    let mut memory = Memory(bytes);
    let Ok(found) = recover(&mut memory, &facts, |_| {}) else { return };
    assert!(ends.contains(&found.end.lsn), "the log ends where no batch did");
    if let Some(tear) = &found.tear {
        assert!(tear.at == found.end.lsn && tear.until > tear.at);
        let until = (tear.until.0 as usize).min(memory.0.len());
        memory.0[tear.at.0 as usize..until].fill(0);
    }
    let again = recover(&mut memory, &facts, |_| {}).expect("what was cut as asked opens");
    assert_eq!((again.end, again.tear), (found.end, None), "recovery is not idempotent");
});
