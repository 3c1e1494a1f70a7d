//! What the device can do: durable overwrites of files that are written already, with the log's
//! own way of writing (direct, durable on completion, through `io_uring`).

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use towline_wire::BLOCK;

use super::histogram;
use crate::oneshot;
use crate::rt::{self, DirectFile, DmaBuf};
use crate::shard::mesh::ticket::block_on;
use crate::shard::wal::direct;

/// Bytes of each file that is overwritten again and again.
const FILE_BYTES: u64 = 128 << 20;
/// Bytes that fresh content is taken from.
const SOURCE_BYTES: usize = 8 << 20;

/// What the bytes of each write are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// New for each write: copied into the buffer before it, once, as a log must do with what it
    /// is given. (fio does the like by default, `scramble_buffers`.) The limit to compare with.
    Fresh,
    /// The same again and again, which no log can write: the device alone.
    Reused,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct DiskLimit {
    /// Bytes of all files together that became durable in each second.
    pub bytes_per_s: f64,
    /// How long each write took, in nanoseconds, of all files.
    pub latency_ns: Histogram<u64>,
}

/// Overwrites one file for each entry of `cpus` at the same time, each from an executor on that
/// core: sequentially, `block` bytes at a time, `depth` writes in flight, for `how_long`.
///
/// The files are made in `folder` and removed again.
///
/// # Errors
/// What the system says.
pub fn disk_limit(
    folder: &Path,
    cpus: &[Option<usize>],
    block: usize,
    depth: usize,
    content: Content,
    how_long: Duration,
) -> io::Result<DiskLimit> {
    let paths: Vec<_> = (0..cpus.len()).map(|n| folder.join(format!("limit-{n}.tmp"))).collect();
    let result = prepare(&paths).and_then(|()| run(&paths, cpus, (block, depth, content), how_long));
    for path in &paths {
        let _ = std::fs::remove_file(path);
    }
    result
}

fn prepare(paths: &[std::path::PathBuf]) -> io::Result<()> {
    for path in paths {
        let _ = std::fs::remove_file(path);
        let file = direct::open(path, true, false)?;
        direct::write_zeros(&file, 0, FILE_BYTES)?;
        file.sync_all()?;
    }
    Ok(())
}

fn run(
    paths: &[std::path::PathBuf],
    cpus: &[Option<usize>],
    work: (usize, usize, Content),
    how_long: Duration,
) -> io::Result<DiskLimit> {
    let end = Instant::now() + how_long;
    let mut waits = Vec::new();
    let mut threads = Vec::new();
    for (path, cpu) in paths.iter().zip(cpus) {
        let (done, wait) = oneshot::channel();
        let path = path.clone();
        threads.push(rt::start_executor("limit", *cpu, 8 << 20, move || async move {
            done.send(overwrite(&path, work, end).await);
        })?);
        waits.push(wait);
    }
    let (mut bytes_per_s, mut latency_ns) = (0.0, histogram());
    for wait in waits {
        let (bytes, seconds, latency) = block_on(wait).map_err(io::Error::other)??;
        bytes_per_s += bytes as f64 / seconds;
        latency_ns.add(&latency).map_err(io::Error::other)?;
    }
    for thread in threads {
        block_on(thread.join())?;
    }
    Ok(DiskLimit { bytes_per_s, latency_ns })
}

async fn overwrite(
    path: &Path,
    (block, depth, content): (usize, usize, Content),
    end: Instant,
) -> io::Result<(u64, f64, Histogram<u64>)> {
    // Larger than a core's own caches, like the records that a log is given.
    let mut source = vec![0; SOURCE_BYTES + block];
    crate::sys::random(&mut source)?;
    let source = Rc::new(source);
    let file = Rc::new(DirectFile::open(path).await?);
    let (next, bytes) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(0u64)));
    let latency = Rc::new(RefCell::new(histogram()));
    let failed = Rc::new(RefCell::new(None));
    let began = Instant::now();
    let (done, mut waits) = (Rc::new(Cell::new(0)), Vec::new());
    for slot in 0..depth {
        // A buffer for each write in flight, as fio has: one for all would stay in the cache.
        let mut buf = DmaBuf::new(block);
        buf.as_mut().copy_from_slice(&source[slot * BLOCK..slot * BLOCK + block]);
        let mut buf = buf.share();
        let source = source.clone();
        let (tell, wait) = oneshot::channel();
        waits.push(wait);
        let (file, next, bytes) = (file.clone(), next.clone(), bytes.clone());
        let (latency, failed, done) = (latency.clone(), failed.clone(), done.clone());
        rt::spawn(async move {
            while Instant::now() < end && failed.borrow().is_none() {
                let at = next.get();
                next.set((at + block as u64) % (FILE_BYTES - FILE_BYTES % block as u64));
                if content == Content::Fresh {
                    let skip = (at as usize / 3) % SOURCE_BYTES;
                    buf.refill(&source[skip..skip + block]);
                }
                let from = rt::now_ns();
                match file.write(buf.clone(), at).await {
                    Ok(n) if n == block => {
                        bytes.set(bytes.get() + n as u64);
                        latency.borrow_mut().saturating_record(rt::now_ns() - from);
                    }
                    Ok(n) => *failed.borrow_mut() = Some(io::Error::other(format!("a short write of {n} bytes"))),
                    Err(e) => *failed.borrow_mut() = Some(e),
                }
            }
            done.set(done.get() + 1);
            tell.send(());
        });
    }
    for wait in waits {
        wait.await.map_err(io::Error::other)?;
    }
    if let Some(e) = failed.borrow_mut().take() {
        return Err(e);
    }
    let latency = latency.borrow().clone();
    Ok((bytes.get(), began.elapsed().as_secs_f64(), latency))
}

/// Reads files as [`read_limit`] does and overwrites another one in `dir` durably at the same time, each on a core
/// of its own: what a disk gives to a log that is read on one node and written on another, where both have
/// the same disk. Returns the bytes in each second that can go both ways.
///
/// # Errors
/// What the system says.
pub fn copy_limit(
    files: &[std::path::PathBuf],
    dir: &Path,
    [reads, writes]: [Option<usize>; 2],
    how_long: Duration,
) -> io::Result<f64> {
    let paths = [dir.join("limit-copy.tmp")];
    let both = || {
        prepare(&paths)?;
        // They are read again and again until the time is over.
        let files = (0..16).flat_map(|_| files.to_vec()).collect();
        let reader = std::thread::spawn(move || read_limit(files, reads, (1 << 20, 4), how_long));
        let written = run(&paths, &[writes], (512 << 10, 4, Content::Fresh), how_long);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((read + written?.bytes_per_s) / 2.0)
    };
    let result = both();
    let _ = std::fs::remove_file(&paths[0]);
    result
}

/// Reads files one after the other with direct reads, `block` bytes at a time and `depth` in flight, from
/// an executor on `cpu`, for `how_long` or until all were read; returns bytes in each second.
///
/// # Errors
/// What the system says.
pub fn read_limit(
    files: Vec<std::path::PathBuf>,
    cpu: Option<usize>,
    (block, depth): (usize, usize),
    how_long: Duration,
) -> io::Result<f64> {
    let (done, wait) = oneshot::channel();
    let thread = rt::start_executor("limit", cpu, 8 << 20, move || async move {
        done.send(read_all(files, block, depth, Instant::now() + how_long).await);
    })?;
    let read = block_on(wait).map_err(io::Error::other)?;
    block_on(thread.join())?;
    read
}

async fn read_all(files: Vec<std::path::PathBuf>, block: usize, depth: usize, end: Instant) -> io::Result<f64> {
    let mut pieces = Vec::new();
    for path in files {
        let file = Rc::new(DirectFile::open(&path).await?);
        pieces.extend((0..std::fs::metadata(&path)?.len() / block as u64).map(|n| (file.clone(), n * block as u64)));
    }
    pieces.reverse();
    let (left, bytes) = (Rc::new(RefCell::new(pieces)), Rc::new(Cell::new(0u64)));
    let (began, mut waits) = (Instant::now(), Vec::new());
    for _ in 0..depth {
        let (left, bytes) = (left.clone(), bytes.clone());
        let (tell, wait) = oneshot::channel();
        waits.push(wait);
        rt::spawn(async move {
            let mut result = Ok(());
            while Instant::now() < end {
                let Some((file, at)) = left.borrow_mut().pop() else { break };
                match file.read(at, block).await {
                    Ok(read) => bytes.set(bytes.get() + read.len() as u64),
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
            }
            tell.send(result);
        });
    }
    for wait in waits {
        wait.await.map_err(io::Error::other)??;
    }
    Ok(bytes.get() as f64 / began.elapsed().as_secs_f64())
}
