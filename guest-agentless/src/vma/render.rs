//! `/proc/PID/maps`, in the kernel's format.

use std::fmt::Write;

use super::{Backing, Vma, VmaMap};

/// The column in which the kernel puts the name of a mapping.
const NAME_COLUMN: usize = 73;

impl VmaMap {
    /// Appends the text of `/proc/PID/maps` to `out`.
    pub fn render_maps(&self, out: &mut String) {
        self.iter().for_each(|vma| render_line(vma, out));
    }
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
