//! What comes on a link that streams: batches, straight into buffers for the device, and the heartbeats between
//! them.

use std::rc::Rc;

use towline_wire::frame::{self, FLAG_ACK_APPLIED, FLAG_ACK_RECEIVED, FLAG_REPLY_NOW, FrameHead, FrameKind};
use towline_wire::handshake::FEATURE_LZ4;
use towline_wire::message::{ErrorCode, Heartbeat, PACKED_HEAD, PackedHead};
use towline_wire::{BatchView, Lsn, batch, round_up_to_block};

use super::acker::Acker;
use super::conn::Conn;
use super::frames::{self, LinkError};
use super::from_primary::{Follower, closed, error_of};
use super::lookahead::Lookahead;
use super::packing;
use crate::limits;
use crate::rt::{self, DmaBuf};
use crate::shard::wal::ring::Batch;

/// A batch on its way in.
struct Incoming {
    buf: DmaBuf,
    /// Bytes that it has, without padding.
    wire_len: usize,
    /// Bytes that it takes in memory.
    memory: u64,
}

impl Follower {
    pub(super) async fn receive(&self, conn: &Rc<Conn>, acker: &Acker, features: u64) -> Result<(), LinkError> {
        let mut ahead = Lookahead::new();
        let mut packed = Vec::new();
        loop {
            let header = ahead.take(conn, frame::HEADER).await.map_err(closed)?;
            let head = FrameHead::check(header.try_into().expect("a header's length"))?;
            acker.be_prompt(head.flags & FLAG_ACK_APPLIED != 0);
            match head.kind {
                FrameKind::Batch => {
                    let bytes = self.read_batch(conn, &head, &mut ahead).await?;
                    self.take_batch(conn, &head, bytes, acker).await?;
                }
                FrameKind::Packed if features & FEATURE_LZ4 != 0 => {
                    let bytes = self.read_packed(conn, &head, &mut ahead, &mut packed).await?;
                    self.take_batch(conn, &head, bytes, acker).await?;
                }
                FrameKind::Heartbeat => {
                    let payload = ahead.take(conn, head.len).await.map_err(closed)?;
                    head.check_payload(payload)?;
                    let beat = Heartbeat::check(payload)?;
                    let heard = self.shard.inner.borrow_mut().replica().on_heartbeat(&beat);
                    heard.map_err(|v| LinkError::Refused(v.to_string()))?;
                    self.shard.publish_commit();
                    if head.flags & FLAG_REPLY_NOW != 0 {
                        acker.reply_now(beat.time_us);
                    }
                    self.shard.moved.notify();
                }
                FrameKind::Goodbye => return Ok(()),
                FrameKind::Error => {
                    let payload = ahead.take(conn, head.len).await.map_err(closed)?;
                    return Err(error_of(&head, payload)?);
                }
                other => return Err(LinkError::OutOfPlace(other)),
            }
            self.shard.count_traffic(conn);
            rt::yield_if_needed().await;
        }
    }

    /// Reads a batch into a buffer for the device; also says how many bytes it has.
    async fn read_batch(&self, conn: &Conn, head: &FrameHead, ahead: &mut Lookahead) -> Result<Incoming, LinkError> {
        let wire_len = head.len;
        if wire_len <= batch::HEADER {
            return Err(LinkError::OutOfPlace(head.kind));
        }
        let mut incoming = self.room(wire_len).await?;
        ahead.take_into(conn, &mut incoming.buf.as_mut()[..wire_len]).await.map_err(closed)?;
        Ok(incoming)
    }

    /// As [`Follower::read_batch`], for one that is compressed: `packed` is kept for the next one.
    async fn read_packed(
        &self,
        conn: &Conn,
        head: &FrameHead,
        ahead: &mut Lookahead,
        packed: &mut Vec<u8>,
    ) -> Result<Incoming, LinkError> {
        if head.len <= PACKED_HEAD {
            return Err(LinkError::OutOfPlace(head.kind));
        }
        // What it says is checked before memory is taken for it, and its CRC before it is used.
        let first: [u8; PACKED_HEAD] =
            ahead.take(conn, PACKED_HEAD).await.map_err(closed)?.try_into().expect("as asked");
        let wire_len = PackedHead::check(&first, head.len)?.batch_len;
        let mut incoming = self.room(wire_len).await?;
        packed.clear();
        packed.extend_from_slice(&first);
        packed.resize(head.len, 0);
        ahead.take_into(conn, &mut packed[PACKED_HEAD..]).await.map_err(closed)?;
        head.check_payload(packed)?;
        if let Err(e) = packing::unpack(&packed[PACKED_HEAD..], &mut incoming.buf.as_mut()[..wire_len]) {
            return Err(self.bad_batch(conn, &format!("it cannot be decompressed: {e}")).await);
        }
        self.shard.count(|c| {
            c.packed_batches += 1;
            c.packed_from_bytes += wire_len as u64;
            c.packed_to_bytes += head.len as u64;
        });
        packed.shrink_to(limits::SQUEEZE_BYTES_MAX);
        Ok(incoming)
    }

    /// Room for a batch, behind the one before. Back-pressure: no memory is taken, and nothing is read,
    /// while the device is behind.
    async fn room(&self, wire_len: usize) -> Result<Incoming, LinkError> {
        let disk_len = round_up_to_block(wire_len as u64);
        self.wait_for_room(disk_len).await?;
        let batch_bytes = self.shard.config.batch_bytes;
        let spare = &mut self.shard.inner.borrow_mut().spare;
        let (buf, behind) = spare.take(disk_len as usize, batch_bytes);
        Ok(Incoming { buf, wire_len, memory: disk_len + spare.keep(behind, batch_bytes) as u64 })
    }

    async fn bad_batch(&self, conn: &Conn, why: &str) -> LinkError {
        frames::send_error(conn, ErrorCode::BadBatch, 0, why).await;
        LinkError::Refused(format!("the primary sent a bad batch: {why}"))
    }

    /// Checks a batch and hands it to the device.
    async fn take_batch(
        &self,
        conn: &Conn,
        head: &FrameHead,
        Incoming { mut buf, wire_len, memory }: Incoming,
        acker: &Acker,
    ) -> Result<(), LinkError> {
        let received_ns = rt::now_ns();
        let bytes = buf.as_mut();
        bytes[wire_len..].fill(0);
        let view = match BatchView::check(&bytes[..wire_len]) {
            Ok(view) => view,
            Err(e) => return Err(self.bad_batch(conn, &e.to_string()).await),
        };
        {
            let h = *view.header();
            let inner = &mut *self.shard.inner.borrow_mut();
            let follows = inner.replica().on_batch(&h, Lsn(head.arg));
            follows.map_err(|v| LinkError::Refused(v.to_string()))?;
            (inner.chain, inner.next_seq) = (h.chain(), h.end_seq());
            self.shard.count(|c| {
                c.records += u64::from(h.record_count());
                c.body_bytes += h.body_len() as u64;
                c.batches += 1;
            });
            let ack_received = head.flags & FLAG_ACK_RECEIVED != 0;
            if ack_received {
                acker.reply_now(0);
            }
            let batch = Rc::new(Batch::live(buf.share(), memory, ack_received));
            // Wakes the acker too.
            self.shard.submit(inner, batch, received_ns);
        }
        self.shard.publish_commit();
        Ok(())
    }

    async fn wait_for_room(&self, bytes: u64) -> Result<(), LinkError> {
        loop {
            let (work, room) = (self.shard.work.seen(), self.shard.room.seen());
            if let Some(why) = self.shard.stopped() {
                return Err(LinkError::Stopped(why));
            }
            let (may_write, end) = {
                let inner = self.shard.inner.borrow();
                (inner.pipeline.may_write(bytes), inner.pipeline.appended())
            };
            let has_segments = self.shard.segments.end().since(end) >= bytes;
            if may_write && has_segments {
                self.shard.arriving.set(0);
                return Ok(());
            }
            if !has_segments {
                // It may be larger than what is kept ready ahead.
                self.shard.arriving.set(bytes);
                self.shard.keep.notify();
            }
            if may_write { self.shard.room.since(room).await } else { self.shard.work.since(work).await }
        }
    }
}
