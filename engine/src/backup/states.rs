//! The file of a shard's state: the frames in which a primary sends a snapshot to a replica, one behind the
//! other, and held to the same rules.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::message::{SnapshotBegin, SnapshotEnd, SnapshotId, SnapshotPoint};
use towline_wire::superblock::Base;
use towline_wire::{Lsn, ShardId};

use super::{BackupError, StateError, io_at};
use crate::protocol::snapshot::{Next, Sending, Taking};
use crate::snapshot::{Produced, Snapshot, SnapshotInfo, Stage};

/// All snapshots of an export have this id: nothing is gone on with.
const ID: SnapshotId = SnapshotId([1; 16]);

/// Counts what is written and sums it up.
struct Summed<W> {
    to: W,
    bytes: u64,
    crc: u32,
}

impl<W: Write> Summed<W> {
    fn frame(&mut self, kind: FrameKind, arg: u64, payload: &[u8]) -> std::io::Result<()> {
        for part in [&frame::header(kind, 0, arg, payload)[..], payload] {
            self.to.write_all(part)?;
            self.bytes += part.len() as u64;
            self.crc = crc32c::crc32c_append(self.crc, part);
        }
        Ok(())
    }
}

/// A file that was written: its size, its CRC, and the bytes of the state in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) crc: u32,
    pub(super) state_bytes: u64,
}

/// Writes a state of at most `max` bytes to a new file, durably.
pub(super) fn write(
    path: &Path,
    shard: ShardId,
    (produced, base): (Produced, Base),
    max: u64,
) -> Result<Written, BackupError> {
    let (at, total) = (produced.at, produced.total_bytes);
    let bad = |source| BackupError::Produced { shard, source };
    let mut sending = Sending::new(SnapshotPoint { id: ID, at, base }, total, max).map_err(bad)?;
    let file = File::create_new(path).map_err(io_at(path))?;
    let mut out = Summed { to: BufWriter::new(file), bytes: 0, crc: 0 };
    let mut chunks = produced.chunks;
    let written = |done: std::io::Result<()>| done.map_err(io_at(path));
    written(out.frame(FrameKind::SnapshotBegin, 0, &sending.begin().to_bytes()))?;
    loop {
        let chunk = chunks.next().transpose();
        let chunk = chunk.map_err(|source| BackupError::Embedder { shard, doing: "making", source })?;
        sending.on_chunk(chunk).map_err(bad)?;
        match sending.take_next() {
            Some(Next::Chunk { offset, bytes }) => {
                written(out.frame(FrameKind::SnapshotChunk, offset, &bytes))?;
                sending.on_ack(offset + bytes.len() as u64).map_err(bad)?;
            }
            Some(Next::End(end)) => {
                written(out.frame(FrameKind::SnapshotEnd, at.0, &end.to_bytes()))?;
                let file = out.to.into_inner().map_err(|e| io_at(path)(e.into_error()))?;
                written(file.sync_all())?;
                return Ok(Written { bytes: out.bytes, crc: out.crc, state_bytes: end.total });
            }
            None => unreachable!("a chunk or the end was just given"),
        }
    }
}

/// What a file of a state is expected to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) shard: ShardId,
    pub(super) at: Lsn,
    pub(super) base: Base,
    /// Its size, and its CRC.
    pub(super) bytes: u64,
    pub(super) crc: u32,
    /// The most that may be in it.
    pub(super) max: u64,
}

/// Reads a state's file to its end, checks all of it, and stages what is in it. Nothing is installed.
pub(super) fn stage(
    path: &Path,
    expected: Expected,
    store: &dyn Snapshot,
) -> Result<(Box<dyn Stage>, SnapshotInfo), BackupError> {
    let shard = expected.shard;
    let embedder = |source| BackupError::Embedder { shard, doing: "staging", source };
    let file = super::files::open(path, expected.bytes).map_err(io_at(path))?;
    let mut from = Frames { path, from: BufReader::new(file), at: 0, start: 0, crc: 0 };
    let (mut taking, mut staged) = (Taking::new(expected.max), None);
    let mut payload = Vec::new();
    loop {
        let Some(head) = from.next(&mut payload)? else { return Err(from.bad(StateError::Cut)) };
        match head.kind {
            FrameKind::SnapshotBegin => {
                let begin = SnapshotBegin::check(&payload).map_err(|e| from.bad(e.into()))?;
                let (at, base) = (begin.point.at, begin.point.base);
                if (at, base) != (expected.at, expected.base) {
                    return Err(BackupError::OtherLog { path: path.into() });
                }
                taking.on_begin(&begin, Lsn::ZERO).map_err(|e| from.bad(e.into()))?;
                let info = SnapshotInfo { shard, at, next_seq: base.seq, total_bytes: begin.total };
                staged = Some((store.stage(&info).map_err(embedder)?, info));
            }
            FrameKind::SnapshotChunk => {
                taking.on_chunk(head.arg, &payload).map_err(|e| from.bad(e.into()))?;
                let (stage, _) = staged.as_mut().expect("no chunk is taken before it has begun");
                stage.chunk(&payload).map_err(embedder)?;
            }
            FrameKind::SnapshotEnd => {
                let end = SnapshotEnd::check(&payload).map_err(|e| from.bad(e.into()))?;
                taking.on_end(&end, Lsn(head.arg)).map_err(|e| from.bad(e.into()))?;
                break;
            }
            other => return Err(from.bad(StateError::Kind(other))),
        }
    }
    if from.next(&mut payload)?.is_some() {
        return Err(from.bad(StateError::More));
    }
    if from.crc != expected.crc {
        return Err(BackupError::Crc { path: path.into() });
    }
    Ok(staged.expect("no end is taken before it has begun"))
}

/// Reads frames, counts and sums up.
struct Frames<'a> {
    path: &'a Path,
    from: BufReader<File>,
    /// Where it is, and where the frame that was read last starts.
    at: u64,
    start: u64,
    crc: u32,
}

impl Frames<'_> {
    fn bad(&self, source: StateError) -> BackupError {
        BackupError::State { path: self.path.into(), offset: self.start, source }
    }

    /// The next one; none at the end of the file. No more memory is taken than its kind may have.
    fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<FrameHead>, BackupError> {
        self.start = self.at;
        let mut header = [0; frame::HEADER];
        if self.from.by_ref().take(1).read(&mut header).map_err(io_at(self.path))? == 0 {
            return Ok(None);
        }
        self.fill(&mut header, 1)?;
        let head = FrameHead::check(&header).map_err(|e| self.bad(e.into()))?;
        if !matches!(head.kind, FrameKind::SnapshotBegin | FrameKind::SnapshotChunk | FrameKind::SnapshotEnd) {
            return Err(self.bad(StateError::Kind(head.kind)));
        }
        payload.resize(head.len, 0);
        self.fill(payload, 0)?;
        head.check_payload(payload).map_err(|e| self.bad(e.into()))?;
        Ok(Some(head))
    }

    fn fill(&mut self, out: &mut [u8], have: usize) -> Result<(), BackupError> {
        match self.from.read_exact(&mut out[have..]) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(self.bad(StateError::Cut)),
            other => other.map_err(io_at(self.path))?,
        }
        self.at += out.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, out);
        Ok(())
    }
}
