//! Records: what the encoder lays down is what the reader finds, and each thing that can be wrong
//! with a body is named with the offset of the record that has it.

mod samples;

use proptest::collection::vec;
use proptest::prelude::*;
use samples::{body, deterministic};
use towline_wire::record::{self, ALIGN, HEADER, RecordError, Records};
use towline_wire::{BODY_BYTES_MAX, RECORD_BYTES_MAX};

/// Records of 8, 24 and 16 bytes: they start at 0, 8 and 32.
fn three() -> Vec<u8> {
    body(&[b"", b"sixteen is whole", b"padded"])
}

#[test]
fn an_encoded_record_takes_what_encoded_len_says() {
    for (payload, total) in [(0, 8), (1, 16), (7, 16), (8, 16), (9, 24), (RECORD_BYTES_MAX, BODY_BYTES_MAX)] {
        assert_eq!(record::encoded_len(payload), total);
    }
    let mut out = [0xa5; 32];
    assert_eq!(record::encode(b"123456789", &mut out), 24);
    assert_eq!(out[24..], [0xa5; 8], "nothing behind the record is touched");
    assert_eq!(out[17..24], [0; 7], "padding is zero whatever was there");
}

#[test]
#[should_panic(expected = "out of range")]
fn encoding_into_too_little_room_panics() {
    record::encode(b"123456789", &mut [0; 23]);
}

#[test]
fn a_whole_body_passes_and_gives_its_payloads() {
    let body = three();
    record::check(&body, 3).unwrap();
    let expected: [&[u8]; 3] = [b"", b"sixteen is whole", b"padded"];
    assert_eq!(Records::new(&body).collect::<Vec<_>>(), expected);
    record::check(&[], 0).unwrap();
    assert_eq!(Records::new(&[]).next(), None);
}

#[test]
fn a_header_cut_short_is_found_where_it_starts() {
    for left in 1..HEADER {
        let body = three();
        let cut = &body[..32 + left];
        assert_eq!(record::check(cut, 3), Err(RecordError::Truncated { at: 32, need: 8, left }));
    }
}

#[test]
fn a_payload_cut_short_is_found_where_its_record_starts() {
    let body = three();
    for end in 16..32 {
        let left = end - 8;
        assert_eq!(record::check(&body[..end], 2), Err(RecordError::Truncated { at: 8, need: 24, left }));
    }
}

#[test]
fn padding_cut_short_is_found_where_its_record_starts() {
    let body = three();
    for end in 46..48 {
        let left = end - 32;
        assert_eq!(record::check(&body[..end], 3), Err(RecordError::Truncated { at: 32, need: 16, left }));
    }
}

#[test]
fn a_length_of_four_gigabytes_is_an_error_not_an_overflow() {
    for len in [u32::MAX, u32::MAX - 7, 1 << 31] {
        let mut body = three();
        body[8..12].copy_from_slice(&len.to_le_bytes());
        let need = 8 + u64::from(len).next_multiple_of(8);
        assert_eq!(record::check(&body, 3), Err(RecordError::Truncated { at: 8, need, left: 40 }));
        assert_eq!(Records::new(&body).count(), 1, "iteration stops before it");
    }
}

#[test]
fn a_reserved_bit_or_an_unknown_kind_is_found_where_its_record_starts() {
    for at in [0, 8, 32] {
        for (byte, bit) in (4..8).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut body = three();
            body[at + byte] ^= 1 << bit;
            assert_eq!(record::check(&body, 3), Err(RecordError::Reserved { at }), "byte {byte} bit {bit}");
        }
    }
}

#[test]
fn padding_that_is_not_zero_is_found_where_its_record_starts() {
    for (byte, bit) in (46..48).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let mut body = three();
        body[byte] ^= 1 << bit;
        assert_eq!(record::check(&body, 3), Err(RecordError::Reserved { at: 32 }));
    }
}

#[test]
fn the_first_of_two_errors_is_reported() {
    let mut body = three();
    body[12] = 1;
    body[47] = 1;
    assert_eq!(record::check(&body, 3), Err(RecordError::Reserved { at: 8 }));
}

#[test]
fn a_wrong_count_is_an_error() {
    let body = three();
    for expected in [0, 1, 2, 4, u32::MAX] {
        assert_eq!(record::check(&body, expected), Err(RecordError::Count { found: 3, expected }));
    }
    assert_eq!(record::check(&[], 1), Err(RecordError::Count { found: 0, expected: 1 }));
}

#[test]
fn iteration_over_a_broken_body_ends_and_stays_ended() {
    let mut body = three();
    body[12] = 1;
    let mut records = Records::new(&body);
    assert_eq!(records.next(), Some(&b""[..]));
    assert_eq!(records.next(), None);
    assert_eq!(records.next(), None);
}

#[test]
fn record_errors_say_where() {
    let truncated = RecordError::Truncated { at: 32, need: 16, left: 14 };
    assert_eq!(truncated.to_string(), "record at body offset 32 needs 16 bytes, 14 are left");
    assert!(RecordError::Reserved { at: 8 }.to_string().starts_with("record at body offset 8 has"));
    let count = RecordError::Count { found: 3, expected: 4 };
    assert_eq!(count.to_string(), "the body holds 3 records where 4 are declared");
}

proptest! {
    #![proptest_config(deterministic(256))]

    #[test]
    fn any_payloads_come_back_whole_in_order_and_aligned(payloads in vec(vec(any::<u8>(), 0..40), 0..20)) {
        let payloads: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        let body = body(&payloads);
        prop_assert!(body.len().is_multiple_of(ALIGN));
        prop_assert_eq!(record::check(&body, payloads.len() as u32), Ok(()));
        for payload in Records::new(&body) {
            let at = payload.as_ptr() as usize - body.as_ptr() as usize;
            prop_assert!(at.is_multiple_of(ALIGN));
        }
        prop_assert_eq!(Records::new(&body).collect::<Vec<_>>(), payloads);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_what_passes_encodes_to_itself(
        bytes in vec(prop_oneof![4 => Just(0), 2 => 0u8..24, 1 => any::<u8>()], 0..96),
        count in 0u32..8,
    ) {
        let payloads: Vec<_> = Records::new(&bytes).collect();
        if record::check(&bytes, count).is_ok() {
            prop_assert_eq!(payloads.len(), count as usize);
            prop_assert_eq!(body(&payloads), bytes);
        }
    }
}
