//! `towline-bench many`: what many links, shards and connections cost.

use std::path::PathBuf;
use std::time::Duration;

use towline::units::show_size;
use towline_bench::many;

use crate::cluster::Scratch;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Replicas that idle
    #[arg(long, default_value_t = 100)]
    links: usize,
    /// Shards
    #[arg(long, default_value_t = 64)]
    shards: u32,
    /// Connections that come and go
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let idle = Duration::from_secs(3);
    let links = many::idle_links(&scratch.0.join("links"), args.links, idle)?;
    let cores: Vec<usize> = (0..std::thread::available_parallelism().map_or(1, usize::from).min(2)).collect();
    let shards = many::many_shards(&scratch.0.join("shards"), args.shards, &cores, idle, 200)?;
    let churn = many::churn(&scratch.0.join("churn"), args.connections)?;
    if args.json {
        let all = serde_json::json!({"links": links, "shards": shards, "churn": churn});
        println!("{all}");
        return Ok(());
    }
    println!("{} replicas that idle, both ends in one process", links.links);
    println!("  memory for each link        {:>10}", show_size(links.bytes_per_link));
    println!("  core without and with them  {:>9.2} % {:>9.2} %", links.cpu_without * 100.0, links.cpu_with * 100.0);
    println!("  commit that waits for all   {:>10.0} us p99", links.commit_all_p99_us);
    println!("{} shards on {} cores", shards.shards, shards.cores);
    println!("  memory for each shard       {:>10}", show_size(shards.bytes_per_shard));
    println!("  core with nothing to do     {:>9.2} %", shards.cpu_idle * 100.0);
    println!("  one record on each          {:>10.0} commits/s", shards.commits_per_s);
    println!("  commit                      {:>10.0} us p50 {:>8.0} us p99", shards.p50_us, shards.p99_us);
    println!("{} connections that came and went, {:.0} in each second", churn.connections, churn.per_s);
    println!("                         after a tenth     after all");
    let (a, b) = (churn.before, churn.after);
    println!("  memory               {:>15} {:>13}", show_size(a.rss), show_size(b.rss));
    println!("  allocated            {:>15} {:>13}", show_size(a.allocated), show_size(b.allocated));
    println!("  descriptors          {:>15} {:>13}", a.descriptors, b.descriptors);
    println!("  threads              {:>15} {:>13}", a.threads, b.threads);
    println!("  tasks                {:>15} {:>13}", a.tasks, b.tasks);
    Ok(())
}
