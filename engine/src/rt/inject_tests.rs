use std::fs;

use super::super::disk::{self, File, OpenHow};
use super::super::{self as rt, DirectFile, DmaBuf};
use super::*;

const NEW: OpenHow = OpenHow { write: true, create: true, must_be_new: true, direct: false, durable: false };

fn failure(of: Calls, at: u64, forever: bool, with: With) -> Option<Failure> {
    Some(Failure { of, at, forever, with })
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn one_call_fails_or_all_from_there_on_and_only_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (watched, other) = (dir.path().join("a"), dir.path().join("ab"));
    fs::create_dir(&other).unwrap();
    let watch = Watch::on(&watched, failure(Calls::All, 1, false, With::Error(libc::EIO)));
    disk::create_dir_all(&watched).unwrap();
    disk::sync_folder(&other).unwrap();
    assert!(watch.met().is_none());
    assert_eq!(errno(disk::sync_folder(&watched)), Some(libc::EIO));
    assert_eq!(watch.met().unwrap().call, Call::Flush);
    disk::sync_folder(&watched).unwrap();
    assert_eq!(watch.counts(), Counts { all: 3, ..Counts::default() });
    drop(watch);
    let watch = Watch::on(&watched, failure(Calls::All, 1, true, With::Error(libc::EIO)));
    disk::names(&watched).unwrap();
    for _ in 0..2 {
        assert_eq!(errno(disk::names(&watched)), Some(libc::EIO));
    }
    watch.mend();
    disk::names(&watched).unwrap();
}

#[test]
fn a_full_disk_takes_what_needs_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let watch = Watch::on(dir.path(), failure(Calls::Growing, 1, true, With::Error(libc::ENOSPC)));
    let file = File::open(&dir.path().join("f"), NEW).unwrap();
    file.write_all_at(&[1; 100], 0).unwrap();
    assert_eq!(errno(file.write_all_at(&[2; 100], 50)), Some(libc::ENOSPC));
    file.write_all_at(&[3; 50], 50).unwrap();
    assert_eq!(watch.counts(), Counts { all: 4, writes: 3, growing: 2, long: 0 });
}

#[test]
fn a_short_write_is_really_short_and_its_rest_is_written_by_whoever_asks_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let watch = Watch::on(dir.path(), failure(Calls::Long, 0, true, With::Short));
    let path = dir.path().join("f");
    let file = File::open(&path, NEW).unwrap();
    let bytes: Vec<u8> = (0..5 * BLOCK).map(|n| (n / BLOCK) as u8 + 1).collect();
    file.write_all_at(&bytes, 0).unwrap();
    // 5 blocks: 2, then of 3 one, then of 2 one, then the last one.
    assert_eq!(watch.counts().writes, 4);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_core_meets_it_too_and_a_failed_write_may_leave_its_first_half() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, vec![0; 8 * BLOCK]).unwrap();
    let (inner, folder) = (path.clone(), dir.path().to_path_buf());
    let core = rt::start_executor("inject", None, 64 << 10, move || async move {
        let buf = || {
            let mut buf = DmaBuf::new(4 * BLOCK);
            buf.as_mut().fill(7);
            buf.share()
        };
        for (with, at) in [(With::Short, 0), (With::Error(libc::EIO), 1)] {
            let watch = Watch::on(&folder, failure(Calls::Writes, at, false, with));
            let file = DirectFile::open(&inner).await.unwrap();
            if at == 0 {
                assert_eq!(file.write(buf(), 0).await.unwrap(), 2 * BLOCK);
            } else {
                assert_eq!(file.write(buf(), 0).await.unwrap(), 4 * BLOCK);
                assert_eq!(errno(file.write(buf(), 4 * BLOCK as u64).await), Some(libc::EIO));
            }
            assert_eq!(watch.met().unwrap().call, Call::Batch);
            let read = file.read(0, 8 * BLOCK).await.unwrap();
            let written = read.iter().take_while(|b| **b == 7).count();
            assert_eq!((written, read.len()), ([2, 6][at as usize] * BLOCK, 8 * BLOCK));
        }
    });
    super::super::super::shard::mesh::ticket::block_on(core.unwrap().join()).unwrap();
}
