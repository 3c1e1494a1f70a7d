//! A change of a primary's settings that a client asks for: who is configured, what commits wait for,
//! what is kept, how links are served.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{WirePolicy, payload};
use crate::frame::{FrameError, FrameKind};
use crate::handshake::NodeName;

/// Bytes of a control request.
pub const CONTROL_REQUEST: usize = 96;

/// What is asked for. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Configure a replica: it counts for commits from then on.
    AddReplica(NodeName),
    /// Configure it no more: its slot goes.
    RemoveReplica(NodeName),
    /// What a commit waits for that does not say; not [`WirePolicy::Default`].
    Commit(WirePolicy),
    /// How long a commit waits that does not say; not 0.
    Deadline(u64),
    /// The most log that slots may hold: 0 for what follows from what is kept, [`u64::MAX`] for no cap.
    RetainMax(u64),
    /// How long a slot may be without a link; 0 for ever.
    SlotIdleMax(u64),
    /// Appends are refused while fewer replicas have acknowledged lately; 0 for never.
    MinReplicas(u8),
    /// What is lately; not 0.
    MinReplicasAge(u64),
    /// Bytes in each second that a replica which catches up is sent; 0 for no cap.
    CatchUpMax(u64),
    /// Bytes that a link may have sent and not acknowledged as received; not 0.
    LinkWindow(u32),
    /// How many bytes the replicas that commits wait for may be behind before batches are held back; 0
    /// for never.
    LagTarget(u64),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ControlRequestBytes {
    name: NodeName,
    if_version: U64,
    value: U64,
    policy: [u8; 4],
    action: u8,
    reserved: [u8; 11],
}
const _: () = assert!(size_of::<ControlRequestBytes>() == CONTROL_REQUEST);

/// A change of a primary's settings, on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRequest {
    /// The change.
    pub action: ControlAction,
    /// Only if the settings have this version; 0: whatever they have.
    pub if_version: u64,
}

impl ControlRequest {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CONTROL_REQUEST] {
        use ControlAction as A;
        let (none, zero) = (NodeName::NONE, WirePolicy::Default);
        let (action, name, value, policy) = match self.action {
            A::AddReplica(name) => (1, name, 0, zero),
            A::RemoveReplica(name) => (2, name, 0, zero),
            A::Commit(policy) => (3, none, 0, policy),
            A::Deadline(ns) => (4, none, ns, zero),
            A::RetainMax(bytes) => (5, none, bytes, zero),
            A::SlotIdleMax(ns) => (6, none, ns, zero),
            A::MinReplicas(n) => (7, none, u64::from(n), zero),
            A::MinReplicasAge(ns) => (8, none, ns, zero),
            A::CatchUpMax(bytes) => (9, none, bytes, zero),
            A::LinkWindow(bytes) => (10, none, u64::from(bytes), zero),
            A::LagTarget(bytes) => (11, none, bytes, zero),
        };
        zerocopy::transmute!(ControlRequestBytes {
            name,
            if_version: U64::new(self.if_version),
            value: U64::new(value),
            policy: policy.to_bytes(),
            action,
            reserved: [0; 11],
        })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        use ControlAction as A;
        let kind = FrameKind::ControlRequest;
        let b = payload!(ControlRequestBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        if b.reserved != [0; 11] {
            return bad("reserved");
        }
        let Some(policy) = WirePolicy::from_bytes(b.policy) else { return bad("policy") };
        let value = b.value.get();
        let names = matches!(b.action, 1 | 2);
        if !b.name.is_well_formed() || names == (b.name == NodeName::NONE) {
            return bad("name");
        }
        if (b.action == 3) == (policy == WirePolicy::Default) {
            return bad("policy");
        }
        let action = match (b.action, value) {
            (1, 0) => A::AddReplica(b.name),
            (2, 0) => A::RemoveReplica(b.name),
            (3, 0) => A::Commit(policy),
            (4, ns @ 1..) => A::Deadline(ns),
            (5, bytes) => A::RetainMax(bytes),
            (6, ns) => A::SlotIdleMax(ns),
            (7, n @ 0..=255) => A::MinReplicas(n as u8),
            (8, ns @ 1..) => A::MinReplicasAge(ns),
            (9, bytes) => A::CatchUpMax(bytes),
            (10, bytes @ 1..=0xffff_ffff) => A::LinkWindow(bytes as u32),
            (11, bytes) => A::LagTarget(bytes),
            (1..=11, _) => return bad("value"),
            _ => return bad("action"),
        };
        Ok(Self { action, if_version: b.if_version.get() })
    }
}
