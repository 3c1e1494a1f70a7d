//! Sends without a copy: the kernel reads the bytes where they are, as often as it must, and says when it
//! has let go of them. Each send is let go of by itself, so any order comes.

use std::rc::Rc;

use towline::world::{Held, World as _};

use super::super::SimWorld;

impl SimWorld {
    /// Keeps what was sent for as long as the kernel would. The bytes must be the same in the end: until
    /// then they could have been sent again.
    pub(super) fn let_go_later(&self, held: &Rc<dyn Held>) {
        let range = self.rates().held_ns;
        let after_ns = self.rng().within(range);
        let copied = self.rng().chance(0.5);
        if after_ns == 0 {
            held.released(copied);
            return;
        }
        self.count("held after the send");
        let (held, sent) = (held.clone(), held.pieces().concat());
        let until = self.sleep_until(self.now_ns() + after_ns);
        let node = self.running.get().node;
        self.spawn(Box::pin(async move {
            until.await;
            let same = held.pieces().iter().try_fold(&sent[..], |rest, piece| rest.strip_prefix(*piece));
            assert!(same == Some(&[]), "node {} changed bytes while the kernel held them", node.0);
            held.released(copied);
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::super::super::Faults;
    use super::*;

    struct Bytes {
        name: u64,
        changed: Cell<bool>,
        told: Rc<RefCell<Vec<u64>>>,
    }

    impl Held for Bytes {
        fn pieces(&self) -> Vec<&[u8]> {
            vec![b"log", if self.changed.get() { b"!" } else { b"." }]
        }

        fn released(&self, _copied: bool) {
            self.told.borrow_mut().push(self.name);
        }
    }

    /// Sends twenty times from where the bytes are, and runs until nothing happens any more.
    fn order(seed: u64, change: bool) -> Vec<u64> {
        let world = SimWorld::new(seed, Faults { held_ns: (0, 1_000_000), ..Faults::default() });
        let _entered = world.enter();
        let node = world.add_node();
        let told = Rc::new(RefCell::new(Vec::new()));
        let tells = told.clone();
        world.start(
            node,
            "test",
            Box::pin(async move {
                let world = super::super::super::here().expect("it is entered");
                for name in 0..20 {
                    let held = Rc::new(Bytes { name, changed: Cell::new(false), told: tells.clone() });
                    world.let_go_later(&(held.clone() as Rc<dyn Held>));
                    held.changed.set(change);
                }
                std::future::pending::<()>().await;
            }),
        );
        while world.step() {}
        told.take()
    }

    #[test]
    fn each_send_is_let_go_of_once_in_any_order() {
        let told = order(1, false);
        let mut sorted = told.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert_ne!(told, sorted);
    }

    #[test]
    #[should_panic(expected = "changed bytes while the kernel held them")]
    fn bytes_that_change_meanwhile_are_seen() {
        order(1, true);
    }
}
