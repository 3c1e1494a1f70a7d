//! PostgreSQL's protocol, version 3: a unit of work is so many executions of one prepared statement
//! and one Sync behind them, which makes them one transaction.
//! <https://www.postgresql.org/docs/15/protocol-flow.html>, "Pipelining"

use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::drive::Protocol;

const BYTEA: i32 = 17;

/// Appends a message: its kind, its length, its body.
fn message(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    counted(out, body);
}

fn counted(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// A message's kind, its body, its bytes.
type Message<'a> = (u8, &'a [u8], usize);

/// The first message in `input`; `None` if it is not whole.
fn first(input: &[u8]) -> Result<Option<Message<'_>>, String> {
    let Some((head, _)) = input.split_first_chunk::<5>() else { return Ok(None) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len < 4 {
        return Err("not PostgreSQL's protocol".into());
    }
    Ok(input.get(5..=len).map(|body| (head[0], body, len + 1)))
}

/// What an error message says.
fn error(body: &[u8]) -> String {
    let field = |kind: u8| {
        let fields = body.split(|b| *b == 0).find(|f| f.first() == Some(&kind));
        fields.map_or_else(String::new, |f| String::from_utf8_lossy(&f[1..]).into_owned())
    };
    format!("{} ({})", field(b'M'), field(b'C'))
}

/// Reads until the server is ready for a query; gives the columns of the rows on the way.
fn until_ready(stream: &mut TcpStream) -> Result<Vec<String>, String> {
    let failed = |e: std::io::Error| format!("talking to the server: {e}");
    let mut rows = Vec::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).map_err(failed)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..1 << 20).contains(&len) {
            return Err("not PostgreSQL's protocol".into());
        }
        let mut body = vec![0; len - 4];
        stream.read_exact(&mut body).map_err(failed)?;
        match head[0] {
            b'E' => return Err(error(&body)),
            b'R' if body[..4] != [0; 4] => return Err("the server wants a password".into()),
            // A row of one column: count, length, bytes.
            b'D' => rows.push(String::from_utf8_lossy(body.get(6..).unwrap_or_default()).into_owned()),
            b'Z' => return Ok(rows),
            _ => {}
        }
    }
}

/// The opening words on a fresh connection.
pub(super) fn open(stream: &mut TcpStream) -> Result<(), String> {
    let mut out = Vec::new();
    counted(&mut out, |out| {
        out.extend_from_slice(&196_608u32.to_be_bytes());
        for word in ["user", "postgres", "database", "postgres", ""] {
            text(out, word);
        }
    });
    stream.write_all(&out).map_err(|e| format!("talking to the server: {e}"))?;
    until_ready(stream).map(|_| ())
}

/// Runs a query; gives its first column.
pub(super) fn query(stream: &mut TcpStream, sql: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    message(b'Q', &mut out, |out| text(out, sql));
    stream.write_all(&out).map_err(|e| format!("talking to the server: {e}"))?;
    until_ready(stream)
}

/// Prepares the statement that the load executes; it has one parameter, the record.
pub(super) fn prepare(stream: &mut TcpStream, sql: &str) -> Result<(), String> {
    let mut out = Vec::new();
    message(b'P', &mut out, |out| {
        text(out, "s");
        text(out, sql);
        out.extend_from_slice(&1u16.to_be_bytes());
        out.extend_from_slice(&BYTEA.to_be_bytes());
    });
    message(b'S', &mut out, |_| {});
    stream.write_all(&out).map_err(|e| format!("talking to the server: {e}"))?;
    until_ready(stream).map(|_| ())
}

/// The load of one connection, whose statement is prepared.
pub(super) struct Executions {
    /// One execution, encoded.
    one: Vec<u8>,
    unit: u64,
    since: u64,
    /// Executions of the unit under way that are not answered.
    left: u64,
}

impl Executions {
    pub(super) fn new(record: &[u8], unit: u64) -> Self {
        let mut one = Vec::new();
        message(b'B', &mut one, |out| {
            text(out, "");
            text(out, "s");
            // One parameter format, binary; one parameter; results as text.
            for number in [1u16, 1, 1] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            out.extend_from_slice(&(record.len() as u32).to_be_bytes());
            out.extend_from_slice(record);
            out.extend_from_slice(&0u16.to_be_bytes());
        });
        message(b'E', &mut one, |out| {
            text(out, "");
            out.extend_from_slice(&0u32.to_be_bytes());
        });
        Self { one, unit, since: 0, left: 0 }
    }
}

impl Protocol for Executions {
    fn ask(&mut self, now_ns: u64, room: u64, out: &mut Vec<u8>) -> u64 {
        // A session waits for its commit: one transaction at a time.
        if room < self.unit {
            return 0;
        }
        for _ in 0..self.unit {
            out.extend_from_slice(&self.one);
        }
        message(b'S', out, |_| {});
        (self.since, self.left) = (now_ns, self.unit);
        self.unit
    }

    fn answer(&mut self, input: &[u8], _: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((kind, body, bytes)) = first(&input[used..])? {
            used += bytes;
            match kind {
                b'E' => return Err(error(body)),
                b'C' => self.left = self.left.checked_sub(1).ok_or("an answer that was not asked for")?,
                b'Z' if self.left == 0 => done(self.since, self.unit),
                b'Z' => return Err(format!("{} executions without an answer", self.left)),
                _ => {}
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_a_bind_and_an_execute_and_a_unit_ends_with_one_sync() {
        let mut load = Executions::new(b"xyz", 2);
        let mut out = Vec::new();
        assert_eq!(load.ask(1, 1, &mut out), 0, "no room for a unit");
        assert_eq!(load.ask(1, 2, &mut out), 2);
        let bind = b"B\0\0\0\x16\0s\0\0\x01\0\x01\0\x01\0\0\0\x03xyz\0\0";
        // Length: 4, two names of 1 and 2, three numbers of 2, 4 and 3 for the record, 2.
        let mut bind = bind.to_vec();
        bind[4] = 4 + 1 + 2 + 6 + 4 + 3 + 2;
        let one = [&bind[..], b"E\0\0\0\x09\0\0\0\0\0"].concat();
        // Three numbers: formats, their kind, parameters.
        let expected = [&one[..], &one[..], b"S\0\0\0\x04"].concat();
        assert_eq!(out, expected);
    }

    fn answers() -> Vec<u8> {
        let one = b"2\0\0\0\x04D\0\0\0\x0d\0\x01\0\0\0\x030/0C\0\0\0\x0dSELECT 1\0";
        [&one[..], &one[..], b"Z\0\0\0\x05I"].concat()
    }

    #[test]
    fn a_unit_is_done_when_the_server_is_ready_however_the_answers_are_cut() {
        let answers = answers();
        for cut in 0..answers.len() {
            let mut load = Executions::new(b"x", 2);
            load.ask(7, 2, &mut Vec::new());
            let mut done = Vec::new();
            let used = load.answer(&answers[..cut], &mut Vec::new(), &mut |s, n| done.push((s, n))).unwrap();
            assert!(done.is_empty(), "cut at {cut}");
            load.answer(&answers[used..], &mut Vec::new(), &mut |s, n| done.push((s, n))).unwrap();
            assert_eq!(done, [(7, 2)]);
        }
    }

    #[test]
    fn errors_are_no_commits() {
        let mut load = Executions::new(b"x", 1);
        load.ask(7, 1, &mut Vec::new());
        let refused = b"E\0\0\0\x1cSERROR\0C53100\0Mdisk full\0\0";
        let mut refused = refused.to_vec();
        refused[4] = (refused.len() - 1) as u8;
        let error = load.answer(&refused, &mut Vec::new(), &mut |_, _| panic!("done")).unwrap_err();
        assert_eq!(error, "disk full (53100)");
        let mut load = Executions::new(b"x", 1);
        load.ask(7, 1, &mut Vec::new());
        assert!(load.answer(b"Z\0\0\0\x05I", &mut Vec::new(), &mut |_, _| panic!("done")).is_err());
    }
}
