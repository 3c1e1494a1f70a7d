//! What groups of servers have in common: folders, ports, and somebody who watches over them.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::super::child::Server;
use super::super::interrupt::{self, wait_for};

/// How long a group may take to be ready.
pub(super) const START: Duration = Duration::from_secs(30);

/// How often a group is started once more because a server has ended at start.
const AGAIN: u32 = 1;

/// Running servers of one peer. Ended with the last clone, in the order in which they were started.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes(Rc<RefCell<Vec<Server>>>);

impl Nodes {
    pub(super) fn add(&self, server: Server) {
        self.0.borrow_mut().push(server);
    }

    /// Ends the one that was started last.
    pub(super) fn end_last(&self) {
        let last = self.0.borrow_mut().pop();
        drop(last);
    }

    /// An error if one has ended.
    pub(super) fn check(&self) -> Result<(), String> {
        self.0.borrow_mut().iter_mut().try_for_each(Server::check)
    }

    pub(super) fn cpu_ns(&self) -> u64 {
        self.0.borrow().iter().map(Server::cpu_ns).sum()
    }

    /// Connects as soon as the server listens.
    pub(super) fn connect(&self, port: u16) -> Result<TcpStream, String> {
        wait_for(START, "the server does not listen", || {
            self.check()?;
            Ok(connect(port).ok())
        })
    }

    /// Waits until something holds, while all servers run.
    pub(super) fn wait_for<T>(
        &self,
        what: &str,
        mut ask: impl FnMut() -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        wait_for(START, what, || {
            self.check()?;
            ask()
        })
    }
}

/// Starts a group in a folder of its own. If a server ends meanwhile, all are started once more, in another folder
/// and on other ports: somebody may have taken a port after it was found to be free.
pub(super) fn start<T>(
    dir: &Path,
    mut start: impl FnMut(&Path, &Nodes) -> Result<T, String>,
) -> Result<(Nodes, T), String> {
    let mut left = AGAIN;
    loop {
        let (dir, nodes) = (folder(dir, &format!("nodes-{left}"))?, Nodes::default());
        match start(&dir, &nodes) {
            Err(why) if left > 0 && nodes.check().is_err() => {
                interrupt::check()?;
                eprintln!("  {why}; once more, on other ports");
                left -= 1;
            }
            started => return started.map(|started| (nodes, started)),
        }
    }
}

/// Opens a connection whose calls do not block forever.
pub(super) fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(START))?;
    stream.set_write_timeout(Some(START))?;
    Ok(stream)
}

/// So many ports that nobody listens on.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N], String> {
    // All are held until all are known, so that they differ.
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|e| format!("finding a free port: {e}"))?;
        *port = listener.local_addr().map_err(|e| e.to_string())?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A new folder.
pub(super) fn folder(parent: &Path, name: &str) -> Result<PathBuf, String> {
    let path = parent.join(name);
    std::fs::create_dir_all(&path).map_err(|e| format!("making the folder {}: {e}", path.display()))?;
    Ok(path)
}

/// Writes a file.
pub(super) fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("writing {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::super::child::Launch;
    use super::*;

    #[test]
    fn a_group_is_started_once_more_if_a_server_has_ended_and_only_then() {
        let scratch = std::env::temp_dir().join(format!("towline-compare-nodes-{}", std::process::id()));
        let run = |dir: &Path, nodes: &Nodes, line: &str| {
            nodes.add(Launch::new("/bin/sh", dir, &[]).args(["-c", line]).start("shell")?);
            nodes.wait_for("a socket", || Ok(dir.join("socket").exists().then_some(())))
        };
        let mut folders = Vec::new();
        let started = start(&scratch, |dir, nodes| {
            folders.push(dir.to_path_buf());
            run(dir, nodes, if folders.len() == 1 { "echo in use; exit 1" } else { "touch socket; sleep 60" })
        });
        assert!(started.is_ok_and(|(nodes, ())| nodes.check().is_ok()));
        assert!(folders.len() == 2 && folders[0] != folders[1]);
        let mut count = 0;
        let failed = start(&scratch.join("failed"), |dir, nodes| {
            count += 1;
            run(dir, nodes, "echo in use; exit 1")
        });
        assert!(failed.is_err_and(|e| e.contains("in use")) && count == 2, "no third time");
        let other = start(&scratch.join("other"), |_, _| {
            count += 1;
            Err::<(), _>("no leader".to_string())
        });
        assert_eq!((other.map(|_| ()), count), (Err("no leader".into()), 3), "its servers run");
        std::fs::remove_dir_all(&scratch).unwrap();
    }

    #[test]
    fn free_ports_differ() {
        let [a, b, c] = free_ports().unwrap();
        assert!(a != b && b != c && a != c && a != 0);
    }
}
