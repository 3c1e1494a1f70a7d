//! Every fixed limit in one place. What can be configured has its default and bounds in
//! [`crate::config`].

use std::time::Duration;

/// Most shards of one system.
pub const SHARDS_MAX: u32 = 1024;
/// Most configured replicas of one primary.
pub const REPLICAS_MAX: usize = 128;
/// Most lanes (handles, local lanes and remote connections) of one shard at a time.
pub const LANES_MAX: usize = 4096;
/// Most connections of one node at a time, all shards together.
pub const CONNECTIONS_MAX: usize = 4096;
/// Most connections of one node whose handshake is not finished.
pub const HANDSHAKES_MAX: usize = 256;
/// Room kept for waiters of one requirement before the queue grows.
pub const WAITERS_RESERVED: usize = 1024;
/// Smallest segment: tests use it. The largest is 16 GiB.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 16 << 30;
/// Spare segment files that are kept beside those for the segments ahead; more are removed.
pub const SPARE_SEGMENTS: usize = 2;
/// The least cap on what slots may hold, in segments above what is to be kept.
pub const RETAIN_MAX_SEGMENTS_MIN: u64 = 2;
/// The cap unless configured: so many times what is to be kept,
pub const RETAIN_MAX_TIMES: u64 = 8;
/// and at least so many segments above it.
pub const RETAIN_MAX_SEGMENTS_AUTO: u64 = 16;
/// How often a shard whose log may not grow looks whether it may again.
pub const CAP_RETRY: Duration = Duration::from_millis(20);
/// The shortest idle expiry of slots.
pub const SLOT_IDLE_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const SLOT_IDLE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// The shortest age for `min_replicas`: replicas of an idle shard acknowledge once in a heartbeat.
pub const MIN_REPLICAS_AGE_MIN: Duration = Duration::from_secs(2);
/// The longest.
pub const MIN_REPLICAS_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long a temporary slot waits for its link.
pub const TEMPORARY_SLOT_WAIT: Duration = Duration::from_secs(60);
/// The largest manifest of a backup that is read: that of a million segments.
pub const MANIFEST_BYTES_MAX: u64 = 128 << 20;
/// How long a backup waits for the primary while nothing comes.
pub const BACKUP_PATIENCE: Duration = Duration::from_secs(30);
/// Segments of one shard whose files are kept open; others are opened when they are read.
pub const SEGMENTS_OPEN_MAX: usize = 64;
/// The newest segments, which are among them.
pub const SEGMENTS_OPEN_NEWEST: usize = 8;
/// Most writes in flight to one shard's device.
pub const WRITE_DEPTH_MAX: usize = 64;
/// Bytes read at once from segments for catch-up, tails and recovery.
pub const READ_CHUNK_BYTES: usize = 1 << 20;
/// Large reads that a link which catches up has in flight ahead of what it sends,
pub const READ_AHEAD: usize = 4;
/// and the most bytes of them for all links of a shard: who finds no room reads one at a time.
pub const READ_AHEAD_BYTES_MAX: u64 = 16 << 20;
/// While others are live, whose writes wait behind reads, a link that catches up reads so many bytes at once,
pub const POLITE_READ_BYTES: usize = 512 << 10;
/// and has so many reads in flight ahead of what it sends.
pub const POLITE_READ_AHEAD: usize = 1;
/// Without a cap it reads for so many percent of the time then, or as much as the log grows twice over.
pub const POLITE_SHARE: u128 = 10;
/// Bytes that a link which catches up sends at a time while others are live.
pub const CATCH_UP_SLICE_BYTES: usize = 128 << 10;
/// and of them to the kernel at a time:
pub const POLITE_BYTES: usize = 64 << 10;
/// for so many times as long as that took it leaves the core to the others,
pub const POLITE_PAUSES: u32 = 4;
/// and for so long at most.
pub const POLITE_PAUSE_MAX: Duration = Duration::from_millis(2);
/// The smallest batch that a link compresses,
pub const SQUEEZE_BYTES_MIN: usize = 512;
/// and the largest: it takes as much memory once more.
pub const SQUEEZE_BYTES_MAX: usize = 2 << 20;
/// Most batches that are sent as they are before it is tried again whether compressing pays.
pub const SQUEEZE_SKIP_MAX: u32 = 128;
/// Others are live for so long after the log has grown.
pub const LIVE_FOR: Duration = Duration::from_millis(100);
/// How much of a capped rate may come at once.
pub const CATCH_UP_BURST: Duration = Duration::from_millis(20);
/// The lowest cap on catch-up, in bytes for each second.
pub const CATCH_UP_MAX_MIN: u64 = 64 << 10;
/// Chunks of a snapshot that are in memory on a primary, sent and not acknowledged.
pub const SNAPSHOT_WINDOW: usize = 8;
/// How long a snapshot waits for the replica whose link was cut, before its producer ends. Another
/// replica waits so long for its turn.
pub const SNAPSHOT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The least that may be the largest snapshot of a shard, in bytes: one chunk.
pub const SNAPSHOT_BYTES_MAX_MIN: u64 = 256 << 10;
/// The longest wait between two batches for the lag target.
pub const THROTTLE_MAX: Duration = Duration::from_millis(100);
/// The lowest lag target, in bytes.
pub const LAG_TARGET_MIN: u64 = 4 << 10;
/// The largest window of a link, in bytes.
pub const LINK_WINDOW_MAX: u64 = 1 << 30;
/// How often the rate of a catch-up is taken.
pub const PROGRESS_MARK: Duration = Duration::from_millis(250);
/// Batches of full size that have room in one allocation. A batch begins where a full one has room, so
/// recent batches take at most twice their bytes, and one allocation more.
pub const BUFFER_BATCHES: usize = 2;
/// Most batches handed to the kernel in one send.
pub const SEND_BATCHES_MAX: usize = 32;
/// The longest that a core looks for news before it sleeps.
pub const SPIN_MAX: Duration = Duration::from_millis(10);
/// Bytes of one producer's ring towards a shard: the most a foreign thread may have queued.
pub const INBOX_BYTES: usize = 4 << 20;
/// Appends of one producer's ring.
pub const INBOX_REQUESTS: usize = 16 << 10;
/// Records larger than this cross threads by pointer instead of through the ring.
pub const INBOX_INLINE_MAX: usize = 64 << 10;
/// Tickets of one handle and shard that may be open at once.
pub const TICKETS_MAX: usize = 32 << 10;
/// Of these so many are made with the first append. Twice as many are, whenever all are open.
pub const TICKETS_FIRST: usize = 512;
/// How long an append waits for a ticket that nobody takes the outcome of.
pub const TICKETS_PATIENCE: Duration = Duration::from_millis(100);
/// Bytes of appends of one remote client that may be in memory at once, beside one largest record.
pub const CLIENT_WINDOW_BYTES: usize = 16 << 20;
/// Requests of one remote client that may be remembered from the oldest one without an outcome on: nothing more
/// is read from it until that has one.
pub const CLIENT_REQUESTS_MAX: usize = 1 << 17;
/// Bytes of answers that one remote client has not taken before nothing more is read from it.
pub const CLIENT_ANSWERS_BYTES: usize = 1 << 20;
/// How long a new connection may take for its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause before a reconnect; it doubles, with jitter, up to what is configured.
pub const RECONNECT_MIN: Duration = Duration::from_millis(20);
/// Longest pause before a reconnect, unless configured.
pub const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Most links between the primary and a replica: replicas feed each other in rows no longer than this.
pub const CASCADE_DEPTH_MAX: u8 = 8;
/// Time between heartbeats. A peer that is silent for three of them is dropped.
pub const HEARTBEAT: Duration = Duration::from_millis(1000);
/// How long a commit LSN or an applied position waits for a batch or an ack to ride on before it is
/// sent by itself. Nobody waits for it then: a commit that waits for the `applied` level says so.
pub const PIGGYBACK: Duration = Duration::from_millis(1);
/// Most bytes of one batch that a replica waits for at a time.
pub const RECEIVE_LOW_WATER: usize = 64 << 10;
/// Fewer bytes than this are not worth a send without a copy: pinning their pages costs more.
pub const ZERO_COPY_BYTES_MIN: usize = 32 << 10;
/// Sends in a row that the kernel copied all the same, after which a link tries no more for a while.
pub const ZERO_COPY_TRIES: u32 = 4;
/// For how long, the first time; it doubles.
pub const ZERO_COPY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// For how long at most.
pub const ZERO_COPY_PAUSE_MAX: Duration = Duration::from_secs(600);
/// How long a send may make no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a folder's lock is tried that a killed process may still hold.
pub const RELEASE_ATTEMPTS: u32 = 20;
/// How often a port is tried. The kernel lets go of sockets later than of files, on a busy machine by more
/// than a second.
pub const PORT_RELEASE_ATTEMPTS: u32 = 100;
/// Between two such attempts.
pub const RELEASE_PAUSE: Duration = Duration::from_millis(50);
/// How long a client that was told an error may take to close.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often deadlines are looked at while somebody waits; a deadline may be this much late, and up
/// to 50 ms if nobody waited before.
pub const DEADLINE_TICK: Duration = Duration::from_millis(5);
/// How often a full disk is asked for space again.
pub const DISK_FULL_RETRY: Duration = Duration::from_millis(500);
