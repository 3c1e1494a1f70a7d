//! Opening a connection, and reading checked frames from it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use towline_wire::frame::{self, FrameHead, FrameKind};
use towline_wire::handshake::{Hello, Verdict, Welcome};
use towline_wire::message::ErrorHead;
use towline_wire::{FrameError, PROTOCOL_VERSION, ShardId};

use super::error::ClientError;

/// Memory for bytes read ahead: enough for many replies in one system call.
const READ_AHEAD_BYTES: usize = 128 << 10;
/// Idle limit where the node names no heartbeat interval.
const IDLE_WITHOUT_HEARTBEATS: Duration = Duration::from_secs(10);
/// The shortest limit a socket is given: zero would mean "no limit".
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Limits on waiting. Resolving a host name is up to the operating system and not covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// For the TCP connection, for each address a name resolves to. Default 5 s.
    pub connect_timeout: Duration,
    /// For bytes to arrive during the handshake, and for a status. Default 10 s.
    pub read_timeout: Duration,
    /// For the node to take bytes: any progress starts it anew. Default 30 s.
    pub write_timeout: Duration,
    /// How long a [`super::Tail`] waits while nothing arrives, heartbeats included. `None`, the
    /// default, is three times the interval the node announces, or 10 s if it announces none.
    pub idle_timeout: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            idle_timeout: None,
        }
    }
}

/// A connection on which the node has said welcome to a client.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) reader: FrameReader<TcpStream>,
    pub(super) welcome: Welcome,
}

/// Three missed heartbeats.
pub(super) fn idle_limit(welcome: &Welcome) -> Duration {
    match Duration::from_millis(u64::from(welcome.heartbeat_ms) * 3) {
        Duration::ZERO => IDLE_WITHOUT_HEARTBEATS,
        limit => limit,
    }
}

fn connect(addr: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for socket_addr in addr.to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket_addr, timeout.max(TIMEOUT_MIN)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects, says hello as a client of `shard` and checks the welcome.
pub(super) fn open(addr: &str, shard: ShardId, options: &ConnectOptions) -> Result<Connection, ClientError> {
    let doing = "opening the connection";
    let io = |source| ClientError::Io { doing, source };
    let stream = connect(addr, options.connect_timeout)
        .map_err(|source| ClientError::Connect { addr: addr.to_owned(), source })?;
    stream.set_nodelay(true).map_err(io)?;
    stream.set_write_timeout(Some(options.write_timeout.max(TIMEOUT_MIN))).map_err(io)?;
    let hello = Hello::client(shard).to_bytes();
    let mut first = [0; frame::PREAMBLE.len() + frame::HEADER + towline_wire::handshake::HELLO];
    let (preamble, rest) = first.split_at_mut(frame::PREAMBLE.len());
    let (head, payload) = rest.split_at_mut(frame::HEADER);
    preamble.copy_from_slice(&frame::PREAMBLE);
    head.copy_from_slice(&frame::header(FrameKind::Hello, 0, 0, &hello));
    payload.copy_from_slice(&hello);
    (&stream).write_all(&first).map_err(io)?;

    let mut reader = FrameReader::new(stream.try_clone().map_err(io)?);
    reader.set_patience(Some(options.read_timeout))?;
    let mut payload = Vec::new();
    reader.next(&[FrameKind::Welcome], &mut payload, doing)?;
    let welcome = Welcome::check(&payload).map_err(|source| reader.bad(source))?;
    match welcome.verdict {
        Verdict::Refused(cause) => {
            // The words come in an error frame; a node that only closes has at least named the cause.
            let text = match reader.next(&[], &mut payload, doing) {
                Err(ClientError::Server { text, .. }) => text,
                _ => "it gives no words".to_owned(),
            };
            Err(ClientError::Refused { addr: addr.to_owned(), cause, text })
        }
        Verdict::Client if welcome.protocol != PROTOCOL_VERSION => {
            Err(ClientError::Protocol { addr: addr.to_owned(), theirs: welcome.protocol })
        }
        Verdict::Client => Ok(Connection { stream, reader, welcome }),
        Verdict::Stream { .. }
        | Verdict::Cut { .. }
        | Verdict::NeedSnapshot { .. }
        | Verdict::Begin { .. }
        | Verdict::Snapshot { .. } => Err(reader.bad(FrameError::Field { kind: FrameKind::Welcome, field: "verdict" })),
    }
}

/// Sends a frame that fits into one system call.
pub(super) fn send(
    mut stream: &TcpStream,
    kind: FrameKind,
    arg: u64,
    payload: &[u8],
    doing: &'static str,
) -> Result<(), ClientError> {
    let mut bytes = Vec::with_capacity(frame::HEADER + payload.len());
    bytes.extend_from_slice(&frame::header(kind, 0, arg, payload));
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes).map_err(|source| ClientError::Io { doing, source })
}

/// Whether an error is the socket's way to say that its time limit has passed.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Reads frames, each checked before it is handed on: header and cap before memory is taken for the
/// payload, then the payload's CRC (a batch's own are left to the caller).
pub(super) struct FrameReader<R> {
    inner: BufReader<R>,
    /// Bytes consumed since the connection was opened.
    received: u64,
    /// Where the current frame starts.
    at: u64,
    goodbye: Option<u64>,
    patience: Option<Duration>,
}

impl FrameReader<TcpStream> {
    /// Limits the wait for bytes; `None` waits for ever.
    pub(super) fn set_patience(&mut self, limit: Option<Duration>) -> Result<(), ClientError> {
        let limit = limit.map(|l| l.max(TIMEOUT_MIN));
        self.patience = limit;
        let set = self.inner.get_ref().set_read_timeout(limit);
        set.map_err(|source| ClientError::Io { doing: "setting a time limit", source })
    }
}

impl<R: Read> FrameReader<R> {
    pub(super) fn new(inner: R) -> Self {
        let inner = BufReader::with_capacity(READ_AHEAD_BYTES, inner);
        Self { inner, received: 0, at: 0, goodbye: None, patience: None }
    }

    /// Where the current frame starts, in bytes since the connection was opened.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The current frame's payload is not what its kind says.
    pub(super) const fn bad(&self, source: FrameError) -> ClientError {
        ClientError::Frame { at: self.at, source }
    }

    /// Whether the next frame can be read without waiting. A hint: its header is not checked yet.
    pub(super) fn has_frame(&self) -> bool {
        let ahead = self.inner.buffer();
        let Some((len, _)) = ahead.split_first_chunk::<4>() else { return false };
        ahead.len() - 4 >= frame::HEADER - 4 + u32::from_le_bytes(*len) as usize
    }

    fn failed(&self, source: io::Error, doing: &'static str) -> ClientError {
        match self.patience {
            Some(waited) if is_timeout(&source) => ClientError::Idle { waited, doing },
            // A reset that follows a goodbye is still that goodbye.
            _ if self.goodbye.is_some() => self.ended(doing),
            _ => ClientError::Io { doing, source },
        }
    }

    fn ended(&self, doing: &'static str) -> ClientError {
        match self.goodbye {
            Some(reason) => ClientError::Goodbye { reason, doing },
            None => ClientError::Closed { at: self.received, doing },
        }
    }

    /// Reads the next frame into `payload`, which is overwritten. Frames of other kinds than those
    /// `allowed` are refused before their payload is read, except for an error, which is returned as
    /// [`ClientError::Server`], and a goodbye, which explains the end of the connection when it
    /// comes.
    pub(super) fn next(
        &mut self,
        allowed: &[FrameKind],
        payload: &mut Vec<u8>,
        doing: &'static str,
    ) -> Result<FrameHead, ClientError> {
        loop {
            let head = self.head(doing)?;
            let known = matches!(head.kind, FrameKind::Error | FrameKind::Goodbye);
            if !known && !allowed.contains(&head.kind) {
                return Err(ClientError::OutOfPlace { kind: head.kind, at: self.at, doing });
            }
            self.payload(&head, payload, doing)?;
            match head.kind {
                FrameKind::Error => {
                    let (error, text) = ErrorHead::check(payload).map_err(|source| self.bad(source))?;
                    return Err(ClientError::Server { code: error.code, arg: error.arg, text: text.to_owned() });
                }
                FrameKind::Goodbye => self.goodbye = Some(head.arg),
                _ => return Ok(head),
            }
        }
    }

    fn head(&mut self, doing: &'static str) -> Result<FrameHead, ClientError> {
        self.at = self.received;
        let mut bytes = [0; frame::HEADER];
        let mut filled = 0;
        while filled < bytes.len() {
            let ahead = match self.inner.fill_buf() {
                Ok(ahead) => ahead,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error, doing)),
            };
            if ahead.is_empty() {
                return Err(self.ended(doing));
            }
            let take = ahead.len().min(bytes.len() - filled);
            bytes[filled..filled + take].copy_from_slice(&ahead[..take]);
            self.inner.consume(take);
            filled += take;
            self.received += take as u64;
        }
        FrameHead::check(&bytes).map_err(|source| self.bad(source))
    }

    fn payload(&mut self, head: &FrameHead, payload: &mut Vec<u8>, doing: &'static str) -> Result<(), ClientError> {
        payload.clear();
        payload.reserve_exact(head.len);
        // `read_to_end` fills the reserved memory without writing zeros first.
        let read = self.inner.by_ref().take(head.len as u64).read_to_end(payload);
        self.received += payload.len() as u64;
        match read {
            Err(error) => Err(self.failed(error, doing)),
            Ok(len) if len < head.len => Err(self.ended(doing)),
            Ok(_) => head.check_payload(payload).map_err(|source| self.bad(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use towline_wire::message::{ErrorCode, Heartbeat};
    use towline_wire::{Lsn, Seq, Term};

    use super::super::fake::frame_bytes;
    use super::*;

    /// A heartbeat, a goodbye, an error.
    fn stream() -> Vec<u8> {
        let beat = Heartbeat { term: Term(1), tail: Lsn(9), tail_seq: Seq(1), commit_lsn: Lsn(9), time_us: 1 };
        let (head, text) = ErrorHead { code: ErrorCode::Idle, arg: 5 }.to_bytes("words");
        [
            frame_bytes(FrameKind::Heartbeat, 0, &beat.to_bytes()),
            frame_bytes(FrameKind::Goodbye, 1, &[]),
            frame_bytes(FrameKind::Error, 0, &[&head[..], text.as_bytes()].concat()),
        ]
        .concat()
    }

    fn read(bytes: &[u8]) -> (usize, ClientError) {
        let (mut reader, mut payload) = (FrameReader::new(bytes), Vec::new());
        for frames in 0.. {
            if let Err(error) = reader.next(&[FrameKind::Heartbeat], &mut payload, "testing") {
                return (frames, error);
            }
        }
        unreachable!("the bytes are finite")
    }

    #[test]
    fn every_cut_is_an_end_and_a_goodbye_explains_it() {
        let bytes = stream();
        let (beat, bye) = (frame::HEADER + 40, 2 * frame::HEADER + 40);
        for len in 0..bytes.len() {
            let (frames, error) = read(&bytes[..len]);
            assert_eq!(frames, usize::from(len >= beat));
            match error {
                ClientError::Closed { at, .. } => assert_eq!((at, len < bye), (len as u64, true)),
                ClientError::Goodbye { reason, .. } => assert_eq!((reason, len >= bye), (1, true)),
                other => panic!("cut at {len}: {other:?}"),
            }
        }
        assert!(
            matches!(read(&bytes), (1, ClientError::Server { code: ErrorCode::Idle, arg: 5, text }) if text == "words")
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = stream();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (_, error) = read(&bytes);
            assert!(matches!(error, ClientError::Frame { .. }), "bit {bit}: {error:?}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused_before_its_payload_arrives() {
        let head = frame::header(FrameKind::Status, 0, 0, &[0; 100]);
        assert!(matches!(read(&head), (0, ClientError::OutOfPlace { kind: FrameKind::Status, at: 0, .. })));
    }
}
