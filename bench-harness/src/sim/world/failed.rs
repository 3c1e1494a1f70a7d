//! What a node's disk has refused to write, for checks that nothing rests on it.

use std::io;
use std::path::{Path, PathBuf};

use super::{NodeId, SimWorld};

/// A write or a flush that a device has refused.
#[derive(Clone, Debug)]
pub struct FailedWrite {
    /// The file, or the folder whose names were to be flushed.
    pub path: PathBuf,
    /// Where in the file a batch was to go.
    pub at: u64,
    /// Whether it was a batch on its way to a segment.
    pub is_batch: bool,
    /// When it failed.
    pub at_ns: u64,
}

impl SimWorld {
    /// Writes and flushes that have failed under a node's process that lives now.
    #[must_use]
    pub fn failed(&self, node: NodeId) -> Vec<FailedWrite> {
        self.machines.borrow()[node.0 as usize].failed.clone()
    }

    /// Notes that a write or a flush has failed, if its process lives to hear of it.
    pub(super) fn note_failed<T>(
        &self,
        (node, process): (NodeId, u64),
        path: &Path,
        batch: Option<usize>,
        went: &io::Result<T>,
    ) {
        // A full disk is none.
        if went.as_ref().is_err_and(|e| e.raw_os_error() == Some(5)) && self.lives(node, process) {
            let (at, is_batch) = (batch.unwrap_or(0) as u64, batch.is_some());
            let failed = FailedWrite { path: path.into(), at, is_batch, at_ns: self.now_ns() };
            self.note(|| format!("node {}: {failed:?}", node.0));
            self.machines.borrow_mut()[node.0 as usize].failed.push(failed);
        }
    }
}
