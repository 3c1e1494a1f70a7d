//! Memory behind the last batch, for the next one. How large a batch is going to be is known when it is
//! closed: so it is opened where a whole one has room, and the next one begins right behind what it took.
//! Nothing is copied, and little is wasted. Batches that a replica receives lie in the same way.

use crate::limits;
use crate::rt::DmaBuf;

/// What lies behind the last batch.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    rest: Option<DmaBuf>,
    /// It was not asked for since it was looked at last.
    idle: bool,
}

impl Spare {
    /// A buffer of `bytes`, and what lies behind it in the same memory. What is larger than a batch has
    /// memory of its own.
    pub(crate) fn take(&mut self, bytes: usize, batch_bytes: usize) -> (DmaBuf, DmaBuf) {
        self.idle = false;
        let mut buf = match self.rest.take_if(|rest| rest.as_ref().len() >= bytes) {
            Some(rest) => rest,
            None if bytes > batch_bytes => DmaBuf::new(bytes),
            None => DmaBuf::new(limits::BUFFER_BATCHES * batch_bytes),
        };
        let behind = buf.split_off(bytes);
        (buf, behind)
    }

    /// Keeps what lies behind a batch that was closed, if the next one has room there. Else says how much
    /// is lost with it: that is free again with the batches in front of it.
    pub(crate) fn keep(&mut self, rest: DmaBuf, batch_bytes: usize) -> usize {
        let len = rest.as_ref().len();
        if len < batch_bytes {
            return len;
        }
        self.rest = Some(rest);
        0
    }

    /// Lets go of it if nobody has asked for it since this was called last.
    pub(crate) fn tick(&mut self) {
        if std::mem::replace(&mut self.idle, true) {
            self.rest = None;
        }
    }

    /// Bytes of it.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.as_ref().len())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const BATCH: usize = 4 * 4096;

    fn on_an_executor(test: fn()) {
        let run = move || async move { test() };
        let running = crate::rt::start_executor("test", None, 1 << 20, run).unwrap();
        let ended = std::pin::pin!(running.join());
        let Poll::Ready(ended) = ended.poll(&mut Context::from_waker(Waker::noop())) else { unreachable!("it blocks") };
        ended.unwrap();
    }

    fn memory(spare: &mut Spare, bytes: usize, took: usize) -> usize {
        let (mut buf, behind) = spare.take(bytes, BATCH);
        assert_eq!(buf.as_ref().len(), bytes);
        let mut rest = buf.split_off(took);
        rest.join(behind);
        took + spare.keep(rest, BATCH)
    }

    #[test]
    fn batches_lie_side_by_side_and_each_has_room_for_a_whole_one() {
        on_an_executor(|| {
            let mut spare = Spare::default();
            let taken: Vec<usize> = (0..5).map(|_| memory(&mut spare, BATCH, 4096)).collect();
            // The fifth begins where exactly one more has room, and what it leaves is lost with it.
            assert_eq!(taken, [4096, 4096, 4096, 4096, 4 * 4096]);
            assert_eq!((spare.bytes(), taken.iter().sum::<usize>()), (0, limits::BUFFER_BATCHES * BATCH));
        });
    }

    #[test]
    fn what_is_larger_than_a_batch_takes_what_it_has_and_leaves_the_rest_to_others() {
        on_an_executor(|| {
            let mut spare = Spare::default();
            assert_eq!(memory(&mut spare, BATCH, 4096), 4096);
            let rest = spare.bytes();
            assert_eq!(memory(&mut spare, 10 * BATCH, 10 * BATCH), 10 * BATCH);
            assert_eq!(spare.bytes(), rest);
        });
    }

    #[test]
    fn a_shard_that_rests_lets_go_of_it() {
        on_an_executor(|| {
            let mut spare = Spare::default();
            assert_eq!(memory(&mut spare, BATCH, 4096), 4096);
            spare.tick();
            assert_eq!(spare.bytes(), limits::BUFFER_BATCHES * BATCH - 4096);
            assert_eq!(memory(&mut spare, BATCH, 4096), 4096);
            spare.tick();
            assert!(spare.bytes() > 0);
            spare.tick();
            assert_eq!(spare.bytes(), 0);
        });
    }
}
