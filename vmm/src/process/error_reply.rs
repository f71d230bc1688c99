//! `--error-reply`: what a client is told before the connection of its abandoned request ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use super::State;
use super::thread::Thread;

/// Bytes of a reply from a file at most.
const LIMIT: usize = 64 << 10;

/// A proper error of the server's protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply(Arc<[u8]>);

/// An argument of `--error-reply` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadReply {
    /// It is none of the known protocols, and no file that can be read.
    #[error("the error reply is neither http, resp, memcached nor a readable file: {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing in the file.
    #[error("the error reply is empty: {}", .0.display())]
    Empty(PathBuf),
    /// The file is too long.
    #[error("the error reply is longer than {LIMIT} bytes: {}", .0.display())]
    TooLong(PathBuf),
}

impl ErrorReply {
    /// The reply of a protocol, or the content of a file, which is read now.
    pub fn from_argument(argument: &OsStr) -> Result<ErrorReply, BadReply> {
        let bytes: &[u8] = match argument.to_str() {
            // Without a body, so that it also fits a request that must not be answered with one.
            Some("http") => {
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            }
            Some("resp") => b"-ERR the request crashed the server and was undone\r\n",
            Some("memcached") => b"SERVER_ERROR the request crashed the server and was undone\r\n",
            _ => return ErrorReply::from_file(argument.into()),
        };
        Ok(ErrorReply(bytes.into()))
    }

    fn from_file(path: PathBuf) -> Result<ErrorReply, BadReply> {
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|f| f.take(LIMIT as u64 + 1).read_to_end(&mut bytes));
        match read {
            Err(source) => Err(BadReply::Unreadable { path, source }),
            Ok(0) => Err(BadReply::Empty(path)),
            Ok(n) if n > LIMIT => Err(BadReply::TooLong(path)),
            Ok(_) => Ok(ErrorReply(bytes.into())),
        }
    }
}

/// Whether bytes from a client look like a record of TLS (RFC 8446, section 5.1).
fn is_tls(input: &[u8]) -> bool {
    matches!(input, [20..=23, 3, 0..=4, ..])
}

impl Thread {
    /// Ends the connection `fd` of a request that is not to be answered by the server. The client gets the
    /// configured reply if that can be the whole of an answer: nothing of one has been sent since its `input`
    /// arrived (`unanswered`), nothing of an earlier one is left, and the guest is the server on this
    /// connection. True if it does.
    pub fn end_connection(
        &self,
        state: &mut State,
        fd: i32,
        unanswered: bool,
        input: &[u8],
    ) -> bool {
        let reply = self.process.options.error_reply.as_ref();
        // Without input of its own the request goes on with what came before, which may have been answered.
        let begins = !input.is_empty() || state.files.is_owing(fd);
        let fits = unanswered && begins && !is_tls(input) && state.files.can_be_answered(fd);
        let reply = reply.filter(|_| fits);
        state.files.end(fd, reply.map(|reply| &*reply.0));
        if reply.is_some() {
            self.process.stats.error_replies.inc();
        }
        reply.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(argument: impl AsRef<OsStr>) -> Result<String, BadReply> {
        let reply = ErrorReply::from_argument(argument.as_ref())?;
        Ok(String::from_utf8(reply.0.to_vec()).unwrap())
    }

    #[test]
    fn known_protocols() {
        assert!(reply("http").unwrap().starts_with("HTTP/1.1 500 "));
        assert!(reply("http").unwrap().ends_with("\r\n\r\n"));
        assert!(reply("resp").unwrap().starts_with("-ERR "));
        assert!(reply("memcached").unwrap().starts_with("SERVER_ERROR "));
        for line in ["resp", "memcached"].map(|p| reply(p).unwrap()) {
            assert!(line.ends_with("\r\n") && line.lines().count() == 1);
        }
    }

    #[test]
    fn files_are_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        assert_eq!(reply(file("good", b"sorry\n")).unwrap(), "sorry\n");
        assert_eq!(reply(file("most", &[b'x'; LIMIT])).unwrap().len(), LIMIT);
        let too_long = reply(file("long", &[b'x'; LIMIT + 1]));
        assert!(matches!(too_long, Err(BadReply::TooLong(_))));
        assert!(matches!(reply(file("empty", b"")), Err(BadReply::Empty(_))));
        let missing = reply("htpp").unwrap_err().to_string();
        assert!(missing.contains("http, resp, memcached") && missing.ends_with("htpp"));
        assert!(reply("/").is_err() && reply("").is_err());
    }

    #[test]
    fn tls_is_recognised() {
        assert!(is_tls(&[22, 3, 1, 0, 5]) && is_tls(&[23, 3, 3]));
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"*1\r\n",
            b"",
            &[22, 3],
            &[22, 9, 1],
        ] {
            assert!(!is_tls(other), "{other:?}");
        }
    }
}
