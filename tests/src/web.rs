//! The buggy HTTP server of `tests/programs/webserver.c`: how it is started, and a client.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{Launch, Monitored, free_port, guest, net};

/// How long a reply may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The server under the monitor, with these options.
///
/// # Panics
///
/// When it does not start.
pub fn start(options: &[&str]) -> Monitored {
    start_with(options, &[])
}

/// Likewise, with more arguments for the server.
///
/// # Panics
///
/// When it does not start.
pub fn start_with(options: &[&str], arguments: &[&str]) -> Monitored {
    let port = free_port().expect("a port");
    let program = guest::program("webserver").expect("the server");
    let mut command = vec![program.into_os_string(), port.to_string().into()];
    command.extend(arguments.iter().map(Into::into));
    let launch = Launch::monitored(command).expect("the monitor");
    match launch.options(options).start(port) {
        Ok(server) => server,
        Err(error) => panic!("{error}"),
    }
}

/// A request for `path`.
pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// A connection to the server.
pub struct Client {
    /// The connection itself.
    pub stream: TcpStream,
}

impl Client {
    /// Connects to `server`.
    pub fn connect(server: &Monitored) -> io::Result<Client> {
        net::connect(server.port(), PATIENCE).map(|stream| Client { stream })
    }

    /// Asks for `path`; the body of the answer.
    pub fn get(&mut self, path: &str) -> io::Result<String> {
        self.stream.write_all(request(path).as_bytes())?;
        self.body()
    }

    /// The body of the next answer.
    pub fn body(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, head.clone()))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// What the server says of itself: `connections`, `parser`, `heap`, `served`.
    pub fn stats(&mut self) -> io::Result<BTreeMap<String, i64>> {
        let text = self.get("/stats")?;
        let words: Vec<&str> = text.split(' ').collect();
        let pair = |pair: &[&str]| Some((pair[0].to_owned(), pair.get(1)?.parse().ok()?));
        Ok(words.chunks(2).filter_map(pair).collect())
    }

    /// What comes until the end of the stream, or the error that ends it.
    pub fn rest(&mut self) -> io::Result<String> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Sends `bytes` on a new connection; what comes back, or the error that ends it.
pub fn send(server: &Monitored, bytes: &str) -> io::Result<String> {
    let mut client = Client::connect(server)?;
    client.stream.write_all(bytes.as_bytes())?;
    client.rest()
}

/// Sends `bytes` on a new connection, which must be reset without an answer.
///
/// # Panics
///
/// When it is not.
pub fn must_reset(server: &Monitored, bytes: &str) {
    match send(server, bytes) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("not reset: {other:?}\n{}", server.output_tail()),
    }
}
