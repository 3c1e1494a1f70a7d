//! A change of a primary's slots that a client asks for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::payload;
use crate::frame::{FrameError, FrameKind};
use crate::handshake::NodeName;

/// Bytes of a slot request.
pub const SLOT_REQUEST: usize = 72;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotAction {
    /// Make a slot, or a lost one anew.
    Create = 1,
    /// Make one that ends with its link.
    CreateTemporary = 2,
    /// Remove one.
    Drop = 3,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotRequestBytes {
    name: NodeName,
    action: u8,
    reserved: [u8; 7],
}
const _: () = assert!(size_of::<SlotRequestBytes>() == SLOT_REQUEST);

/// A change of a primary's slots, on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRequest {
    /// Whose slot.
    pub name: NodeName,
    /// What is to become of it.
    pub action: SlotAction,
}

impl SlotRequest {
    /// As it crosses the network.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SLOT_REQUEST] {
        zerocopy::transmute!(SlotRequestBytes { name: self.name, action: self.action as u8, reserved: [0; 7] })
    }

    /// Checks a payload that already passed its frame's CRC.
    ///
    /// # Errors
    /// The field that is outside its bounds.
    pub fn check(payload: &[u8]) -> Result<Self, FrameError> {
        let kind = FrameKind::SlotRequest;
        let b = payload!(SlotRequestBytes, kind, payload);
        let bad = |field| Err(FrameError::Field { kind, field });
        let action = match b.action {
            1 => SlotAction::Create,
            2 => SlotAction::CreateTemporary,
            3 => SlotAction::Drop,
            _ => return bad("action"),
        };
        if b.name == NodeName::NONE || !b.name.is_well_formed() {
            return bad("name");
        }
        if b.reserved != [0; 7] {
            return bad("reserved");
        }
        Ok(Self { name: b.name, action })
    }
}
