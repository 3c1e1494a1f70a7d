//! `towline-bench`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use towline::measure::{ClosedLoop, Content, disk_limit, ping_pong};
use towline::{AppendOptions, Primary, PrimaryConfig, Replica, ReplicaConfig, Retain, ShardId};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    let dir = PathBuf::from(std::env::var("DIR").unwrap_or("/tmp/towline-bench".into()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let window = env("W", 16384);
    let size = env("SIZE", 256) as usize;
    let secs = env("SECS", 5);
    let nrep = env("REPLICAS", 2) as usize;
    let limit =
        disk_limit(&dir, &[Some(0), Some(1), Some(1)], 256 << 10, 8, Content::Fresh, Duration::from_secs(2)).unwrap();
    let lat = disk_limit(&dir, &[Some(0), Some(1), Some(1)], 4096, 1, Content::Fresh, Duration::from_secs(1)).unwrap();
    let ping = ping_pong([Some(0), Some(1)], Duration::from_millis(500)).unwrap();
    println!(
        "limit 256K x8 x3: {:.0} MB/s; 4K p50 {:.0} us p99 {:.0}; ping {:.1} us",
        limit.bytes_per_s / 1e6,
        lat.latency_ns.value_at_quantile(0.5) as f64 / 1e3,
        lat.latency_ns.value_at_quantile(0.99) as f64 / 1e3,
        ping.value_at_quantile(0.5) as f64 / 1e3
    );
    let mut config = PrimaryConfig::new(dir.join("p"));
    config.listen = Some("127.0.0.1:0".parse().unwrap());
    config.replicas = (1..=nrep).map(|n| format!("r{n}")).collect();
    config.commit = if nrep > 0 { format!("ack_n={nrep}").parse().unwrap() } else { "local".parse().unwrap() };
    let set = |node: &mut towline::NodeConfig, cpu| {
        node.cpus = vec![cpu];
        node.retain = Retain::Bytes(env("RETAIN", 256 << 20));
        node.prefill_bytes = env("PREFILL", 640 << 20);
        node.write_depth = env("DEPTH", 4) as usize;
        node.batch_bytes = env("BATCH", 256 << 10) as usize;
        node.io_memory_bytes = env("IOMEM", 32 << 20) as usize;
    };
    set(&mut config.node, 0);
    let primary = Primary::open(config).unwrap();
    let addr = primary.listening().unwrap();
    let replicas: Vec<_> = (1..=nrep)
        .map(|n| {
            let mut c = ReplicaConfig::new(dir.join(format!("r{n}")), format!("r{n}"), addr);
            set(&mut c.node, 1);
            Replica::open(c).unwrap()
        })
        .collect();
    // wait for prefill
    let want = env("PREFILL", 640 << 20) / (64 << 20);
    while primary.status()[0].telemetry.counters.segments_zeroed < want
        || replicas.iter().any(|r| r.status()[0].telemetry.counters.segments_zeroed < want)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    let load = ClosedLoop::new(size, window, AppendOptions::default());
    let l = load.clone();
    let cpu0 = towline::sys::process_cpu_ns();
    let began = Instant::now();
    primary.spawn_on(ShardId(0), move |s| l.run(s));
    for _ in 0..secs {
        std::thread::sleep(Duration::from_secs(1));
        eprint!("{} ", load.commits());
    }
    load.stop();
    load.wait();
    let t = began.elapsed().as_secs_f64();
    let cpu = towline::sys::process_cpu_ns() - cpu0;
    let r = load.take_report();
    let mbs = r.commits as f64 * size as f64 / t / 1e6;
    let h = &r.latency_ns;
    println!(
        "\nW {window}: {:.0} commits/s {mbs:.0} MB/s eff(3x) {:.3} p50 {:.0} us p99 {:.0} p99.9 {:.0} cpu/rec {:.0} ns failed {} err {:?}",
        r.commits as f64 / t,
        mbs * (nrep as f64 + 1.0) * 1e6 / limit.bytes_per_s,
        h.value_at_quantile(0.5) as f64 / 1e3,
        h.value_at_quantile(0.99) as f64 / 1e3,
        h.value_at_quantile(0.999) as f64 / 1e3,
        cpu as f64 / r.commits as f64,
        r.failed,
        r.error
    );
    if std::env::var("V").is_ok() {
        for s in std::iter::once(primary.status()).chain(replicas.iter().map(|r| r.status())) {
            let s = &s[0];
            println!("{:?}", s.telemetry.counters);
            for st in towline::telemetry::Stage::ALL {
                let p = towline::telemetry::Percentiles::of(s.telemetry.stage(*st));
                if p.count > 0 {
                    println!(
                        "  {:14} n {:9} p50 {:9.1} p99 {:9.1} max {:9.1}",
                        st.name(),
                        p.count,
                        p.p50_us,
                        p.p99_us,
                        p.max_us
                    );
                }
            }
        }
    }
    drop(replicas);
    drop(primary);
    let _ = std::fs::remove_dir_all(&dir);
}
