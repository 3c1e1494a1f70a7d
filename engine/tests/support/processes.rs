//! The real `towline` command as child processes: started, spoken to, signalled, waited for. Every
//! wait has a deadline, and no child outlives its test.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest that anything may take: a disk may stand still for twenty seconds where a machine writes much.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(2);

/// A folder for one test, on the file system of the build. `TOWLINE_TEST_KEEP` keeps it.
pub fn folder() -> tempfile::TempDir {
    let mut dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if std::env::var_os("TOWLINE_TEST_KEEP").is_some() {
        dir.disable_cleanup(true);
        println!("kept: {}", dir.path().display());
    }
    dir
}

/// SplitMix64: a failure names the seed, and the seed gives the same choices again.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// An address to come back to: on a loopback address of this process's own, so that no other test
/// takes it meanwhile, and not of the ports that the kernel deals out, so that no connection does.
pub fn fixed_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    loop {
        let port = 12_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 18_000;
        let addr = format!("127.{high}.{low}.1:{port}");
        if TcpListener::bind(&addr).is_ok() {
            return addr;
        }
    }
}

/// The seed of this run; `TOWLINE_TEST_SEED` gives another one.
pub fn seed() -> u64 {
    std::env::var("TOWLINE_TEST_SEED").ok().map_or(0x7031_11e5, |s| s.parse().unwrap())
}

/// The command.
pub fn towline() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("TOWLINE_LOG");
    command
}

/// Asks again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(LOOK);
    }
}

/// What a command that ended had to say.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    /// The exit code is as expected, and what it says too.
    pub fn expect(self, code: i32, message: &str) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(message), "{:?} does not say {message:?}", self.err);
        self
    }
}

/// Waits for the end of a child.
pub fn end_of(child: &mut Child) -> ExitStatus {
    eventually("the child's end", || child.try_wait().unwrap())
}

/// Runs a command to its end, with `input` on its stdin.
pub fn run_with(command: &mut Command, input: &[u8]) -> Said {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeding = thread::spawn(move || {
        // Who does not read on has its reasons; the exit code tells.
        let _ = stdin.write_all(&input);
    });
    let collect = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            all
        })
    };
    let out = child.stdout.take().map(|p| collect(Box::new(p)));
    let err = child.stderr.take().map(|p| collect(Box::new(p)));
    let status = end_of(&mut child);
    feeding.join().unwrap();
    let all = |thread: Option<thread::JoinHandle<Vec<u8>>>| thread.map(|t| t.join().unwrap()).unwrap_or_default();
    Said { code: status.code(), out: all(out), err: String::from_utf8_lossy(&all(err)).into_owned() }
}

/// Runs `towline` with arguments.
pub fn run(args: &[&str], input: &[u8]) -> Said {
    run_with(towline().args(args), input)
}

/// The id of a process for kill(2).
pub fn pid(child: &Child) -> libc::pid_t {
    child.id().try_into().unwrap()
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, number: libc::c_int) {
    // SAFETY: no pointers are passed; the child is ours and not reaped, so its id is its own.
    assert_eq!(unsafe { libc::kill(pid(child), number) }, 0);
}

/// A node in a process of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    pub child: Child,
    /// The line that it printed when it was ready.
    pub line: String,
    /// What it prints after that.
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Node {
    /// Starts `towline serve` and waits until it serves; else gives its exit code and its stderr.
    pub fn try_start(command: &mut Command, log: &Path) -> Result<Self, Said> {
        let mut child = command.stdout(Stdio::piped()).stderr(File::create(log).unwrap()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut ready = false;
            loop {
                let mut line = String::new();
                let _ = stdout.read_line(&mut line);
                let ended = line.is_empty();
                // Where a node is a test of this binary, what the harness prints around it is passed over.
                if !ended && !ready && !line.starts_with("towline: ") {
                    continue;
                }
                ready = true;
                if said.send(line).is_err() || ended {
                    return;
                }
            }
        });
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("no line within {PATIENCE:?}: {}", fs::read_to_string(log).unwrap());
            }
        };
        if line.is_empty() {
            let status = end_of(&mut child);
            let err = fs::read_to_string(log).unwrap();
            return Err(Said { code: status.code(), out: Vec::new(), err });
        }
        Ok(Self { child, line: line.trim_end().into(), lines, log: log.into() })
    }

    /// Starts it with these arguments behind `serve`; its log goes beside the folder.
    pub fn serve(data: &Path, args: &[&str]) -> Result<Self, Said> {
        let mut command = towline();
        command.arg("serve").arg("--data").arg(data).args(args);
        Self::try_start(&mut command, &data.with_extension("log"))
    }

    /// A primary on a port of its own, or on the one in `listen`.
    pub fn primary(data: &Path, listen: &str, more: &[&str]) -> Self {
        let mut args = vec!["--role", "primary", "--listen", listen, "--cpus", "0"];
        args.extend(more);
        Self::serve(data, &args).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// A replica with a listener of its own.
    pub fn replica(data: &Path, name: &str, primary: &str, more: &[&str]) -> Self {
        let mut args = vec!["--role", "replica", "--name", name, "--primary", primary, "--cpus", "1"];
        args.extend(["--listen", "127.0.0.1:0"]);
        args.extend(more);
        Self::serve(data, &args).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// Where it listens.
    pub fn addr(&self) -> String {
        let at = self.line.split(" listening on ").nth(1).expect("it listens");
        at.split(' ').next().unwrap().into()
    }

    /// A word of the ready line, like `term`.
    pub fn word(&self, key: &str) -> &str {
        let found = self.line.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key} in {:?}", self.line))
    }

    /// It runs: nothing but us has ended it.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "{} has ended by itself: {ended:?}", self.line);
    }

    /// What it logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has logged something.
    pub fn await_log(&self, text: &str) {
        eventually(text, || self.logged().contains(text).then_some(()));
    }

    /// The next line that it prints; an empty one if it has ended.
    pub fn next_line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|e| panic!("no line: {e}: {}", self.logged())).trim_end().into()
    }

    /// The status document.
    pub fn status(&self) -> Value {
        run(&["status", "--at", &self.addr(), "--json"], b"").expect(0, "").json()
    }

    /// Asks it to end and waits.
    pub fn stop_with(mut self, number: libc::c_int) -> ExitStatus {
        signal(&self.child, number);
        end_of(&mut self.child)
    }

    /// Ends it in order.
    pub fn stop(self) {
        let log = self.log.clone();
        let status = self.stop_with(libc::SIGTERM);
        assert_eq!(status.code(), Some(0), "{}", fs::read_to_string(log).unwrap());
    }

    /// `kill -9`.
    pub fn kill9(mut self) {
        signal(&self.child, libc::SIGKILL);
        assert_eq!(end_of(&mut self.child).signal(), Some(libc::SIGKILL));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // A second panic would end the process before the first one is told.
            eprintln!("--- {}\n{}", self.line, fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Waits until every replica of a primary has flushed what the primary has, and it is committed.
pub fn await_in_step(primary: &Node) -> Value {
    eventually("all replicas in step", || {
        let status = primary.status();
        let in_step = status["shards"].as_array().unwrap().iter().all(|shard| {
            let end = &shard["appended_lsn"];
            let slots = shard["slots"].as_array().unwrap();
            slots.iter().all(|s| &s["flushed_lsn"] == end && s["state"] == "live") && &shard["commit_lsn"] == end
        });
        in_step.then_some(status)
    })
}

/// Everything that a tail of a shard gives: of what is kept, that may still become less for a while.
pub fn tail(node: &Node, shard: &str, form: &str) -> Vec<u8> {
    let said = eventually("a tail", || {
        let said = run(&["tail", "--from", &node.addr(), "--shard", shard, form], b"");
        (!said.err.contains("was let go while it was read")).then_some(said)
    });
    said.expect(0, "").out
}
