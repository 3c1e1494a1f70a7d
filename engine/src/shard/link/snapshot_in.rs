//! A replica takes a snapshot: stages what comes, on a thread that may block, has it installed, and then
//! has its log begin where the snapshot stands.

use std::cell::RefCell;
use std::rc::Rc;

use towline_wire::Lsn;
use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::message::{ErrorCode, Goodbye, Heartbeat, SNAPSHOT_ALIVE, SnapshotBegin, SnapshotEnd};

use super::conn::Conn;
use super::frames::{self, LinkError};
use super::from_primary::{Ended, Follower, closed, read_error, watch_idle};
use crate::limits;
use crate::oneshot;
use crate::protocol::replica::Beginning;
use crate::protocol::snapshot::{Begun, SnapshotViolation, Taking};
use crate::rt;
use crate::shard::TakingShown;
use crate::shard::wal::error::OpenError;
use crate::shard::wal::{folder, installing};
use crate::snapshot::{SnapshotInfo, Stage};

/// What a replica has of a snapshot, over as many links as it takes.
pub(crate) struct Incoming {
    taking: RefCell<Taking>,
    stage: RefCell<Option<Box<dyn Stage>>>,
}

impl Incoming {
    /// Nothing yet, of one of at most so many bytes.
    pub(crate) fn new(max: u64) -> Self {
        Self { taking: RefCell::new(Taking::new(max)), stage: RefCell::default() }
    }
}

/// What comes on the link, and what is to become of the old log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) term: towline_wire::Term,
    pub(super) known: bool,
}

impl Follower {
    /// Takes a snapshot on a link on which the primary has offered one.
    pub(super) async fn take_snapshot(&self, conn: &Rc<Conn>, taken: Taken) -> Result<Ended, LinkError> {
        self.shard.watermark.set_stale(true);
        *self.shard.link.borrow_mut() = format!("taking a snapshot from {}", self.primary);
        let request = self.incoming.taking.borrow_mut().request();
        frames::send(conn, FrameKind::SnapshotRequest, 0, 0, &request.to_bytes()).await?;
        let watching = rt::spawn_scoped(watch_idle(conn.clone()));
        let went = self.take_frames(conn, taken).await;
        drop(watching);
        self.shard.count_traffic(conn);
        if let Err(e) = &went {
            e.end(conn).await;
        }
        match went {
            Ok(()) => {
                let _ = frames::send(conn, FrameKind::Goodbye, 0, Goodbye::Done as u64, &[]).await;
                Ok(Ended::Cut)
            }
            // What has come so far is not asked for again: the next link may begin at once.
            Err(e @ (LinkError::Closed | LinkError::Io(_))) if self.incoming.taking.borrow().progress().is_some() => {
                Ok(Ended::Streamed(e))
            }
            Err(e) => Err(e),
        }
    }

    async fn take_frames(&self, conn: &Rc<Conn>, taken: Taken) -> Result<(), LinkError> {
        let mut bytes = Vec::new();
        loop {
            let mut header = [0; frame::HEADER];
            conn.receive_all(&mut header, &mut []).await.map_err(closed)?;
            let head = FrameHead::check(&header)?;
            if head.kind == FrameKind::Error {
                return Err(read_error(conn, &head).await?);
            }
            let max = match head.kind {
                FrameKind::SnapshotBegin | FrameKind::SnapshotChunk | FrameKind::SnapshotEnd => head.kind.payload_max(),
                FrameKind::Heartbeat => head.kind.payload_max(),
                FrameKind::Goodbye => return Err(LinkError::Closed),
                other => return Err(LinkError::OutOfPlace(other)),
            };
            assert!(head.len <= max, "a frame's length was checked against its kind's cap");
            bytes.resize(head.len, 0);
            conn.receive_all(&mut bytes, &mut []).await.map_err(closed)?;
            head.check_payload(&bytes)?;
            match head.kind {
                FrameKind::SnapshotBegin => self.on_begin(conn, &SnapshotBegin::check(&bytes)?).await?,
                FrameKind::SnapshotChunk => bytes = self.on_chunk(conn, head.arg, bytes).await?,
                FrameKind::SnapshotEnd => {
                    return self.on_end(conn, &SnapshotEnd::check(&bytes)?, Lsn(head.arg), taken).await;
                }
                _ => {
                    Heartbeat::check(&bytes)?;
                    self.live(conn).await?;
                    continue;
                }
            }
            self.ack(conn).await?;
            rt::yield_if_needed().await;
        }
    }

    /// Says what is staged.
    async fn ack(&self, conn: &Conn) -> Result<(), LinkError> {
        let progress = self.incoming.taking.borrow().progress();
        if let Some((done, total)) = progress {
            let (from, since_ns) =
                self.shard.taking.get().map_or_else(|| (done, rt::now_ns()), |t| (t.from, t.since_ns));
            self.shard.taking.set(Some(TakingShown { from, done, total, since_ns }));
            frames::send(conn, FrameKind::SnapshotAck, 0, done, &[]).await?;
        }
        Ok(())
    }

    /// Says that this end lives, and nothing else.
    async fn live(&self, conn: &Conn) -> Result<(), LinkError> {
        Ok(frames::send(conn, FrameKind::SnapshotAck, 0, SNAPSHOT_ALIVE, &[]).await?)
    }

    async fn on_begin(&self, conn: &Conn, begin: &SnapshotBegin) -> Result<(), LinkError> {
        let end = self.shard.durable();
        let begun = self.incoming.taking.borrow_mut().on_begin(begin, end);
        match begun {
            Err(violation) => Err(self.refuse(conn, violation).await),
            Ok(Begun::GoesOn) => {
                self.shard.count(|c| c.snapshots_resumed += 1);
                self.shard.taking.set(None);
                tracing::info!(shard = self.shard.id.0, offset = begin.offset, "the snapshot goes on");
                Ok(())
            }
            Ok(Begun::Anew) => {
                self.drop_stage();
                self.shard.taking.set(None);
                let info = SnapshotInfo {
                    shard: self.shard.id,
                    at: begin.point.at,
                    next_seq: begin.point.base.seq,
                    total_bytes: begin.total,
                };
                tracing::info!(shard = self.shard.id.0, at = info.at.0, bytes = ?info.total_bytes, "taking a snapshot");
                let store = self.shard.config.snapshot.clone().expect("the hello said so");
                let staged = self.patiently(conn, self.worker().call(move || store.0.stage(&info))).await?;
                match staged {
                    Ok(stage) => *self.incoming.stage.borrow_mut() = Some(stage),
                    Err(e) => return Err(self.give_up(&format!("a snapshot cannot be staged: {e}"))),
                }
                Ok(())
            }
        }
    }

    /// Stages a chunk; gives the buffer back.
    async fn on_chunk(&self, conn: &Conn, offset: u64, bytes: Vec<u8>) -> Result<Vec<u8>, LinkError> {
        let fits = self.incoming.taking.borrow_mut().on_chunk(offset, &bytes);
        if let Err(violation) = fits {
            return Err(self.refuse(conn, violation).await);
        }
        let Some(mut stage) = self.incoming.stage.borrow_mut().take() else {
            return Err(self.give_up("nothing is staged"));
        };
        let staging = self.worker().call(move || {
            let staged = stage.chunk(&bytes);
            (staged, stage, bytes)
        });
        let (staged, stage, bytes) = self.patiently(conn, staging).await?;
        *self.incoming.stage.borrow_mut() = Some(stage);
        self.shard.count(|c| c.snapshot_bytes += bytes.len() as u64);
        staged.map_err(|e| self.give_up(&format!("a snapshot cannot be staged: {e}")))?;
        Ok(bytes)
    }

    /// The manifest: if all is there, the state is installed, and then the log begins.
    async fn on_end(&self, conn: &Conn, end: &SnapshotEnd, commit: Lsn, taken: Taken) -> Result<(), LinkError> {
        let whole = self.incoming.taking.borrow_mut().on_end(end, commit);
        let point = match whole {
            Ok(point) => point,
            Err(violation) => return Err(self.refuse(conn, violation).await),
        };
        let Some(stage) = self.incoming.stage.borrow_mut().take() else {
            return Err(self.give_up("nothing is staged"));
        };
        let Taken { term, known } = taken;
        let beginning = Beginning { at: point.at, base: point.base, term, known };
        self.note(conn, beginning).await?;
        // The handler is given nothing from now on, and the superblock stays what it is.
        self.shard.cutting.set(true);
        let installed = self.patiently(conn, self.worker().call(move || stage.finish())).await?;
        self.must(installed.map_err(|e| format!("installing a snapshot: {e}")))?;
        tracing::warn!(
            shard = self.shard.id.0,
            at = point.at.0,
            bytes = end.total,
            "a snapshot is installed: it replaces the state that was here"
        );
        self.shard.installed.set(true);
        self.begin(beginning).await?;
        self.shard.count(|c| c.snapshots_installed += 1);
        self.shard.taking.set(None);
        self.shard.watermark.set_stale(false);
        Ok(())
    }

    /// Notes where the log is to begin, for a start after a crash between the state and the log.
    async fn note(&self, conn: &Conn, beginning: Beginning) -> Result<(), LinkError> {
        let (folder, now) = (folder::shard_of(self.shard.segments.folder()), self.superblock.current());
        // What the process before noted may not be removed yet: not this one in its place.
        self.shard.not_installed.set(false);
        let noting = self.filler.call(move || installing::note(&folder, now, &beginning));
        match self.patiently(conn, noting).await? {
            Err(e @ OpenError::DiskFull { .. }) => Err(self.give_up(&format!("a snapshot cannot be installed: {e}"))),
            noted => self.must(noted),
        }
    }

    /// What the primary sends cannot be right: it is told, and nothing of it is kept.
    async fn refuse(&self, conn: &Conn, violation: SnapshotViolation) -> LinkError {
        let text = violation.to_string();
        frames::send_error(conn, ErrorCode::BadSnapshot, 0, &text).await;
        self.give_up(&format!("the primary sent a bad snapshot: {text}"))
    }

    fn give_up(&self, why: &str) -> LinkError {
        self.forget();
        LinkError::Refused(why.into())
    }

    fn forget(&self) {
        self.incoming.taking.borrow_mut().give_up();
        self.drop_stage();
        self.shard.taking.set(None);
    }

    /// The log goes on after all, as with another primary that keeps more of it.
    pub(super) fn needs_no_snapshot(&self) {
        self.forget();
        self.shard.watermark.set_stale(false);
    }

    /// The embedder's part may block while it is dropped.
    fn drop_stage(&self) {
        if let Some(stage) = self.incoming.stage.borrow_mut().take() {
            drop(self.worker().call(move || drop(stage)));
        }
    }

    fn worker(&self) -> &rt::worker::Worker {
        self.shard.snapshotter.get().expect("a replica that takes snapshots has a thread for it")
    }

    /// Waits for the embedder, to the end, and says meanwhile that this end lives.
    async fn patiently<T>(&self, conn: &Conn, mut job: oneshot::Receiver<T>) -> Result<T, LinkError> {
        loop {
            if let Some(done) = rt::timeout(limits::HEARTBEAT, &mut job).await {
                return done.map_err(|gone| LinkError::Stopped(gone.to_string()));
            }
            // If the link has ended, what comes next on it finds out.
            let _ = self.live(conn).await;
        }
    }
}
