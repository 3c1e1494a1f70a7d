//! Disks that say that a write is done, and have lost it or put it elsewhere.

use std::io;
use std::path::Path;

use super::super::rng::Rng;
use super::super::{NodeId, SimWorld};
use super::{Disk, Entry, SECTOR};

/// What becomes of a write that is said to be done and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing: what was there before stays.
    Lost,
    /// It lands at another place: of the file, or of some shard's segment.
    Elsewhere,
}

/// A place on a disk: file, position in it.
type Place = (usize, usize);

impl SimWorld {
    /// Of a node's writes to its shards' folders, the one after `writes` others is said to be done and is not.
    pub fn lie_about_a_write(&self, node: NodeId, writes: u64, lie: Lie) {
        self.machines.borrow_mut()[node.0 as usize].lies = Some((writes, lie));
    }

    /// Writes, and puts it where the device does. Says how many bytes there was space for.
    pub(super) fn put_somewhere(
        &self,
        disk: &mut Disk,
        (node, path): (NodeId, &Path),
        (inode, at): Place,
        bytes: &[u8],
        durable: bool,
    ) -> io::Result<usize> {
        match self.lie(node, path) {
            None => disk.put(inode, at, bytes, durable),
            Some(Lie::Lost) => {
                self.count("write lost");
                self.note(|| format!("node {}: a write is lost: {} at {at}", node.0, path.display()));
                Ok(bytes.len())
            }
            Some(Lie::Elsewhere) => {
                self.count("write misdirected");
                let (to, to_at) = disk.elsewhere(inode, &mut self.rng());
                self.note(|| {
                    let path = path.display();
                    format!("node {}: a write to {path} at {at} lands in file {to}, not {inode}, at {to_at}", node.0)
                });
                let room = disk.inodes[to].len() - to_at;
                disk.put(to, to_at, &bytes[..room.min(bytes.len())], durable)?;
                Ok(bytes.len())
            }
        }
    }

    /// Whether a write to this file is the one.
    fn lie(&self, node: NodeId, path: &Path) -> Option<Lie> {
        let is_log = path.parent()?.ends_with("wal") && path.extension()? == "wal";
        if !is_log && path.file_name()? != "superblock" {
            return None;
        }
        let lies = &mut self.machines.borrow_mut()[node.0 as usize].lies;
        match lies {
            Some((0, lie)) => {
                let lie = *lie;
                *lies = None;
                Some(lie)
            }
            Some((writes, _)) => {
                *writes -= 1;
                None
            }
            None => None,
        }
    }
}

impl Disk {
    /// Another place: in the same file, or in a segment of any shard.
    fn elsewhere(&self, inode: usize, rng: &mut Rng) -> Place {
        let segments = self.folders.iter().filter(|(path, _)| path.ends_with("wal")).flat_map(|(_, folder)| {
            folder.names.values().filter_map(|entry| match entry {
                Entry::File(inode) => Some(*inode),
                Entry::Folder => None,
            })
        });
        let segments: Vec<usize> = segments.filter(|inode| self.inodes[*inode].len() > 0).collect();
        let to = if segments.is_empty() || rng.chance(0.4) {
            inode
        } else {
            segments[rng.below(segments.len() as u64) as usize]
        };
        let sectors = self.inodes[to].len() / SECTOR;
        (to, rng.below(sectors as u64) as usize * SECTOR)
    }
}
