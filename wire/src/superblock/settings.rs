//! What an operator has set last, in a superblock.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::message::WirePolicy;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SettingsBytes {
    policy: [u8; 4],
    version: U64,
    deadline_ns: U64,
    retain_max: U64,
    slot_idle_max_ns: U64,
    min_replicas_age_ns: U64,
    min_replicas: u8,
}
const _: () = assert!(size_of::<SettingsBytes>() == 45);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LinksBytes {
    catch_up_max: U64,
    lag_target: U64,
    link_window: U32,
}
const _: () = assert!(size_of::<LinksBytes>() == 20);

/// How links to replicas are served, as an operator has set it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinksEntry {
    /// Bytes in each second that a replica which catches up is sent; 0 for no cap.
    pub catch_up_max: u64,
    /// How many bytes the replicas that commits wait for may be behind before batches are held back; 0
    /// for never.
    pub lag_target: u64,
    /// Bytes that a link may have sent and not acknowledged as received; never 0.
    pub link_window: u32,
}

impl LinksEntry {
    pub(super) fn to_bytes(self) -> LinksBytes {
        LinksBytes {
            catch_up_max: U64::new(self.catch_up_max),
            lag_target: U64::new(self.lag_target),
            link_window: U32::new(self.link_window),
        }
    }

    /// `None` where it was never set: everything is 0 there.
    fn check(b: &LinksBytes) -> Result<Option<Self>, &'static str> {
        if b.link_window.get() == 0 {
            return if b.as_bytes().iter().all(|b| *b == 0) { Ok(None) } else { Err("settings link_window") };
        }
        let (catch_up_max, lag_target) = (b.catch_up_max.get(), b.lag_target.get());
        Ok(Some(Self { catch_up_max, lag_target, link_window: b.link_window.get() }))
    }
}

/// What a primary's operator has set last, beside the slots of kind [`SlotKind::Configured`](super::SlotKind::Configured), which
/// are the configured replicas of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingsEntry {
    /// Counts changes; never 0.
    pub version: u64,
    /// What a commit waits for that does not say; never [`WirePolicy::Default`].
    pub policy: WirePolicy,
    /// How long a commit waits that does not say, in nanoseconds.
    pub deadline_ns: u64,
    /// The most log that slots may hold: 0 for what follows from what is kept, [`u64::MAX`] for no cap.
    pub retain_max: u64,
    /// How long a slot may be without a link, in nanoseconds; 0 for ever.
    pub slot_idle_max_ns: u64,
    /// What is lately for `min_replicas`, in nanoseconds.
    pub min_replicas_age_ns: u64,
    /// Appends are refused while fewer replicas have acknowledged lately.
    pub min_replicas: u8,
    /// How links are served; `None` in a superblock of a version that did not say.
    pub links: Option<LinksEntry>,
}

impl SettingsEntry {
    pub(super) fn to_bytes(self) -> SettingsBytes {
        SettingsBytes {
            policy: self.policy.to_bytes(),
            version: U64::new(self.version),
            deadline_ns: U64::new(self.deadline_ns),
            retain_max: U64::new(self.retain_max),
            slot_idle_max_ns: U64::new(self.slot_idle_max_ns),
            min_replicas_age_ns: U64::new(self.min_replicas_age_ns),
            min_replicas: self.min_replicas,
        }
    }

    /// `None` where nothing was ever set: everything is 0 there.
    pub(super) fn check(b: &SettingsBytes, links: &LinksBytes) -> Result<Option<Self>, &'static str> {
        let links = LinksEntry::check(links)?;
        if b.version.get() == 0 {
            let none = links.is_none() && b.as_bytes().iter().all(|b| *b == 0);
            return if none { Ok(None) } else { Err("settings version") };
        }
        let policy = WirePolicy::from_bytes(b.policy).filter(|p| *p != WirePolicy::Default);
        Ok(Some(Self {
            version: b.version.get(),
            policy: policy.ok_or("settings policy")?,
            deadline_ns: b.deadline_ns.get(),
            retain_max: b.retain_max.get(),
            slot_idle_max_ns: b.slot_idle_max_ns.get(),
            min_replicas_age_ns: b.min_replicas_age_ns.get(),
            min_replicas: b.min_replicas,
            links,
        }))
    }
}
