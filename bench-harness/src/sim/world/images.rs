//! Pictures of a disk at the boundaries of its calls, and what a crash at that moment may leave of it.

use towline::world::Bytes;

use super::disk::{Disk, SECTOR};
use super::rng::Rng;
use super::{Machine, NodeId, SimWorld};

/// A write that had begun and not ended: file, position, bytes.
pub(super) type Pending = (usize, usize, Bytes);

/// A disk at one moment.
pub struct Picture {
    /// Whose.
    pub node: NodeId,
    pub(super) disk: Disk,
    pub(super) pending: Vec<Pending>,
}

/// What fills the sectors of a torn write that did not come to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// What was there before.
    Old,
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Anything.
    Random,
}

/// One way in which a crash may leave a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Only what was made durable.
    Nothing,
    /// Everything, writes that had only begun included.
    Everything,
    /// What was durable, and this many of the writes that had begun.
    Prefix(usize),
    /// Any part of it.
    Subset,
    /// Everything, but the write that began last ends after this many sectors.
    Torn(usize, Fill),
}

impl Picture {
    /// Every way but the tears: each prefix, `subsets` random ones.
    #[must_use]
    pub fn plain_ways(&self, subsets: usize) -> Vec<Left> {
        let mut ways = vec![Left::Nothing, Left::Everything];
        ways.extend((1..self.pending.len()).map(Left::Prefix));
        ways.extend((0..subsets).map(|_| Left::Subset));
        ways
    }

    /// Every tear of the write that began last.
    #[must_use]
    pub fn tears(&self) -> Vec<Left> {
        let sectors = self.pending.last().map_or(0, |(_, _, bytes)| bytes.len() / SECTOR);
        let fills = [Fill::Old, Fill::Zeros, Fill::Ones, Fill::Random];
        (0..sectors).flat_map(|n| fills.map(|fill| Left::Torn(n, fill))).collect()
    }

    /// The disk as it is found then.
    #[must_use]
    pub fn found(&self, left: Left, rng: &mut Rng) -> Found {
        let mut disk = self.disk.copy();
        let whole = |disk: &mut Disk, (inode, at, bytes): &Pending| drop(disk.put(*inode, *at, bytes, true));
        match left {
            Left::Nothing => disk.lose_all(),
            Left::Everything => self.pending.iter().for_each(|write| whole(&mut disk, write)),
            Left::Prefix(n) => {
                disk.lose_all();
                self.pending[..n].iter().for_each(|write| whole(&mut disk, write));
            }
            Left::Subset => {
                for (inode, at, bytes) in &self.pending {
                    disk.put_some(*inode, *at, bytes, rng);
                }
                disk.lose(rng);
            }
            Left::Torn(sectors, fill) => {
                let (last, before) = self.pending.split_last().expect("a tear is of a write");
                before.iter().for_each(|write| whole(&mut disk, write));
                let (inode, at, bytes) = last;
                let kept = sectors * SECTOR;
                drop(disk.put(*inode, *at, &bytes[..kept], true));
                let mut rest = bytes[kept..].to_vec();
                match fill {
                    Fill::Old => rest.clear(),
                    Fill::Zeros => rest.fill(0),
                    Fill::Ones => rest.fill(0xFF),
                    Fill::Random => {
                        rest.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.next().to_le_bytes()[..c.len()]))
                    }
                }
                drop(disk.put(*inode, at + kept, &rest, true));
            }
        }
        disk.settle();
        Found(disk)
    }
}

/// A disk as it is found after a crash.
pub struct Found(Disk);

impl SimWorld {
    /// A new node, down, with a disk that was found.
    pub fn add_node_with(&self, found: Found) -> NodeId {
        let mut machines = self.machines.borrow_mut();
        machines.push(Machine { powered: true, ..Machine::default() });
        self.disks.borrow_mut().push(found.0);
        NodeId(machines.len() as u32 - 1)
    }

    /// Takes pictures of a node's disk from now on.
    pub fn take_pictures(&self, node: NodeId) {
        self.disks.borrow_mut()[node.0 as usize].photographed = true;
    }

    /// The pictures that were taken since the last call.
    #[must_use]
    pub fn pictures(&self) -> Vec<Picture> {
        self.pictures.take()
    }
}
