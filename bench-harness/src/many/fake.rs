//! A replica without a log: it says hello, takes batches, and acknowledges them as flushed. It costs
//! next to nothing, so that a hundred of them show what a primary's links cost.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use towline::wire::BatchHeader;
use towline::wire::frame::{self, FLAG_REPLY_NOW, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::{Hello, NodeName, Role, Verdict, Welcome};
use towline::wire::message::{Ack, Heartbeat};
use towline::{Seq, ShardId};

/// Where such a replica stands.
#[derive(Clone, Copy, Debug)]
pub struct Fake {
    hello: Hello,
}

/// Its link.
#[derive(Debug)]
pub struct FakeLink {
    stream: TcpStream,
    /// Where it stands.
    pub fake: Fake,
}

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl Fake {
    /// One with an empty log.
    ///
    /// # Panics
    /// If it is no name.
    #[must_use]
    pub fn new(name: &str, process: u64) -> Self {
        let hello = Hello {
            role: Role::Replica,
            process,
            name: NodeName::new(name).expect("a name"),
            ..Hello::client(ShardId(0))
        };
        Self { hello }
    }

    /// Connects, and is welcomed.
    ///
    /// # Errors
    /// What went wrong.
    pub fn connect(mut self, at: SocketAddr) -> io::Result<FakeLink> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        let hello = self.hello.to_bytes();
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&PREAMBLE);
        out.extend_from_slice(&frame::header(FrameKind::Hello, 0, 0, &hello));
        out.extend_from_slice(&hello);
        stream.write_all(&out)?;
        let (head, payload) = next(&mut stream)?;
        if head.kind != FrameKind::Welcome {
            return Err(bad(format!("a {:?} instead of a welcome", head.kind)));
        }
        let welcome = Welcome::check(&payload).map_err(bad)?;
        if !matches!(welcome.verdict, Verdict::Stream { .. }) {
            return Err(bad(format!("{:?}", welcome.verdict)));
        }
        (self.hello.system, self.hello.term) = (welcome.system, welcome.term);
        Ok(FakeLink { stream, fake: self })
    }
}

fn next(stream: &mut TcpStream) -> io::Result<(FrameHead, Vec<u8>)> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header)?;
    let head = FrameHead::check(&header).map_err(bad)?;
    let mut payload = vec![0; head.len];
    stream.read_exact(&mut payload)?;
    head.check_payload(&payload).map_err(bad)?;
    Ok((head, payload))
}

impl FakeLink {
    /// Takes the next frame, and answers it.
    ///
    /// # Errors
    /// The connection has ended, or what came is out of place.
    pub fn step(&mut self) -> io::Result<FrameKind> {
        let (head, payload) = next(&mut self.stream)?;
        let hello = &mut self.fake.hello;
        let echo_us = match head.kind {
            FrameKind::Batch => {
                let header = BatchHeader::check(&payload).map_err(bad)?;
                (hello.end_lsn, hello.chain, hello.last_term) = (header.end_lsn(), header.chain(), header.term());
                Some(0)
            }
            FrameKind::Heartbeat if head.flags & FLAG_REPLY_NOW != 0 => {
                Some(Heartbeat::check(&payload).map_err(bad)?.time_us)
            }
            FrameKind::Heartbeat => None,
            other => return Err(bad(format!("a {other:?} is out of place"))),
        };
        if let Some(echo_us) = echo_us {
            let end = hello.end_lsn;
            let ack = Ack { received: end, flushed: end, applied: end, applied_seq: Seq(0), echo_us }.to_bytes();
            let mut out = frame::header(FrameKind::Ack, 0, 0, &ack).to_vec();
            out.extend_from_slice(&ack);
            self.stream.write_all(&out)?;
        }
        Ok(head.kind)
    }

    /// Ends the connection from another thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn stopper(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }
}
