//! Loopback ports, Unix sockets, and connections with deadlines.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

/// Where a server of this machine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port of 127.0.0.1.
    Tcp(u16),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl From<u16> for Address {
    fn from(port: u16) -> Self {
        Self::Tcp(port)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "port {port}"),
            Self::Unix(path) => write!(f, "socket {}", path.display()),
        }
    }
}

/// A connection to an [`Address`].
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// A process that is stopped and goes on finds its reads with a deadline interrupted, without any handler (signal(7)).
impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Self::Tcp(stream) => stream.read(buffer),
                Self::Unix(stream) => stream.read(buffer),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago. The kernel hands such ports out in turn, so
/// tests that run side by side do not get the same one.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Connects to a server on a TCP port of this machine; connecting and every later read or write
/// that takes longer than `patience` is an error.
pub fn connect(port: u16, patience: Duration) -> io::Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects to a server at any address; every later read or write that takes longer than
/// `patience` is an error.
pub fn connect_to(address: &Address, patience: Duration) -> io::Result<Stream> {
    match address {
        Address::Tcp(port) => connect(*port, patience).map(Stream::Tcp),
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(Stream::Unix(stream))
        }
    }
}

/// True for the errors a client sees when the server resets or closes its connection.
pub fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// True for the error by which a client at `address` learns that its connection was reset. A Unix
/// socket knows a reset only if unread input is lost with it; otherwise it ends.
pub fn is_reset(address: &Address, error: &io::Error) -> bool {
    match address {
        Address::Tcp(_) => error.kind() == io::ErrorKind::ConnectionReset,
        Address::Unix(_) => is_disconnect(error),
    }
}
