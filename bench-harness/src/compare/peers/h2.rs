//! As much HTTP/2 and gRPC as unary calls need. A call has succeeded when its stream has brought a
//! message before it ended: a failed one ends without (gRPC over HTTP/2, "Trailers-Only"), so headers
//! need not be decoded; the table for them is switched off.
//! <https://www.rfc-editor.org/rfc/rfc9113>, <https://www.rfc-editor.org/rfc/rfc7541>

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::drive::Protocol;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME: usize = 9;
const WINDOW: u32 = 1 << 30;

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(body);
}

/// The opening words: no header table, no pushes, windows that are never in the way.
pub(super) fn opening() -> Vec<u8> {
    let mut settings = Vec::new();
    for (id, value) in [(1u16, 0u32), (2, 0), (4, WINDOW)] {
        settings.extend_from_slice(&id.to_be_bytes());
        settings.extend_from_slice(&value.to_be_bytes());
    }
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(SETTINGS, 0, 0, &settings, &mut out);
    frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes(), &mut out);
    out
}

/// A call's headers, each literal and without an index (RFC 7541, 6.2.2).
fn headers(path: &str) -> Vec<u8> {
    // POST and http have entries in the static table.
    let mut out = vec![0x83, 0x86];
    let mut field = |name: &[u8], value: &str| {
        out.extend_from_slice(name);
        out.push(value.len() as u8);
        out.extend_from_slice(value.as_bytes());
    };
    // The names :path (4), :authority (1) and content-type (31) have entries, too.
    field(&[4], path);
    field(&[1], "127.0.0.1");
    field(&[0x0f, 16], "application/grpc");
    field(b"\0\x02te", "trailers");
    out
}

/// A message behind its gRPC prefix: not compressed, its length.
fn grpc(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// A bytes field of a protobuf message.
pub(super) fn bytes_field(number: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut len = value.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(value);
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A field's value in a protobuf message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field with this number.
pub(super) fn field(mut message: &[u8], number: u64) -> Option<Value<'_>> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        if key >> 3 == number {
            return Some(value);
        }
    }
    None
}

/// What one frame means for calls.
enum Event<'a> {
    Nothing,
    Data { stream: u32, body: &'a [u8], end: bool },
    End { stream: u32 },
}

/// A connection's own state.
#[derive(Debug)]
struct Link {
    /// Bytes of bodies that the server takes at the moment.
    window: i64,
    /// Bytes received and not granted anew.
    received: u32,
}

impl Link {
    const fn new() -> Self {
        Self { window: 65_535, received: 0 }
    }

    /// Takes the first frame of `input`; `None` if it is not whole.
    fn take<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> Result<Option<(Event<'a>, usize)>, String> {
        let Some((head, rest)) = input.split_first_chunk::<FRAME>() else { return Ok(None) };
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        if len > 1 << 20 {
            return Err("not HTTP/2".into());
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let end = flags & END_STREAM != 0;
        let event = match kind {
            DATA => {
                self.received += len as u32;
                if self.received > WINDOW / 2 {
                    frame(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes(), out);
                    self.received = 0;
                }
                Event::Data { stream, body, end }
            }
            HEADERS if end => Event::End { stream },
            RST_STREAM => return Err("the server reset a call".into()),
            GOAWAY => return Err("the server ends the connection".into()),
            SETTINGS if flags & ACK == 0 => {
                frame(SETTINGS, ACK, 0, &[], out);
                Event::Nothing
            }
            PING if flags & ACK == 0 => {
                frame(PING, ACK, 0, body, out);
                Event::Nothing
            }
            WINDOW_UPDATE if stream == 0 => {
                let more = body.first_chunk().ok_or("not HTTP/2")?;
                self.window += i64::from(u32::from_be_bytes(*more));
                Event::Nothing
            }
            _ => Event::Nothing,
        };
        Ok(Some((event, FRAME + len)))
    }
}

/// One call on a fresh blocking connection.
pub(super) fn call(stream: &mut TcpStream, path: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("calling {path}: {e}");
    let mut out = opening();
    frame(HEADERS, END_HEADERS, 1, &headers(path), &mut out);
    frame(DATA, END_STREAM, 1, &grpc(message), &mut out);
    let (mut link, mut input, mut buf, mut answer) = (Link::new(), Vec::new(), [0; 4096], Vec::new());
    loop {
        stream.write_all(&out).map_err(failed)?;
        out.clear();
        match stream.read(&mut buf).map_err(failed)? {
            0 => return Err(format!("calling {path}: the server closed the connection")),
            n => input.extend_from_slice(&buf[..n]),
        }
        let mut used = 0;
        while let Some((event, bytes)) = link.take(&input[used..], &mut out)? {
            used += bytes;
            match event {
                Event::Data { body, .. } => answer.extend_from_slice(body),
                Event::End { .. } if answer.len() >= 5 => return Ok(answer.split_off(5)),
                Event::End { .. } => return Err(format!("calling {path}: refused")),
                Event::Nothing => {}
            }
        }
        input.drain(..used);
    }
}

/// The load of one connection: each record is one call, a stream of its own.
pub(super) struct Calls<M> {
    link: Link,
    headers: Vec<u8>,
    /// Encodes the next message.
    message: M,
    next_stream: u32,
    /// When each call under way was encoded, and whether its message has come.
    calls: HashMap<u32, (u64, bool)>,
}

impl<M: FnMut() -> Vec<u8>> Calls<M> {
    /// The opening words must have been sent.
    pub(super) fn new(path: &str, message: M) -> Self {
        Self { link: Link::new(), headers: headers(path), message, next_stream: 1, calls: HashMap::new() }
    }
}

impl<M: FnMut() -> Vec<u8>> Protocol for Calls<M> {
    fn ask(&mut self, now_ns: u64, _room: u64, out: &mut Vec<u8>) -> u64 {
        let body = grpc(&(self.message)());
        if self.link.window < body.len() as i64 {
            return 0;
        }
        self.link.window -= body.len() as i64;
        frame(HEADERS, END_HEADERS, self.next_stream, &self.headers, out);
        frame(DATA, END_STREAM, self.next_stream, &body, out);
        self.calls.insert(self.next_stream, (now_ns, false));
        self.next_stream += 2;
        1
    }

    fn answer(&mut self, input: &[u8], out: &mut Vec<u8>, done: &mut dyn FnMut(u64, u64)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((event, bytes)) = self.link.take(&input[used..], out)? {
            used += bytes;
            match event {
                Event::Data { stream, body, end: false } if !body.is_empty() => {
                    self.calls.get_mut(&stream).ok_or("an answer that was not asked for")?.1 = true;
                }
                Event::End { stream } | Event::Data { stream, end: true, .. } => {
                    let (since, has_message) = self.calls.remove(&stream).ok_or("an end that was not asked for")?;
                    if !has_message {
                        return Err("the server refused a call".into());
                    }
                    done(since, 1);
                }
                Event::Data { .. } | Event::Nothing => {}
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_frame_of_headers_and_a_frame_of_data() {
        let mut calls = Calls::new("/p", || b"abc".to_vec());
        let mut out = Vec::new();
        assert_eq!(calls.ask(1, 5, &mut out), 1);
        let head = b"\x83\x86\x04\x02/p\x01\x09127.0.0.1\x0f\x10\x10application/grpc\0\x02te\x08trailers";
        let mut expected = Vec::new();
        frame(HEADERS, END_HEADERS, 1, head, &mut expected);
        assert_eq!(expected[..9], [0, 0, head.len() as u8, 1, 4, 0, 0, 0, 1]);
        expected.extend_from_slice(b"\0\0\x08\0\x01\0\0\0\x01\0\0\0\0\x03abc");
        assert_eq!(out, expected);
    }

    #[test]
    fn a_call_is_done_when_its_stream_ends_behind_a_message_and_refused_without() {
        let mut answers = Vec::new();
        frame(SETTINGS, 0, 0, &[], &mut answers);
        frame(HEADERS, END_HEADERS, 1, b"h", &mut answers);
        frame(DATA, 0, 1, b"\0\0\0\0\0", &mut answers);
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"t", &mut answers);
        for cut in 0..answers.len() {
            let mut calls = Calls::new("/p", Vec::new);
            calls.ask(7, 1, &mut Vec::new());
            let (mut out, mut done) = (Vec::new(), Vec::new());
            let used = calls.answer(&answers[..cut], &mut out, &mut |s, n| done.push((s, n))).unwrap();
            calls.answer(&answers[used..], &mut out, &mut |s, n| done.push((s, n))).unwrap();
            assert_eq!((done, out.len()), (vec![(7, 1)], FRAME), "cut at {cut}: done, and the settings acknowledged");
        }
        let mut refused = Vec::new();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"t", &mut refused);
        let mut calls = Calls::new("/p", Vec::new);
        calls.ask(7, 1, &mut Vec::new());
        assert!(calls.answer(&refused, &mut Vec::new(), &mut |_, _| panic!("done")).is_err());
    }

    #[test]
    fn nothing_is_sent_beyond_the_servers_window() {
        let mut calls = Calls::new("/p", || vec![0; 40_000]);
        assert_eq!((calls.ask(1, 9, &mut Vec::new()), calls.ask(1, 9, &mut Vec::new())), (1, 0));
        let mut more = Vec::new();
        frame(WINDOW_UPDATE, 0, 0, &40_000u32.to_be_bytes(), &mut more);
        calls.answer(&more, &mut Vec::new(), &mut |_, _| {}).unwrap();
        assert_eq!(calls.ask(1, 9, &mut Vec::new()), 1);
    }

    #[test]
    fn fields_of_messages_are_found() {
        let mut message = vec![0x08, 0x96, 0x01];
        bytes_field(2, &[7; 300], &mut message);
        assert_eq!(field(&message, 1), Some(Value::Number(150)));
        assert_eq!(field(&message, 2), Some(Value::Bytes(&[7; 300])));
        assert_eq!(field(&message, 3), None);
        assert_eq!(field(&message[..10], 2), None, "cut off");
    }
}
