//! RESP, the protocol of Redis and those who speak like it: a unit of work is so many SETs and one
//! WAIT (or WAITAOF) behind them.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::drive::Protocol;

/// Keys that are overwritten in turn.
const KEYS: u64 = 10_000;

/// What a unit ends with, and what its answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barrier {
    /// `WAIT n 0`: n replicas have received it.
    Wait(u64),
    /// `WAITAOF 1 n 0`: the local append-only file and those of n replicas are flushed.
    WaitAof(u64),
}

/// Encodes a command.
pub(super) fn command(parts: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

/// The line at the beginning, and the bytes it takes with its end.
fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.windows(2).position(|w| w == b"\r\n")?;
    Some((&input[..end], end + 2))
}

/// The first reply in `input` and its bytes; `None` if it is not whole.
pub(super) fn reply(input: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let Some((head, mut used)) = line(input) else { return Ok(None) };
    let bad = || format!("not RESP: {:?}", String::from_utf8_lossy(&head[..head.len().min(80)]));
    let (kind, text) = head.split_first().ok_or_else(bad)?;
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let number = || text.parse::<i64>().map_err(|_| bad());
    let reply = match kind {
        b'+' => Reply::Simple(text.into()),
        b'-' => Reply::Error(text.into()),
        b':' => Reply::Integer(number()?),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Reply::Bulk(None),
            Ok(len) => {
                if input.len() < used + len + 2 {
                    return Ok(None);
                }
                used += len + 2;
                Reply::Bulk(Some(input[used - len - 2..used - 2].to_vec()))
            }
        },
        b'*' => {
            let mut items = Vec::new();
            for _ in 0..number()? {
                let Some((item, bytes)) = reply(&input[used..])? else { return Ok(None) };
                items.push(item);
                used += bytes;
            }
            Reply::Array(items)
        }
        _ => return Err(bad()),
    };
    Ok(Some((reply, used)))
}

/// Asks one thing on a blocking connection.
pub(super) fn ask(stream: &mut TcpStream, parts: &[&[u8]]) -> Result<Reply, String> {
    let failed = |e: std::io::Error| format!("asking the server: {e}");
    let mut out = Vec::new();
    command(parts, &mut out);
    stream.write_all(&out).map_err(failed)?;
    let (mut input, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buf).map_err(failed)? {
            0 => return Err("the server closed the connection".into()),
            n => input.extend_from_slice(&buf[..n]),
        }
        if let Some((reply, _)) = reply(&input)? {
            return Ok(reply);
        }
    }
}

/// The load of one connection.
pub(super) struct Sets {
    record: Vec<u8>,
    unit: u64,
    barrier: Barrier,
    key: u64,
    /// When the unit under way was encoded.
    since: u64,
    /// SETs of it that are not answered.
    left: u64,
}

impl Sets {
    pub(super) fn new(record: Vec<u8>, unit: u64, barrier: Barrier, first_key: u64) -> Self {
        Self { record, unit, barrier, key: first_key, since: 0, left: 0 }
    }
}

impl Protocol for Sets {
    fn ask(&mut self, now_ns: u64, room: u64, out: &mut Vec<u8>) -> u64 {
        // WAIT holds up its connection: one unit at a time.
        if room < self.unit {
            return 0;
        }
        for _ in 0..self.unit {
            let key = format!("k{:04}", self.key % KEYS);
            self.key += 1;
            command(&[b"SET", key.as_bytes(), &self.record], out);
        }
        match self.barrier {
            Barrier::Wait(n) => command(&[b"WAIT", n.to_string().as_bytes(), b"0"], out),
            Barrier::WaitAof(n) => command(&[b"WAITAOF", b"1", n.to_string().as_bytes(), b"0"], out),
        }
        (self.since, self.left) = (now_ns, self.unit);
        self.unit
    }

    fn answer(&mut self, input: &[u8], _: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
        const OK: &[u8] = b"+OK\r\n";
        let mut used = 0;
        while used < input.len() {
            if self.left > 0 && input[used..].starts_with(OK) {
                (self.left, used) = (self.left - 1, used + OK.len());
                continue;
            }
            let Some((reply, bytes)) = reply(&input[used..])? else { break };
            used += bytes;
            let copies = match (&reply, self.barrier) {
                (Reply::Integer(n), Barrier::Wait(wanted)) => *n >= wanted as i64,
                (Reply::Array(items), Barrier::WaitAof(wanted)) => {
                    matches!(items[..], [Reply::Integer(1), Reply::Integer(n)] if n >= wanted as i64)
                }
                _ => false,
            };
            if self.left > 0 || !copies {
                return Err(format!("the server answers {reply:?} with {} SETs to be answered", self.left));
            }
            done(self.since, self.unit);
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_its_sets_and_one_wait() {
        let mut sets = Sets::new(b"xy".to_vec(), 2, Barrier::Wait(2), 9_999);
        let mut out = Vec::new();
        assert_eq!(sets.ask(5, 1, &mut out), 0, "no room for a unit");
        assert_eq!(sets.ask(5, 2, &mut out), 2);
        let set = |key| format!("*3\r\n$3\r\nSET\r\n$5\r\n{key}\r\n$2\r\nxy\r\n");
        let wait = "*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("{}{}{wait}", set("k9999"), set("k0000")));
    }

    #[test]
    fn a_unit_is_done_with_the_answer_to_its_wait_however_it_is_cut() {
        let answers = b"+OK\r\n+OK\r\n:2\r\n";
        for cut in 0..answers.len() {
            let mut sets = Sets::new(b"xy".to_vec(), 2, Barrier::Wait(2), 0);
            assert_eq!(sets.ask(5, 2, &mut Vec::new()), 2);
            let mut done = Vec::new();
            let used = sets.answer(&answers[..cut], &mut Vec::new(), &mut |s, n| done.push((s, n))).unwrap();
            assert!(done.is_empty());
            sets.answer(&answers[used..], &mut Vec::new(), &mut |s, n| done.push((s, n))).unwrap();
            assert_eq!(done, [(5, 2)]);
        }
    }

    #[test]
    fn too_few_replicas_and_errors_are_no_commits() {
        for (barrier, answers) in [
            (Barrier::Wait(2), &b"+OK\r\n:1\r\n"[..]),
            (Barrier::Wait(2), b"-READONLY\r\n"),
            (Barrier::WaitAof(2), b"+OK\r\n*2\r\n:0\r\n:2\r\n"),
            (Barrier::WaitAof(2), b"+OK\r\n*2\r\n:1\r\n:1\r\n"),
        ] {
            let mut sets = Sets::new(b"xy".to_vec(), 1, barrier, 0);
            sets.ask(5, 1, &mut Vec::new());
            assert!(sets.answer(answers, &mut Vec::new(), &mut |_, _| panic!("done")).is_err());
        }
    }

    #[test]
    fn replies_are_read_whole_or_not_at_all() {
        let bytes = b"*3\r\n:1\r\n$3\r\nabc\r\n$-1\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(reply(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let items = vec![Reply::Integer(1), Reply::Bulk(Some(b"abc".to_vec())), Reply::Bulk(None)];
        assert_eq!(reply(bytes), Ok(Some((Reply::Array(items), bytes.len()))));
        assert!(reply(b"HTTP/1.1\r\n").is_err());
    }
}
