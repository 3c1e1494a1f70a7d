//! A batch's body as records, against a second reader; then a body of real records that something
//! happened to.

use arbitrary::Unstructured;
use towline_wire::{Records, record};

use crate::alloc::nothing;
use crate::batch::encoded;
use crate::edits;

/// The input as a body, then as the lengths of records and what happens to them.
pub fn run(data: &[u8]) {
    examine(data);
    let mut u = Unstructured::new(data);
    let Ok(count) = u.arbitrary::<u8>() else { return };
    let mut body = Vec::new();
    for n in 0..count % 32 {
        let Ok(len) = u.arbitrary::<u8>() else { break };
        let at = body.len();
        body.resize(at + record::encoded_len(len.into()), 0xa5);
        record::encode(&vec![n; len.into()], &mut body[at..]);
    }
    examine(&body);
    edits::all(&mut body, u.take_rest());
    examine(&body);
}

fn examine(body: &[u8]) {
    let plain = read_plainly(body);
    let mut steps = 0;
    nothing(|| Records::new(body).for_each(|_| steps += 1));
    assert!(steps <= body.len() / record::HEADER, "each record is read once");
    let mut sound = plain.iter();
    for payload in Records::new(body) {
        assert_eq!(Some(&payload), sound.next().map(|r| r.as_ref().expect("iteration ends at the first bad record")));
    }
    let whole = plain.iter().all(Option::is_some);
    assert!(sound.next().is_none_or(Option::is_none), "a good record was left out");
    for claimed in [steps as u32, 0, steps as u32 + 1, u32::MAX] {
        let good = whole && claimed as usize == steps;
        assert_eq!(nothing(|| record::check(body, claimed)).is_ok(), good);
    }
    if whole {
        assert_eq!(encoded(Records::new(body)), body, "two bodies for the same records");
    }
}

/// `docs/FORMAT.md` word by word: length, three kinds of zero, payload, zeros to a multiple of 8.
fn read_plainly(body: &[u8]) -> Vec<Option<&[u8]>> {
    let (mut out, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let next = (|| {
            let (header, behind) = rest.split_at_checked(8)?;
            let len = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
            let (payload, behind) = behind.split_at_checked(len)?;
            let (padding, behind) = behind.split_at_checked((8 - len % 8) % 8)?;
            let zeros = header[4..].iter().chain(padding).all(|b| *b == 0);
            zeros.then_some((payload, behind))
        })();
        match next {
            Some((payload, behind)) => {
                out.push(Some(payload));
                rest = behind;
            }
            None => {
                out.push(None);
                break;
            }
        }
    }
    out
}
