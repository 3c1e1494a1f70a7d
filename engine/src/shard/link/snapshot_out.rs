//! The primary's end of a link that carries a snapshot: has the embedder make it, on a thread that may
//! block, and sends what [`crate::protocol::snapshot`] says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use towline_wire::frame::{self, FLAG_REPLY_NOW, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Verdict};
use towline_wire::message::{Goodbye, SNAPSHOT_ALIVE, SnapshotId, SnapshotPoint, SnapshotRequest};
use towline_wire::superblock::Base;
use towline_wire::{Lsn, batch};

use super::conn::Conn;
use super::frames::{self, FrameReader, LinkError};
use super::to_replica::{heartbeat, refusal_text, send_welcome};
use crate::limits;
use crate::oneshot;
use crate::protocol::pace::Pace;
use crate::protocol::snapshot::{Next, Sending};
use crate::rt;
use crate::rt::worker::Worker;
use crate::shard::Shard;
use crate::shard::wal::cursor::base_at;
use crate::snapshot::{Chunks, Snapshots};

/// A snapshot of a shard that is being made: one at a time.
pub(crate) struct Producing {
    /// For whom.
    pub(crate) name: NodeName,
    /// The link that sends it, or since when none does.
    link: Result<u64, u64>,
    /// Once the producer has said where it stands.
    pub(crate) sending: Option<Sending>,
    /// The rest of it, unless the next chunk is just being made.
    chunks: Option<Chunks>,
    /// When it began, in nanoseconds of the shard's clock.
    pub(crate) began_ns: u64,
}

impl std::fmt::Debug for Producing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Producing(for {}, {:?})", self.name, self.sending)
    }
}

impl Producing {
    /// Whether a link sends it.
    pub(crate) fn is_sent_by(&self, link: u64) -> bool {
        self.link == Ok(link)
    }

    fn is_over(&self, now_ns: u64) -> bool {
        self.link.is_err_and(|since| now_ns.saturating_sub(since) >= limits::SNAPSHOT_PAUSE_MAX.as_nanos() as u64)
    }
}

impl Shard {
    /// Whether a snapshot may be made for a replica now: none is for another one.
    pub(crate) fn may_produce_for(&self, name: NodeName) -> bool {
        let now = rt::now_ns();
        self.producing.borrow().as_ref().is_none_or(|p| p.name == name || p.is_over(now))
    }

    /// A snapshot whose replica has not come back ends.
    pub(crate) fn expire_producer(&self) {
        let now = rt::now_ns();
        if self.producing.borrow().as_ref().is_some_and(|p| p.is_over(now)) {
            self.end_producer("its replica has not come back");
        }
    }

    /// A replica follows, so it has what was made for it, although its word of that may have been lost, or
    /// needs it no more: others need not wait until it is given up.
    pub(crate) fn follows(&self, name: NodeName) {
        if self.producing.borrow().as_ref().is_some_and(|p| p.name == name) {
            self.end_producer("the replica follows");
        }
    }

    /// The embedder's part of it may block while it is dropped.
    fn end_producer(&self, why: &str) {
        let Some(producing) = self.producing.take() else { return };
        tracing::info!(shard = self.id.0, replica = %producing.name, "the snapshot ends: {why}");
        if let (Some(chunks), Some(worker)) = (producing.chunks, self.snapshotter.get()) {
            drop(worker.call(move || drop(chunks)));
        }
    }
}

/// Serves a replica that was told to take a snapshot.
pub(super) async fn serve(
    shard: &Rc<Shard>,
    conn: &Rc<Conn>,
    hello: &Hello,
    verdict: Verdict,
) -> Result<(), LinkError> {
    let number = shard.number_link();
    let staged = {
        let inner = &mut *shard.inner.borrow_mut();
        let primary = inner.primary();
        match primary.slots().of(hello.name) {
            None => Err(Refusal::UnknownReplica),
            Some(slot) => primary.stage(slot, number, hello.process, rt::now_ns()).map(|()| slot),
        }
    };
    let slot = match staged {
        Ok(slot) => slot,
        Err(cause) => return send_welcome(shard, conn, Verdict::Refused(cause), Some(hello)).await,
    };
    // A link that it replaces ends.
    shard.moved.notify();
    let (Some(store), Some(worker)) = (shard.config.snapshot.clone(), shard.snapshotter.get().cloned()) else {
        unreachable!("without them no snapshot is offered")
    };
    let link = Rc::new(Link {
        shard: shard.clone(),
        conn: conn.clone(),
        name: hello.name,
        slot,
        number,
        store,
        worker,
        over: RefCell::default(),
        done: Cell::new(false),
    });
    let served = link.run(verdict, hello).await;
    link.let_go();
    served
}

struct Link {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    name: NodeName,
    slot: usize,
    number: u64,
    store: Snapshots,
    worker: Worker,
    /// Why the replica's part of the link has ended.
    over: RefCell<Option<LinkError>>,
    /// The replica has installed it.
    done: Cell<bool>,
}

impl Link {
    async fn run(self: &Rc<Self>, verdict: Verdict, hello: &Hello) -> Result<(), LinkError> {
        send_welcome(&self.shard, &self.conn, verdict, Some(hello)).await?;
        let mut reader = FrameReader::new(self.conn.clone(), batch::HEADER.max(2048));
        let asked = rt::timeout(limits::HANDSHAKE_TIMEOUT, read_request(&mut reader)).await;
        let request = asked.unwrap_or(Err(LinkError::Idle))?;
        let reading = rt::spawn_scoped({
            let link = self.clone();
            async move {
                let over = link.read_acks(reader).await;
                link.done.set(over.is_ok());
                link.over.replace(Some(over.err().unwrap_or(LinkError::Closed)));
                link.shard.moved.notify();
            }
        });
        let sent = self.send(&request).await;
        drop(reading);
        if self.done.get() {
            self.end_own("the replica has installed it");
            return Ok(());
        }
        sent
    }

    /// The link ends: what is being made waits for the replica.
    fn let_go(&self) {
        let now = rt::now_ns();
        if let Some(p) = self.shard.producing.borrow_mut().as_mut().filter(|p| p.link == Ok(self.number)) {
            p.link = Err(now);
        }
        self.shard.inner.borrow_mut().primary().unstage(self.slot, self.number, now);
        self.shard.moved.notify();
    }

    async fn send(&self, request: &SnapshotRequest) -> Result<(), LinkError> {
        self.claim().await?;
        let oldest = self.shard.inner.borrow().oldest;
        let resumed = self.with(|p| p.sending.as_mut().is_some_and(|s| s.resume(request, oldest)));
        if resumed {
            // The slot may have been made anew meanwhile.
            let at = self.with(|p| p.sending.as_ref().map(|s| s.begin().point.at)).expect("it goes on");
            self.may_go_on_at(at);
            if request.offset > 0 {
                self.shard.count(|c| c.snapshots_resumed += 1);
                tracing::info!(shard = self.shard.id.0, replica = %self.name, offset = request.offset, "the snapshot goes on");
            }
        } else {
            self.end_own("the replica needs another one");
            self.produce().await?;
        }
        let begin = self.with(|p| p.sending.as_ref().map(Sending::begin)).expect("it was made");
        frames::send(&self.conn, FrameKind::SnapshotBegin, 0, 0, &begin.to_bytes()).await?;
        let mut pace = Pace::default();
        loop {
            let seen = self.shard.moved.seen();
            self.tend().await?;
            let now = rt::now_ns();
            pace.cap(self.shard.live.flow.get().catch_up_max);
            let others_live = pace.look(self.shard.inner.borrow().pipeline.appended(), now);
            if pace.pause(now).is_zero() {
                let next = self.with(|p| p.sending.as_mut().and_then(Sending::take_next));
                match next {
                    Some(Next::Chunk { offset, bytes }) => {
                        let header = frame::header(FrameKind::SnapshotChunk, 0, offset, &bytes);
                        let pieces: [&[u8]; 2] = [&header, &bytes];
                        match others_live {
                            true => self.conn.send_politely(&pieces).await?,
                            false => self.conn.send(&pieces).await?,
                        }
                        self.shard.count(|c| c.snapshot_bytes += bytes.len() as u64);
                        pace.sent(bytes.len() as u64, rt::now_ns());
                        rt::yield_if_needed().await;
                        continue;
                    }
                    Some(Next::End(end)) => {
                        let commit = self.shard.committed();
                        frames::send(&self.conn, FrameKind::SnapshotEnd, 0, commit.0, &end.to_bytes()).await?;
                        continue;
                    }
                    None => {}
                }
                if self.with(|p| p.sending.as_ref().is_some_and(Sending::wants_chunk)) {
                    self.make_chunk().await?;
                    continue;
                }
            }
            let pause = pace.pause(rt::now_ns());
            let pause = if pause.is_zero() { limits::HEARTBEAT } else { pause.min(limits::HEARTBEAT) };
            let _ = rt::timeout(pause, self.shard.moved.since(seen)).await;
        }
    }

    /// Takes over what is being made for this replica, or makes place for it.
    async fn claim(&self) -> Result<(), LinkError> {
        loop {
            let seen = self.shard.moved.seen();
            self.tend().await?;
            if !self.shard.may_produce_for(self.name) {
                return Err(LinkError::Rejected(refusal_text(Refusal::Busy).into()));
            }
            self.shard.expire_producer();
            if self.takes_over() {
                return Ok(());
            }
            // The link that it had ends first.
            let _ = rt::timeout(limits::HEARTBEAT, self.shard.moved.since(seen)).await;
        }
    }

    /// Whether what is being made for this replica, or will be, is this link's from now on.
    fn takes_over(&self) -> bool {
        let mut producing = self.shard.producing.borrow_mut();
        let p = producing.get_or_insert_with(|| Producing {
            name: self.name,
            link: Err(0),
            sending: None,
            chunks: None,
            began_ns: rt::now_ns(),
        });
        let is_free = p.link.is_err();
        if is_free {
            p.link = Ok(self.number);
        }
        is_free
    }

    /// What this link has made ends, if it has it still.
    fn end_own(&self, why: &str) {
        let is_own = self.shard.producing.borrow().as_ref().is_some_and(|p| p.link == Ok(self.number));
        if is_own {
            self.shard.end_producer(why);
        }
    }

    /// What is being made, which is this link's.
    fn with<T: Default>(&self, f: impl FnOnce(&mut Producing) -> T) -> T {
        let mut producing = self.shard.producing.borrow_mut();
        producing.as_mut().filter(|p| p.link == Ok(self.number)).map(f).unwrap_or_default()
    }

    /// Has the embedder begin, and finds out where the log goes on behind its state.
    async fn produce(&self) -> Result<(), LinkError> {
        let now = rt::now_ns();
        let producing =
            Producing { name: self.name, link: Ok(self.number), sending: None, chunks: None, began_ns: now };
        *self.shard.producing.borrow_mut() = Some(producing);
        let made = self.make().await;
        if let Err(e) = &made {
            tracing::warn!(shard = self.shard.id.0, replica = %self.name, "no snapshot: {e}");
            self.end_own("it could not begin");
        }
        made
    }

    async fn make(&self) -> Result<(), LinkError> {
        let (store, shard) = (self.store.clone(), self.shard.id);
        let produced = self.patiently(self.worker.call(move || store.0.produce(shard))).await?;
        let produced = produced.map_err(|e| LinkError::Rejected(format!("the primary makes no snapshot: {e}")))?;
        let (at, total) = (produced.at, produced.total_bytes);
        self.with(|p| p.chunks = Some(produced.chunks));
        self.may_go_on_at(at);
        let base = self.base_at(at).await?;
        let mut id = SnapshotId::NONE;
        while id == SnapshotId::NONE {
            rt::random(&mut id.0)?;
        }
        let sending = Sending::new(SnapshotPoint { id, at, base }, total, self.shard.config.snapshot_bytes_max);
        let sending = sending.map_err(|e| LinkError::Rejected(e.to_string()))?;
        self.with(|p| p.sending = Some(sending));
        self.shard.inner.borrow_mut().primary().goes_on_at(self.slot, self.number, at);
        self.shard.count(|c| c.snapshots_made += 1);
        tracing::info!(shard = self.shard.id.0, replica = %self.name, at = at.0, bytes = ?total, "a snapshot is made");
        Ok(())
    }

    /// The slot holds the log behind `at`, as far as it is there.
    fn may_go_on_at(&self, at: Lsn) {
        let inner = &mut *self.shard.inner.borrow_mut();
        let oldest = inner.oldest;
        inner.primary().may_go_on_at(self.slot, self.number, at, oldest);
    }

    /// What came before `at`, once that is committed: no replica may have state that could be taken back.
    async fn base_at(&self, at: Lsn) -> Result<Base, LinkError> {
        loop {
            let seen = self.shard.moved.seen();
            self.tend().await?;
            match base_at(&self.shard, at).await {
                Ok(Some(base)) => return Ok(base),
                Ok(None) => {}
                Err(e) => return Err(LinkError::Rejected(e.to_string())),
            }
            let _ = rt::timeout(limits::HEARTBEAT, self.shard.moved.since(seen)).await;
        }
    }

    /// Has the embedder make the next chunk.
    async fn make_chunk(&self) -> Result<(), LinkError> {
        let Some(mut chunks) = self.with(|p| p.chunks.take()) else {
            return Err(LinkError::Rejected("the snapshot has ended".into()));
        };
        let job = self.worker.call(move || {
            let next = chunks.next();
            (next, chunks)
        });
        // The chunk is kept even if the link has ended meanwhile: the next one goes on with it.
        let (made, link) = self.at_length(job).await;
        let (next, chunks) = made?;
        let next = next.transpose().map_err(|e| format!("the snapshot cannot be made: {e}"));
        let taken = self.with(|p| {
            p.chunks = Some(chunks);
            let sending = p.sending.as_mut()?;
            Some(next.and_then(|chunk| sending.on_chunk(chunk).map_err(|e| e.to_string())))
        });
        if let Some(Err(why)) = taken {
            tracing::error!(shard = self.shard.id.0, replica = %self.name, "{why}");
            self.end_own(&why);
            return Err(LinkError::Rejected(why));
        }
        link
    }

    /// Waits for the embedder, and keeps the link alive; not longer than the link lives.
    async fn patiently<T>(&self, job: oneshot::Receiver<T>) -> Result<T, LinkError> {
        let (made, link) = self.at_length(job).await;
        link?;
        made
    }

    /// The same, to the end of the job. Says also what became of the link.
    async fn at_length<T>(&self, mut job: oneshot::Receiver<T>) -> (Result<T, LinkError>, Result<(), LinkError>) {
        let mut link = Ok(());
        loop {
            if let Some(done) = rt::timeout(limits::HEARTBEAT, &mut job).await {
                return (done.map_err(|gone| LinkError::Stopped(gone.to_string())), link);
            }
            if link.is_ok() {
                link = self.tend().await;
            }
        }
    }

    /// Looks whether the link may go on, and says that this end lives.
    async fn tend(&self) -> Result<(), LinkError> {
        if let Some(why) = self.shard.stopped() {
            let _ = frames::send(&self.conn, FrameKind::Goodbye, 0, Goodbye::Stopping as u64, &[]).await;
            return Err(LinkError::Stopped(why));
        }
        if let Some(over) = self.over.take() {
            // It is asked for again if this comes too late for somebody.
            self.over.replace(Some(LinkError::Closed));
            return Err(over);
        }
        if !self.shard.inner.borrow_mut().primary().slots().is_served_by(self.slot, self.number) {
            let cause = {
                let inner = &mut *self.shard.inner.borrow_mut();
                let slots = inner.primary().slots();
                slots.of(self.name).map_or(Some(Refusal::SlotRemoved), |slot| slots.refusal(slot, 0, rt::now_ns()))
            };
            return Err(match cause.filter(|c| *c != Refusal::SlotInUse) {
                Some(cause) => LinkError::Rejected(refusal_text(cause).into()),
                None => LinkError::Refused("a newer link serves the replica".into()),
            });
        }
        if self.conn.silent_for() > 3 * limits::HEARTBEAT {
            return Err(LinkError::Idle);
        }
        if self.conn.mute_for() >= limits::HEARTBEAT {
            let beat = heartbeat(&self.shard).to_bytes();
            frames::send(&self.conn, FrameKind::Heartbeat, FLAG_REPLY_NOW, 0, &beat).await?;
        }
        self.shard.count_traffic(&self.conn);
        Ok(())
    }

    /// Takes acks until the replica has installed it, or the link ends.
    async fn read_acks(&self, mut reader: FrameReader) -> Result<(), LinkError> {
        loop {
            let Some((head, payload)) = reader.next().await? else { return Err(LinkError::Closed) };
            match head.kind {
                FrameKind::SnapshotAck => {
                    let staged = head.arg != SNAPSHOT_ALIVE;
                    let acked = self.with(|p| p.sending.as_mut().filter(|_| staged).map(|s| s.on_ack(head.arg)));
                    if let Some(Err(e)) = acked {
                        return Err(LinkError::Rejected(e.to_string()));
                    }
                    self.shard.inner.borrow_mut().primary().on_staged(self.slot, self.number, rt::now_ns());
                    self.shard.moved.notify();
                }
                FrameKind::Goodbye if head.arg == Goodbye::Done as u64 => return Ok(()),
                FrameKind::Goodbye => return Err(LinkError::Closed),
                FrameKind::Error => {
                    let (_, text) = towline_wire::message::ErrorHead::check(payload)?;
                    return Err(LinkError::Refused(format!("the replica says: {text}")));
                }
                other => return Err(LinkError::OutOfPlace(other)),
            }
        }
    }
}

async fn read_request(reader: &mut FrameReader) -> Result<SnapshotRequest, LinkError> {
    let Some((head, payload)) = reader.next().await? else { return Err(LinkError::Closed) };
    match head.kind {
        FrameKind::SnapshotRequest => Ok(SnapshotRequest::check(payload)?),
        FrameKind::Goodbye => Err(LinkError::Closed),
        other => Err(LinkError::OutOfPlace(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_waits_for_its_replica_for_so_long_and_not_while_it_is_sent() {
        let max = limits::SNAPSHOT_PAUSE_MAX.as_nanos() as u64;
        let name = NodeName::new("r1").expect("a name");
        let mut p = Producing { name, link: Ok(3), sending: None, chunks: None, began_ns: 0 };
        assert!(!p.is_over(u64::MAX) && p.is_sent_by(3) && !p.is_sent_by(4));
        p.link = Err(5);
        assert!(!p.is_over(4) && !p.is_over(5 + max - 1) && p.is_over(5 + max));
    }
}
