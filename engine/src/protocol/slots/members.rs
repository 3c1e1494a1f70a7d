//! Slots are made and removed, and replicas configured.

use towline_wire::Lsn;
use towline_wire::handshake::NodeName;
use towline_wire::superblock::{SLOTS_MAX, SlotLoss};

use super::{Kind, Lost, Slot, SlotError, Slots};

impl Slots {
    /// Makes a slot, or makes a lost one anew: it holds the log from `oldest` on.
    ///
    /// # Errors
    /// Why not.
    pub fn make(&mut self, name: NodeName, temporary: bool, oldest: Lsn, now_ns: u64) -> Result<usize, SlotError> {
        if let Some(slot) = self.of(name) {
            let s = self.get_mut(slot).expect("it was found");
            let configured = s.kind == Kind::Configured;
            if configured && temporary {
                return Err(SlotError::NotTemporary(name));
            }
            if s.is_valid() {
                return Err(SlotError::Exists(name));
            }
            let kind = match (configured, temporary) {
                (true, _) => Kind::Configured,
                (false, true) => Kind::Temporary,
                (false, false) => Kind::Made,
            };
            *s = Slot { connects: s.connects, ..Slot::new(name, kind, oldest, now_ns) };
            return Ok(slot);
        }
        if self.iter().count() >= SLOTS_MAX {
            return Err(SlotError::TooMany);
        }
        let kind = if temporary { Kind::Temporary } else { Kind::Made };
        Ok(self.put(Slot::new(name, kind, oldest, now_ns)))
    }

    /// Gives a slot a number.
    fn put(&mut self, slot: Slot) -> usize {
        let free = self.all.iter().position(Option::is_none);
        match free {
            Some(at) => self.all[at] = Some(slot),
            None => self.all.push(Some(slot)),
        }
        free.unwrap_or(self.all.len() - 1)
    }

    /// These replicas are to be configured, and the superblock is to say so. Who has a slot keeps it
    /// and its position; a lost one is made anew if its replica was not configured before. Those that
    /// are configured no more stay until [`Slots::configure`].
    ///
    /// # Errors
    /// There are too many slots; nothing has changed.
    pub(in crate::protocol) fn prepare(
        &mut self,
        names: &[NodeName],
        oldest: Lsn,
        now_ns: u64,
    ) -> Result<(), SlotError> {
        let new = names.iter().filter(|n| self.of(**n).is_none()).count();
        if self.iter().count() + new > SLOTS_MAX {
            return Err(SlotError::TooMany);
        }
        for name in names {
            let Some(s) = self.of(*name).and_then(|slot| self.get_mut(slot)) else {
                self.put(Slot::new(*name, Kind::Configured, oldest, now_ns));
                continue;
            };
            if s.kind != Kind::Configured && !s.is_valid() {
                *s = Slot { connects: s.connects, ..Slot::new(*name, Kind::Configured, oldest, now_ns) };
            }
            s.kind = Kind::Configured;
        }
        for s in self.all.iter_mut().flatten() {
            s.leaving = s.kind == Kind::Configured && !names.contains(&s.name);
        }
        Ok(())
    }

    /// What was prepared is on the device: the slots of those that left are gone.
    pub(in crate::protocol) fn configure(&mut self, now_ns: u64) -> Vec<Lost> {
        let leaving: Vec<usize> = self.iter().filter(|(_, s)| s.leaving).map(|(n, _)| n).collect();
        let lost = leaving.iter().filter_map(|n| self.lose(*n, SlotLoss::Removed, now_ns)).collect();
        leaving.iter().for_each(|n| self.all[*n] = None);
        lost
    }

    /// Removes a slot: a configured replica's is lost, another one is gone.
    ///
    /// # Errors
    /// There is none.
    pub(in crate::protocol) fn remove(
        &mut self,
        name: NodeName,
        now_ns: u64,
    ) -> Result<(usize, Option<Lost>), SlotError> {
        let slot = self.of(name).ok_or(SlotError::Unknown(name))?;
        let lost = self.lose(slot, SlotLoss::Removed, now_ns);
        match self.get_mut(slot) {
            // It may have been lost for another cause before.
            Some(s) if s.kind == Kind::Configured => s.lost = Some(SlotLoss::Removed),
            _ => self.all[slot] = None,
        }
        Ok((slot, lost))
    }
}
