//! What goes wrong by itself, and how often.

/// How long a job on a thread takes at least, in nanoseconds.
pub const JOB_NS: u64 = 20_000;

/// How long at most, however slow the disk is.
pub(super) const JOB_NS_MAX: u64 = 2_000_000_000;

/// Rates of a run; the default is a machine without faults.
#[derive(Clone, Debug)]
pub struct Faults {
    /// How long a read or write takes, from and to, in nanoseconds.
    pub disk_ns: (u64, u64),
    /// How often one takes 100 times as long, and a thread's job too.
    pub slow_disk: f64,
    /// How long a job on a thread may take at most, in nanoseconds; most take a part of that.
    pub job_ns: u64,
    /// How often a write fails; a part of it may be on the device.
    pub write_error: f64,
    /// How often a read fails.
    pub read_error: f64,
    /// How often a write writes a part.
    pub short_write: f64,
    /// How long bytes are under way, from and to, in nanoseconds.
    pub net_ns: (u64, u64),
    /// Bytes that a connection holds in one direction.
    pub send_buffer: usize,
    /// Whether sends are taken, and come, in random parts.
    pub chunks: bool,
    /// How long the kernel holds what was sent without a copy, from and to, in nanoseconds.
    pub held_ns: (u64, u64),
    /// How often it refuses to send so.
    pub not_held: f64,
    /// How often a send has a bit changed.
    pub corrupt: f64,
    /// How often an ack comes twice.
    pub double_ack: f64,
    /// How often an ack for what was never sent comes before a true one.
    pub forged_ack: f64,
    /// How often the wall clock has jumped when it is read.
    pub clock_jump: f64,
    /// Whether any task that is ready may be next; else the one that is ready for longest.
    pub random_order: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            disk_ns: (20_000, 100_000),
            slow_disk: 0.0,
            job_ns: JOB_NS,
            write_error: 0.0,
            read_error: 0.0,
            short_write: 0.0,
            net_ns: (20_000, 80_000),
            send_buffer: 128 << 10,
            chunks: false,
            held_ns: (0, 0),
            not_held: 0.0,
            corrupt: 0.0,
            double_ack: 0.0,
            forged_ack: 0.0,
            clock_jump: 0.0,
            random_order: false,
        }
    }
}

impl Faults {
    /// Nothing goes wrong from here on; what is slow or ordered at random stays so.
    pub fn stop(&mut self) {
        let calm = Self::default();
        self.slow_disk = calm.slow_disk;
        self.write_error = calm.write_error;
        self.read_error = calm.read_error;
        self.short_write = calm.short_write;
        self.not_held = calm.not_held;
        self.corrupt = calm.corrupt;
        self.double_ack = calm.double_ack;
        self.forged_ack = calm.forged_ack;
        self.clock_jump = calm.clock_jump;
    }
}
