//! A node's folders and files as its process sees them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use towline::world::{self, Bytes, LocalFuture, OpenHow};

use super::super::{NodeId, SimWorld, here};
use super::{Disk, Entry, Folder, Inode, SECTOR, Work, gone, not_found, split};

/// A process's view of its node's disk.
pub(in super::super) struct NodeDisk {
    pub(in super::super) node: NodeId,
    pub(in super::super) process: u64,
}

impl NodeDisk {
    fn with<R>(&self, f: impl FnOnce(&mut Disk, &SimWorld) -> io::Result<R>) -> io::Result<R> {
        let world = here().ok_or_else(gone)?;
        world.call(self.node, self.process)?;
        let disk = &mut world.disks.borrow_mut()[self.node.0 as usize];
        f(disk, &world)
    }
}

impl world::Disk for NodeDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.with(|disk, _| {
            let mut above: Vec<&Path> = path.ancestors().collect();
            above.reverse();
            for folder in above {
                if !disk.folders.contains_key(folder) {
                    disk.folders.insert(folder.to_path_buf(), Folder::default());
                    if let Ok((parent, name)) = split(folder) {
                        let is_root = parent == Path::new("/");
                        let parent = disk.folders.get_mut(&parent).ok_or_else(not_found)?;
                        parent.change((None, Some((name.clone(), Entry::Folder))));
                        if is_root {
                            // Nobody can sync the root: what lies there was there before.
                            parent.synced.insert(name, Entry::Folder);
                            parent.unsynced.clear();
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.with(|disk, _| Ok(disk.folders.get(folder).ok_or_else(not_found)?.names.keys().cloned().collect()))
    }

    fn exists(&self, path: &Path) -> bool {
        self.with(|disk, _| Ok(disk.folders.contains_key(path) || disk.find(path).is_ok())).unwrap_or(false)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|disk, _| {
            disk.find(path)?;
            let (folder, name) = split(path)?;
            disk.folders.get_mut(&folder).ok_or_else(not_found)?.change((Some(name), None));
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|disk, _| {
            let inode = disk.find(from)?;
            let ((folder, old), (target, new)) = (split(from)?, split(to)?);
            if folder != target {
                return Err(io::Error::other("renames across folders are not simulated"));
            }
            let change = (Some(old), Some((new, Entry::File(inode))));
            disk.folders.get_mut(&folder).ok_or_else(not_found)?.change(change);
            Ok(())
        })
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let went = self.with(|disk, _| {
            let folder = disk.folders.get_mut(path).ok_or_else(not_found)?;
            folder.unsynced.clear();
            folder.synced.clone_from(&folder.names);
            Ok(())
        });
        if let Some(world) = here() {
            world.note_failed((self.node, self.process), path, None, &went);
        }
        went
    }

    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn world::DiskFile>> {
        let inode = self.with(|disk, _| {
            let (folder, name) = split(path)?;
            match disk.find(path) {
                Ok(_) if how.create && how.must_be_new => Err(io::Error::from_raw_os_error(17)),
                Ok(inode) => Ok(inode),
                Err(_) if how.create => {
                    let folder = disk.folders.get_mut(&folder).ok_or_else(not_found)?;
                    let inode = disk.inodes.len();
                    disk.inodes.push(Inode::default());
                    folder.change((None, Some((name, Entry::File(inode)))));
                    Ok(inode)
                }
                Err(e) => Err(e),
            }
        })?;
        let holds_lock = AtomicBool::new(false);
        Ok(Arc::new(SimFile { node: self.node, process: self.process, inode, path: path.into(), how, holds_lock }))
    }
}

/// An open file.
pub(super) struct SimFile {
    pub(super) node: NodeId,
    pub(super) process: u64,
    pub(super) inode: usize,
    pub(super) path: Arc<Path>,
    how: OpenHow,
    holds_lock: AtomicBool,
}

impl SimFile {
    fn with<R>(&self, f: impl FnOnce(&mut Disk, &SimWorld) -> io::Result<R>) -> io::Result<R> {
        NodeDisk { node: self.node, process: self.process }.with(f)
    }

    fn check(&self, len: usize, at: u64, writes: bool) -> io::Result<()> {
        if writes && !self.how.write {
            return Err(io::Error::from_raw_os_error(9));
        }
        let aligned = len.is_multiple_of(SECTOR) && at.is_multiple_of(SECTOR as u64);
        if self.how.direct && !aligned { Err(io::Error::from_raw_os_error(22)) } else { Ok(()) }
    }

    async fn finish(&self, number: u64) -> io::Result<(usize, Vec<u8>)> {
        let node = self.node.0 as usize;
        std::future::poll_fn(|cx| {
            let Some(world) = here() else { return Poll::Pending };
            let mut disks = world.disks.borrow_mut();
            let Some(op) = disks[node].ops.get_mut(&number) else { return Poll::Pending };
            match op.result.take() {
                Some(result) => {
                    disks[node].ops.remove(&number);
                    Poll::Ready(result)
                }
                None => {
                    op.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl world::DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|disk, _| Ok(disk.inodes[self.inode].len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|disk, _| {
            disk.inodes[self.inode].set_len(len as usize);
            Ok(())
        })
    }

    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        self.check(out.len(), at, false)?;
        self.with(|disk, world| {
            if world.strikes("read error", |f| f.read_error) {
                return Err(io::Error::from_raw_os_error(5));
            }
            Ok(disk.inodes[self.inode].read(at as usize, out))
        })
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.check(bytes.len(), at, true)?;
        let world = here().ok_or_else(gone)?;
        world.call_to_write(self, bytes, at as usize)?;
        world.trace.mix(at ^ bytes.len() as u64);
        if world.strikes("write error", |f| f.write_error) {
            let failed = Err(world.disk_error());
            let rng = &mut *world.rng();
            world.disks.borrow_mut()[self.node.0 as usize].put_some(self.inode, at as usize, bytes, rng);
            world.note_failed((self.node, self.process), &self.path, None, &failed);
            return failed.map(|()| 0);
        }
        let bytes = &bytes[..world.written_of(bytes.len())];
        let disk = &mut world.disks.borrow_mut()[self.node.0 as usize];
        world.put_somewhere(disk, (self.node, &self.path), (self.inode, at as usize), bytes, self.how.durable)
    }

    fn sync(&self) -> io::Result<()> {
        let world = here().ok_or_else(gone)?;
        let lived = world.lives(self.node, self.process);
        let mut went = world.call(self.node, self.process);
        if went.is_ok() && world.strikes("flush error", |f| f.write_error) {
            went = Err(world.disk_error());
        }
        let disk = &mut world.disks.borrow_mut()[self.node.0 as usize];
        match &went {
            Ok(()) => disk.inodes[self.inode].sync(),
            Err(_) if lived => disk.inodes[self.inode].fail_sync(&mut world.rng()),
            Err(_) => {}
        }
        if lived {
            world.note_failed((self.node, self.process), &self.path, None, &went);
        }
        went
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.with(|disk, _| {
            let file = &mut disk.inodes[self.inode];
            let free = !std::mem::replace(&mut file.locked, true);
            if free {
                self.holds_lock.store(true, Ordering::Relaxed);
            }
            Ok(free)
        })
    }

    fn start_write(&self, bytes: Bytes, at: u64) -> LocalFuture<io::Result<usize>> {
        let started = self.check(bytes.len(), at, true).and_then(|()| {
            let world = here().ok_or_else(gone)?;
            let path = self.path.clone();
            let work = Work::Write { inode: self.inode, path, at: at as usize, bytes, durable: self.how.durable };
            world.start_op(self, work)
        });
        let file = self.again();
        Box::pin(async move { Ok(file.finish(started?).await?.0) })
    }

    fn start_read(&self, at: u64, len: usize) -> LocalFuture<io::Result<Vec<u8>>> {
        let started = self.check(len, at, false).and_then(|()| {
            let world = here().ok_or_else(gone)?;
            world.start_op(self, Work::Read { inode: self.inode, at: at as usize, len })
        });
        let file = self.again();
        Box::pin(async move { Ok(file.finish(started?).await?.1) })
    }
}

impl SimFile {
    /// The same file, for an operation that may outlive its handle.
    fn again(&self) -> Self {
        let holds_lock = AtomicBool::new(false);
        let (node, process, inode, path) = (self.node, self.process, self.inode, self.path.clone());
        Self { node, process, inode, path, how: self.how, holds_lock }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.holds_lock.load(Ordering::Relaxed)
            && let Some(world) = here()
            && world.lives(self.node, self.process)
        {
            world.disks.borrow_mut()[self.node.0 as usize].inodes[self.inode].locked = false;
        }
    }
}
