//! `towline-bench limit`: what this machine can do, by the log's own way of writing, beside fio.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use towline::measure::{Content, disk_limit, ping_pong, stream};
use towline_bench::latency::us;

use crate::cluster::Scratch;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files that are overwritten at the same time: as many as a commit has copies
    #[arg(long, default_value_t = 3)]
    files: usize,
    /// Seconds for each line
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Where to make the temporary files [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    block: usize,
    depth: usize,
    files: usize,
    fresh_mb_s: f64,
    reused_mb_s: f64,
    p50_us: f64,
    p99_us: f64,
    fio_mb_s: Option<f64>,
}

#[derive(Serialize)]
struct Json {
    disk: Vec<Line>,
    ping_p50_us: f64,
    ping_p99_us: f64,
    stream_mb_s: f64,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let second = std::thread::available_parallelism().map_or(1, usize::from).min(2) - 1;
    let cpus: Vec<_> = (0..args.files).map(|n| Some(if n == 0 { 0 } else { second })).collect();
    let how_long = Duration::from_secs(args.seconds);
    let has_fio = Command::new("fio").arg("--version").output().is_ok();
    if !args.json {
        if !has_fio {
            println!("fio is not installed: no cross-check (Debian: apt-get install fio)");
        }
        println!(
            "durable overwrites of {} files (O_DIRECT, O_DSYNC), one core for the first, one for the rest",
            args.files
        );
        println!(
            "{:>9} {:>6} {:>12} {:>12} {:>9} {:>9} {:>10}",
            "block", "depth", "fresh MB/s", "reused MB/s", "p50 us", "p99 us", "fio MB/s"
        );
    }
    let mut disk = Vec::new();
    for (block, depth) in [(4096, 1), (4096, 8), (64 << 10, 4), (256 << 10, 1), (256 << 10, 4), (256 << 10, 8)] {
        let measure = |content| {
            disk_limit(&scratch.0, &cpus, block, depth, content, how_long)
                .map_err(|e| format!("measuring the disk: {e}"))
        };
        let (fresh, reused) = (measure(Content::Fresh)?, measure(Content::Reused)?);
        let us = |q| us(&fresh.latency_ns, q);
        let fio_mb_s =
            if has_fio { Some(fio(&scratch.0, args.files, second, block, depth, args.seconds)?) } else { None };
        let line = Line {
            block,
            depth,
            files: args.files,
            fresh_mb_s: fresh.bytes_per_s / 1e6,
            reused_mb_s: reused.bytes_per_s / 1e6,
            p50_us: us(0.5),
            p99_us: us(0.99),
            fio_mb_s,
        };
        if !args.json {
            println!(
                "{:>9} {:>6} {:>12.0} {:>12.0} {:>9.0} {:>9.0} {:>10}",
                block,
                depth,
                line.fresh_mb_s,
                line.reused_mb_s,
                line.p50_us,
                line.p99_us,
                fio_mb_s.map_or_else(|| "-".into(), |f| format!("{f:.0}"))
            );
        }
        disk.push(line);
    }
    let net = |e: std::io::Error| format!("measuring loopback: {e}");
    let ping = ping_pong([Some(0), Some(second)], Duration::from_secs(1)).map_err(net)?;
    let bytes = stream([Some(0), Some(second)], 256 << 10, Duration::from_secs(1)).map_err(net)?;
    let json = Json { disk, ping_p50_us: us(&ping, 0.5), ping_p99_us: us(&ping, 0.99), stream_mb_s: bytes / 1e6 };
    if args.json {
        println!("{}", serde_json::to_string(&json).map_err(|e| e.to_string())?);
    } else {
        println!(
            "64 B round trip over loopback, two cores: p50 {:.1} us, p99 {:.1} us",
            json.ping_p50_us, json.ping_p99_us
        );
        println!("one stream over loopback, 256 KiB at a time: {:.0} MB/s", json.stream_mb_s);
    }
    Ok(())
}

/// The same writes by fio.
fn fio(dir: &Path, files: usize, second: usize, block: usize, depth: usize, seconds: u64) -> Result<f64, String> {
    let mut command = Command::new("fio");
    for n in 0..files {
        let path = dir.join(format!("fio-{n}.tmp"));
        let cpu = if n == 0 { 0 } else { second };
        if !path.exists() {
            let zeros = vec![0; 128 << 20];
            std::fs::write(&path, zeros).map_err(|e| format!("making {}: {e}", path.display()))?;
            std::fs::File::open(&path).and_then(|f| f.sync_all()).map_err(|e| e.to_string())?;
        }
        command
            .arg(format!("--name=f{n}"))
            .arg(format!("--filename={}", path.display()))
            .arg(format!("--bs={block}"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--runtime={seconds}"))
            .arg(format!("--cpus_allowed={cpu}"))
            .args(["--size=128m", "--overwrite=1", "--rw=write", "--direct=1", "--ioengine=io_uring", "--sync=dsync"])
            .arg("--time_based");
    }
    let out = command.args(["--group_reporting", "--output-format=json"]).output().map_err(|e| format!("fio: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    // Warnings may stand in front of the document.
    let text = text.find('{').map_or("", |at| &text[at..]);
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("fio's report: {e}"))?;
    let bytes =
        json["jobs"].as_array().into_iter().flatten().filter_map(|j| j["write"]["bw_bytes"].as_f64()).sum::<f64>();
    Ok(bytes / 1e6)
}
