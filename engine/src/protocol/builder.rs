//! Group commit's open batch: records are copied once, straight into the buffer that goes to the
//! device and to the replicas.

use towline_wire::batch::{self, BatchFields};
use towline_wire::{BLOCK, BODY_BYTES_MAX, Chain, record};

/// An open batch over a buffer of whole blocks.
#[derive(Debug)]
pub struct BatchBuilder<B> {
    buf: B,
    /// Header room and records so far.
    len: usize,
    count: u32,
}

/// A closed batch's buffer and what it holds.
#[derive(Debug)]
pub struct Sealed<B> {
    /// Header, body and zero padding up to `disk_len`.
    pub buf: B,
    /// Bytes of header and body.
    pub wire_len: usize,
    /// Bytes with padding.
    pub disk_len: usize,
    /// The chain after the batch.
    pub chain: Chain,
}

/// Bytes a buffer needs for a batch of one record of `payload` bytes.
#[must_use]
pub const fn buffer_for(payload: usize) -> usize {
    buffer_for_encoded(record::encoded_len(payload))
}

/// Bytes a buffer needs for a batch of `encoded` bytes of records with their headers.
#[must_use]
pub const fn buffer_for_encoded(encoded: usize) -> usize {
    (batch::HEADER + encoded).next_multiple_of(BLOCK)
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> BatchBuilder<B> {
    /// An empty batch.
    ///
    /// # Panics
    /// If the buffer is not whole blocks.
    #[must_use]
    pub fn new(buf: B) -> Self {
        let len = buf.as_ref().len();
        assert!(len > 0 && len.is_multiple_of(BLOCK));
        Self { buf, len: batch::HEADER, count: 0 }
    }

    /// Records so far.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes on disk if it were closed now.
    #[must_use]
    pub const fn disk_len(&self) -> usize {
        self.len.next_multiple_of(BLOCK)
    }

    /// Bytes on disk that it can have at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buf.as_ref().len()
    }

    /// Whether `encoded` bytes of records with their headers fit.
    #[must_use]
    #[inline]
    pub fn fits(&self, encoded: usize) -> bool {
        let len = self.len + encoded;
        len <= self.buf.as_ref().len() && len - batch::HEADER <= BODY_BYTES_MAX
    }

    /// Copies a record in.
    ///
    /// # Panics
    /// If it does not fit.
    #[inline]
    pub fn push(&mut self, payload: &[u8]) {
        debug_assert!(self.fits(record::encoded_len(payload.len())));
        self.len += record::encode(payload, &mut self.buf.as_mut()[self.len..]);
        self.count += 1;
    }

    /// Copies records in that are encoded already, and were checked.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn push_encoded(&mut self, records: &[u8], count: u32) {
        debug_assert!(record::check(records, count).is_ok());
        self.buf.as_mut()[self.len..self.len + records.len()].copy_from_slice(records);
        self.len += records.len();
        self.count += count;
    }

    /// Fills in header and padding. `fields.record_count` is set here.
    ///
    /// # Panics
    /// If the batch is empty.
    #[must_use]
    pub fn close(mut self, mut fields: BatchFields) -> Sealed<B> {
        assert!(self.count > 0, "a batch holds at least one record");
        fields.record_count = self.count;
        let (wire_len, disk_len) = (self.len, self.disk_len());
        let bytes = self.buf.as_mut();
        let chain = batch::seal(&fields, &mut bytes[..wire_len]);
        bytes[wire_len..disk_len].fill(0);
        Sealed { buf: self.buf, wire_len, disk_len, chain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_wire::{BatchView, Lsn, Seq, ShardId, SystemId, Term};

    #[test]
    fn a_closed_batch_passes_every_check_and_leaks_no_stale_byte() {
        let mut b = BatchBuilder::new(vec![0xee_u8; 2 * BLOCK]);
        let mut pushed = 0;
        while b.fits(record::encoded_len(pushed)) {
            b.push(&vec![7; pushed]);
            pushed += 1;
        }
        assert!(!b.fits(record::encoded_len(pushed)));
        let fields = BatchFields {
            system: SystemId([1; 16]),
            shard: ShardId(3),
            term: Term(2),
            lsn: Lsn(8192),
            first_seq: Seq(11),
            record_count: 0,
            timestamp_us: 5,
            prev_chain: Chain(9),
            durable_lsn: Lsn(4096),
            commit_lsn: Lsn(0),
        };
        let sealed = b.close(fields);
        let view = BatchView::check_on_disk(&sealed.buf[..sealed.disk_len]).unwrap();
        assert_eq!(view.records().map(<[u8]>::len).collect::<Vec<_>>(), (0..pushed).collect::<Vec<_>>());
        assert_eq!(view.header().chain(), sealed.chain);
        assert_eq!(view.header().end_seq(), Seq(11 + pushed as u64));
    }

    #[test]
    fn a_buffer_for_one_record_holds_exactly_that_record() {
        for payload in [0, 1, 7, 8, 3960, 3961, 5000] {
            let mut b = BatchBuilder::new(vec![0; buffer_for(payload)]);
            assert!(b.fits(record::encoded_len(payload)), "{payload}");
            b.push(&vec![1; payload]);
        }
    }

    #[test]
    fn encoded_records_go_in_as_they_are() {
        let mut one = BatchBuilder::new(vec![0; BLOCK]);
        let mut two = BatchBuilder::new(vec![0; BLOCK]);
        let mut encoded = vec![0; record::encoded_len(3) + record::encoded_len(5)];
        let at = record::encode(b"abc", &mut encoded);
        record::encode(b"defgh", &mut encoded[at..]);
        one.push_encoded(&encoded, 2);
        two.push(b"abc");
        two.push(b"defgh");
        assert_eq!((one.count(), one.disk_len()), (2, BLOCK));
        assert_eq!(one.buf, two.buf);
    }
}
