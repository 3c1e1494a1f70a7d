//! Two copies of a superblock. What passes is what `encode` would have written, and what a start
//! does with it holds.

use towline::protocol::history::History;
use towline::protocol::settings::Settings;
use towline::protocol::slots::Slots;
use towline_wire::handshake::NodeName;
use towline_wire::superblock::{COPY, HISTORY_MAX, LinksEntry, SLOTS_MAX, SettingsEntry, SlotEntry, Superblock};
use towline_wire::{Lsn, Term};

use crate::alloc::nothing;
use crate::mend;

/// A flag byte, then the front of each copy: what the input does not reach is zero.
pub fn run(data: &[u8]) {
    let Some((&flags, fronts)) = data.split_first() else { return };
    let (a, b) = fronts.split_at(if flags & 4 == 0 { fronts.len() } else { fronts.len() / 2 });
    for (front, mended) in [(a, flags & 1 == 0), (b, flags & 2 == 0)] {
        examine(&copy(front, mended));
    }
    // Any size but one copy's is refused.
    assert!(Superblock::check(fronts).is_err() || fronts.len() == COPY);
}

/// A copy that begins like this.
pub fn copy(front: &[u8], mended: bool) -> Vec<u8> {
    let mut copy = front[..front.len().min(COPY)].to_vec();
    copy.resize(COPY, 0);
    if mended {
        mend::superblock(&mut copy);
    }
    copy
}

/// A superblock in memory.
pub type Owned = Superblock<Vec<(Term, Lsn)>, Vec<SlotEntry>>;

/// What is read, with its history and slots in memory.
pub fn owned(copy: &[u8]) -> Option<Owned> {
    Some(nothing(|| Superblock::check(copy)).ok()?.collect())
}

fn examine(copy: &[u8]) {
    let Some(s) = owned(copy) else { return };
    let mut again = vec![0xa5; COPY];
    s.encode(&mut again);
    // An older version is written as the newest one; the CRC was checked.
    for part in [8..10, COPY - 4..COPY] {
        again[part.clone()].copy_from_slice(&copy[part]);
    }
    assert_eq!(again, copy);
    if let Some(entry) = s.settings {
        let started = LinksEntry { catch_up_max: 0, lag_target: 1, link_window: 2 };
        if let Some(settings) = Settings::of_superblock(&entry, &s.slots, started) {
            assert_eq!(settings.entry(), SettingsEntry { links: entry.links.or(Some(started)), ..entry });
        }
    }
    assert!(s.history.len() <= HISTORY_MAX && s.own_term <= s.term && s.oldest_lsn <= s.floor_lsn);
    let mut history = History::from_entries(s.history.clone());
    for (term, first) in &s.history {
        assert!(history.end_of(*term, Lsn(u64::MAX)).is_some_and(|end| end > *first));
        assert!(history.common_end(*term, Lsn(u64::MAX)).is_some_and(|end| end > *first));
    }
    assert!(s.slots.len() <= SLOTS_MAX);
    // A start with none, one, or another of the replicas configured.
    let other = NodeName::new("another").expect("a name");
    for configured in [vec![], s.slots.iter().take(1).map(|s| s.name).collect(), vec![other]] {
        let (slots, gone) = Slots::new(&configured, &s.slots, true, s.oldest_lsn, 1);
        assert!(slots.iter().all(|(_, slot)| !slot.is_valid() || slot.restart >= s.oldest_lsn));
        let entries = slots.entries();
        assert!(entries.len() <= SLOTS_MAX && configured.iter().all(|c| entries.iter().any(|e| e.name == *c)));
        assert!(s.slots.iter().all(|s| gone.contains(&s.name) != entries.iter().any(|e| e.name == s.name)));
        let mut again = vec![0; COPY];
        Superblock { slots: entries, ..s.clone() }.encode(&mut again);
        assert!(Superblock::check(&again).is_ok());
    }
    history.trim(s.oldest_lsn);
    history.cut(s.floor_lsn);
    history.begin(Term(u64::MAX), s.floor_lsn);
    assert!(history.entries().len() <= HISTORY_MAX);
}
