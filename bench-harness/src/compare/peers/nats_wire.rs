//! NATS's text protocol: publish with a subject for the answer, take the answers in order.
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::drive::Protocol;

const OPENING: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1}\r\nSUB a 1\r\nPING\r\n";

/// What the server sends.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Message(&'a [u8]),
    Ping,
    Pong,
    Error(String),
    /// `INFO`, `+OK`.
    Other,
}

/// The first thing in `input` and its bytes; `None` if it is not whole.
fn first(input: &[u8]) -> Result<Option<(Said<'_>, usize)>, String> {
    let Some(end) = input.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
    let (line, used) = (&input[..end], end + 2);
    let text = String::from_utf8_lossy(&line[..line.len().min(300)]);
    let said = if line.starts_with(b"MSG ") {
        let len = text.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).ok_or("MSG without a length")?;
        return Ok(input.get(used..used + len + 2).map(|m| (Said::Message(&m[..len]), used + len + 2)));
    } else if line == b"PING" {
        Said::Ping
    } else if line == b"PONG" {
        Said::Pong
    } else if line.starts_with(b"-ERR") {
        Said::Error(text.into_owned())
    } else if line.starts_with(b"INFO ") || line == b"+OK" {
        Said::Other
    } else {
        return Err(format!("not NATS's protocol: {text:?}"));
    };
    Ok(Some((said, used)))
}

/// A blocking connection, past its opening words, whose answers come to the subject `a`.
pub(super) struct Session {
    pub(super) stream: TcpStream,
    input: Vec<u8>,
}

impl Session {
    pub(super) fn open(stream: TcpStream) -> Result<Self, String> {
        let mut session = Self { stream, input: Vec::new() };
        session.send(OPENING)?;
        session.until(|said| (said == Said::Pong).then_some(()))?;
        Ok(session)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|e| format!("talking to the server: {e}"))
    }

    fn until<T>(&mut self, mut wanted: impl FnMut(Said<'_>) -> Option<T>) -> Result<T, String> {
        let mut buf = [0; 4096];
        loop {
            while let Some((said, used)) = first(&self.input)? {
                if let Said::Error(text) = said {
                    return Err(text);
                }
                let answer = wanted(said);
                self.input.drain(..used);
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            }
            match self.stream.read(&mut buf) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(n) => self.input.extend_from_slice(&buf[..n]),
                Err(e) => return Err(format!("talking to the server: {e}")),
            }
        }
    }

    /// Asks one thing and gives the answer's text.
    pub(super) fn ask(&mut self, subject: &str, body: &str) -> Result<String, String> {
        self.send(format!("PUB {subject} a {}\r\n{body}\r\n", body.len()).as_bytes())?;
        self.until(|said| match said {
            Said::Message(body) => Some(String::from_utf8_lossy(body).into_owned()),
            _ => None,
        })
    }
}

/// The load of one connection.
pub(super) struct Publishes {
    /// One record, encoded.
    one: Vec<u8>,
    since: VecDeque<u64>,
}

impl Publishes {
    pub(super) fn new(subject: &str, record: &[u8]) -> Self {
        let mut one = format!("PUB {subject} a {}\r\n", record.len()).into_bytes();
        one.extend_from_slice(record);
        one.extend_from_slice(b"\r\n");
        Self { one, since: VecDeque::new() }
    }
}

impl Protocol for Publishes {
    fn ask(&mut self, now_ns: u64, _room: u64, out: &mut Vec<u8>) -> u64 {
        out.extend_from_slice(&self.one);
        self.since.push_back(now_ns);
        1
    }

    fn answer(&mut self, input: &[u8], out: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((said, bytes)) = first(&input[used..])? {
            used += bytes;
            match said {
                Said::Message(body) if body.windows(7).any(|w| w == b"\"error\"") => {
                    return Err(format!("the server answers {}", String::from_utf8_lossy(body)));
                }
                // Answers come in the order of the stream, which is that of the connection.
                Said::Message(_) => done(self.since.pop_front().ok_or("an answer that was not asked for")?, 1),
                Said::Ping => out.extend_from_slice(b"PONG\r\n"),
                Said::Error(text) => return Err(text),
                Said::Pong | Said::Other => {}
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_published_with_a_subject_for_the_answer() {
        let mut load = Publishes::new("s", b"x\r\ny");
        let mut out = Vec::new();
        assert_eq!((load.ask(1, 9, &mut out), load.ask(2, 8, &mut out)), (1, 1));
        assert_eq!(out, b"PUB s a 4\r\nx\r\ny\r\nPUB s a 4\r\nx\r\ny\r\n");
    }

    #[test]
    fn answers_are_taken_in_order_however_they_are_cut_and_pings_are_answered() {
        let bytes = b"MSG a 1 25\r\n{\"stream\":\"S\", \"seq\":1000}\r\nPING\r\nMSG a 1 24\r\n{\"stream\":\"S\", \"seq\":100}\r\n";
        let bytes = String::from_utf8_lossy(bytes).replace("a 1 25", "a 1 26").replace("a 1 24", "a 1 25").into_bytes();
        for cut in 0..bytes.len() {
            let mut load = Publishes::new("s", b"x");
            load.ask(1, 2, &mut Vec::new());
            load.ask(2, 1, &mut Vec::new());
            let (mut out, mut done) = (Vec::new(), Vec::new());
            let used = load.answer(&bytes[..cut], &mut out, &mut |s, n| done.push((s, n))).unwrap();
            load.answer(&bytes[used..], &mut out, &mut |s, n| done.push((s, n))).unwrap();
            assert_eq!((done, &out[..]), (vec![(1, 1), (2, 1)], &b"PONG\r\n"[..]), "cut at {cut}");
        }
    }

    #[test]
    fn errors_are_no_commits() {
        for bytes in
            [&b"-ERR 'Maximum Payload Violation'\r\n"[..], b"MSG a 1 12\r\n{\"error\":{}}\r\n", b"HTTP/1.1\r\n"]
        {
            let mut load = Publishes::new("s", b"x");
            load.ask(1, 1, &mut Vec::new());
            assert!(load.answer(bytes, &mut Vec::new(), &mut |_, _| panic!("done")).is_err());
        }
    }
}
