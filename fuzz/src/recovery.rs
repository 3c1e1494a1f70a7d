//! Segment recovery over any bytes: a log that a device gives back in whatever state. It must not
//! panic, must end at a prefix of whole batches, and, cut as it asks, must open to the same end.

use std::io;

use towline::protocol::builder::{BatchBuilder, buffer_for};
use towline::protocol::recovery::{Facts, LogSource, recover};
use towline::protocol::replica::LogEnd;
use towline::wire::batch::BatchFields;
use towline::{Lsn, Seq, ShardId, SystemId, Term};

use crate::alloc::bounded;
use crate::edits;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Memory of a recovery beside what it reads: a few words of text, and where terms began.
pub const RECOVERY_BYTES: usize = 4096;
/// The log's system.
pub const SYSTEM: SystemId = SystemId([7; 16]);

/// A slice in memory that counts what is read of it: the work of a recovery.
pub struct Memory {
    /// The slice.
    pub bytes: Vec<u8>,
    /// Where it begins.
    pub first: Lsn,
    /// Bytes given out so far.
    pub given: u64,
}

impl Memory {
    /// Each block is read as the next batch's header, as a part of that batch, once more as the place
    /// where the log ends, and when it is looked through for what follows a tear.
    pub fn assert_linear(&self) {
        let most = 4 * self.bytes.len() as u64 + 4 * BLOCK as u64;
        assert!(self.given <= most, "{} bytes read of {}", self.given, self.bytes.len());
    }
}

impl LogSource for Memory {
    fn bytes(&mut self, lsn: Lsn, len: usize) -> io::Result<&[u8]> {
        let from = usize::try_from(lsn.since(self.first)).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(len).min(self.bytes.len());
        self.given += (to - from) as u64;
        Ok(&self.bytes[from..to])
    }
}

/// A log of a few batches, as the byte says, five of them in each term from 2 on; zeros follow. And
/// where it is empty, and where each batch ends.
#[must_use]
pub fn log(batches: u8) -> (Vec<u8>, Vec<Lsn>) {
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

/// A log of a few batches, what happened to it, and a start over it.
pub fn run(input: &[u8]) {
    let Some((&batches, changes)) = input.split_first() else { return };
    let (mut bytes, ends) = log(batches);
    edits::all(&mut bytes, changes);
    let facts = Facts {
        system: SYSTEM,
        shard: ShardId(1),
        term: Term(4),
        own_term: Term(u64::from(batches >> 7) * 2),
        oldest: Lsn(0),
        base: None,
        floor: Lsn(0),
        commit: Lsn(0),
        reached: (Term(0), Lsn(0)),
        in_flight_bytes_max: 4 * BLOCK as u64,
    };
    let mut memory = Memory { bytes, first: Lsn(0), given: 0 };
    let received = memory.bytes.len();
    let found = bounded(received, RECOVERY_BYTES, || recover(&mut memory, &facts, |_| {}));
    memory.assert_linear();
    let Ok(found) = found else { return };
    assert!(ends.contains(&found.end.lsn), "the log ends where no batch did");
    if let Some(tear) = &found.tear {
        assert!(tear.at == found.end.lsn && tear.until > tear.at);
        let until = (tear.until.0 as usize).min(memory.bytes.len());
        memory.bytes[tear.at.0 as usize..until].fill(0);
    }
    let again = recover(&mut memory, &facts, |_| {}).expect("what was cut as asked opens");
    assert_eq!((again.end, again.tear), (found.end, None), "recovery is not idempotent");
}
