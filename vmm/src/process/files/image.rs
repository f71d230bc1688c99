//! The descriptors of the image that the process is restarted from (see [`super::super::image`]).
//!
//! A descriptor of the image that the guest closes is kept as a duplicate among the monitor's own, so that it
//! can be opened again. What others would notice of that (a listening socket, the end of a pipe) is closed for
//! real, and there is no image any more.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::{Files, Kind, Known};
use crate::host;
use crate::memory::{first_reserved, kept_copy};

/// Descriptors of an image, at most.
const MOST: usize = 512;

/// A descriptor at the moment of the image.
struct OpenFile {
    /// `FD_CLOEXEC`.
    flags: i32,
    /// `O_NONBLOCK` and others.
    status: i32,
    offset: Option<i64>,
    content: Content,
    /// The guest has closed it since; this is what it was.
    kept: Option<OwnedFd>,
}

/// What the kernel keeps behind a descriptor that no other process has a share in.
enum Content {
    /// Nothing that is put back.
    Nothing,
    /// The count of an eventfd.
    Count(u64),
    /// The setting of a timerfd.
    Timer(libc::itimerspec),
    /// An empty pipe or socket pair of the process' own.
    Empty,
}

/// The descriptors at the moment of the image.
pub struct FilesImage {
    open: BTreeMap<i32, OpenFile>,
    known: HashMap<i32, Known>,
    interests: BTreeMap<(i32, i32), libc::epoll_event>,
}

/// What going back to the image did.
#[derive(Debug, Default)]
pub struct FilesRestored {
    /// Connections reset.
    pub connections: u64,
    /// Other descriptors closed.
    pub closed: u64,
    /// What could not be put back.
    pub failures: Vec<String>,
}

impl Files {
    /// Takes note of all descriptors.
    pub fn take_image(&mut self) -> Result<(), String> {
        let fds = guest_descriptors().map_err(|e| format!("its descriptors are unknown: {e}"))?;
        if fds.len() > MOST {
            return Err(format!("it had more than {MOST} descriptors"));
        }
        // A pipe is the process' own if it has both of its ends.
        let mut ends: HashMap<(u64, u64), u32> = HashMap::new();
        for fd in fds.iter().filter(|fd| is_fifo(**fd)) {
            if let Ok(identity) = host::identity(*fd) {
                *ends.entry(identity).or_default() += 1;
            }
        }
        let mut open = BTreeMap::new();
        for fd in fds {
            let pair = host::identity(fd).is_ok_and(|id| ends.get(&id).is_some_and(|n| *n > 1));
            let kind = self.kind(fd);
            let own = pair || (kind == Kind::Pipe && is_socket(fd));
            let file = describe(fd, kind, own).map_err(|e| format!("descriptor {fd}: {e}"))?;
            open.insert(fd, file);
        }
        self.image = Some(Box::new(FilesImage {
            open,
            known: self.known.clone(),
            interests: self.interests.clone(),
        }));
        self.image_lost = None;
        self.opened.clear();
        Ok(())
    }

    /// There is nothing to go back to.
    pub fn drop_image(&mut self) {
        self.image = None;
    }

    /// Likewise, in a forked child, which has closed the monitor's descriptors already.
    pub fn forget_image(&mut self) {
        if let Some(image) = self.image.take() {
            for file in image.open.into_values() {
                std::mem::forget(file.kept);
            }
        }
    }

    /// Why there is nothing to go back to.
    pub fn image_lost(&self) -> Option<&str> {
        self.image_lost.as_deref()
    }

    /// `fd` is about to be closed or replaced. If it is one of the image, it is kept.
    pub fn leave(&mut self, fd: i32) {
        let is_its_own = self
            .image
            .as_ref()
            .and_then(|image| image.open.get(&fd))
            .is_some_and(|file| file.kept.is_none());
        if !is_its_own {
            return;
        }
        let kind = self.kind(fd);
        let refused = match kind {
            Kind::Listening => Some("a socket that it listened on"),
            Kind::Pipe if is_fifo(fd) || is_socket(fd) => Some("a pipe"),
            _ => None,
        };
        let kept = match refused {
            Some(what) => Err(format!("it has closed {what} since")),
            None => kept_copy(fd).map_err(|e| format!("descriptor {fd} could not be kept: {e}")),
        };
        match kept {
            Ok(kept) => {
                if kind == Kind::Stream {
                    // The peer sees the end as if nothing were kept.
                    let _ = host::shutdown(fd, libc::SHUT_RDWR);
                }
                // The kernel takes a file out of interest lists only when its last duplicate is closed.
                let epolls: Vec<i32> = self
                    .interests
                    .keys()
                    .filter(|(member, _)| *member == fd)
                    .map(|(_, epoll)| *epoll)
                    .collect();
                for epoll in epolls {
                    let _ = super::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, None);
                }
                if let Some(file) = self.image.as_mut().and_then(|i| i.open.get_mut(&fd)) {
                    file.kept = Some(kept);
                }
            }
            Err(reason) => {
                self.image = None;
                self.image_lost = Some(reason);
            }
        }
    }

    /// Goes back to the descriptors of the image. Offsets in files that the guest may write are left alone
    /// if `written`, so that nothing is overwritten.
    pub fn restore_image(&mut self, written: bool) -> FilesRestored {
        let mut done = FilesRestored::default();
        let Some(mut image) = self.image.take() else {
            return done;
        };
        let is_its_own =
            |image: &FilesImage, fd: i32| image.open.get(&fd).is_some_and(|f| f.kept.is_none());
        self.given_back.clear();
        self.connections.clear();
        for ((fd, epoll), _) in std::mem::take(&mut self.interests) {
            if is_its_own(&image, epoll) {
                let _ = super::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, None);
            }
        }
        // Not all that is open: the monitor's reporter opens files too, for a moment each.
        for fd in std::mem::take(&mut self.opened) {
            if is_its_own(&image, fd) {
                continue;
            }
            match self.kind(fd) {
                Kind::Stream => {
                    self.reset(fd);
                    done.connections += 1;
                }
                _ => done.closed += 1,
            }
            let _ = host::close(fd);
        }
        self.known.clone_from(&image.known);
        for (&fd, file) in &mut image.open {
            if let Err(error) = restore(fd, file, written) {
                done.failures.push(format!("descriptor {fd}: {error}"));
            }
        }
        for (&(fd, epoll), event) in &image.interests {
            match self.change_interest(epoll, libc::EPOLL_CTL_ADD, fd, Some(*event)) {
                // It was kept with its list.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    let _ = self.change_interest(epoll, libc::EPOLL_CTL_MOD, fd, Some(*event));
                }
                Err(error) => {
                    done.failures
                        .push(format!("epoll {epoll}: interest in {fd}: {error}"));
                }
                Ok(_) => {}
            }
        }
        // What its peers have been told since does not agree with what it remembers.
        for &fd in image.open.keys() {
            if fd > libc::STDERR_FILENO && self.kind(fd) == Kind::Stream {
                self.reset(fd);
                done.connections += 1;
            }
        }
        self.image = Some(image);
        done
    }
}

fn describe(fd: i32, kind: Kind, own: bool) -> io::Result<OpenFile> {
    let content = match kind {
        Kind::Anonymous => match event_count(fd) {
            Some(count) => Content::Count(count),
            None => timer(fd).map_or(Content::Nothing, Content::Timer),
        },
        Kind::Pipe if own && fd > libc::STDERR_FILENO && waiting(fd) == 0 => Content::Empty,
        _ => Content::Nothing,
    };
    Ok(OpenFile {
        flags: host::fcntl(fd, libc::F_GETFD, 0)?,
        status: host::fcntl(fd, libc::F_GETFL, 0)?,
        offset: match kind {
            Kind::File => host::offset(fd),
            _ => None,
        },
        content,
        kept: None,
    })
}

/// Makes `fd` what it was.
fn restore(fd: i32, file: &mut OpenFile, written: bool) -> io::Result<()> {
    if let Some(kept) = &file.kept {
        reopen(kept, fd)?;
        file.kept = None;
    }
    host::fcntl(fd, libc::F_SETFD, file.flags)?;
    if host::fcntl(fd, libc::F_GETFL, 0)? != file.status {
        host::fcntl(fd, libc::F_SETFL, file.status)?;
    }
    let read_only = file.status & libc::O_ACCMODE == libc::O_RDONLY;
    if let Some(offset) = file.offset
        && fd > libc::STDERR_FILENO
        && (read_only || !written)
    {
        host::seek(fd, offset)?;
    }
    match &file.content {
        Content::Nothing => {}
        Content::Count(count) => {
            host::drain(fd)?;
            if *count > 0 {
                host::write_all(fd, &count.to_ne_bytes(), None)?;
            }
        }
        Content::Timer(setting) => host::set_timer(fd, setting)?,
        Content::Empty => {
            if file.status & libc::O_ACCMODE != libc::O_WRONLY {
                host::drain(fd)?;
            }
        }
    }
    Ok(())
}

/// Makes `fd`, which is closed, a duplicate of `kept`. A number that the monitor's reporter has taken for a
/// moment comes free again.
fn reopen(kept: &OwnedFd, fd: i32) -> io::Result<()> {
    const TRIES: u32 = 10_000;
    for _ in 0..TRIES {
        let made = host::fcntl(kept.as_raw_fd(), libc::F_DUPFD, fd)?;
        if made == fd {
            return Ok(());
        }
        host::close(made)?;
        std::thread::sleep(Duration::from_micros(100));
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// The guest's open descriptors.
fn guest_descriptors() -> io::Result<Vec<i32>> {
    let mut fds = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        fds.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    // One of them was the listing's own, which is closed now.
    fds.retain(|fd| *fd < first_reserved() && host::fcntl(*fd, libc::F_GETFD, 0).is_ok());
    fds.sort_unstable();
    Ok(fds)
}

fn is_fifo(fd: i32) -> bool {
    host::mode(fd).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFIFO)
}

fn is_socket(fd: i32) -> bool {
    host::mode(fd).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// The count of an eventfd, as procfs shows it; none for anything else.
fn event_count(fd: i32) -> Option<u64> {
    let text = host::handles::fdinfo(fd).ok()?;
    parse_count(&text)
}

fn parse_count(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn timer(fd: i32) -> Option<libc::itimerspec> {
    host::timer(fd).ok()
}

/// Bytes that can be read.
fn waiting(fd: i32) -> u32 {
    host::readable_bytes(fd).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_an_eventfd_is_hexadecimal() {
        let text = "pos:\t0\nflags:\t02\neventfd-count:               1f\neventfd-id: 3\n";
        assert_eq!(parse_count(text), Some(0x1f));
        assert_eq!(parse_count("pos:\t0\ntfd: 5 events: 19\n"), None);
    }
}
