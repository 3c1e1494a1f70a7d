//! Requests that wait in a ring behind one that finds no room: each has a deadline of its own, and
//! is given up on when that has passed, not when its turn comes. It stays in the ring until then,
//! because a ring gives its content back in order only.

use std::collections::VecDeque;

use crate::limits;

/// Which of the requests in a ring were given up on, from the front on.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    flags: VecDeque<bool>,
    next_look_ns: u64,
}

impl GivenUp {
    /// Looks at everything that waits, and gives up on what is late. At most once for each tick of
    /// deadlines, so that a ring which is full for long costs little.
    pub(crate) fn look<'a, R: 'a>(
        &mut self,
        now_ns: u64,
        waiting: impl Iterator<Item = &'a R>,
        is_late: impl Fn(&R) -> bool,
        mut give_up: impl FnMut(&R),
    ) {
        if now_ns < self.next_look_ns {
            return;
        }
        self.next_look_ns = now_ns + limits::DEADLINE_TICK.as_nanos() as u64;
        for (n, request) in waiting.enumerate() {
            if n == self.flags.len() {
                self.flags.push_back(false);
            }
            if !self.flags[n] && is_late(request) {
                self.flags[n] = true;
                give_up(request);
            }
        }
    }

    /// Whether the request at the front was given up on: its ticket may be another's by now.
    pub(crate) fn front(&self) -> bool {
        self.flags.front().is_some_and(|f| *f)
    }

    /// The request at the front leaves the ring.
    pub(crate) fn pop(&mut self) {
        self.flags.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: u64 = limits::DEADLINE_TICK.as_nanos() as u64;

    struct Request {
        number: u64,
        late_ns: u64,
    }

    proptest! {
        /// A shard that has room now and then, as `inbox::take` drives it: whatever stands in front,
        /// each request is taken in order or given up on, once, and not before nor long after its own
        /// deadline.
        #[test]
        fn a_request_waits_no_longer_than_its_own_deadline_whoever_stands_in_front(
            steps in prop::collection::vec((0usize..4, 1u64..40, 0usize..3, 0..2 * TICK), 1..80)
        ) {
            let (mut ring, mut given_up) = (VecDeque::<Request>::new(), GivenUp::default());
            let (mut now, mut pushed) = (0, 0);
            let (mut taken, mut refused) = (Vec::new(), Vec::new());
            let calm = (0..60).map(|_| (0, 1, 0, TICK));
            for (pushes, ticks, mut room, pause) in steps.into_iter().chain(calm) {
                for n in 0..pushes {
                    let ticks = if n % 2 == 0 { ticks } else { 40 - ticks };
                    ring.push_back(Request { number: pushed, late_ns: now + ticks * TICK });
                    pushed += 1;
                }
                while let Some(front) = ring.front() {
                    if !given_up.front() {
                        if room == 0 {
                            given_up.look(now, ring.iter(), |r| r.late_ns <= now, |r| {
                                // Its tickets' turn: at its deadline, or at the next look after it.
                                assert!(now >= r.late_ns && now < r.late_ns + 3 * TICK);
                                refused.push(r.number);
                            });
                            break;
                        }
                        room -= 1;
                        taken.push(front.number);
                    }
                    ring.pop_front();
                    given_up.pop();
                }
                let now_late = ring.iter().filter(|r| r.late_ns + 3 * TICK <= now).count();
                let skipped = ring.iter().filter(|r| r.late_ns + 3 * TICK <= now && refused.contains(&r.number)).count();
                prop_assert_eq!(now_late, skipped, "somebody waits although the deadline has passed");
                now += pause;
            }
            prop_assert!(taken.is_sorted());
            taken.extend(&refused);
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..pushed).collect::<Vec<_>>(), "each has one answer");
        }
    }
}
