//! A replica's log begins anew, further on than it ended: carried out by the keeper, so that no
//! segment is made meanwhile.

use super::error::OpenError;
use super::folder;
use super::installing;
use super::keep::Keeper;
use super::replaced;
use crate::protocol::replica::Beginning;
use crate::shard::Shard;

impl Shard {
    /// Has the keeper begin the log anew, and waits for that; the handler is given nothing meanwhile.
    ///
    /// # Errors
    /// Why the shard has stopped.
    pub(crate) async fn begin_anew(&self, b: Beginning) -> Result<(), String> {
        self.cutting.set(true);
        self.begin.set(Some(b));
        self.keep.notify();
        let begun = self.wait_until(|shard| shard.begin.get().is_none() && shard.durable() == b.at).await;
        self.cutting.set(false);
        self.moved.notify();
        begun
    }

    /// Waits for something that is told by `moved`.
    ///
    /// # Errors
    /// Why the shard has stopped.
    pub(crate) async fn wait_until(&self, is: impl Fn(&Self) -> bool) -> Result<(), String> {
        loop {
            let seen = self.moved.seen();
            if let Some(why) = self.stopped() {
                return Err(why);
            }
            if is(self) {
                return Ok(());
            }
            self.moved.since(seen).await;
        }
    }
}

impl Keeper {
    /// Sets the slice up at a new beginning: the old log aside, then the superblock, then what is in
    /// memory. A crash before the superblock is written leaves the old log, one after it the new one.
    pub(super) async fn begin(&mut self, b: Beginning) -> Result<(), OpenError> {
        let shard = &self.shard;
        let bytes = shard.config.segment_bytes;
        let shard_folder = folder::shard_of(shard.segments.folder());
        let (was_empty, oldest, end) = {
            let inner = &mut *shard.inner.borrow_mut();
            (inner.replica().is_empty(), inner.oldest, inner.pipeline.durable())
        };
        let (folder, known) = (shard_folder.clone(), b.known);
        let aside = !was_empty && self.filler.call(move || replaced::make_room(&folder, known)).await??;
        if aside {
            // Writes of the superblock that wait for their turn come first: the copy of it that is made now
            // must be the one that is in force until the new log is. None begins from now on.
            self.superblock.persist(|_| ()).await?;
            let folder = shard_folder.clone();
            self.filler.call(move || replaced::set_aside(&folder, oldest, end, bytes, known)).await??;
            self.spare.clear();
        }
        shard.count(|c| c.superblock_writes += 1);
        // Slots first: none says that it holds what this log will not have.
        shard.inner.borrow_mut().replica().about_to_begin(b.at);
        self.superblock
            .persist(|s| {
                s.slots = shard.slot_entries();
                installing::begin(s, &b);
            })
            .await?;
        let folder = shard_folder.clone();
        self.filler.call(move || installing::remove(&folder)).await??;
        if aside {
            let folder = shard_folder.clone();
            self.filler.call(move || replaced::settle(&folder)).await??;
        }
        self.replaced = replaced::may_go(&shard_folder);
        let left = shard.segments.begin(b.at, aside);
        self.spare.extend(left.into_iter().map(|start| folder::segment_path(shard.segments.folder(), start)));
        {
            let inner = &mut *shard.inner.borrow_mut();
            inner.replica().on_begin(&b);
            inner.pipeline.begin(b.at);
            inner.ring.clear();
            (inner.chain, inner.next_seq, inner.oldest) = (b.base.chain, b.base.seq, b.at);
        }
        shard.cuts.set(shard.cuts.get() + 1);
        shard.begun.set(Some((b.at, b.base.seq)));
        shard.publish_commit();
        tracing::warn!(shard = shard.id.0, at = b.at.0, old_end = end.0, "the log begins anew further on");
        Ok(())
    }

    /// The log that was set aside goes once the new one has come as far as the primary's was.
    pub(super) async fn remove_replaced(&mut self) -> Result<(), OpenError> {
        let caught_up = self.shard.inner.borrow().replica_if_any().is_some_and(|r| r.is_caught_up());
        if self.replaced && caught_up {
            let shard_folder = folder::shard_of(self.shard.segments.folder());
            self.filler.call(move || replaced::remove(&shard_folder)).await??;
            self.replaced = false;
            tracing::info!(shard = self.shard.id.0, "the new log has caught up: the one that was set aside is removed");
        }
        Ok(())
    }
}
