//! Asking a primary what a new replica's folder is to be.

use std::net::SocketAddr;
use std::time::Duration;

use towline_wire::frame::{self, FrameKind, PREAMBLE};
use towline_wire::handshake::{Hello, Refusal, Verdict, Welcome};
use towline_wire::{ShardId, SystemId};

use super::conn::Conn;
use super::frames::LinkError;
use super::from_primary::read_welcome;
use super::to_replica::refusal_text;
use crate::limits;
use crate::rt;

/// Longest pause between two questions.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Asks until a primary answers; says once for each reason why it does not.
pub(crate) async fn ask(primary: SocketAddr) -> (SystemId, u32, u64) {
    let mut pause = limits::RECONNECT_MIN;
    let mut said = String::new();
    loop {
        match ask_once(&primary).await {
            Ok(w) => return (w.system, w.shard_count, w.segment_bytes),
            Err(e) => {
                let text = e.to_string();
                if text != said {
                    tracing::warn!(%primary, "waiting for the primary: {text}");
                    said = text;
                }
            }
        }
        rt::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn ask_once(primary: &SocketAddr) -> Result<Welcome, LinkError> {
    let hello = Hello::client(ShardId(0)).to_bytes();
    let conn = Conn::connect(primary).await;
    let conn = conn.map_err(|e| LinkError::Refused(format!("cannot connect to {primary}: {e}")))?;
    conn.send(&[&PREAMBLE, &frame::header(FrameKind::Hello, 0, 0, &hello), &hello]).await?;
    let welcome = rt::timeout(limits::HANDSHAKE_TIMEOUT, read_welcome(&conn)).await.unwrap_or(Err(LinkError::Idle))?;
    match welcome.verdict {
        Verdict::Refused(cause) => Err(LinkError::Refused(refusal_text(cause).into())),
        _ if welcome.system.is_none() => Err(LinkError::Refused(refusal_text(Refusal::NotPrimary).into())),
        _ => Ok(welcome),
    }
}
