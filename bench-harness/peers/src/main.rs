//! The load on embedded logs, for `towline-bench compare`: so many threads, each with a batch of so
//! many records under way; one line of JSON at the end.
//!
//! `towline-bench-peers LOG THREADS BATCH RECORD_BYTES WARM_UP_MS MEASURE_MS`, in an empty folder;
//! `towline-bench-peers --version-of=LOG` for a library inside a log's crate.

mod logs;

use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use logs::Log;

struct Work {
    threads: usize,
    batch: usize,
    record: Vec<u8>,
    warm_up: Duration,
    measure: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, numbers @ ..] = &args[..] else { return Err("which log?".into()) };
    if let Some(of) = name.strip_prefix("--version-of=") {
        return logs::library_version(of).ok_or_else(|| "its crate is all there is to it".into());
    }
    let numbers: Vec<u64> = numbers.iter().map_while(|n| n.parse().ok()).collect();
    let [threads, batch, bytes, warm_up, measure] = numbers[..] else { return Err("five numbers are needed".into()) };
    let work = Work {
        threads: threads.max(1) as usize,
        batch: batch.max(1) as usize,
        record: record(bytes as usize),
        warm_up: Duration::from_millis(warm_up),
        measure: Duration::from_millis(measure),
    };
    let log = logs::open(name, work.threads)?;
    load(log.as_ref(), &work)
}

/// The bytes of `towline::measure::record`: what no log can compress.
fn record(bytes: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn load(log: &dyn Log, work: &Work) -> Result<String, String> {
    let (commits, measuring, stop) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    let ready = Barrier::new(work.threads + 1);
    let one = |thread: usize| -> Result<Histogram<u64>, String> {
        let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| e.to_string())?;
        let records = vec![&work.record[..]; work.batch];
        ready.wait();
        while !stop.load(Ordering::Relaxed) {
            let from = Instant::now();
            log.commit(thread, &records)?;
            if measuring.load(Ordering::Relaxed) {
                latency.saturating_record_n(from.elapsed().as_nanos() as u64, work.batch as u64);
            }
            commits.fetch_add(work.batch as u64, Ordering::Relaxed);
        }
        Ok(latency)
    };
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..work.threads).map(|n| scope.spawn(move || one(n))).collect();
        ready.wait();
        std::thread::sleep(work.warm_up);
        let (before, cpu, began) = (commits.load(Ordering::Relaxed), cpu_ns(), Instant::now());
        measuring.store(true, Ordering::Relaxed);
        std::thread::sleep(work.measure);
        let (after, cpu, seconds) = (commits.load(Ordering::Relaxed), cpu_ns() - cpu, began.elapsed().as_secs_f64());
        measuring.store(false, Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        let mut all = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| e.to_string())?;
        for thread in threads {
            let latency = thread.join().map_err(|_| "a thread panicked".to_string())??;
            all.add(&latency).map_err(|e| e.to_string())?;
        }
        let counts: Vec<_> =
            all.iter_recorded().map(|v| format!("[{},{}]", v.value_iterated_to(), v.count_at_value())).collect();
        Ok(format!(
            "{{\"commits\":{},\"seconds\":{seconds},\"cpu_ns\":{cpu},\"latency_ns\":[{}]}}",
            after - before,
            counts.join(",")
        ))
    })
}
