//! The control interface of a running monitor: `vmsrs run --control SOCKET`, `vmsrs control SOCKET COMMAND`.
//!
//! A Unix stream socket that only its owner may open. A line is a command ([`command`]), and is answered by a line
//! of JSON. The guest itself, and what it has forked, is refused: it must not get at the monitor this way.

mod command;
mod peer;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::Duration;
use std::{fs, thread};

use serde_json::json;

use crate::host;
use crate::memory::{own_descriptors, reserved_fd};
use crate::process::Process;

pub use command::HELP;

/// Bytes of a line at most.
const LINE_MAX: u64 = 64 << 10;
/// Connections at the same time.
const CONNECTIONS_MAX: usize = 16;
/// A client that does not read its answers is left after this time.
const PATIENCE: Duration = Duration::from_secs(10);
const STACK: usize = 256 << 10;

/// A socket at `path`, which may be there already if nobody listens on it any more.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Ok(meta) = fs::symlink_metadata(path) {
        let stale = meta.file_type().is_socket() && UnixStream::connect(path).is_err();
        if !stale {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it is in use, or no socket",
            ));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(reserved_fd(listener.into())?.into())
}

/// Serves `listener` on threads of its own for as long as the process runs.
pub fn serve(process: &Arc<Process>, listener: UnixListener) -> io::Result<()> {
    let process = Arc::clone(process);
    host::with_signals_blocked(|| {
        Builder::new()
            .name("vmsrs-control".into())
            .stack_size(STACK)
            .spawn(move || accept(&process, &listener))
            .map(drop)
    })
}

fn accept(process: &Arc<Process>, listener: &UnixListener) {
    // The threads for the connections share it.
    if let Err(error) = host::leave_guests_tables(own_descriptors()) {
        log::warn!("the control interface shares the guest's descriptor numbers: {error}");
    }
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            connections.fetch_sub(1, Ordering::Relaxed);
            let _ = answer(&stream, &json!({ "error": "too many connections" }));
            continue;
        }
        let (process, open) = (Arc::clone(process), Arc::clone(&connections));
        let spawned = Builder::new()
            .name("vmsrs-control".into())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = talk(&process, &stream) {
                    log::debug!("control connection: {error}");
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn talk(process: &Arc<Process>, stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    if peer::is_guest(stream)? {
        return answer(stream, &json!({ "error": "not for the guest" }));
    }
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let n = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && n as u64 == LINE_MAX {
            return answer(stream, &json!({ "error": "the line is too long" }));
        }
        let line = String::from_utf8_lossy(&line);
        answer(stream, &command::execute(process, line.trim()))?;
    }
}

fn answer(mut stream: &UnixStream, answer: &serde_json::Value) -> io::Result<()> {
    stream.write_all(format!("{answer}\n").as_bytes())
}
