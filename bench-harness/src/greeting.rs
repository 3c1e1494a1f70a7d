//! The opening words of a connection to a node, for those who speak its protocol themselves.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};

use towline::wire::frame::{self, FrameHead, FrameKind, PREAMBLE};
use towline::wire::handshake::{Hello, Welcome};

/// What came is not what may come.
pub(crate) fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

/// Connects, says hello, and gives the node's welcome, whatever its verdict.
///
/// # Errors
/// What went wrong.
pub fn greet(at: impl ToSocketAddrs, hello: &Hello) -> io::Result<(TcpStream, Welcome)> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    let hello = hello.to_bytes();
    stream.write_all(&[&PREAMBLE[..], &frame::header(FrameKind::Hello, 0, 0, &hello), &hello].concat())?;
    let (head, payload) = next(&mut stream)?;
    if head.kind != FrameKind::Welcome {
        return Err(bad(format!("a {:?} instead of a welcome", head.kind)));
    }
    let welcome = Welcome::check(&payload).map_err(bad)?;
    Ok((stream, welcome))
}

/// Reads the next frame.
pub(crate) fn next(stream: &mut TcpStream) -> io::Result<(FrameHead, Vec<u8>)> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header)?;
    let head = FrameHead::check(&header).map_err(bad)?;
    let mut payload = vec![0; head.len];
    stream.read_exact(&mut payload)?;
    head.check_payload(&payload).map_err(bad)?;
    Ok((head, payload))
}
