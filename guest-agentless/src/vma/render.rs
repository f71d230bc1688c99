//! `/proc/PID/maps` and `smaps`, in the kernel's format.

use std::fmt::Write;

use super::{Backing, Vma, VmaMap};
use crate::GuestRange;

/// The column in which the kernel puts the name of a mapping.
const NAME_COLUMN: usize = 73;

impl VmaMap {
    /// Appends the text of `/proc/PID/maps` to `out`.
    pub fn render_maps(&self, out: &mut String) {
        self.iter().for_each(|vma| render_line(vma, out));
    }

    /// Appends the text of `/proc/PID/smaps` to `out`: of `host`, which tells of the whole process, what is about these
    /// mappings. The host may have divided them otherwise.
    pub fn render_smaps(&self, host: &str, out: &mut String) {
        let mut is_about_these = false;
        for line in host.lines() {
            match range_of(line) {
                None if is_about_these => {
                    out.push_str(line);
                    out.push('\n');
                }
                None => {}
                Some(range) => {
                    let mut shown = self.overlapping(range).filter_map(|vma| {
                        let range = vma.range.intersection(range)?;
                        Some(Vma {
                            range,
                            ..vma.clone()
                        })
                    });
                    let first = shown.next();
                    is_about_these = first.is_some();
                    if let Some(mut vma) = first {
                        let end = shown
                            .next_back()
                            .map_or(vma.range.end(), |last| last.range.end());
                        vma.range = GuestRange::from_bounds(vma.range.start(), end);
                        render_line(&vma, out);
                    }
                }
            }
        }
    }
}

/// The addresses in a line that begins a mapping, such as `7f00-8f00 rw-p ...`.
fn range_of(line: &str) -> Option<GuestRange> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (start <= end).then(|| GuestRange::from_bounds(start, end))
}

fn render_line(vma: &Vma, out: &mut String) {
    let (offset, (major, minor), inode) = match &vma.backing {
        Backing::File(file) => (file.offset, file.device, file.inode),
        _ => (0, (0, 0), 0),
    };
    let line_start = out.len();
    let (start, end) = (vma.range.start(), vma.range.end());
    let (protection, sharing) = (vma.protection, if vma.shared { 's' } else { 'p' });
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{start:08x}-{end:08x} {protection}{sharing} {offset:08x} {major:02x}:{minor:02x} {inode} ",
    );
    let name = match &vma.backing {
        Backing::Anonymous => None,
        Backing::File(file) => Some(&*file.path),
        Backing::Stack => Some("[stack]"),
        Backing::Heap => Some("[heap]"),
        Backing::Vdso => Some("[vdso]"),
        Backing::Vvar => Some("[vvar]"),
    };
    if let Some(name) = name {
        let padding = NAME_COLUMN.saturating_sub(out.len() - line_start).max(1);
        out.extend(std::iter::repeat_n(' ', padding));
        // A line break in a path is the one character that the kernel escapes.
        out.push_str(&name.replace('\n', "\\012"));
    }
    out.push('\n');
}
