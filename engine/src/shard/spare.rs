//! Memory behind the last batch, for the next one: how large a batch is going to be is known when it is
//! closed, so it is opened where a whole one has room, and the next one begins right behind what it took.
//! Nothing is copied, and little is wasted.

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
    #[cfg(feature = "sim")]
    pub(crate) fn bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.as_ref().len())
    }
}
