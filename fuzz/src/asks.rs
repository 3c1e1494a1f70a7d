//! What a client asks for, made of few bytes: whole frames of every kind, so that random bytes come to the
//! decisions behind the decoders.

use arbitrary::{Result, Unstructured};
use towline::AckLevel;
use towline_wire::frame::{self, FrameKind};
use towline_wire::handshake::NodeName;
use towline_wire::message::{
    AppendHead, ControlAction, ControlRequest, SlotAction, SlotRequest, TailRequest, TailStart, WirePolicy,
};
use towline_wire::record;

use crate::operator::name;

/// The most that is asked for, in bytes, and different names; and the same if all slots there may be are
/// to be filled. That takes too long to be done again and again.
const MOST: [(usize, u8); 2] = [(8 << 10, 16), (32 << 10, 255)];

/// Frames, for as long as there are bytes.
#[must_use]
pub fn frames(data: &[u8], fills: bool) -> Vec<u8> {
    let (mut u, mut to) = (Unstructured::new(data), Vec::new());
    let (bytes, names) = MOST[usize::from(fills)];
    while !u.is_empty() && to.len() < bytes && ask(&mut u, &mut to, names).is_ok() {}
    to
}

fn ask(u: &mut Unstructured<'_>, to: &mut Vec<u8>, names: u8) -> Result<()> {
    let name = |n: u8| name(n % names);
    match u.arbitrary::<u8>()? % 16 {
        0..=3 => append(u, to)?,
        4 => put(to, FrameKind::StatusRequest, &[]),
        5 => {
            let tail = TailRequest { start: TailStart::End, flushed: u.arbitrary()?, until_end: u.arbitrary()? };
            put(to, FrameKind::Tail, &tail.to_bytes());
        }
        6..=8 => {
            let action = *u.choose(&[SlotAction::Create, SlotAction::CreateTemporary, SlotAction::Drop])?;
            put(to, FrameKind::SlotRequest, &SlotRequest { name: name(u.arbitrary()?), action }.to_bytes());
        }
        // One name after the other.
        9 => {
            let (first, count): (u8, u8) = (u.arbitrary()?, u.arbitrary()?);
            let action = u.arbitrary::<bool>()?;
            for n in (0..count).map(|n| name(first.wrapping_add(n))) {
                if action {
                    put(to, FrameKind::SlotRequest, &SlotRequest { name: n, action: SlotAction::Create }.to_bytes());
                } else {
                    control(to, ControlAction::AddReplica(n), 0);
                }
            }
        }
        _ => {
            let action = setting(u, name)?;
            let if_version = if u.arbitrary::<u8>()? < 200 { 0 } else { u.int_in_range(1..=8)? };
            control(to, action, if_version);
        }
    }
    Ok(())
}

fn control(to: &mut Vec<u8>, action: ControlAction, if_version: u64) {
    put(to, FrameKind::ControlRequest, &ControlRequest { action, if_version }.to_bytes());
}

fn setting(u: &mut Unstructured<'_>, name: impl Fn(u8) -> NodeName) -> Result<ControlAction> {
    let ns = |u: &mut Unstructured<'_>| -> Result<u64> {
        Ok(if u.arbitrary()? { u64::from(u.arbitrary::<u16>()?) * 500_000_000 } else { u.arbitrary()? })
    };
    Ok(match u.arbitrary::<u8>()? % 11 {
        0 | 1 => ControlAction::AddReplica(name(u.arbitrary()?)),
        2 | 3 => ControlAction::RemoveReplica(name(u.arbitrary()?)),
        4 => ControlAction::Commit(policy(u)?.unwrap_or(WirePolicy::Local)),
        5 => ControlAction::Deadline(ns(u)?.max(1)),
        6 => ControlAction::RetainMax(match u.arbitrary()? {
            true => u64::from(u.arbitrary::<u8>()?) << 14,
            false => u.arbitrary()?,
        }),
        7 => ControlAction::SlotIdleMax(ns(u)?),
        8 => ControlAction::MinReplicas(u.arbitrary()?),
        9 => ControlAction::MinReplicasAge(ns(u)?.max(1)),
        _ => match u.arbitrary::<u8>()? % 3 {
            0 => ControlAction::CatchUpMax(u.arbitrary::<u32>()?.into()),
            1 => ControlAction::LinkWindow(u.arbitrary::<u32>()?.max(1)),
            _ => ControlAction::LagTarget(u.arbitrary::<u32>()?.into()),
        },
    })
}

fn policy(u: &mut Unstructured<'_>) -> Result<Option<WirePolicy>> {
    let level = *u.choose(&[AckLevel::Received, AckLevel::Flushed, AckLevel::Applied])?;
    Ok(match u.arbitrary::<u8>()? % 5 {
        0 => None,
        1 => Some(WirePolicy::Local),
        2 => Some(WirePolicy::AckN(u.arbitrary::<u8>()?.max(1), level)),
        3 => Some(WirePolicy::All(level)),
        _ => Some(WirePolicy::Majority(level)),
    })
}

fn append(u: &mut Unstructured<'_>, to: &mut Vec<u8>) -> Result<()> {
    let policy = policy(u)?.unwrap_or(WirePolicy::Default);
    let (count, len) = (u32::from(u.arbitrary::<u8>()? % 4 + 1), usize::from(u.arbitrary::<u8>()?) * 20);
    let head = AppendHead { request: u.arbitrary::<u16>()?.into(), deadline_us: 0, record_count: count, policy };
    let mut payload = head.to_bytes().to_vec();
    for n in 0..count {
        let at = payload.len();
        payload.resize(at + record::encoded_len(len), 0);
        record::encode(&vec![n as u8; len], &mut payload[at..]);
    }
    put(to, FrameKind::Append, &payload);
    Ok(())
}

fn put(to: &mut Vec<u8>, kind: FrameKind, payload: &[u8]) {
    to.extend_from_slice(&frame::header(kind, 0, 0, payload));
    to.extend_from_slice(payload);
}
