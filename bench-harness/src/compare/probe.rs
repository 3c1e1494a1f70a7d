//! The disk probe: what a lone durable 4 KiB write takes right now. It tells a slow phase of the disk
//! from a slow contender.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use towline::measure::histogram;
use towline_bench::latency::us;

use super::interrupt;
use super::model::moved;

/// How long a probe takes.
pub(crate) const PROBE: Duration = Duration::from_millis(200);
/// How often a run is repeated because the disk changed under it.
const REPEATS: u32 = 2;
const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 16 << 20;

#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// A file that is written already, and overwritten by each probe.
#[derive(Debug)]
pub(crate) struct Probe {
    file: File,
    at: u64,
}

impl Probe {
    pub(crate) fn new(dir: &Path) -> Result<Self, String> {
        let path = dir.join("probe");
        let failed = |e: std::io::Error| format!("making the disk probe's file in {}: {e}", dir.display());
        std::fs::write(&path, vec![0x5a; FILE_BYTES as usize]).map_err(failed)?;
        File::open(&path).and_then(|f| f.sync_all()).map_err(failed)?;
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(&path);
        let file = file.map_err(|e| format!("{e}; --dir must name a folder with direct I/O (ext4, xfs)"));
        Ok(Self { file: file?, at: 0 })
    }

    /// The median of lone writes over so long, in microseconds.
    pub(crate) fn measure(&mut self, how_long: Duration) -> Result<f64, String> {
        let mut latency = histogram();
        let began = Instant::now();
        let mut block = Block([0x5a; BLOCK]);
        while began.elapsed() < how_long {
            block.0[0] = block.0[0].wrapping_add(1);
            let from = Instant::now();
            self.file.write_all_at(&block.0, self.at).map_err(|e| format!("the disk probe: {e}"))?;
            latency.saturating_record(from.elapsed().as_nanos() as u64);
            self.at = (self.at + BLOCK as u64) % FILE_BYTES;
        }
        Ok((us(&latency, 0.5) * 10.0).round() / 10.0)
    }

    /// Probes until the median is no more than twice what it was at best, for at most so long; the last.
    pub(crate) fn calm(&mut self, best_us: f64, how_long: Duration) -> Result<f64, String> {
        let began = Instant::now();
        loop {
            let now = self.measure(PROBE)?;
            if now <= 2.0 * best_us || began.elapsed() > how_long {
                return Ok(now);
            }
            interrupt::sleep(PROBE)?;
        }
    }
}

/// A run, and what the disk did meanwhile.
#[derive(Debug)]
pub(crate) struct Probed<T> {
    pub(crate) sample: T,
    /// Before and after it.
    pub(crate) probes_us: [f64; 2],
    /// How often it was repeated because the disk changed under it.
    pub(crate) repeated: u32,
}

/// Makes a run, which gives its probes too; once more if the disk changed under it.
pub(crate) fn steady<T>(mut once: impl FnMut() -> Result<(T, [f64; 2]), String>) -> Result<Probed<T>, String> {
    let mut repeated = 0;
    loop {
        interrupt::check()?;
        let (sample, probes_us) = once()?;
        if moved(probes_us) {
            let [before, after] = probes_us;
            eprint!("  the disk's lone write moved from {before:.0} to {after:.0} us: ");
            if repeated < REPEATS {
                repeated += 1;
                eprintln!("once more");
                continue;
            }
            eprintln!("the run is kept, and marked");
        }
        return Ok(Probed { sample, probes_us, repeated });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_repeated_while_the_disk_moves_and_no_more_than_twice() {
        let runs = |probes: &[[f64; 2]]| {
            let (mut probes, mut made) = (probes.iter(), 0);
            let probed = steady(|| {
                made += 1;
                Ok((made, *probes.next().ok_or("no more runs")?))
            });
            probed.map(|p| (p.sample, p.probes_us, p.repeated))
        };
        assert_eq!(runs(&[[20.0, 30.0]]), Ok((1, [20.0, 30.0], 0)));
        assert_eq!(runs(&[[20.0, 50.0], [50.0, 40.0]]), Ok((2, [50.0, 40.0], 1)));
        assert_eq!(runs(&[[20.0, 50.0]; 3]), Ok((3, [20.0, 50.0], 2)));
        assert_eq!(runs(&[[20.0, 50.0]]), Err("no more runs".to_string()));
    }
}
