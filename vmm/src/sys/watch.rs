//! Watches of inotify.

use guest_agentless::Errno;

use super::{Call, Handler};
use crate::process::effects::{HostCall, Undo};

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_inotify_add_watch).then_some(add_watch as Handler)
}

fn add_watch(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let mut path = call.read_path(call.args[1])?;
    let before = masks(fd);
    let watch = call.pass()? as i32;
    match before.iter().find(|(number, _)| *number == watch) {
        None => call.compensate(Undo::Watch { fd, watch }),
        Some((_, mask)) => {
            path.push(0);
            let args = [fd as u64, 0, u64::from(*mask), 0, 0, 0];
            let back = HostCall::with(libc::SYS_inotify_add_watch, args, path);
            call.compensate_by(back, "a watch was changed");
        }
    }
    Ok(watch as u64)
}

/// The watches of an inotify descriptor with their masks, as the kernel tells them.
fn masks(fd: i32) -> Vec<(i32, u32)> {
    let text = crate::host::handles::fdinfo(fd).unwrap_or_default();
    text.lines().filter_map(watch_of).collect()
}

/// From a line such as `inotify wd:1 ino:2 sdev:3 mask:2 ignored_mask:0`; all numbers are hexadecimal.
fn watch_of(line: &str) -> Option<(i32, u32)> {
    let mut fields = line.strip_prefix("inotify ")?.split(' ');
    let watch = fields.next()?.strip_prefix("wd:")?;
    let mask = fields.find_map(|field| field.strip_prefix("mask:"))?;
    Some((
        i32::from_str_radix(watch, 16).ok()?,
        u32::from_str_radix(mask, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read_from_the_kernels_text() {
        let line = "inotify wd:1f ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(watch_of(line), Some((31, 0x800_afce)));
        assert_eq!(watch_of("pos:\t0"), None);
        assert_eq!(watch_of("inotify wd:"), None);
    }
}
