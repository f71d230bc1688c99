//! A client of the demo server's line protocol.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a user waits for a reply before calling it missing. Far above any recovery pause.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a user can notice on a connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection was reset.
    #[error("the connection was reset")]
    Reset,
    /// The connection was closed in an orderly way.
    #[error("the connection was closed")]
    Closed,
    /// No reply came.
    #[error("no reply within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// Connecting, or anything else, failed.
    #[error("{0}")]
    Io(io::Error),
    /// The reply was not what the model says.
    #[error("`{sent}` was answered `{got}`, not `{wanted}`")]
    WrongReply {
        /// The command.
        sent: String,
        /// What the model says.
        wanted: String,
        /// What came.
        got: String,
    },
}

impl Failure {
    /// A wrong reply, with long values cut for the reader.
    pub fn wrong_reply(sent: &str, wanted: &str, got: &str) -> Self {
        Self::WrongReply {
            sent: shorten(sent),
            wanted: shorten(wanted),
            got: shorten(got),
        }
    }

    /// Whether the server is beyond serving anybody, so that going on would only wait for time-outs.
    pub fn is_loss_of_service(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Io(_))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

fn shorten(text: &str) -> String {
    const KEEP: usize = 60;
    match text.char_indices().nth(KEEP) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// One connection to the demo server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    local: SocketAddr,
}

impl Client {
    /// Connects to a server on this machine.
    pub fn connect(port: u16) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let local = stream.local_addr()?;
        Ok(Self {
            stream: BufReader::new(stream),
            local,
        })
    }

    /// This end's address: what the server, and the monitor's events, call the peer.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends bytes as one packet (given that they are few).
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// The next reply: a line, or all lines of a list, without the last newline.
    pub fn receive(&mut self) -> Result<String, Failure> {
        let mut reply = self.receive_line()?;
        if let Some(count) = reply.strip_prefix('*') {
            for _ in 0..count.parse::<u32>().unwrap_or(0) {
                let line = self.receive_line()?;
                reply.push('\n');
                reply.push_str(&line);
            }
        }
        Ok(reply)
    }

    /// Sends one command and returns its reply.
    pub fn ask(&mut self, command: &str) -> Result<String, Failure> {
        self.send(format!("{command}\n").as_bytes())?;
        self.receive()
    }

    fn receive_line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.pop() {
            Some(b'\n') => Ok(String::from_utf8_lossy(&line).into_owned()),
            _ => Err(Failure::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn serve(reply: &'static [u8]) -> Client {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let client =
            Client::connect(listener.local_addr().expect("address").port()).expect("connect");
        let (mut served, _) = listener.accept().expect("accept");
        served.write_all(reply).expect("write");
        client
    }

    #[test]
    fn replies_are_lines_and_lists() {
        let mut client = serve(b"+OK\n*2\n$a\n$b c\n:1\n");
        assert_eq!(client.receive().expect("line"), "+OK");
        assert_eq!(client.receive().expect("list"), "*2\n$a\n$b c");
        assert_eq!(client.receive().expect("line"), ":1");
        assert!(matches!(client.receive(), Err(Failure::Closed)));
    }

    #[test]
    fn half_a_reply_is_a_closed_connection() {
        assert!(matches!(serve(b"+O").receive(), Err(Failure::Closed)));
        assert!(matches!(serve(b"*2\n$a\n").receive(), Err(Failure::Closed)));
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let message = Failure::wrong_reply("GET k", &"x".repeat(100), "_").to_string();
        assert!(message.contains("... (100 bytes)"), "{message}");
    }
}
