//! Bytes from a disk or a network as a batch. What passes is what `seal` would have written.

use towline_wire::{BatchFields, BatchView, Records, batch, record};

use crate::alloc::nothing;
use crate::mend;

/// The input as it is, then with its CRCs made right.
pub fn run(data: &[u8]) {
    examine(data);
    let mut data = data.to_vec();
    if mend::batch(&mut data) {
        examine(&data);
    }
}

/// Checks the input as a batch, both ways; what passes must hold together.
fn examine(data: &[u8]) {
    let (on_wire, on_disk) = nothing(|| (BatchView::check(data), BatchView::check_on_disk(data)));
    if let Ok(view) = &on_wire {
        assert_eq!(view.as_bytes(), data);
        rewrite(view);
    }
    if let Ok(view) = &on_disk {
        assert!(data.starts_with(view.as_bytes()));
        let padding = &data[view.as_bytes().len()..view.header().disk_len() as usize];
        assert!(padding.iter().all(|b| *b == 0));
        assert!(BatchView::check(view.as_bytes()).is_ok(), "what is good on disk is good on the network");
        rewrite(view);
    }
}

/// Writes the batch again from its values: the bytes must be the same.
fn rewrite(view: &BatchView<'_>) {
    let h = view.header();
    assert_eq!(view.records().count(), h.record_count() as usize);
    assert_eq!(h.end_lsn().since(h.lsn()), h.disk_len());
    assert_eq!(h.end_seq().0 - h.first_seq().0, u64::from(h.record_count()));
    let fields = BatchFields {
        system: h.system(),
        shard: h.shard(),
        term: h.term(),
        lsn: h.lsn(),
        first_seq: h.first_seq(),
        record_count: h.record_count(),
        timestamp_us: h.timestamp_us(),
        prev_chain: h.prev_chain(),
        durable_lsn: h.durable_lsn(),
        commit_lsn: h.commit_lsn(),
    };
    let mut again = vec![0xa5; batch::HEADER];
    again.extend_from_slice(&encoded(view.records()));
    let chain = batch::seal(&fields, &mut again);
    assert_eq!(again, view.as_bytes());
    assert_eq!(chain, h.chain());
}

/// Records as they lie in a body.
pub(crate) fn encoded(records: Records<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for payload in records {
        let at = body.len();
        body.resize(at + record::encoded_len(payload.len()), 0xa5);
        assert_eq!(record::encode(payload, &mut body[at..]), body.len() - at);
    }
    body
}
