//! `towline-bench pipe`: a real file set through the real commands, in separate processes: a tar of
//! the Rust toolchain's own files is appended to a 4-shard primary with two replicas under
//! `ack_n=2`; what each replica gives back must have the same SHA-256, and all three folders must
//! verify.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::cluster::Scratch;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The `towline` command [default: the one beside this executable]
    #[arg(long)]
    towline: Option<PathBuf>,
    /// Bytes to send
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Bytes of each record
    #[arg(long, default_value_t = 64 << 10)]
    chunk: usize,
    /// Where to make the temporary folders [default: the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
}

const SHARDS: u64 = 4;

/// A node's process, stopped at the end.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Starts a node and reads where it listens from its ready line.
fn serve(towline: &Path, args: &[&str]) -> Result<(Node, String), String> {
    let mut child = Command::new(towline).arg("serve").args(args).stdout(Stdio::piped()).spawn().map_err(text)?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line).map_err(text)?;
    let node = Node(child);
    let addr = line.split_whitespace().skip_while(|w| *w != "on").nth(1).ok_or(format!("not ready: {line:?}"))?;
    Ok((node, addr.to_string()))
}

/// The parts of the file set, one for each shard, as files; and their SHA-256.
fn parts(dir: &Path, bytes: u64) -> Result<Vec<(PathBuf, String)>, String> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().map_err(text)?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_string();
    let mut left = bytes;
    let mut parts = Vec::new();
    let mut tar = tar(&sysroot)?;
    let each = bytes.div_ceil(SHARDS);
    for n in 0..SHARDS {
        let path = dir.join(format!("part-{n}"));
        let mut file = std::fs::File::create(&path).map_err(text)?;
        let mut rest = each.min(left);
        left -= rest;
        while rest > 0 {
            let mut take = tar.stdout.as_mut().ok_or("no stdout")?.take(rest);
            let n = std::io::copy(&mut take, &mut file).map_err(text)?;
            rest -= n;
            if n == 0 {
                // The toolchain is smaller than what was asked for: from its beginning again.
                let _ = tar.wait();
                tar = self::tar(&sysroot)?;
            }
        }
        let sum = sha256(std::fs::File::open(&path).map_err(text)?.into())?;
        parts.push((path, sum));
    }
    let _ = tar.kill();
    let _ = tar.wait();
    Ok(parts)
}

fn tar(folder: &str) -> Result<Child, String> {
    Command::new("tar").args(["-C", folder, "-cf", "-", "."]).stdout(Stdio::piped()).spawn().map_err(text)
}

fn sha256(input: Stdio) -> Result<String, String> {
    let out = Command::new("sha256sum").stdin(input).output().map_err(text)?;
    Ok(String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap_or("").to_string())
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    let scratch = Scratch::new(args.dir.as_deref())?;
    let dir = scratch.0.as_path();
    let beside = std::env::current_exe().map_err(text)?.with_file_name("towline");
    let towline = args.towline.clone().unwrap_or(beside);
    println!("making {} bytes of a tar of the Rust toolchain, in {SHARDS} parts ...", args.bytes);
    let parts = parts(dir, args.bytes)?;
    let path = |name: &str| dir.join(name).display().to_string();
    let (folders, shards) = (["primary", "r1", "r2"].map(path), SHARDS.to_string());
    let (primary, at) = serve(
        &towline,
        &[
            "--data",
            &folders[0],
            "--role",
            "primary",
            "--listen",
            "127.0.0.1:0",
            "--shards",
            &shards,
            "--replicas",
            "r1,r2",
            "--commit",
            "ack_n=2",
        ],
    )?;
    let replica = |n: usize, name: &str| {
        serve(
            &towline,
            &["--data", &folders[n], "--role", "replica", "--name", name, "--primary", &at, "--listen", "127.0.0.1:0"],
        )
    };
    let replicas = [replica(1, "r1")?, replica(2, "r2")?];
    let began = Instant::now();
    let chunk = args.chunk.to_string();
    let mut appends = Vec::new();
    for (shard, (part, _)) in parts.iter().enumerate() {
        let input = std::fs::File::open(part).map_err(text)?;
        let append = Command::new(&towline)
            .args(["append", "--to", &at, "--shard", &shard.to_string(), "--chunk", &chunk, "--deadline", "60s"])
            .stdin(input)
            .stdout(Stdio::null())
            .spawn()
            .map_err(text)?;
        appends.push(append);
    }
    for mut append in appends {
        let status = append.wait().map_err(text)?;
        if !status.success() {
            return Err(format!("an append ended with {status}"));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("appended and committed under ack_n=2 in {seconds:.2} s: {:.0} MB/s", args.bytes as f64 / 1e6 / seconds);
    for (name, (_, addr)) in ["r1", "r2"].iter().zip(&replicas) {
        for (shard, (_, sum)) in parts.iter().enumerate() {
            let mut tail = Command::new(&towline)
                .args(["tail", "--from", addr, "--shard", &shard.to_string(), "--until-end", "--raw"])
                .stdout(Stdio::piped())
                .spawn()
                .map_err(text)?;
            let got = sha256(tail.stdout.take().ok_or("no stdout")?.into())?;
            let status = tail.wait().map_err(text)?;
            if got != *sum || !status.success() {
                return Err(format!("shard {shard} from {name}: SHA-256 {got}, expected {sum} ({status})"));
            }
        }
        println!("{name} gives back the same SHA-256 on every shard");
    }
    drop((primary, replicas));
    for folder in &folders {
        let status = Command::new(&towline).args(["verify", folder]).stdout(Stdio::null()).status().map_err(text)?;
        if !status.success() {
            return Err(format!("towline verify of one folder ended with {status}"));
        }
    }
    println!("towline verify passes on all three folders");
    std::io::stdout().flush().map_err(text)
}
