//! Replicas that only read: each follows a replica, the primary, or a reader before it, has a slot there
//! that the operator makes, and is never configured. So what is promised does not rest on them, and all
//! the rest must hold for them too.

use super::cluster::{Cluster, Role};
use super::operator::Ask;

impl Cluster {
    /// Whether a node only reads.
    #[must_use]
    pub fn is_reader(&self, n: usize) -> bool {
        n > self.plan.replicas
    }

    /// Whom a reader is to follow: mostly a replica, or the reader before it.
    fn draw_upstream(&mut self, n: usize) -> usize {
        let first = self.plan.replicas + 1;
        if n > first && self.rng.chance(0.5) {
            return n - 1;
        }
        let of = self.rng.below(first as u64) as usize;
        if of == self.primary { (of + 1 + self.rng.below(2) as usize) % first } else { of }
    }

    /// Has a reader follow another node.
    pub fn repoint(&mut self, n: usize) {
        let of = self.draw_upstream(n);
        self.point(n, of);
    }

    fn point(&mut self, n: usize, of: usize) {
        self.note(|| format!("reader {n} is to follow {of}"));
        self.world.hit("reader repointed");
        if self.is_up(n) {
            self.crash(n, false, 1_000_000);
        }
        self.nodes[n].role = Role::Replica { of };
        self.nodes[n].lost_slot = true;
    }

    /// After a promotion some readers are told to follow another node; others go on where they are.
    pub fn repoint_some(&mut self) {
        for n in self.plan.replicas + 1..self.nodes.len() {
            if self.rng.chance(0.5) {
                self.repoint(n);
            }
        }
    }

    /// Sees to it that readers have slots where they follow, and makes those anew that cannot go on.
    pub fn mend_readers(&mut self) {
        for n in self.plan.replicas + 1..self.nodes.len() {
            let Role::Replica { of } = self.nodes[n].role else { continue };
            if self.quiet && self.nodes[of].tainted {
                // It may hold bad bytes where the reader is, which it never sends.
                self.point(n, self.primary);
                continue;
            }
            if !self.serves(of) {
                continue;
            }
            let name = Self::name(n);
            let above = self.world.views(self.nodes[of].id);
            let has =
                |lost: bool| above.iter().all(|v| v.slots.iter().any(|s| s.name == name && (lost || s.lost.is_none())));
            if !has(true) || (!has(false) && (self.plan.slots_anew || self.quiet)) {
                self.nodes[n].lost_slot = true;
                self.nodes[of].control.ask(Ask::Slot(name));
                continue;
            }
            if !self.is_up(n) {
                continue;
            }
            let views = self.world.views(self.nodes[n].id);
            let says = |text| views.iter().any(|v| v.unlinked.contains(text));
            if of != self.primary && says("makes no snapshots") {
                // Only a primary does.
                self.point(n, self.primary);
                continue;
            }
            let two = says("another one is set aside already");
            let too_old = says("the oldest that the primary keeps") && !says("it is tried again");
            if two || (too_old && !self.plan.rebuild) {
                self.world.hit("reader made anew");
                self.replace(n, 1_000_000);
            }
        }
    }
}
