//! What `stat` and its kin answer, to be changed before the guest gets it.

use std::mem::offset_of;

/// A `struct stat` or `struct statx` as bytes.
pub(super) struct StatBuffer {
    pub(super) bytes: [u8; 256],
    extended: bool,
}

impl StatBuffer {
    /// Room for the kernel's answer.
    pub(super) fn new(extended: bool) -> StatBuffer {
        StatBuffer {
            bytes: [0; 256],
            extended,
        }
    }

    /// The structure.
    pub(super) fn filled(&self) -> &[u8] {
        match self.extended {
            true => &self.bytes,
            false => &self.bytes[..size_of::<libc::stat>()],
        }
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes[at..at + 8].try_into().unwrap_or([0; 8]))
    }

    fn half(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().unwrap_or([0; 4]))
    }

    /// Device and inode.
    pub(super) fn identity(&self) -> (u64, u64) {
        match self.extended {
            true => {
                let major = self.half(offset_of!(libc::statx, stx_dev_major));
                let minor = self.half(offset_of!(libc::statx, stx_dev_minor));
                let inode = self.word(offset_of!(libc::statx, stx_ino));
                (libc::makedev(major, minor), inode)
            }
            false => (
                self.word(offset_of!(libc::stat, st_dev)),
                self.word(offset_of!(libc::stat, st_ino)),
            ),
        }
    }

    /// Whether it is a file of some type, which an anonymous inode (of an eventfd, an epoll) is not.
    pub(super) fn has_type(&self) -> bool {
        let mode = match self.extended {
            true => self.half(offset_of!(libc::statx, stx_mode)) & 0xffff,
            false => self.half(offset_of!(libc::stat, st_mode)),
        };
        mode & libc::S_IFMT != 0
    }

    /// Says that the file has this size, and so many more blocks of a given size.
    pub(super) fn grow(&mut self, size: u64, more: impl Fn(u64) -> u64) {
        /// What `st_blocks` counts in.
        const SECTOR: u64 = 512;
        let (size_at, blocks_at, block) = match self.extended {
            true => (
                offset_of!(libc::statx, stx_size),
                offset_of!(libc::statx, stx_blocks),
                u64::from(self.half(offset_of!(libc::statx, stx_blksize))),
            ),
            false => (
                offset_of!(libc::stat, st_size),
                offset_of!(libc::stat, st_blocks),
                self.word(offset_of!(libc::stat, st_blksize)),
            ),
        };
        let block = block.clamp(SECTOR, 1 << 20);
        let blocks = self.word(blocks_at) + more(block) * (block / SECTOR);
        self.put(size_at, size);
        self.put(blocks_at, blocks);
    }

    /// Says that the file was changed at `time`, in seconds and nanoseconds.
    pub(super) fn change(&mut self, time: (i64, i64)) {
        let times = match self.extended {
            true => [
                offset_of!(libc::statx, stx_mtime),
                offset_of!(libc::statx, stx_ctime),
            ],
            false => [
                offset_of!(libc::stat, st_mtime),
                offset_of!(libc::stat, st_ctime),
            ],
        };
        for at in times {
            self.put(at, time.0 as u64);
            // 32 bits of nanoseconds and padding that is zero, or 64 bits.
            self.put(at + 8, time.1 as u64);
        }
    }

    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
}
