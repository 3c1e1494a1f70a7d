//! Servers in processes of their own: started on given cores, as a given user, with their output in
//! a file; ended with everything that they started, whatever ends the harness.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::interrupt;

/// How to start a server.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Where it runs; its output goes to `log` there.
    pub(crate) dir: PathBuf,
    pub(crate) cpus: Vec<usize>,
    /// User and group, if not the harness's own.
    pub(crate) user: Option<(u32, u32)>,
    /// The signal that ends it best; SIGKILL follows.
    pub(crate) end_with: libc::c_int,
}

impl Launch {
    pub(crate) fn new(program: impl Into<PathBuf>, dir: &Path, cpus: &[usize]) -> Self {
        let (program, dir, cpus) = (program.into(), dir.to_path_buf(), cpus.to_vec());
        Self { program, args: Vec::new(), dir, cpus, user: None, end_with: libc::SIGKILL }
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir).stdin(Stdio::null());
        // A group of its own: a terminal's Ctrl-C comes to the harness alone, which ends its
        // children in order.
        command.process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let mut set = {
            // SAFETY: cpu_set_t is plain data for which all zeros is the empty set.
            unsafe { std::mem::zeroed::<libc::cpu_set_t>() }
        };
        for cpu in &self.cpus {
            if *cpu < libc::CPU_SETSIZE as usize {
                // SAFETY: the index was checked against the set's size.
                unsafe { libc::CPU_SET(*cpu, &mut set) };
            }
        }
        let pinned = !self.cpus.is_empty();
        // SAFETY: between fork and exec only two system calls are made; both touch no memory but
        // the set, which the closure owns.
        unsafe {
            command.pre_exec(move || {
                // If the harness is killed, the kernel kills its children (prctl(2)).
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if pinned && libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// Starts it and leaves it running.
    pub(crate) fn start(self, name: &str) -> Result<Server, String> {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|e| format!("making {}: {e}", log.display()))?;
        let again = file.try_clone().map_err(|e| e.to_string())?;
        let child = self.command().stdout(file).stderr(again).spawn();
        let child = child.map_err(|e| format!("starting {}: {e}", self.program.display()))?;
        Ok(Server { child, name: name.into(), log, end_with: self.end_with })
    }

    /// Runs it to its end and gives what it wrote to stdout.
    pub(crate) fn output(self) -> Result<String, String> {
        let program = self.program.display().to_string();
        let out = self.command().output().map_err(|e| format!("starting {program}: {e}"))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let error = String::from_utf8_lossy(&out.stderr);
        Err(format!("{program} ended with {}: {}", out.status, error.trim().lines().last().unwrap_or("")))
    }
}

/// A running server. Ended when it goes out of scope.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    name: String,
    log: PathBuf,
    end_with: libc::c_int,
}

impl Server {
    /// An error with its last words if it has ended.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended with {status}: {}", self.name, self.last_words())),
            Err(e) => Err(format!("{}: {e}", self.name)),
        }
    }

    /// Waits for its end, unless that of the harness is asked for, and gives what it wrote.
    pub(crate) fn finish(mut self) -> Result<String, String> {
        loop {
            match self.child.try_wait() {
                Ok(None) => interrupt::sleep(Duration::from_millis(10))?,
                Ok(Some(status)) if status.success() => {
                    return std::fs::read_to_string(&self.log).map_err(|e| format!("{}: {e}", self.log.display()));
                }
                _ => return self.check().map(|()| String::new()),
            }
        }
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let len = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(len.saturating_sub(600)));
            let mut bytes = Vec::new();
            let _ = file.read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        let lines: Vec<_> = text.lines().rev().filter(|l| !l.trim().is_empty()).take(2).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Processor time of it and all that it has started, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        tree(self.child.id()).iter().map(|p| p.cpu_ns).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let below: Vec<_> = tree(self.child.id()).iter().map(|p| p.id).collect();
        let end = Instant::now() + Duration::from_secs(5);
        if self.end_with != libc::SIGKILL {
            kill(self.child.id(), self.end_with);
            while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            below.iter().for_each(|id| kill(*id, libc::SIGKILL));
        }
        let _ = self.child.wait();
        // What it had started ends with it, but not at once.
        while Instant::now() < end && below.iter().any(|id| Process::read(*id).is_some_and(|p| !p.is_dead)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn kill(id: u32, signal: libc::c_int) {
    // SAFETY: no memory is involved; the process is the harness's own child or was started by it.
    unsafe { libc::kill(id as libc::pid_t, signal) };
}

/// A process, from `/proc/ID/stat` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    parent: u32,
    cpu_ns: u64,
    is_dead: bool,
}

impl Process {
    fn read(id: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (id, rest) = text.split_once(" (")?;
        // The name may hold anything, also brackets.
        let rest: Vec<&str> = rest.rsplit_once(") ")?.1.split_whitespace().collect();
        let number = |n: usize| rest.get(n)?.parse::<u64>().ok();
        // utime, stime, and those of children that were waited for.
        let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
        // SAFETY: no preconditions.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|n| *n > 0)?;
        Some(Self {
            id: id.parse().ok()?,
            parent: number(1)? as u32,
            cpu_ns: ticks * (1_000_000_000 / per_second),
            is_dead: matches!(rest.first(), Some(&"Z" | &"X")),
        })
    }
}

/// A process and all below it.
fn tree(root: u32) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let all: Vec<Process> = ids.filter_map(Process::read).collect();
    below(root, &all)
}

fn below(root: u32, all: &[Process]) -> Vec<Process> {
    let mut found: Vec<Process> = all.iter().filter(|p| p.id == root).cloned().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|p| p.id) {
        found.extend(all.iter().filter(|p| p.parent == parent && p.id != root).cloned());
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_with_any_name_and_with_the_time_of_its_children() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 100 1000 10";
        let process = Process::parse(text).unwrap();
        assert_eq!((process.id, process.parent, process.is_dead), (42, 7, false));
        // SAFETY: no preconditions.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        assert_eq!(process.cpu_ns, 100 * 1_000_000_000 / per_second);
        assert_eq!(Process::parse("42 (cut"), None);
    }

    #[test]
    fn a_tree_is_all_that_a_process_has_started() {
        let process = |id, parent| Process { id, parent, cpu_ns: 1, is_dead: false };
        let all = [process(1, 0), process(5, 1), process(6, 5), process(7, 6), process(8, 1)];
        let ids: Vec<_> = below(5, &all).iter().map(|p| p.id).collect();
        assert_eq!(ids, [5, 6, 7]);
    }

    #[test]
    fn a_server_that_goes_out_of_scope_is_dead_and_so_is_what_it_started() {
        let dir = std::env::temp_dir();
        let name = format!("towline-compare-child-{}", std::process::id());
        let launch = Launch::new("/bin/sh", &dir, &[]).args(["-c", "sleep 60 & sleep 60"]);
        let server = launch.start(&name).unwrap();
        let started = Instant::now();
        let ids = loop {
            let ids: Vec<_> = tree(server.child.id()).iter().map(|p| p.id).collect();
            if ids.len() == 3 || started.elapsed() > Duration::from_secs(10) {
                break ids;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(ids.len(), 3, "the shell and its two children");
        let log = server.log.clone();
        drop(server);
        assert!(ids.iter().all(|id| Process::read(*id).is_none_or(|p| p.is_dead)));
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn one_that_has_ended_says_its_last_words() {
        let dir = std::env::temp_dir();
        let name = format!("towline-compare-words-{}", std::process::id());
        let launch = Launch::new("/bin/sh", &dir, &[]).args(["-c", "echo no such option; exit 3"]);
        let mut server = launch.start(&name).unwrap();
        let _ = server.child.wait();
        let error = server.check().unwrap_err();
        assert!(error.contains("exit status: 3: no such option"), "{error}");
        std::fs::remove_file(&server.log).unwrap();
    }
}
