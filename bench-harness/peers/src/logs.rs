//! The logs, each in its best durable configuration; docs/BENCHMARKS.md says why.

use std::sync::Mutex;

use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};
use raft_engine::{Config, Engine, LogBatch, ReadableSize};
use rusqlite::Connection;
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

/// A log in the current folder.
pub(crate) trait Log: Sync {
    /// Returns when all records are on the device.
    fn commit(&self, thread: usize, records: &[&[u8]]) -> Result<(), String>;
}

/// Opens one by name.
pub(crate) fn open(name: &str, threads: usize) -> Result<Box<dyn Log>, String> {
    Ok(match name {
        "raft-engine" => Box::new(RaftEngine::open()?),
        "okaywal" => Box::new(OkayWal::open(threads)?),
        "walrus" => Box::new(WalrusLog::open()?),
        "sqlite" => Box::new(Sqlite::open()?),
        _ => return Err(format!("no log is called {name:?}")),
    })
}

/// The version of the library that a log's crate bundles, if it bundles one.
pub(crate) fn library_version(name: &str) -> Option<String> {
    (name == "sqlite").then(|| format!("{} (sqlite3_libversion)", rusqlite::version()))
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// `write(batch, sync = true)`: fdatasync before it returns, one for all threads that wait.
struct RaftEngine(Engine);

impl RaftEngine {
    fn open() -> Result<Self, String> {
        let config = Config {
            dir: "log".into(),
            batch_compression_threshold: ReadableSize(0),
            // Files that are written beforehand, as many as Towline's.
            enable_log_recycle: true,
            prefill_for_recycle: true,
            prefill_limit: Some(ReadableSize::mb(512)),
            ..Config::default()
        };
        Engine::open(config).map(Self).map_err(text)
    }
}

impl Log for RaftEngine {
    fn commit(&self, thread: usize, records: &[&[u8]]) -> Result<(), String> {
        let mut batch = LogBatch::with_capacity(records.len());
        for record in records {
            batch.put(thread as u64 + 1, b"r".to_vec(), record.to_vec()).map_err(text)?;
        }
        self.0.write(&mut batch, true).map(|_| ()).map_err(text)
    }
}

/// `commit`: fdatasync before it returns, one for all threads that wait.
struct OkayWal(WriteAheadLog);

#[derive(Debug)]
struct Forget;

impl LogManager for Forget {
    fn recover(&mut self, _: &mut Entry<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(&mut self, _: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> std::io::Result<()> {
        Ok(())
    }
}

impl OkayWal {
    fn open(_threads: usize) -> Result<Self, String> {
        // Its defaults are a file of 1 MiB; larger ones mean fewer changes of files.
        let config = Configuration::default_for("log").preallocate_bytes(64 << 20).checkpoint_after_bytes(48 << 20);
        config.open(Forget).map(Self).map_err(text)
    }
}

impl Log for OkayWal {
    fn commit(&self, _: usize, records: &[&[u8]]) -> Result<(), String> {
        let mut entry = self.0.begin_entry().map_err(text)?;
        for record in records {
            entry.write_chunk(record).map_err(text)?;
        }
        entry.commit().map(|_| ()).map_err(text)
    }
}

/// A batch is one msync with the mapped backend; the other one writes each record for itself.
struct WalrusLog(Walrus);

impl WalrusLog {
    fn open() -> Result<Self, String> {
        walrus_rust::disable_fd_backend();
        let consistency = ReadConsistency::StrictlyAtOnce;
        Walrus::with_consistency_and_schedule(consistency, FsyncSchedule::SyncEach).map(Self).map_err(text)
    }
}

impl Log for WalrusLog {
    fn commit(&self, _: usize, records: &[&[u8]]) -> Result<(), String> {
        match records {
            [record] => self.0.append_for_topic("t", record).map_err(text),
            records => self.0.batch_append_for_topic("t", records).map_err(text),
        }
    }
}

/// One transaction for each batch.
struct Sqlite(Mutex<Connection>);

impl Sqlite {
    fn open() -> Result<Self, String> {
        let connection = Connection::open("log.db").map_err(text)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 1000;
                 CREATE TABLE r (id INTEGER PRIMARY KEY, record BLOB NOT NULL)",
            )
            .map_err(text)?;
        let (mode, level) = (
            connection.query_row("PRAGMA journal_mode", [], |r| r.get::<_, String>(0)).map_err(text)?,
            connection.query_row("PRAGMA synchronous", [], |r| r.get::<_, i64>(0)).map_err(text)?,
        );
        if (mode.as_str(), level) != ("wal", 2) {
            return Err(format!("SQLite took journal_mode {mode} and synchronous {level}"));
        }
        Ok(Self(Mutex::new(connection)))
    }
}

impl Log for Sqlite {
    fn commit(&self, _: usize, records: &[&[u8]]) -> Result<(), String> {
        let mut connection = self.0.lock().map_err(text)?;
        let transaction = connection.transaction().map_err(text)?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO r (record) VALUES (?1)").map_err(text)?;
            for record in records {
                insert.execute([record]).map_err(text)?;
            }
        }
        transaction.commit().map_err(text)
    }
}
