//! The ladder server: builds it and talks to it.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use crate::{audit::BuildError, net};

/// Compiles `tests/guest/ladder-server` into `dir` and returns the program.
pub fn build(dir: &Path) -> Result<std::path::PathBuf, BuildError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/ladder-server");
    let program = dir.join("ladder-server");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread"]);
    cc.args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
    cc.args(["main.c", "state.c"].map(|file| source.join(file)));
    let compiled = cc.arg("-lm").output()?;
    match compiled.status.success() {
        true => Ok(program),
        false => {
            let messages = String::from_utf8_lossy(&compiled.stderr).into_owned();
            Err(BuildError::Refused(messages))
        }
    }
}

/// A connection to the server.
pub struct Client(TcpStream);

impl Client {
    /// Connects.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Client> {
        net::connect(port, patience).map(Client)
    }

    /// Sends a line.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }

    /// Sends a line and returns the one that is answered.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.send(line)?;
        let mut reply = Vec::new();
        while reply.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            reply.push(byte[0]);
        }
        reply.pop();
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Waits for the end of the connection; the error it ends with, none for an orderly end.
    pub fn end(&mut self) -> Option<io::ErrorKind> {
        let mut buffer = [0; 64];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    }

    /// The own address, as events show it.
    pub fn address(&self) -> io::Result<String> {
        self.0.local_addr().map(|address| address.to_string())
    }
}
