//! What the kernel knows of files beyond their content.

use std::io;

use super::check;

/// Whether the file is a regular one of a file system on which it holds what was written to it, and is as long.
pub fn is_plain_file(fd: i32) -> bool {
    // `linux/magic.h`, and those that each file system has for itself.
    const OVERLAY: i64 = 0x794c_7630;
    const F2FS: i64 = 0xf2f5_2010;
    const RAMFS: i64 = 0x8584_58f6;
    const ZFS: i64 = 0x2fc1_2fc1;
    const PLAIN: [i64; 8] = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
        OVERLAY,
        F2FS,
        RAMFS,
        ZFS,
    ];
    let regular = super::mode(fd).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFREG);
    regular && file_system(fd).is_some_and(|magic| PLAIN.contains(&magic))
}

fn file_system(fd: i32) -> Option<i64> {
    // SAFETY: an all-zero `statfs` is a valid value, and is there for the call to fill in.
    unsafe {
        let mut info: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(fd, &mut info) == 0).then_some(info.f_type)
    }
}

/// Whether two descriptors share an offset; none if the kernel does not tell.
pub fn is_same_description(one: i32, other: i32) -> Option<bool> {
    const KCMP_FILE: i32 = 0;
    let own = std::process::id() as i32;
    // SAFETY: takes numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, one, other) } {
        0 => Some(true),
        1..=3 => Some(false),
        _ => None,
    }
}

/// The time that a file which is written now gets, in seconds and nanoseconds.
pub fn file_time() -> (i64, i64) {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to fill in.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut time) };
    (time.tv_sec, time.tv_nsec)
}

/// Sets the time of a file's last change.
pub fn set_changed(fd: i32, (tv_sec, tv_nsec): (i64, i64)) -> io::Result<()> {
    let access = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_OMIT,
    };
    let times = [access, libc::timespec { tv_sec, tv_nsec }];
    // SAFETY: an array of two.
    check(i64::from(unsafe { libc::futimens(fd, times.as_ptr()) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn offsets_are_shared_by_copies_only() {
        let file = File::open("/proc/self/exe").unwrap();
        let copy = file.try_clone().unwrap();
        let other = File::open("/proc/self/exe").unwrap();
        let same = |other: &File| is_same_description(file.as_raw_fd(), other.as_raw_fd());
        if same(&copy).is_some() {
            assert_eq!((same(&copy), same(&other)), (Some(true), Some(false)));
        }
        let status = File::open("/proc/self/status").unwrap();
        assert!(!is_plain_file(status.as_raw_fd()));
    }

    #[test]
    fn times_can_be_set() {
        let file = tempfile::tempfile().unwrap();
        set_changed(file.as_raw_fd(), (1_000_000_000, 5)).unwrap();
        let changed = file.metadata().unwrap().modified().unwrap();
        let since = changed.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_nanos(), 1_000_000_000_000_000_005);
    }
}
