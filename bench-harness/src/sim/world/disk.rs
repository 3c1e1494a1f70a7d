//! One node's disk: what its files hold, and what of that would survive a loss of power.
//!
//! The model is the harshest that a file system with metadata in order allows: bytes that were
//! written and not synced survive in any subset of their 512-byte sectors; changes of a folder's
//! names that were not synced survive up to any of them; a write under way ends wholly, not at all,
//! or in any subset of its sectors.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use towline::world::Bytes;

use super::images::{Pending, Picture};
use super::rng::Rng;
use super::{Event, NodeId, SimWorld};

mod file;
mod inode;
mod lies;

pub(super) use file::NodeDisk;
use file::SimFile;
use inode::Inode;
pub use lies::Lie;

/// What survives or not.
pub(super) const SECTOR: usize = 512;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(usize),
    Folder,
}

/// A change of a folder's names: one that goes, one that comes.
type Change = (Option<String>, Option<(String, Entry)>);

#[derive(Clone, Default)]
struct Folder {
    names: BTreeMap<String, Entry>,
    synced: BTreeMap<String, Entry>,
    unsynced: Vec<Change>,
}

impl Folder {
    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.unsynced.push(change);
    }
}

fn apply(names: &mut BTreeMap<String, Entry>, (goes, comes): &Change) {
    if let Some(name) = goes {
        names.remove(name);
    }
    if let Some((name, entry)) = comes {
        names.insert(name.clone(), *entry);
    }
}

/// What the device is at.
enum Work {
    Write { inode: usize, path: Arc<Path>, at: usize, bytes: Bytes, durable: bool },
    Read { inode: usize, at: usize, len: usize },
}

/// An operation under way, and its result.
struct Op {
    node: NodeId,
    process: u64,
    work: Option<Work>,
    result: Option<io::Result<(usize, Vec<u8>)>>,
    waker: Option<Waker>,
}

/// A disk.
#[derive(Default)]
pub(super) struct Disk {
    folders: BTreeMap<PathBuf, Folder>,
    inodes: Vec<Inode>,
    ops: BTreeMap<u64, Op>,
    /// Whether every boundary of a call is photographed.
    pub(super) photographed: bool,
    /// How many bytes more its files may grow by.
    pub(super) space: Option<u64>,
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn gone() -> io::Error {
    io::Error::other("the process has met its end")
}

fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let folder = path.parent().ok_or_else(not_found)?.to_path_buf();
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(not_found)?.to_string();
    Ok((folder, name))
}

impl Disk {
    fn find(&self, path: &Path) -> io::Result<usize> {
        let (folder, name) = split(path)?;
        match self.folders.get(&folder).and_then(|f| f.names.get(&name)) {
            Some(Entry::File(inode)) => Ok(*inode),
            _ => Err(not_found()),
        }
    }

    /// All files and their lengths.
    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut out = Vec::new();
        for (path, folder) in &self.folders {
            for (name, entry) in &folder.names {
                if let Entry::File(inode) = entry {
                    out.push((path.join(name), self.inodes[*inode].len() as u64));
                }
            }
        }
        out
    }

    /// What a part of a file holds, if it has all of it.
    pub(super) fn contents(&self, path: &Path, part: Range<usize>) -> Option<Vec<u8>> {
        let file = &self.inodes[self.find(path).ok()?];
        (part.end <= file.len()).then(|| file.bytes(part))
    }

    pub(super) fn flip_bit(&mut self, path: &Path, at: u64, bit: u8) {
        if let Ok(inode) = self.find(path) {
            self.inodes[inode].flip_bit(at as usize, bit);
        }
    }

    /// Writes; says how many bytes there was space for.
    pub(super) fn put(&mut self, inode: usize, at: usize, bytes: &[u8], durable: bool) -> io::Result<usize> {
        let file = &mut self.inodes[inode];
        let grows = file.grows_by(at, bytes.len());
        if let Some(space) = &mut self.space {
            if grows as u64 > *space {
                return Err(io::Error::from_raw_os_error(28));
            }
            *space -= grows as u64;
        }
        file.put(at, bytes, durable);
        Ok(bytes.len())
    }

    /// A write that was under way ends somehow.
    pub(super) fn put_some(&mut self, inode: usize, at: usize, bytes: &[u8], rng: &mut Rng) {
        match rng.below(4) {
            0 => {}
            1 => drop(self.put(inode, at, bytes, true)),
            // In order, up to somewhere.
            2 => {
                let sectors = rng.below((bytes.len() / SECTOR) as u64 + 1) as usize;
                drop(self.put(inode, at, &bytes[..(sectors * SECTOR).min(bytes.len())], true));
            }
            _ => {
                for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                    if rng.chance(0.5) {
                        drop(self.put(inode, at + n * SECTOR, sector, true));
                    }
                }
            }
        }
    }

    /// The same files, with nothing under way.
    pub(super) fn copy(&self) -> Self {
        Self {
            folders: self.folders.clone(),
            inodes: self.inodes.clone(),
            ops: BTreeMap::new(),
            photographed: false,
            space: None,
        }
    }

    /// A picture of it, with the writes that are under way.
    pub(super) fn picture(&self, node: NodeId, begins: Option<(usize, usize, &[u8])>) -> Picture {
        let disk = self.copy();
        let mut pending: Vec<Pending> = Vec::new();
        for op in self.ops.values() {
            if let Some(Work::Write { inode, at, bytes, .. }) = &op.work {
                pending.push((*inode, *at, bytes.clone()));
            }
        }
        pending.extend(begins.map(|(inode, at, bytes)| (inode, at, Rc::new(bytes.to_vec()) as Bytes)));
        Picture { node, disk, pending }
    }

    /// The power goes, and nothing survives that was not made durable.
    pub(super) fn lose_all(&mut self) {
        for folder in self.folders.values_mut() {
            folder.unsynced.clear();
            folder.names.clone_from(&folder.synced);
        }
        self.forget_lost_folders();
        self.inodes.iter_mut().for_each(Inode::lose_all);
    }

    /// What is there now is there for good, and nobody holds it.
    pub(super) fn settle(&mut self) {
        for folder in self.folders.values_mut() {
            folder.unsynced.clear();
            folder.synced.clone_from(&folder.names);
        }
        for file in &mut self.inodes {
            file.settle();
            file.locked = false;
        }
    }

    /// What lies below a folder that is not there any more is gone.
    fn forget_lost_folders(&mut self) {
        let there = |folders: &BTreeMap<PathBuf, Folder>, path: &Path| {
            let mut at = path;
            loop {
                let Ok((parent, name)) = split(at) else { return true };
                match folders.get(&parent) {
                    Some(folder) if folder.names.get(&name) == Some(&Entry::Folder) => {}
                    _ => return false,
                }
                at = at.parent().expect("it was split");
            }
        };
        let lost: Vec<PathBuf> = self.folders.keys().filter(|p| !there(&self.folders, p)).cloned().collect();
        for path in lost {
            self.folders.remove(&path);
        }
    }

    /// The power goes: what was not synced survives in part.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        for folder in self.folders.values_mut() {
            let kept = rng.below(folder.unsynced.len() as u64 + 1) as usize;
            for change in &folder.unsynced[..kept] {
                apply(&mut folder.synced, change);
            }
            folder.unsynced.clear();
            folder.names.clone_from(&folder.synced);
        }
        self.forget_lost_folders();
        self.inodes.iter_mut().for_each(|file| file.lose(rng));
    }
}

impl SimWorld {
    /// Compares a part of a file that two nodes have; an error says where in the file they differ first. `None`: one
    /// of them does not have it, or not all of that part.
    #[must_use]
    pub fn agree(&self, nodes: [NodeId; 2], path: &Path, part: Range<usize>) -> Option<Result<(), usize>> {
        let disks = self.disks.borrow();
        let [a, b] = nodes.map(|node| disks[node.0 as usize].contents(path, part.clone()));
        let (a, b) = (a?, b?);
        if a == b {
            return Some(Ok(()));
        }
        let first = a.iter().zip(&b).position(|(a, b)| a != b);
        Some(Err(part.start + first.expect("they differ")))
    }

    /// Flips a bit of a file on a node's disk.
    pub fn flip_bit(&self, node: NodeId, path: &Path, at_byte: u64, bit: u8) {
        self.count("bit flipped");
        self.disks.borrow_mut()[node.0 as usize].flip_bit(path, at_byte, bit);
    }

    /// A call of a process to its disk. Fails if it is to, and if the process meets its end here, or
    /// has before.
    fn call(&self, node: NodeId, process: u64) -> io::Result<()> {
        if !self.lives(node, process) {
            return Err(gone());
        }
        self.photograph(node, None);
        let machine = &mut self.machines.borrow_mut()[node.0 as usize];
        let call = machine.calls;
        machine.calls += 1;
        if machine.fails_at.is_some_and(|(at, forever)| call == at || (forever && call > at)) {
            self.count("call failed");
            return Err(io::Error::from_raw_os_error(5));
        }
        match &mut machine.crash_in {
            Some((0, power)) => {
                machine.doomed = Some(*power);
                machine.crash_in = None;
                self.count("crash in a call");
                Err(gone())
            }
            Some((calls, _)) => {
                *calls -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// As [`SimWorld::call`] for a blocking write, of which a part may be on the device when the
    /// process meets its end in it.
    fn call_to_write(&self, file: &SimFile, bytes: &[u8], at: usize) -> io::Result<()> {
        let lived = self.lives(file.node, file.process);
        self.photograph(file.node, Some((file.inode, at, bytes)));
        let called = self.call(file.node, file.process);
        if called.is_err() && lived {
            let rng = &mut *self.rng();
            self.disks.borrow_mut()[file.node.0 as usize].put_some(file.inode, at, bytes, rng);
            self.note_failed((file.node, file.process), &file.path, None, &called);
        }
        called
    }

    /// How a write or a flush fails: in any of the ways that kernels know.
    fn disk_error(&self) -> io::Error {
        // EIO most of the time; ENOSPC, EDQUOT, EREMOTEIO, ETIMEDOUT, EROFS.
        let code = [5, 5, 5, 5, 5, 28, 122, 121, 110, 30][self.rng().below(10) as usize];
        io::Error::from_raw_os_error(code)
    }

    /// How much of a write of so many bytes is written.
    fn written_of(&self, bytes: usize) -> usize {
        if !self.strikes("short write", |f| f.short_write) {
            return bytes;
        }
        let len = self.rng().below(bytes as u64) as usize;
        // Most devices take whole sectors.
        if self.rng().chance(0.8) { len - len % SECTOR } else { len }
    }

    /// Takes a picture of a node's disk, with the blocking write that begins.
    fn photograph(&self, node: NodeId, begins: Option<(usize, usize, &[u8])>) {
        let disks = self.disks.borrow();
        let disk = &disks[node.0 as usize];
        if disk.photographed {
            let picture = disk.picture(node, begins);
            self.pictures.borrow_mut().push(picture);
        }
    }

    pub(super) fn end_disk(&self, node: NodeId, power: bool) {
        let disk = &mut self.disks.borrow_mut()[node.0 as usize];
        let rng = &mut *self.rng();
        for (_, op) in std::mem::take(&mut disk.ops) {
            if let Some(Work::Write { inode, at, bytes, .. }) = op.work {
                disk.put_some(inode, at, &bytes, rng);
            }
        }
        if power {
            disk.lose(rng);
        }
        for file in &mut disk.inodes {
            file.locked = false;
        }
    }

    fn start_op(&self, file: &SimFile, work: Work) -> io::Result<u64> {
        let lived = self.lives(file.node, file.process);
        let called = self.call(file.node, file.process);
        if let (Err(_), true, Work::Write { inode, path, at, bytes, .. }) = (&called, lived, &work) {
            self.disks.borrow_mut()[file.node.0 as usize].put_some(*inode, *at, bytes, &mut self.rng());
            self.note_failed((file.node, file.process), path, Some(*at), &called);
        }
        called?;
        let took = {
            let range = self.rates().disk_ns;
            self.rng().within(range)
        };
        let took = if self.strikes("slow disk", |f| f.slow_disk) { took * 100 } else { took };
        let number = {
            let events = &mut *self.events.borrow_mut();
            events.1 += 1;
            events.1
        };
        let op = Op { node: file.node, process: file.process, work: Some(work), result: None, waker: None };
        self.disks.borrow_mut()[file.node.0 as usize].ops.insert(number, op);
        self.at(self.now_ns() + took, Event::Done(number));
        Ok(number)
    }

    pub(super) fn disk_done(&self, number: u64) {
        let mut disks = self.disks.borrow_mut();
        let Some(disk) = disks.iter_mut().find(|d| d.ops.contains_key(&number)) else { return };
        let op = disk.ops.get_mut(&number).expect("it was found");
        if !self.lives(op.node, op.process) {
            return;
        }
        let Some(work) = op.work.take() else { return };
        let waker = op.waker.take();
        let whose = (op.node, op.process);
        let result = match work {
            Work::Write { inode, path, at, bytes, durable } => {
                self.trace.mix(number ^ bytes.len() as u64);
                if self.strikes("write error", |f| f.write_error) {
                    disk.put_some(inode, at, &bytes, &mut self.rng());
                    let failed = Err(self.disk_error());
                    self.note_failed(whose, &path, Some(at), &failed);
                    failed.map(|()| (0, Vec::new()))
                } else {
                    let len = self.written_of(bytes.len());
                    let put = self.put_somewhere(disk, (whose.0, &path), (inode, at), &bytes[..len], durable);
                    put.map(|n| (n, Vec::new()))
                }
            }
            Work::Read { inode, at, len } => {
                if self.strikes("read error", |f| f.read_error) {
                    Err(io::Error::from_raw_os_error(5))
                } else {
                    Ok((0, disk.inodes[inode].bytes(at..at + len)))
                }
            }
        };
        let op = disk.ops.get_mut(&number).expect("it was found");
        op.result = Some(result);
        let node = op.node;
        drop(disks);
        self.photograph(node, None);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
