//! A superblock and a slice that need not fit together, as a start finds them: each may be sound by
//! itself. An answer or a typed error; and what a start writes, the next one reads.

use arbitrary::{Result, Unstructured};
use towline::protocol::history::History;
use towline::protocol::recovery::{Facts, recover};
use towline::{Lsn, ShardId, Term};
use towline_wire::handshake::NodeName;
use towline_wire::superblock::{COPY, Superblock};

use crate::alloc::bounded;
use crate::recovery::{BLOCK, Memory, RECOVERY_BYTES, SYSTEM};
use crate::superblock::{Owned, owned};
use crate::{edits, recovery};

/// A log, what the superblock says of it, what happened to the log, and two starts.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(batches) = u.arbitrary() else { return };
    let (mut bytes, ends) = recovery::log(batches);
    let Ok(said) = superblock(&mut u, &ends) else { return };
    edits::all(&mut bytes, u.take_rest());
    let mut copy = vec![0; COPY];
    said.encode(&mut copy);
    let Some(said) = owned(&copy) else { return };
    let Some((next, zeroed)) = start(&bytes, &said) else { return };
    next.encode(&mut copy);
    let read = owned(&copy).expect("what a start writes can be read");
    assert_eq!(read, next);
    let (again, same) = start(&zeroed, &read).expect("what was opened opens again");
    assert_eq!(same, zeroed, "nothing is left to cut");
    assert_eq!((again.floor_lsn, again.commit_lsn, &again.history), (next.floor_lsn, next.commit_lsn, &next.history));
}

/// Mostly the truth about the log, here and there something else.
fn superblock(u: &mut Unstructured<'_>, ends: &[Lsn]) -> Result<Owned> {
    let place = |u: &mut Unstructured<'_>| -> Result<Lsn> {
        let byte: u8 = u.arbitrary()?;
        Ok(match byte {
            0..=199 => ends[usize::from(byte) % ends.len()],
            200..=249 => Lsn(u64::from(byte - 200) * BLOCK as u64),
            250 => Lsn(u64::MAX - 4095),
            251 => Lsn(u64::MAX),
            _ => Lsn(u64::from(byte)),
        })
    };
    let (oldest_lsn, floor_lsn, commit_lsn) = (place(u)?, place(u)?, place(u)?);
    let byte: u8 = u.arbitrary()?;
    let mut history = Vec::new();
    for (n, batch) in [0, 5, 10].into_iter().enumerate() {
        if let Some(first) = ends.get(batch).filter(|_| batch + 1 < ends.len()) {
            history.push((Term(2 + n as u64), *first));
        }
    }
    for _ in 0..byte % 4 {
        let (at, term, first) = (usize::from(u.arbitrary::<u8>()?), u.arbitrary::<u8>()?, place(u)?);
        let entry = (Term(u64::from(term) % 8), first);
        match at % (history.len() + 1) {
            new if new == history.len() => history.push(entry),
            old => history[old] = entry,
        }
    }
    let terms: u8 = u.arbitrary()?;
    let window: u8 = u.arbitrary()?;
    Ok(Superblock {
        generation: 1,
        system: SYSTEM,
        shard: ShardId(1),
        shard_count: 2,
        term: Term(u64::from(terms % 8)),
        own_term: Term(u64::from(terms / 8 % 8)),
        segment_bytes: (1 + u64::from(byte / 4)) * BLOCK as u64,
        oldest_lsn,
        base: None,
        floor_lsn,
        commit_lsn,
        in_flight_bytes_max: if window == 255 { u64::MAX } else { u64::from(window % 16) * BLOCK as u64 },
        name: NodeName::NONE,
        history,
        slots: Vec::new(),
        settings: None,
    })
}

/// A start, as `shard/wal/open.rs` does it: the superblock that it writes, and the log it leaves.
fn start(bytes: &[u8], s: &Owned) -> Option<(Owned, Vec<u8>)> {
    let (oldest, floor) = (s.oldest_lsn, s.floor_lsn);
    // Files are there from the segment that holds the oldest position on.
    let first = Lsn(oldest.0 - oldest.0 % s.segment_bytes);
    let end = Lsn(bytes.len() as u64);
    if first > end || floor.max(s.commit_lsn) > end {
        return None;
    }
    let mut memory = Memory { bytes: bytes[first.0 as usize..].to_vec(), first, given: 0 };
    let facts = Facts::of(s);
    let received = memory.bytes.len() + COPY;
    let recovered = bounded(received, RECOVERY_BYTES, || recover(&mut memory, &facts, |_| {}));
    memory.assert_linear();
    let recovered = recovered.ok()?;
    let mut history = History::from_entries(s.history.clone());
    history.cut(floor.max(oldest));
    for (term, first) in &recovered.terms {
        history.begin(*term, *first);
    }
    history.cut(recovered.end.lsn);
    let mut bytes = bytes.to_vec();
    if let Some(tear) = &recovered.tear {
        let until = (tear.until.0 as usize).min(bytes.len());
        bytes[tear.at.0 as usize..until].fill(0);
    }
    let written = Superblock {
        generation: s.generation + 1,
        in_flight_bytes_max: 4 * BLOCK as u64,
        commit_lsn: s.commit_lsn.max(recovered.commit.min(recovered.end.lsn)),
        floor_lsn: recovered.last_batch,
        history: history.entries().to_vec(),
        ..s.clone()
    };
    Some((written, bytes))
}
