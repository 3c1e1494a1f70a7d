//! Sockets: on the executor that owns one its readiness can be awaited; detached it moves to another.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
#[cfg(feature = "sim")]
use std::sync::Arc;

pub(crate) use super::ring::Held;
use super::ring::Pollable;
#[cfg(feature = "sim")]
use super::world;
use crate::sys;

/// What there is behind the first `skip` bytes.
pub(crate) fn behind(mut pieces: Vec<&[u8]>, mut skip: usize) -> Vec<&[u8]> {
    pieces.retain_mut(|piece| {
        let gone = skip.min(piece.len());
        (skip, *piece) = (skip - gone, &piece[gone..]);
        !piece.is_empty()
    });
    pieces
}

/// A connected socket that belongs to no executor.
pub(crate) enum Detached {
    Fd(OwnedFd),
    #[cfg(feature = "sim")]
    World(Arc<dyn world::Socket>),
}

/// A connected socket on its executor. Nothing blocks.
pub(crate) enum Socket {
    Ring(Pollable),
    #[cfg(feature = "sim")]
    World(Arc<dyn world::Socket>),
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Socket")
    }
}

impl Socket {
    /// Takes a socket to this executor. Every send is meant to go out at once.
    pub(crate) fn attach(socket: Detached) -> io::Result<Self> {
        match socket {
            Detached::Fd(fd) => {
                sys::set_nodelay(fd.as_raw_fd())?;
                Ok(Self::Ring(Pollable::new(fd)))
            }
            #[cfg(feature = "sim")]
            Detached::World(socket) => Ok(Self::World(socket)),
        }
    }

    /// Connects. Waits as long as the kernel does.
    pub(crate) async fn connect(addr: &SocketAddr) -> io::Result<Self> {
        in_world!(world => Ok(Self::World(world.connect(*addr).await?)));
        let socket = Pollable::new(sys::start_connect(addr)?);
        socket.writable().await?;
        sys::connect_result(socket.as_raw_fd())?;
        sys::set_nodelay(socket.as_raw_fd())?;
        Ok(Self::Ring(socket))
    }

    /// Takes it off this executor.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Ring(socket) => Ok(Detached::Fd(socket.into_inner()?)),
            #[cfg(feature = "sim")]
            Self::World(socket) => Ok(Detached::World(socket)),
        }
    }

    /// Sends as much as there is room for. `WouldBlock` if nothing could be taken.
    pub(crate) fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Ring(socket) => sys::send(socket.as_raw_fd(), pieces),
            #[cfg(feature = "sim")]
            Self::World(socket) => socket.send(pieces),
        }
    }

    /// Sends from where the bytes are, all but the first `skip`: they are held until the kernel has let
    /// go of them, which may be long after this. Says how many bytes it took.
    pub(crate) async fn send_zero_copy(&self, held: Rc<dyn Held>, skip: usize) -> io::Result<usize> {
        match self {
            Self::Ring(socket) => socket.send_zero_copy(held, skip).await,
            #[cfg(feature = "sim")]
            Self::World(socket) => {
                let rest = behind(held.pieces(), skip);
                socket.send_held(&rest.into_iter().map(IoSlice::new).collect::<Vec<_>>(), &held)
            }
        }
    }

    /// Receives into one or two slices, in this order. 0 means that the peer closed; `WouldBlock`
    /// that nothing is there.
    pub(crate) fn receive(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Ring(socket) => sys::receive(socket.as_raw_fd(), first, second),
            #[cfg(feature = "sim")]
            Self::World(socket) => socket.receive(first, second),
        }
    }

    /// Resolves when a receive would not block; see [`Socket::set_low_water`].
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Ring(socket) => socket.readable().await,
            #[cfg(feature = "sim")]
            Self::World(socket) => std::future::poll_fn(|cx| socket.poll_readable(cx)).await,
        }
    }

    /// Resolves when a send would not block.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Ring(socket) => socket.writable().await,
            #[cfg(feature = "sim")]
            Self::World(socket) => std::future::poll_fn(|cx| socket.poll_writable(cx)).await,
        }
    }

    /// A wait for readability ends once this many bytes have come, or the peer has closed.
    pub(crate) fn set_low_water(&self, bytes: usize) -> io::Result<()> {
        match self {
            Self::Ring(socket) => sys::set_receive_low_water(socket.as_raw_fd(), bytes),
            #[cfg(feature = "sim")]
            Self::World(socket) => {
                socket.set_low_water(bytes);
                Ok(())
            }
        }
    }

    /// Ends both directions: whoever waits for it on either end wakes up.
    pub(crate) fn shutdown(&self) {
        match self {
            Self::Ring(socket) => sys::shutdown(socket.as_raw_fd()),
            #[cfg(feature = "sim")]
            Self::World(socket) => socket.shutdown(),
        }
    }

    /// Ends the sending direction.
    pub(crate) fn shutdown_send(&self) {
        match self {
            Self::Ring(socket) => sys::shutdown_send(socket.as_raw_fd()),
            #[cfg(feature = "sim")]
            Self::World(socket) => socket.shutdown_send(),
        }
    }
}

/// A listening socket that belongs to no executor.
pub(crate) enum Listener {
    Tcp(TcpListener),
    #[cfg(feature = "sim")]
    World(Arc<dyn world::Listener>),
}

impl Listener {
    /// Listens.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        in_world!(world => Ok(Self::World(world.listen(addr)?)));
        TcpListener::bind(addr).map(Self::Tcp)
    }

    /// Where.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            #[cfg(feature = "sim")]
            Self::World(listener) => Ok(listener.local_addr()),
        }
    }

    /// Takes it to this executor.
    pub(crate) fn attach(self) -> io::Result<Acceptor> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let readiness = Pollable::new(OwnedFd::from(listener.try_clone()?));
                Ok(Acceptor::Tcp(listener, readiness))
            }
            #[cfg(feature = "sim")]
            Self::World(listener) => Ok(Acceptor::World(listener)),
        }
    }
}

/// A listening socket on its executor.
pub(crate) enum Acceptor {
    Tcp(TcpListener, Pollable),
    #[cfg(feature = "sim")]
    World(Arc<dyn world::Listener>),
}

impl Acceptor {
    /// The next connection, or `WouldBlock`.
    pub(crate) fn accept(&self) -> io::Result<Detached> {
        match self {
            Self::Tcp(listener, _) => {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(true)?;
                Ok(Detached::Fd(socket.into()))
            }
            #[cfg(feature = "sim")]
            Self::World(listener) => listener.accept().map(Detached::World),
        }
    }

    /// Resolves when there may be a connection.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_, readiness) => readiness.readable().await,
            #[cfg(feature = "sim")]
            Self::World(listener) => std::future::poll_fn(|cx| listener.poll_readable(cx)).await,
        }
    }
}
