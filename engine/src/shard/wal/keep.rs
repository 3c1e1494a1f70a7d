//! Keeping a slice in order beside the commit path: segments ready ahead of the log's end, old ones
//! used again, the superblock's floor not too far behind. Everything that blocks runs on a
//! worker thread.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use towline_wire::Lsn;

use super::direct;
use super::error::OpenError;
use super::folder;
use super::installing;
use super::live::LiveSegments;
use super::superblock_file::{OwnedSuperblock, SuperblockFile};
use crate::limits;
use crate::rt;
use crate::rt::disk;
use crate::rt::worker::Worker;
use crate::shard::Shard;

/// The superblock of a live shard: changed in memory first, then on the device, in order.
#[derive(Debug)]
pub(crate) struct LiveSuperblock {
    current: RefCell<OwnedSuperblock>,
    file: Arc<Mutex<SuperblockFile>>,
    worker: Worker,
}

impl LiveSuperblock {
    pub(crate) fn new(current: OwnedSuperblock, file: SuperblockFile, worker: Worker) -> Rc<Self> {
        Rc::new(Self { current: RefCell::new(current), file: Arc::new(Mutex::new(file)), worker })
    }

    /// What it says now.
    pub(crate) fn current(&self) -> OwnedSuperblock {
        self.current.borrow().clone()
    }

    /// Changes it; the change is on the device when this returns. Changes go in the order of calls.
    pub(crate) async fn persist(&self, change: impl FnOnce(&mut OwnedSuperblock)) -> Result<(), OpenError> {
        let mut next = {
            let mut current = self.current.borrow_mut();
            change(&mut current);
            current.clone()
        };
        let file = self.file.clone();
        self.worker.call(move || file.lock().unwrap_or_else(PoisonError::into_inner).write(&mut next)).await?
    }

    /// Takes over where a shard's log stands: its floor, what is committed, where terms began.
    pub(crate) async fn persist_floor(&self, shard: &Shard) -> Result<(), OpenError> {
        let (floor, commit, history) = shard.floor();
        self.persist(|s| {
            s.floor_lsn = floor.max(s.oldest_lsn);
            s.commit_lsn = commit;
            s.history = history;
            s.slots = shard.slot_entries();
        })
        .await
    }
}

/// The keeper of one shard.
pub(crate) struct Keeper {
    pub(crate) shard: Rc<Shard>,
    pub(crate) superblock: Rc<LiveSuperblock>,
    /// Zero-fills and renames.
    pub(crate) filler: Worker,
    /// Files that may be used again.
    pub(crate) spare: Vec<PathBuf>,
    /// A log that was set aside may go once this one has caught up.
    pub(crate) replaced: bool,
}

impl Keeper {
    /// Runs until the shard stops; an error stops it.
    pub(crate) async fn run(mut self) {
        let prefill_end = Lsn(self.shard.segments.end().0.max(
            (self.shard.inner.borrow().pipeline.appended().0 + self.shard.config.prefill_bytes)
                .next_multiple_of(self.shard.config.segment_bytes),
        ));
        loop {
            let seen = self.shard.keep.seen();
            if self.shard.is_stopped() {
                return;
            }
            let round = self.round(prefill_end).await;
            let was_full = self.shard.disk_full.replace(matches!(round, Err(OpenError::DiskFull { .. })));
            if was_full && round.is_ok() {
                tracing::info!(shard = self.shard.id.0, "there is space on the disk again");
            }
            if let Err(e @ OpenError::DiskFull { .. }) = &round {
                // Nothing that was acknowledged is in danger: appends are refused until there is
                // space again.
                if !was_full {
                    tracing::error!(shard = self.shard.id.0, "{e}: appends are refused until there is space");
                }
                self.shard.room.notify();
                rt::sleep(limits::DISK_FULL_RETRY).await;
                continue;
            }
            if let Err(e) = round {
                tracing::error!(shard = self.shard.id.0, "the shard stops: {e}");
                self.shard.stop(&e.to_string());
                return;
            }
            if self.shard.log_full.get() {
                let _ = rt::timeout(limits::CAP_RETRY, self.shard.keep.since(seen)).await;
            } else {
                self.shard.keep.since(seen).await;
            }
        }
    }

    /// The log may have another segment, or not: says so when that changes.
    fn say_full(&self, full: bool) {
        if full == self.shard.log_full.replace(full) {
            return;
        }
        if full {
            self.shard.count(|c| c.log_full += 1);
            tracing::error!(
                shard = self.shard.id.0,
                "the log that is not committed fills the retention cap: appends are refused until replicas are back"
            );
        } else {
            tracing::info!(shard = self.shard.id.0, "the log may grow again");
        }
        self.shard.room.notify();
    }

    /// Moves the floor up to what is durable, and slots to where they are.
    async fn persist_floor(&self) -> Result<(), OpenError> {
        if self.shard.cutting.get() {
            return Ok(());
        }
        let (floor, commit, _) = self.shard.floor();
        let now = self.superblock.current();
        if now.floor_lsn == floor && now.commit_lsn == commit && now.slots == self.shard.slot_entries() {
            return Ok(());
        }
        self.shard.count(|c| c.superblock_writes += 1);
        self.superblock.persist_floor(&self.shard).await
    }

    async fn round(&mut self, prefill_end: Lsn) -> Result<(), OpenError> {
        if let Some(b) = self.shard.begin.get() {
            self.begin(b).await?;
            self.shard.begin.set(None);
            self.shard.moved.notify();
        }
        if self.shard.not_installed.take() {
            let shard_folder = folder::shard_of(self.shard.segments.folder());
            self.filler.call(move || installing::remove(&shard_folder)).await??;
        }
        self.remove_replaced().await?;
        self.shard.expire_slots();
        self.shard.expire_producer();
        self.persist_floor().await?;
        let mut full = false;
        loop {
            let config = &self.shard.config;
            let wanted = {
                let inner = self.shard.inner.borrow();
                let open = inner.open.as_ref().map_or(0, |o| o.disk_len() as u64);
                let open = open.max(self.shard.arriving.get());
                let ahead = inner.pipeline.appended().0 + open + config.segments_ahead * config.segment_bytes;
                Lsn(ahead).max(prefill_end)
            };
            if self.shard.segments.end() >= wanted || self.shard.is_stopped() {
                break;
            }
            if self.spare.is_empty() || self.shard.is_over_cap() {
                self.trim().await?;
            }
            full = !self.shard.may_grow();
            if full {
                break;
            }
            self.add_segment().await?;
        }
        self.say_full(full);
        self.trim().await?;
        self.remove_spares().await
    }

    /// Gives back the space of spare files beyond those that the next segments are made of.
    async fn remove_spares(&mut self) -> Result<(), OpenError> {
        let keep = self.shard.config.segments_ahead as usize + limits::SPARE_SEGMENTS;
        if self.spare.len() <= keep {
            return Ok(());
        }
        let extra: Vec<_> = self.spare.drain(keep..).collect();
        let folder = self.shard.segments.folder().to_path_buf();
        let removed = self.filler.call({
            let folder = folder.clone();
            move || {
                for path in extra {
                    match disk::remove(&path) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                        _ => {}
                    }
                }
                disk::sync_folder(&folder)
            }
        });
        removed.await?.map_err(OpenError::io("removing spare segments of", folder))
    }

    /// Makes the segment that follows the last one, from a spare file if there is one.
    async fn add_segment(&mut self) -> Result<(), OpenError> {
        let segments = &self.shard.segments;
        let path = folder::segment_path(segments.folder(), segments.end());
        let (folder, bytes) = (segments.folder().to_path_buf(), self.shard.config.segment_bytes);
        let spare = self.spare.pop();
        let recycled = spare.is_some();
        let target = path.clone();
        let made = self.filler.call(move || make_segment(&folder, &target, spare, bytes)).await?;
        let added = match made {
            Ok(()) => segments.push().await.map_err(OpenError::io("opening segment", &path)),
            Err(e) => Err(OpenError::io("making segment", &path)(e)),
        };
        // Files that are open stay in a folder that is moved away, and the new one would go to the
        // folder in its place: no log would be whole. This is also the better word for what failed.
        let (folder, identity) = (segments.folder().to_path_buf(), segments.identity());
        let elsewhere = OpenError::io("making a segment in", segments.folder());
        if let Err(e) = added {
            // At once: a thread's job could take its time, and nothing may be acknowledged meanwhile.
            return Err(LiveSegments::same_folder(&folder, identity).map_or_else(elsewhere, |()| e));
        }
        let same = self.filler.call(move || LiveSegments::same_folder(&folder, identity)).await?;
        same.map_err(elsewhere)?;
        self.shard.count(|c| if recycled { c.segments_recycled += 1 } else { c.segments_zeroed += 1 });
        self.shard.work.notify();
        // A replica waits for segments here too.
        self.shard.room.notify();
        Ok(())
    }
}

/// Blocking: a segment file under its final name, whole and durable with its name.
fn make_segment(
    folder: &std::path::Path,
    target: &std::path::Path,
    spare: Option<PathBuf>,
    bytes: u64,
) -> io::Result<()> {
    if let Some(spare) = spare {
        disk::rename(&spare, target)?;
    } else {
        let making = target.with_extension("tmp");
        let _ = disk::remove(&making);
        let fill = || -> io::Result<()> {
            let file = direct::open(&making, true, false)?;
            direct::write_zeros(&file, 0, bytes)?;
            file.sync_all()
        };
        if let Err(e) = fill() {
            // Half a segment is of no use and holds space that somebody may be waiting for.
            let _ = disk::remove(&making);
            return Err(e);
        }
        disk::rename(&making, target)?;
    }
    if canary!(SegmentNameNotSynced) { Ok(()) } else { disk::sync_folder(folder) }
}
