//! What a request sees of the files that it has written. Its writes are put off until it has ended, so it is
//! told what sizes, offsets, contents and times will be then. Where that cannot be told, the domain commits
//! first and the kernel answers.

use guest_agentless::{Backing, Errno, GuestRange};

use super::stat_buffer::StatBuffer;
use super::{BOUNCE, Call, errno_of};
use crate::host;
use crate::process::domain::Early;
use crate::process::effects::Deferred;
use crate::process::files::Kind;

/// Beyond this, an offset may be more than the file system takes, which only the kernel knows.
const FAR: u64 = 1 << 40;

/// A file as it will be when the writes that wait are done.
pub(super) struct Foretold {
    /// Its size now.
    before: u64,
    /// Its size then.
    pub(super) size: u64,
    /// The offset of the descriptor then.
    pub(super) position: u64,
    /// Whether something that waits moves the offset.
    moves: bool,
    /// The writes: where in the journal, and where in the file.
    writes: Vec<(usize, u64)>,
    /// Through which descriptor the last write goes.
    writer: i32,
    /// The time of the last change, if it was told since.
    told: Option<(i64, i64)>,
}

/// An offset that several descriptors may share.
struct Shared {
    fd: i32,
    offset: u64,
    moves: bool,
}

impl Call<'_, '_> {
    /// The file behind `fd` as the running domain has to see it; none if the kernel knows all of that.
    pub(super) fn foretold(&mut self, fd: i32) -> Result<Option<Foretold>, Errno> {
        if !self.has_file_writes() || self.state.files.kind(fd) != Kind::File {
            return Ok(None);
        }
        match host::identity(fd) {
            Ok(file) => self.foretold_file(file, Some(fd)),
            Err(_) => Ok(None),
        }
    }

    fn foretold_file(
        &mut self,
        file: (u64, u64),
        fd: Option<i32>,
    ) -> Result<Option<Foretold>, Errno> {
        match self.foretell_file(file, fd) {
            Ok(foretold) => Ok(foretold),
            Err(Unclear) => self.commit_early(Early::External).map(|()| None),
        }
    }

    /// What waits for the file, device and inode, as seen through `fd`.
    fn foretell_file(
        &self,
        file: (u64, u64),
        fd: Option<i32>,
    ) -> Result<Option<Foretold>, Unclear> {
        let mut foretold: Option<Foretold> = None;
        let mut writers: Vec<Writer> = Vec::new();
        let mut offsets: Vec<Shared> = Vec::new();
        let effects = self.state.domain.iter().flat_map(|d| d.journal.deferred());
        for (i, effect) in effects.enumerate() {
            let (Deferred::Write { fd: to, .. }
            | Deferred::Seek { fd: to, .. }
            | Deferred::Stamp { fd: to, .. }) = effect
            else {
                continue;
            };
            let at = match writers.iter().position(|writer| writer.fd == *to) {
                Some(at) => at,
                None => {
                    writers.push(Writer::new(*to, file, &mut offsets)?);
                    writers.len() - 1
                }
            };
            let Some(shared) = writers.get(at).and_then(|writer| writer.of_file) else {
                continue;
            };
            let now = match &mut foretold {
                Some(now) => now,
                None => foretold.insert(Foretold::new(*to)?),
            };
            let shared = offsets.get_mut(shared).ok_or(Unclear)?;
            match effect {
                Deferred::Write {
                    bytes,
                    offset,
                    appends,
                    ..
                } if !bytes.is_empty() => {
                    let at = match offset {
                        _ if *appends => now.size,
                        Some(at) => *at,
                        None => shared.offset,
                    };
                    let end = at.checked_add(bytes.len() as u64).ok_or(Unclear)?;
                    if offset.is_none() {
                        (shared.offset, shared.moves) = (end, true);
                    }
                    now.size = now.size.max(end);
                    now.writes.push((i, at));
                    (now.writer, now.told) = (*to, None);
                }
                Deferred::Seek { at, .. } => (shared.offset, shared.moves) = (*at, true),
                Deferred::Stamp { time, .. } => now.told = Some(*time),
                _ => {}
            }
        }
        if let (Some(now), Some(fd)) = (&mut foretold, fd) {
            let own = place_of(fd, &mut offsets)?;
            let own = offsets.get(own).ok_or(Unclear)?;
            (now.position, now.moves) = (own.offset, own.moves);
        }
        Ok(foretold)
    }

    /// Whether the domain has written to something that may be a file.
    pub(super) fn has_file_writes(&self) -> bool {
        let mut effects = self.state.domain.iter().flat_map(|d| d.journal.deferred());
        effects.any(|effect| matches!(effect, Deferred::Write { .. }))
    }

    /// Whether a shared mapping of the guest shows what a write of `len` bytes to the file changes: at once, so
    /// that the write cannot be put off.
    pub(super) fn is_mapped(&self, fd: i32, len: usize, offset: Option<u64>) -> bool {
        let shared = self.state.space.vmas().iter().filter(|vma| vma.shared);
        let mut parts = shared
            .filter_map(|vma| match &vma.backing {
                Backing::File(file) => Some((file, vma.range.len())),
                _ => None,
            })
            .peekable();
        if parts.peek().is_none() {
            return false;
        }
        let Ok(file) = host::identity(fd) else {
            return false;
        };
        let mut parts = parts
            .filter(|(of, _)| (libc::makedev(of.device.0, of.device.1), of.inode) == file)
            .peekable();
        if parts.peek().is_none() {
            return false;
        }
        let Some(at) = self.next_write(file, fd, offset) else {
            return true;
        };
        let end = at.saturating_add(len as u64);
        parts.any(|(of, len)| at < of.offset.saturating_add(len) && of.offset < end)
    }

    /// Where the next write to the file begins, with those that wait done; none if that is not known.
    pub(super) fn next_write(&self, file: (u64, u64), fd: i32, offset: Option<u64>) -> Option<u64> {
        let appends = host::fcntl(fd, libc::F_GETFL, 0).ok()? & libc::O_APPEND != 0;
        let foretold = self.foretell_file(file, Some(fd)).ok()?;
        match (appends, offset, foretold) {
            (true, _, Some(foretold)) => Some(foretold.size),
            (true, _, None) => host::size(fd).ok(),
            (false, Some(at), _) => Some(at),
            (false, None, Some(foretold)) => Some(foretold.position),
            (false, None, None) => u64::try_from(host::offset(fd)?).ok(),
        }
    }

    /// `lseek` in a file with writes that wait. None if only the kernel knows.
    pub(super) fn seek_foretold(
        &mut self,
        fd: i32,
        offset: i64,
        whence: i32,
    ) -> Result<Option<u64>, Errno> {
        let Some(foretold) = self.foretold(fd)? else {
            return Ok(None);
        };
        let base = match whence {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => foretold.position,
            libc::SEEK_END => foretold.size,
            // Where the data and the holes will be.
            _ => return self.commit_early(Early::External).map(|()| None),
        };
        let to = base.checked_add_signed(offset).ok_or(Errno::EINVAL)?;
        if to > FAR {
            return self.commit_early(Early::External).map(|()| None);
        }
        self.move_offset(fd, &foretold, to)?;
        Ok(Some(to))
    }

    /// Moves the offset of `fd`: behind what moves it at the commit, if anything does.
    pub(super) fn move_offset(
        &mut self,
        fd: i32,
        foretold: &Foretold,
        to: u64,
    ) -> Result<(), Errno> {
        if foretold.position == to {
            return Ok(());
        }
        if foretold.moves {
            self.defer(Deferred::Seek { fd, at: to });
            return Ok(());
        }
        self.note_offset(fd);
        host::seek(fd, to as i64).map_err(|e| errno_of(&e))
    }

    /// Reads from a file with writes that wait, at `offset` or where the descriptor is.
    pub(super) fn read_foretold(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        offset: Option<u64>,
        foretold: &Foretold,
    ) -> Result<u64, Errno> {
        let begin = offset.unwrap_or(foretold.position);
        let mut bounce = std::mem::take(&mut self.thread.bounce);
        let result = self.read_pieces(fd, parts, begin, foretold, &mut bounce);
        self.thread.bounce = bounce;
        let total = result?;
        if offset.is_none() {
            self.move_offset(fd, foretold, begin.saturating_add(total))?;
        }
        Ok(total)
    }

    fn read_pieces(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        begin: u64,
        foretold: &Foretold,
        bounce: &mut [u8],
    ) -> Result<u64, Errno> {
        let mut total = 0;
        // Where nothing is asked for the kernel still looks at the descriptor.
        self.fill_foretold(fd, &mut [], begin, foretold)?;
        for part in parts {
            let mut at = part.start();
            while at < part.end() {
                let piece = &mut bounce[..(part.end() - at).min(BOUNCE as u64) as usize];
                let read = self
                    .fill_foretold(fd, piece, begin.saturating_add(total), foretold)
                    .and_then(|n| self.write(at, &piece[..n]).map(|()| n));
                match read {
                    Ok(n) => {
                        total += n as u64;
                        at += n as u64;
                        if n < piece.len() {
                            return Ok(total);
                        }
                    }
                    Err(_) if total > 0 && self.done.is_none() => return Ok(total),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(total)
    }

    /// Fills `into` with what the file will hold at `at`: the number of bytes.
    pub(super) fn fill_foretold(
        &self,
        fd: i32,
        into: &mut [u8],
        at: u64,
        foretold: &Foretold,
    ) -> Result<usize, Errno> {
        let n = host::read_at(fd, into, at).map_err(|e| errno_of(&e))?;
        let end = foretold
            .size
            .saturating_sub(at)
            .min(into.len() as u64)
            .max(n as u64) as usize;
        into[n..end].fill(0);
        let Some(domain) = &self.state.domain else {
            // Committed meanwhile: the kernel has shown all.
            return Ok(n);
        };
        for (i, to) in &foretold.writes {
            let Some(Deferred::Write { bytes, .. }) = domain.journal.deferred().get(*i) else {
                continue;
            };
            let from = at.max(*to);
            let until = (at + end as u64).min(to + bytes.len() as u64);
            if from < until {
                let source = &bytes[(from - to) as usize..(until - to) as usize];
                into[(from - at) as usize..(until - at) as usize].copy_from_slice(source);
            }
        }
        Ok(end)
    }

    /// `stat` and its kin, whose result goes to argument `result`.
    pub(super) fn stat_foretold(&mut self, result: usize) -> Result<u64, Errno> {
        if !self.has_file_writes() {
            return self.pass();
        }
        let mut args = self.checked_args()?;
        let mut info = StatBuffer::new(i64::from(self.row.number) == libc::SYS_statx);
        args.values[result] = info.bytes.as_mut_ptr() as u64;
        // SAFETY: the result goes to a buffer of the monitor that is as large as either structure; the other
        // arguments are as in `pass`.
        let done = unsafe { host::syscall(u64::from(self.row.number), args.values) }?;
        // All anonymous inodes are one, which no write changes.
        let foretold = match info.has_type() {
            true => self.foretold_file(info.identity(), None)?,
            false => None,
        };
        if let Some(foretold) = foretold {
            let time = foretold.told.unwrap_or_else(host::file_time);
            if !foretold.writes.is_empty() && foretold.told.is_none() {
                // So that it is the time which the file has afterwards.
                let fd = foretold.writer;
                self.defer(Deferred::Stamp { fd, time });
            }
            let written = |i: usize| match &self.state.domain {
                Some(domain) => domain
                    .journal
                    .deferred()
                    .get(i)
                    .map_or(0, |e| e.output().len()),
                None => 0,
            };
            let more = |size| foretold.blocks_added(size, written);
            info.grow(foretold.size, more);
            if !foretold.writes.is_empty() {
                info.change(time);
            }
        } else if self.state.domain.is_none() {
            // The writes have become real since.
            // SAFETY: as above.
            unsafe { host::syscall(u64::from(self.row.number), args.values) }?;
        }
        self.write(self.args[result], info.filled())?;
        Ok(done)
    }
}

/// What the writes that wait will lead to is not known.
#[derive(Debug)]
struct Unclear;

impl Foretold {
    fn new(writer: i32) -> Result<Foretold, Unclear> {
        // What a file of procfs holds has little to do with what was written to it.
        if !host::is_plain_file(writer) {
            return Err(Unclear);
        }
        let size = host::size(writer).map_err(|_| Unclear)?;
        Ok(Foretold {
            before: size,
            size,
            position: 0,
            moves: false,
            writes: Vec::new(),
            writer,
            told: None,
        })
    }

    /// Blocks of the given size that the writes add behind the end of the file.
    fn blocks_added(&self, size: u64, len: impl Fn(usize) -> usize) -> u64 {
        let size = size.clamp(512, 1 << 20);
        let first = self.before.div_ceil(size);
        let mut ranges: Vec<(u64, u64)> = self
            .writes
            .iter()
            .map(|(i, at)| {
                let end = at.saturating_add(len(*i) as u64);
                ((at / size).max(first), end.div_ceil(size))
            })
            .collect();
        ranges.sort_unstable();
        let mut reached = 0;
        ranges.iter().fold(0, |blocks, (from, until)| {
            let from = (*from).max(reached);
            reached = reached.max(*until);
            blocks + until.saturating_sub(from)
        })
    }
}

/// A descriptor that something waits to be done through.
struct Writer {
    fd: i32,
    /// If it is one of the file: which offset it has.
    of_file: Option<usize>,
}

impl Writer {
    fn new(fd: i32, file: (u64, u64), offsets: &mut Vec<Shared>) -> Result<Writer, Unclear> {
        if host::identity(fd).ok() != Some(file) {
            return Ok(Writer { fd, of_file: None });
        }
        Ok(Writer {
            fd,
            of_file: Some(place_of(fd, offsets)?),
        })
    }
}

/// Which of the offsets is that of `fd`.
fn place_of(fd: i32, offsets: &mut Vec<Shared>) -> Result<usize, Unclear> {
    for (i, shared) in offsets.iter().enumerate() {
        if shared.fd == fd || host::is_same_description(shared.fd, fd).ok_or(Unclear)? {
            return Ok(i);
        }
    }
    let offset = host::offset(fd).and_then(|at| u64::try_from(at).ok());
    offsets.push(Shared {
        fd,
        offset: offset.ok_or(Unclear)?,
        moves: false,
    });
    Ok(offsets.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_once() {
        let file = |before, writes: &[(usize, u64)]| Foretold {
            before,
            size: 0,
            position: 0,
            moves: false,
            writes: writes.to_vec(),
            writer: -1,
            told: None,
        };
        let added = |file: Foretold| file.blocks_added(4096, |len| len);
        assert_eq!(added(file(0, &[(10, 0), (10, 10), (10, 4090)])), 2);
        assert_eq!(added(file(100, &[(10, 0), (10, 100)])), 0);
        assert_eq!(added(file(0, &[(1, 1 << 30)])), 1);
        assert_eq!(added(file(5000, &[(9000, 5000), (1, 9000)])), 2);
    }
}
