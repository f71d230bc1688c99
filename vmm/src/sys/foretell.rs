//! Whether the result of an output that is put off can be told before it is done. Where it cannot, the
//! domain commits first and the kernel answers.

use super::Call;
use crate::host;
use crate::process::effects::Deferred;
use crate::process::files::Kind;

/// Bytes that a pipe takes at once or not at all.
const PIPE_BUF: usize = 4096;
/// Bytes that a socket which says it is writable is sure to take.
const SOCKET_ROOM: usize = 16 << 10;

impl Call<'_, '_> {
    /// Whether a write of `bytes` to a file, pipe or the like is sure to succeed, as far as one can know.
    pub(super) fn can_foretell(&mut self, fd: i32, bytes: &[u8], offset: Option<u64>) -> bool {
        let pending = self.pending_bytes(fd);
        let total = pending.saturating_add(bytes.len());
        match self.state.files.kind(fd) {
            Kind::File => self.is_within_limit(fd, bytes.len(), offset),
            Kind::Anonymous => match bytes.first_chunk() {
                // An eventfd that is writable has room for one at least; counters are far from full.
                Some(count) => {
                    u64::from_ne_bytes(*count) <= u64::from(u32::MAX) && host::is_writable(fd)
                }
                None => false,
            },
            _ => {
                let fits = match host::mode(fd).unwrap_or(0) & libc::S_IFMT {
                    libc::S_IFIFO => total <= PIPE_BUF || self.fits_empty_pipe(fd, bytes.len()),
                    libc::S_IFSOCK => total <= SOCKET_ROOM,
                    _ => true,
                };
                fits && host::is_writable(fd)
            }
        }
    }

    /// Whether a pipe is empty and has room for a write of `len` bytes and those before it, each of which may
    /// take pages of its own.
    fn fits_empty_pipe(&self, fd: i32, len: usize) -> bool {
        if host::bytes_to_read(fd) > 0 {
            return false;
        }
        let size = host::fcntl(fd, libc::F_GETPIPE_SZ, 0).map_or(0, |size| size as usize);
        let pages = |len: usize| len.div_ceil(PIPE_BUF);
        let pending = self.pending_lengths(fd).map(pages).sum::<usize>();
        pending.saturating_add(pages(len)) <= size / PIPE_BUF
    }

    /// Whether the file stays below the limit on its size (`RLIMIT_FSIZE`).
    fn is_within_limit(&self, fd: i32, len: usize, offset: Option<u64>) -> bool {
        let limit = host::file_size_limit();
        if limit == libc::RLIM_INFINITY {
            return true;
        }
        let file = host::identity(fd).ok();
        match file.and_then(|file| self.next_write(file, fd, offset)) {
            Some(at) => at.saturating_add(len as u64) <= limit,
            None => false,
        }
    }

    /// Bytes of output to `fd` that wait for the commit.
    pub(super) fn pending_bytes(&self, fd: i32) -> usize {
        self.pending_lengths(fd).sum()
    }

    fn pending_lengths(&self, fd: i32) -> impl Iterator<Item = usize> {
        let of_fd = move |effect: &Deferred| match effect {
            Deferred::Send { fd: to, bytes }
            | Deferred::SendTo { fd: to, bytes, .. }
            | Deferred::Write { fd: to, bytes, .. } => (*to == fd).then_some(bytes.len()),
            _ => None,
        };
        let domains = self.state.domain.iter();
        domains
            .flat_map(|domain| domain.journal.deferred())
            .filter_map(of_fd)
    }

    /// Whether something waits for the commit that is done to `fd`.
    pub(super) fn has_output_for(&self, fd: i32) -> bool {
        let to_fd = |effect: &Deferred| match effect {
            Deferred::Send { fd: to, .. }
            | Deferred::SendTo { fd: to, .. }
            | Deferred::Write { fd: to, .. }
            | Deferred::Seek { fd: to, .. }
            | Deferred::Shutdown { fd: to, .. }
            | Deferred::Take { fd: to, .. } => *to == fd,
            Deferred::Sync(call) | Deferred::Later { call, .. } => call.args()[0] as i32 == fd,
            _ => false,
        };
        let mut domains = self.state.domain.iter();
        domains.any(|domain| domain.journal.deferred().iter().any(to_fd))
    }

    /// Whether the domain has shut the sending half down.
    pub(super) fn is_shut(&self, fd: i32) -> bool {
        let shuts = |effect: &Deferred| matches!(effect, Deferred::Shutdown { fd: of, how } if *of == fd && *how != libc::SHUT_RD);
        let mut domains = self.state.domain.iter();
        domains.any(|domain| domain.journal.deferred().iter().any(shuts))
    }
}
