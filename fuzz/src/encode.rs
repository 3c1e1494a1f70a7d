//! Values through the real encoders and builders and back. What comes back is the same value exactly
//! if it is within the bounds that `docs/FORMAT.md` gives, said here once more; else it is refused.

use std::fmt::Debug;

use arbitrary::{Result, Unstructured};
use towline::protocol::builder::{BatchBuilder, buffer_for_encoded};
use towline::protocol::framing::FrameBuffer;
use towline_wire::frame::{self, FrameError, FrameHead, FrameKind};
use towline_wire::handshake::{Hello, NodeName, Refusal, Role, Verdict, Welcome};
use towline_wire::message::{
    Ack, AckLevel, AppendHead, CommitStatus, Committed, ErrorCode, ErrorHead, Heartbeat, TailRequest, TailStart,
    WirePolicy,
};
use towline_wire::superblock::{Base, COPY, LinksEntry, SettingsEntry, SlotEntry, SlotKind, SlotLoss, Superblock};
use towline_wire::{BODY_BYTES_MAX, BatchFields, BatchView, Chain, Lsn, Seq, ShardId, SystemId, Term, record};

use crate::superblock::owned;

/// One value after the other.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    while !u.is_empty() && value(&mut u).is_ok() {}
}

fn value(u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=9_u8)? {
        0 => hello(u),
        1 => welcome(u),
        2 => batch(u),
        3 => ack(u),
        4 => heartbeat(u),
        5 => append(u),
        6 => committed(u),
        7 => tail(u),
        8 => error(u),
        _ => superblock(u),
    }
}

/// Puts a payload into a frame, reads the frame from a connection and the value from its payload.
fn there_and_back<V: PartialEq + Debug>(
    u: &mut Unstructured<'_>,
    kind: FrameKind,
    payload: &[u8],
    value: V,
    in_bounds: bool,
    check: impl Fn(&[u8]) -> std::result::Result<V, FrameError>,
) -> Result<()> {
    let (flags, arg) = (u.arbitrary::<u8>()? & 7, u.arbitrary()?);
    let bytes = [&frame::header(kind, flags, arg, payload), payload].concat();
    let mut frames = FrameBuffer::new(usize::MAX);
    let chunk = 1 + usize::from(u.arbitrary::<u8>()?);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        assert!(frames.missing().is_ok_and(|n| n > 0 && n <= rest.len()));
        let room = frames.room().expect("the header is sound");
        let n = chunk.min(room.len()).min(rest.len());
        room[..n].copy_from_slice(&rest[..n]);
        frames.received(n);
        rest = &rest[n..];
    }
    let (head, read) = frames.take().expect("a frame that was just written");
    let FrameHead { kind: k, flags: f, len, arg: a, .. } = head;
    assert_eq!((k, f, len, a), (kind, flags, payload.len(), arg));
    assert_eq!(read, payload);
    match check(read) {
        Ok(back) => {
            assert!(in_bounds, "{value:?} is outside its bounds and was read");
            assert_eq!(back, value);
        }
        Err(e) => assert!(!in_bounds, "{value:?} is within its bounds: {e}"),
    }
    Ok(())
}

/// Small, a block boundary, or any number: edges matter.
fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=7_u8)? {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX - u64::from(u.arbitrary::<u8>()?),
        3 | 4 => u64::from(u.arbitrary::<u16>()?) * 4096,
        5 => u64::from(u.arbitrary::<u8>()?),
        _ => u.arbitrary()?,
    })
}

fn aligned(lsn: Lsn) -> bool {
    lsn.0.is_multiple_of(4096)
}

fn name(u: &mut Unstructured<'_>) -> Result<NodeName> {
    let len = u.int_in_range(0..=70_usize)?;
    let bytes = u.bytes(len.min(u.len()))?;
    let valid = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    let text: String =
        bytes.iter().map(|b| char::from(if b & 0x80 != 0 { *b & 0x7f } else { b'a' + b % 26 })).collect();
    let name = NodeName::new(&text);
    assert_eq!(name.is_some(), (1..=63).contains(&text.len()) && text.bytes().all(|b| valid(&b)));
    let name = name.unwrap_or(NodeName::NONE);
    assert!(name == NodeName::NONE || name.as_str() == text);
    Ok(name)
}

fn hello(u: &mut Unstructured<'_>) -> Result<()> {
    let h = Hello {
        protocol: u.arbitrary()?,
        role: if u.arbitrary()? { Role::Replica } else { Role::Client },
        shard: ShardId(u.arbitrary()?),
        features: u.arbitrary()?,
        system: SystemId(u.arbitrary()?),
        term: Term(number(u)?),
        last_term: Term(number(u)?),
        end_lsn: Lsn(number(u)?),
        chain: Chain(u.arbitrary()?),
        commit_lsn: Lsn(number(u)?),
        process: u.arbitrary()?,
        name: name(u)?,
    };
    let named = h.role == Role::Client || h.name != NodeName::NONE;
    let good = named && aligned(h.end_lsn) && h.last_term <= h.term;
    there_and_back(u, FrameKind::Hello, &h.to_bytes(), h, good, Hello::check)
}

fn welcome(u: &mut Unstructured<'_>) -> Result<()> {
    let at = Lsn(number(u)?);
    let base = Base { chain: Chain(u.arbitrary()?), seq: Seq(u.arbitrary()?) };
    let verdict = match u.int_in_range(0..=6_u8)? {
        0 => Verdict::Stream { from: at },
        1 => Verdict::Cut { to: at },
        2 => Verdict::NeedSnapshot { oldest: at },
        3 => Verdict::Client,
        4 => Verdict::Begin { at, base, known: u.arbitrary()? },
        5 => Verdict::Snapshot { oldest: at, known: u.arbitrary()? },
        _ => Verdict::Refused(*u.choose(Refusal::ALL)?),
    };
    let w = Welcome {
        protocol: u.arbitrary()?,
        verdict,
        depth: u.arbitrary()?,
        shard_count: u.arbitrary()?,
        heartbeat_ms: u.arbitrary()?,
        system: SystemId(u.arbitrary()?),
        features: u.arbitrary()?,
        term: Term(number(u)?),
        tail: Lsn(number(u)?),
        commit_lsn: Lsn(number(u)?),
        segment_bytes: number(u)?,
        time_us: u.arbitrary()?,
        record_bytes_max: u.arbitrary()?,
    };
    let placed = match verdict {
        Verdict::Stream { from: at } | Verdict::Cut { to: at } | Verdict::NeedSnapshot { oldest: at } => aligned(at),
        Verdict::Begin { at, .. } | Verdict::Snapshot { oldest: at, .. } => aligned(at) && at > Lsn::ZERO,
        Verdict::Client | Verdict::Refused(_) => true,
    };
    let good = placed && w.shard_count > 0 && w.segment_bytes > 0 && w.segment_bytes.is_multiple_of(4096);
    there_and_back(u, FrameKind::Welcome, &w.to_bytes(), w, good, Welcome::check)
}

fn payloads(u: &mut Unstructured<'_>) -> Result<Vec<Vec<u8>>> {
    let count = u.int_in_range(1..=12_u8)?;
    (0..count).map(|n| Ok(vec![n ^ u.arbitrary::<u8>()?; u.int_in_range(0..=900_u16)?.into()])).collect()
}

/// The engine's builder, one record after the other or all of them encoded, and the network's check.
fn batch(u: &mut Unstructured<'_>) -> Result<()> {
    let records = payloads(u)?;
    let encoded: usize = records.iter().map(|r| record::encoded_len(r.len())).sum();
    let stale = u.arbitrary()?;
    let mut builder = BatchBuilder::new(vec![stale; buffer_for_encoded(encoded)]);
    assert!(builder.fits(encoded) && builder.capacity() < encoded + 128 + 4096);
    if u.arbitrary()? {
        let mut body = vec![stale; encoded];
        let mut at = 0;
        records.iter().for_each(|r| at += record::encode(r, &mut body[at..]));
        builder.push_encoded(&body, records.len() as u32);
    } else {
        records.iter().for_each(|r| builder.push(r));
    }
    let f = BatchFields {
        system: SystemId(u.arbitrary()?),
        shard: ShardId(u.arbitrary()?),
        term: Term(number(u)?),
        lsn: Lsn(number(u)?),
        first_seq: Seq(number(u)?),
        record_count: 0,
        timestamp_us: u.arbitrary()?,
        prev_chain: Chain(u.arbitrary()?),
        durable_lsn: Lsn(number(u)?),
        commit_lsn: Lsn(number(u)?),
    };
    let sealed = builder.close(f);
    let count = records.len() as u64;
    let good = aligned(f.lsn)
        && f.first_seq.0.checked_add(count).is_some()
        && f.lsn.0.checked_add(sealed.disk_len as u64).is_some()
        && f.durable_lsn <= f.lsn
        && f.commit_lsn <= f.lsn;
    let wire = &sealed.buf[..sealed.wire_len];
    for view in [BatchView::check(wire), BatchView::check_on_disk(&sealed.buf)] {
        assert_eq!(view.is_ok(), good, "{view:?}");
        let Ok(view) = view else { continue };
        let h = view.header();
        let read = BatchFields {
            system: h.system(),
            shard: h.shard(),
            term: h.term(),
            lsn: h.lsn(),
            first_seq: h.first_seq(),
            record_count: 0,
            timestamp_us: h.timestamp_us(),
            prev_chain: h.prev_chain(),
            durable_lsn: h.durable_lsn(),
            commit_lsn: h.commit_lsn(),
        };
        assert_eq!((read, u64::from(h.record_count()), h.chain()), (f, count, sealed.chain));
        assert_eq!((h.wire_len(), h.disk_len()), (sealed.wire_len, sealed.disk_len as u64));
        assert!(view.records().eq(records.iter().map(|r| &r[..])));
    }
    Ok(())
}

fn ack(u: &mut Unstructured<'_>) -> Result<()> {
    let a = Ack {
        received: Lsn(number(u)?),
        flushed: Lsn(number(u)?),
        applied: Lsn(number(u)?),
        applied_seq: Seq(number(u)?),
        echo_us: u.arbitrary()?,
    };
    let good = a.received >= a.flushed && a.flushed >= a.applied;
    there_and_back(u, FrameKind::Ack, &a.to_bytes(), a, good, Ack::check)
}

fn heartbeat(u: &mut Unstructured<'_>) -> Result<()> {
    let h = Heartbeat {
        term: Term(number(u)?),
        tail: Lsn(number(u)?),
        tail_seq: Seq(number(u)?),
        commit_lsn: Lsn(number(u)?),
        time_us: u.arbitrary()?,
    };
    there_and_back(u, FrameKind::Heartbeat, &h.to_bytes(), h, h.commit_lsn <= h.tail, Heartbeat::check)
}

fn append(u: &mut Unstructured<'_>) -> Result<()> {
    let level = *u.choose(&[AckLevel::Received, AckLevel::Flushed, AckLevel::Applied])?;
    let records = payloads(u)?;
    let a = AppendHead {
        request: u.arbitrary()?,
        deadline_us: u.arbitrary()?,
        record_count: if u.ratio(7, 8)? { records.len() as u32 } else { u.arbitrary()? },
        policy: match u.int_in_range(0..=4_u8)? {
            0 => WirePolicy::Default,
            1 => WirePolicy::Local,
            2 => WirePolicy::AckN(u.arbitrary()?, level),
            3 => WirePolicy::All(level),
            _ => WirePolicy::Majority(level),
        },
    };
    let mut payload = a.to_bytes().to_vec();
    for r in &records {
        let at = payload.len();
        payload.resize(at + record::encoded_len(r.len()), 0x5a);
        record::encode(r, &mut payload[at..]);
    }
    assert!(payload.len() <= BODY_BYTES_MAX);
    let good = a.record_count as usize == records.len() && !matches!(a.policy, WirePolicy::AckN(0, _));
    there_and_back(u, FrameKind::Append, &payload, (a, records), good, |payload| {
        let (head, records) = AppendHead::check(payload)?;
        Ok((head, records.map(<[u8]>::to_vec).collect()))
    })
}

fn committed(u: &mut Unstructured<'_>) -> Result<()> {
    use CommitStatus as S;
    let all = [
        S::Committed,
        S::TimedOut,
        S::Fenced,
        S::Stopped,
        S::TooFewReplicas,
        S::PolicyImpossible,
        S::RecordTooLarge,
        S::NoRoom,
        S::MinReplicas,
    ];
    let c = Committed {
        request: u.arbitrary()?,
        term: Term(number(u)?),
        lsn: Lsn(number(u)?),
        first_seq: Seq(number(u)?),
        record_count: u.arbitrary()?,
        status: *u.choose(&all)?,
        acks: u.arbitrary()?,
        wanted: u.arbitrary()?,
        durable_here: u.arbitrary()?,
    };
    there_and_back(u, FrameKind::Committed, &c.to_bytes(), c, true, Committed::check)
}

fn tail(u: &mut Unstructured<'_>) -> Result<()> {
    let start = match u.int_in_range(0..=2_u8)? {
        0 => TailStart::At(Lsn(number(u)?)),
        1 => TailStart::Oldest,
        _ => TailStart::End,
    };
    let t = TailRequest { start, flushed: u.arbitrary()?, until_end: u.arbitrary()? };
    let good = if let TailStart::At(lsn) = start { aligned(lsn) } else { true };
    there_and_back(u, FrameKind::Tail, &t.to_bytes(), t, good, TailRequest::check)
}

fn error(u: &mut Unstructured<'_>) -> Result<()> {
    let code = ErrorCode::from_number(u.int_in_range(1..=9)?).expect("codes are numbered without gaps");
    let head = ErrorHead { code, arg: u.arbitrary()? };
    let part = String::from_utf8_lossy(u.bytes(u.len().min(40))?).into_owned();
    let text = part.repeat(1 + usize::from(u.arbitrary::<u8>().unwrap_or(0) % 32));
    let (bytes, shown) = head.to_bytes(&text);
    assert!(text.starts_with(shown) && (shown.len() == text.len() || shown.len() > 1024 - 4));
    let payload = [&bytes, shown.as_bytes()].concat();
    there_and_back(u, FrameKind::Error, &payload, (head, shown.to_owned()), true, |payload| {
        let (head, text) = ErrorHead::check(payload)?;
        Ok((head, text.to_owned()))
    })
}

fn superblock(u: &mut Unstructured<'_>) -> Result<()> {
    let entries = u.int_in_range(0..=5_u8)?;
    let history = (0..entries).map(|_| Ok((Term(number(u)?), Lsn(number(u)?)))).collect::<Result<Vec<_>>>()?;
    let slots = (0..u.int_in_range(0..=3_u8)?).map(|_| {
        let lost = *u.choose(&[None, None, Some(SlotLoss::Idle), Some(SlotLoss::Diverged)])?;
        let kind = *u.choose(&[SlotKind::Configured, SlotKind::Made])?;
        Ok(SlotEntry { name: name(u)?, restart_lsn: Lsn(number(u)?), kind, lost })
    });
    let slots = slots.collect::<Result<Vec<_>>>()?;
    let policies =
        [WirePolicy::Local, WirePolicy::AckN(3, AckLevel::Applied), WirePolicy::Majority(AckLevel::Received)];
    let settings = match u.arbitrary()? {
        false => None,
        true => Some(SettingsEntry {
            version: number(u)?.max(1),
            policy: *u.choose(&policies)?,
            deadline_ns: u.arbitrary()?,
            retain_max: u.arbitrary()?,
            slot_idle_max_ns: u.arbitrary()?,
            min_replicas_age_ns: u.arbitrary()?,
            min_replicas: u.arbitrary()?,
            links: match u.arbitrary()? {
                false => None,
                true => Some(LinksEntry {
                    catch_up_max: u.arbitrary()?,
                    lag_target: u.arbitrary()?,
                    link_window: u.arbitrary::<u32>()?.max(1),
                }),
            },
        }),
    };
    let s = Superblock {
        generation: u.arbitrary()?,
        system: SystemId(u.arbitrary()?),
        shard: ShardId(u.arbitrary::<u8>()?.into()),
        shard_count: u.arbitrary::<u8>()?.into(),
        term: Term(number(u)?),
        own_term: Term(number(u)?),
        segment_bytes: number(u)?,
        oldest_lsn: Lsn(number(u)?),
        base: u.arbitrary::<Option<(u64, u64)>>()?.map(|(chain, seq)| Base { chain: Chain(chain), seq: Seq(seq) }),
        floor_lsn: Lsn(number(u)?),
        commit_lsn: Lsn(u.arbitrary()?),
        in_flight_bytes_max: u.arbitrary()?,
        name: name(u)?,
        history,
        slots,
        settings,
    };
    let ascends = s.history.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
    let slot_is_good = |(n, slot): (usize, &SlotEntry)| {
        slot.name != NodeName::NONE
            && aligned(slot.restart_lsn)
            && (slot.lost.is_some() || slot.restart_lsn >= s.oldest_lsn)
            && s.slots[..n].iter().all(|other| other.name != slot.name)
    };
    let slots_are_good = s.slots.iter().enumerate().all(slot_is_good);
    let good = s.shard.0 < s.shard_count
        && s.own_term <= s.term
        && s.segment_bytes > 0
        && s.segment_bytes % 4096 == 0
        && aligned(s.oldest_lsn)
        && aligned(s.floor_lsn)
        && s.oldest_lsn <= s.floor_lsn
        && (s.base.is_none() || s.oldest_lsn > Lsn::ZERO)
        && ascends
        && slots_are_good
        && s.history.iter().all(|(term, first)| *term <= s.term && aligned(*first));
    let mut copy = vec![0xa5; COPY];
    s.encode(&mut copy);
    assert_eq!(owned(&copy), good.then_some(s));
    Ok(())
}
