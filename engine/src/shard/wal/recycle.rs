//! Letting go of old log: what may go is decided in [`crate::protocol::retention`]; here it is carried
//! out, durable first in the superblock, then as files.

use towline_wire::{BLOCK, BatchHeader, Lsn};

use super::error::OpenError;
use super::folder;
use super::keep::Keeper;
use crate::limits;
use crate::shard::Role;

impl Keeper {
    /// Writes down which slots there are, and which were lost.
    async fn persist_slots(&self) -> Result<(), OpenError> {
        self.shard.count(|c| c.superblock_writes += 1);
        self.superblock.persist(|s| s.slots = self.shard.slot_entries()).await
    }

    /// Lets go of segments that nobody needs: durable first in the superblock, then as spare files.
    pub(super) async fn trim(&mut self) -> Result<(), OpenError> {
        let segment_bytes = self.shard.config.segment_bytes;
        if self.shard.cutting.get() {
            return Ok(());
        }
        let target = self.shard.recycle();
        let lost = self.shard.tell_lost();
        if lost {
            // Before anything goes that they held: the next start must know.
            self.persist_slots().await?;
        }
        let mut keep_from = Lsn(target.0 - target.0 % segment_bytes);
        let mut upto = target;
        let boundary = loop {
            if keep_from <= self.shard.segments.first() {
                return Ok(());
            }
            if let Some(boundary) = self.first_batch_from(keep_from, upto).await? {
                break boundary;
            }
            // One batch fills it all: the segment before may go as far as it has one that begins there.
            upto = Lsn(keep_from.0 - BLOCK as u64);
            keep_from = Lsn(keep_from.0 - segment_bytes);
        };
        let now = self.shard.recyclable();
        if !now.lost.is_empty() || boundary > now.below {
            // A link has begun further back meanwhile, or a slot was made.
            return Ok(());
        }
        {
            let inner = &mut *self.shard.inner.borrow_mut();
            inner.oldest = boundary;
            match &mut inner.role {
                Role::Primary(p) => p.history.trim(boundary),
                Role::Replica(r) => r.history.trim(boundary),
            }
        }
        let commit = self.shard.committed();
        if !canary!(TrimNotRemembered) {
            self.superblock
                .persist(|s| {
                    (s.oldest_lsn, s.base) = (boundary, None);
                    s.slots = self.shard.slot_entries();
                    s.commit_lsn = commit;
                    s.floor_lsn = s.floor_lsn.max(boundary);
                })
                .await?;
        }
        while self.shard.segments.first() < keep_from {
            self.spare.push(folder::segment_path(self.shard.segments.folder(), self.shard.segments.first()));
            self.shard.segments.pop();
        }
        Ok(())
    }

    /// The first batch that starts at or after `from`, the start of a segment, and at or below
    /// `target`.
    async fn first_batch_from(&self, from: Lsn, target: Lsn) -> Result<Option<Lsn>, OpenError> {
        let (system, shard) = (self.shard.inner.borrow().system, self.shard.id);
        let mut at = from;
        while at <= target {
            let path = folder::segment_path(self.shard.segments.folder(), from);
            let read = self.shard.segments.read(at, limits::READ_CHUNK_BYTES).await;
            let read = read.map_err(OpenError::io("reading segment", &path))?;
            if read.len() < BLOCK {
                let ends = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(OpenError::io("reading segment", &path)(ends));
            }
            for block in read.chunks_exact(BLOCK) {
                let h = BatchHeader::check(block).ok();
                if h.is_some_and(|h| h.lsn() == at && h.system() == system && h.shard() == shard) {
                    return Ok((at <= target).then_some(at));
                }
                at = Lsn(at.0 + BLOCK as u64);
            }
        }
        Ok(None)
    }
}
