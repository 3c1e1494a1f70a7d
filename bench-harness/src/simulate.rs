//! `towline-bench sim`: the deterministic simulator.

use std::io::{IsTerminal, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::Ended;
use towline::canary::Canary;
use towline_bench::sim::many::many;
use towline_bench::sim::minimise::minimise;
use towline_bench::sim::plan::{Fault, Less};
use towline_bench::sim::run::{self, How, Ran, run};

/// Run whole clusters of the real engine in a simulated machine, under faults drawn from seeds, and
/// check that nothing that was acknowledged is ever lost.
///
/// The same seed on the same commit does the same, bit for bit. Exit code 3: some seed failed; its
/// seed, its faults and a readable trace are printed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads; each runs whole seeds [default: all cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Switch a deliberate bug on, to see that it is found; `list` names them
    #[arg(long)]
    canary: Option<String>,
    /// Print the whole trace of a failing run, not only its end; with --seeds 1, of any run
    #[arg(long)]
    trace: bool,
    /// Do not make a failing run shorter before it is shown
    #[arg(long)]
    no_minimise: bool,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Leave a fault out; may be given several times
    #[arg(long)]
    without: Vec<String>,
    /// No more appends than this in a run
    #[arg(long)]
    appends: Option<u64>,
    /// No more replicas than this
    #[arg(long)]
    replicas: Option<usize>,
    /// No more shards than this
    #[arg(long)]
    shards: Option<u32>,
    /// No more clients than this
    #[arg(long)]
    clients: Option<usize>,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether these runs leave something out that others do.
    fn narrows(&self) -> bool {
        let Self { canary, without, appends, replicas, shards, clients, .. } = self;
        let limits = appends.is_some() || replicas.is_some() || shards.is_some() || clients.is_some();
        limits || canary.is_some() || !without.is_empty()
    }
}

/// Lines of a trace that are shown of a failing run.
pub(crate) const TRACE_LINES: usize = 60;

pub(crate) fn execute(args: &Args) -> Result<(), Ended> {
    if args.canary.as_deref() == Some("list") {
        Canary::ALL.iter().for_each(|canary| println!("{canary:?}"));
        return Ok(());
    }
    let how = how(args)?;
    // A violation that is a panic is reported as one.
    run::record_panics(args.trace);
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let progress =
        Progress { told: Mutex::new(Instant::now()), seeds: args.seeds, on: std::io::stderr().is_terminal() };
    let all = many((args.from, args.seeds), jobs, &how, !args.keep_going, |n, ran| progress.tell(n, ran));
    if args.json {
        let failed: Vec<_> =
            all.failed.iter().map(|r| serde_json::json!({"seed": r.seed, "violation": r.violation})).collect();
        let document = serde_json::json!({
            "seeds": all.seeds, "from": args.from, "seconds": all.seconds, "seeds_per_s": all.seeds as f64 / all.seconds,
            "commits": all.commits, "appends": all.appends, "steps": all.steps, "virtual_s": all.virtual_s,
            "hash": format!("{:016x}", all.hash), "faults": all.counts, "engine": all.did, "failed": failed,
        });
        println!("{document:#}");
    } else {
        println!(
            "{} seeds in {:.1} s: {:.0} seeds/s, {} appends, {} commits, {:.0} virtual hours, {} steps, hash {:016x}",
            all.seeds,
            all.seconds,
            all.seeds as f64 / all.seconds,
            all.appends,
            all.commits,
            all.virtual_s / 3600.0,
            all.steps,
            all.hash
        );
        for (kind, count) in &all.counts {
            println!("  {kind:<24} {count}");
        }
        println!("what the engine counted:");
        for (counter, count) in &all.did {
            println!("  {counter:<24} {count}");
        }
    }
    if args.seeds == 1 && args.trace && all.failed.is_empty() {
        let ran = run(args.from, &How { trace: true, ..how.clone() });
        ran.trace.iter().for_each(|line| println!("{line}"));
        println!("hash {:016x}", ran.hash);
    }
    for failed in &all.failed {
        report(failed, &how, args);
    }
    if !all.failed.is_empty() {
        return Err(Ended::Found(format!("{} seeds failed", all.failed.len())));
    }
    match all.missed() {
        missed if missed.is_empty() || args.narrows() => Ok(()),
        missed => Err(format!("in {} seeds these never happened: {}", all.seeds, missed.join(", ")).into()),
    }
}

/// The deliberate bug of a name.
pub(crate) fn canary_of(name: &str) -> Result<Canary, String> {
    let found = Canary::ALL.into_iter().find(|c| format!("{c:?}") == name);
    found.ok_or_else(|| format!("no canary {name:?}: see towline-bench sim --canary list"))
}

fn how(args: &Args) -> Result<How, String> {
    let fault = |name: &String| {
        let all = Fault::ALL.map(Fault::name);
        let at = all.iter().position(|n| n == name);
        at.map(|at| Fault::ALL[at]).ok_or_else(|| format!("no fault {name:?}: there are {}", all.join(", ")))
    };
    Ok(How {
        less: Less {
            without: args.without.iter().map(fault).collect::<Result<_, _>>()?,
            appends: args.appends,
            replicas: args.replicas,
            shards: args.shards,
            clients: args.clients,
        },
        canary: args.canary.as_deref().map(canary_of).transpose()?,
        ..How::default()
    })
}

fn report(failed: &Ran, how: &How, args: &Args) {
    let violation = failed.violation.as_deref().unwrap_or_default();
    println!("\nseed {} FAILED: {violation}", failed.seed);
    let names = |ran: &Ran| ran.faults.iter().map(|f| f.name()).collect::<Vec<_>>().join(" ");
    println!("  faults drawn: {}", names(failed));
    let (how, short) = if args.no_minimise { (how.clone(), failed.clone()) } else { minimise(failed, how) };
    if how.less != Less::default() {
        println!(
            "  shorter: {} -> {} steps: {}",
            failed.steps,
            short.steps,
            short.violation.as_deref().unwrap_or_default()
        );
        println!("  faults left: {}", names(&short));
    }
    let mut again = format!("towline-bench sim --seeds 1 --from {} --no-minimise", failed.seed);
    let l = &how.less;
    l.without.iter().for_each(|f| again += &format!(" --without {}", f.name()));
    let mut option =
        |name: &str, value: Option<u64>| again += &value.map_or(String::new(), |v| format!(" --{name} {v}"));
    option("appends", l.appends);
    option("replicas", l.replicas.map(|n| n as u64));
    option("shards", l.shards.map(u64::from));
    option("clients", l.clients.map(|n| n as u64));
    if let Some(canary) = how.canary {
        again += &format!(" --canary {canary:?}");
    }
    println!("  again:   {again}");
    let traced = run(failed.seed, &How { trace: true, ..how });
    let same = if traced.hash == short.hash { "the same" } else { "ANOTHER: the simulator is not deterministic" };
    println!("  replay:  hash {:016x}, {same}", traced.hash);
    let from = if args.trace { 0 } else { traced.trace.len().saturating_sub(TRACE_LINES) };
    for line in &traced.trace[from..] {
        println!("    {line}");
    }
}

struct Progress {
    told: Mutex<Instant>,
    seeds: u64,
    on: bool,
}

impl Progress {
    fn tell(&self, n: u64, ran: &Ran) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.on && (told.elapsed() > Duration::from_millis(500) || n == self.seeds) {
            *told = Instant::now();
            let end = if n == self.seeds { "\n" } else { "\r" };
            eprint!("{n} of {} seeds, now {:>12}{end}", self.seeds, ran.seed);
            let _ = std::io::stderr().flush();
        }
    }
}
