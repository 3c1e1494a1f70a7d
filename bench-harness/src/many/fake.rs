//! A replica without a log: it says hello, takes batches, and acknowledges them as flushed. It costs
//! next to nothing, so that a hundred of them show what a primary's links cost.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};

use towline::wire::BatchHeader;
use towline::wire::frame::{self, FLAG_REPLY_NOW, FrameKind};
use towline::wire::handshake::{Hello, NodeName, Role, Verdict};
use towline::wire::message::{Ack, Heartbeat};
use towline::{Seq, ShardId};

use crate::greeting::{bad, greet, next};

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
        let (stream, welcome) = greet(at, &self.hello)?;
        if !matches!(welcome.verdict, Verdict::Stream { .. }) {
            return Err(bad(format!("{:?}", welcome.verdict)));
        }
        (self.hello.system, self.hello.term) = (welcome.system, welcome.term);
        Ok(FakeLink { stream, fake: self })
    }
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
