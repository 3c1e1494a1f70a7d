//! One port for everybody: a connection's hello decides its shard, and the connection moves to the
//! core that owns it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use towline_wire::frame::{self, FrameError, FrameHead, FrameKind, PREAMBLE};
use towline_wire::handshake::{FEATURES, HELLO, Hello, Refusal, Verdict, Welcome};
use towline_wire::message::ErrorCode;
use towline_wire::{Lsn, PROTOCOL_VERSION, Term};

use super::conn::Conn;
use super::frames::{self, LinkError};
use super::to_replica::refusal_text;
use crate::limits;
use crate::node::{Command, NodeShared};
use crate::rt;
use crate::rt::net::{Acceptor, Detached, Listener, Socket};

/// Accepts until the node stops.
pub(crate) async fn run(listener: Listener, node: Arc<NodeShared>) {
    let all = async { accept_all(listener.attach()?, &node).await };
    if let Err(e) = all.await {
        tracing::error!("no more connections are accepted: {e}");
    }
}

async fn accept_all(listener: Acceptor, node: &Arc<NodeShared>) -> io::Result<()> {
    let handshakes = Rc::new(Cell::new(0));
    while !node.is_stopping() {
        let socket = match listener.accept() {
            Ok(socket) => socket,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                listener.readable().await?;
                continue;
            }
            // Out of descriptors, or the peer is gone already: neither ends the listener.
            Err(e) => {
                tracing::warn!("accepting: {e}");
                rt::sleep(limits::RECONNECT_MIN).await;
                continue;
            }
        };
        if handshakes.get() >= limits::HANDSHAKES_MAX {
            // Closed at once: the peer tries again.
            drop(socket);
            continue;
        }
        handshakes.set(handshakes.get() + 1);
        let (node, handshakes) = (node.clone(), handshakes.clone());
        rt::spawn(async move {
            if let Err(e) = handshake(socket, &node).await {
                tracing::debug!("handshake: {e}");
            }
            handshakes.set(handshakes.get() - 1);
        });
    }
    Ok(())
}

async fn handshake(socket: Detached, node: &Arc<NodeShared>) -> Result<(), LinkError> {
    let conn = Conn::new(Socket::attach(socket)?);
    let hello = match rt::timeout(limits::HANDSHAKE_TIMEOUT, read_hello(&conn)).await.unwrap_or(Err(LinkError::Idle)) {
        Ok(hello) => hello,
        Err(e) => {
            e.end(&conn).await;
            return Err(e);
        }
    };
    let refusal = if hello.protocol != PROTOCOL_VERSION {
        Some(Refusal::Protocol)
    } else if hello.shard.0 >= node.shard_count {
        Some(Refusal::NoSuchShard)
    } else if node.is_stopping() {
        Some(Refusal::Stopping)
    } else if node.connections.load(Ordering::Relaxed) >= limits::CONNECTIONS_MAX {
        Some(Refusal::Busy)
    } else {
        None
    };
    if let Some(cause) = refusal {
        let refused = refuse(&conn, node, cause).await;
        if let Err(e) = &refused {
            e.end(&conn).await;
        }
        return refused;
    }
    let socket = conn.detach()?;
    node.connections.fetch_add(1, Ordering::Relaxed);
    node.core_of(hello.shard).send(Command::Connection(socket, Box::new(hello)));
    Ok(())
}

async fn read_hello(conn: &Conn) -> Result<Hello, LinkError> {
    let mut preamble = [0; PREAMBLE.len()];
    conn.receive_all(&mut preamble, &mut []).await?;
    if preamble != PREAMBLE {
        return Err(FrameError::Preamble(preamble).into());
    }
    let mut header = [0; frame::HEADER];
    conn.receive_all(&mut header, &mut []).await?;
    let head = FrameHead::check(&header)?;
    if head.kind != FrameKind::Hello {
        return Err(LinkError::OutOfPlace(head.kind));
    }
    let mut payload = [0; HELLO];
    let payload = payload.get_mut(..head.len).ok_or(LinkError::OutOfPlace(head.kind))?;
    conn.receive_all(payload, &mut []).await?;
    head.check_payload(payload)?;
    Ok(Hello::check(payload)?)
}

/// Refuses before any shard is asked.
async fn refuse(conn: &Conn, node: &NodeShared, cause: Refusal) -> Result<(), LinkError> {
    let welcome = Welcome {
        protocol: PROTOCOL_VERSION,
        verdict: Verdict::Refused(cause),
        depth: 0,
        shard_count: node.shard_count,
        heartbeat_ms: limits::HEARTBEAT.as_millis() as u32,
        system: node.system,
        features: FEATURES,
        term: Term::ZERO,
        tail: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
        segment_bytes: node.segment_bytes,
        time_us: rt::wall_us(),
        record_bytes_max: 0,
    };
    frames::send(conn, FrameKind::Welcome, 0, 0, &welcome.to_bytes()).await?;
    frames::send_error(conn, ErrorCode::Refused, cause as u64, refusal_text(cause)).await;
    Err(LinkError::Refused(refusal_text(cause).into()))
}
