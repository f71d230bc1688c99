//! Writes the `newc` cpio format, the one the kernel unpacks an initramfs from. Writing it here
//! allows a device node without being root, and gives every entry the same owner and time.

use std::io::{self, Write};

/// What an entry is, in the words of `st_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A character device with its major and minor number.
    CharDevice(u32, u32),
}

impl Kind {
    fn mode(self) -> u32 {
        match self {
            Kind::Directory => 0o040000,
            Kind::File => 0o100000,
            Kind::CharDevice(..) => 0o020000,
        }
    }
}

/// Writes an archive entry by entry; [`Archive::finish`] completes it.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive without entries.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds one entry. A directory must come before what it holds. `name` has no leading slash.
    pub fn entry(
        &mut self,
        name: &str,
        kind: Kind,
        permissions: u32,
        data: &[u8],
    ) -> io::Result<()> {
        self.entries += 1;
        self.write(name, self.entries, kind.mode() | permissions, kind, data)
    }

    /// Writes the trailer and returns the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.write("TRAILER!!!", 0, 0, Kind::File, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(
        &mut self,
        name: &str,
        inode: u32,
        mode: u32,
        kind: Kind,
        data: &[u8],
    ) -> io::Result<()> {
        let too_large =
            |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too large"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let (major, minor) = match kind {
            Kind::CharDevice(major, minor) => (major, minor),
            Kind::Directory | Kind::File => (0, 0),
        };
        let (owner, group, links, time, device, check) = (0, 0, 1, 0, [0, 0], 0);
        let fields = [
            inode, mode, owner, group, links, time, size, device[0], device[1], major, minor,
            name_size, check,
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

/// Bytes of an entry's header before its name.
const HEADER: usize = 6 + 13 * 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_ends_the_archive() {
        let mut archive = Archive::new(Vec::new());
        archive.entry("dev", Kind::Directory, 0o755, &[]).unwrap();
        archive
            .entry("dev/console", Kind::CharDevice(5, 1), 0o600, &[])
            .unwrap();
        archive.entry("init", Kind::File, 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut at = 0;
        let mut names = Vec::new();
        while at < bytes.len() {
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + n * 8..][..8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = &bytes[at + HEADER..][..name_size - 1];
            let data = at + (HEADER + name_size).next_multiple_of(4);
            names.push((String::from_utf8_lossy(name).into_owned(), mode));
            if name == b"init" {
                assert_eq!(&bytes[data..data + size], b"hello");
            }
            at = (data + size).next_multiple_of(4);
        }
        let names: Vec<_> = names
            .iter()
            .map(|(name, mode)| (name.as_str(), *mode))
            .collect();
        let console = ("dev/console", 0o020600);
        assert_eq!(
            names,
            [
                ("dev", 0o040755),
                console,
                ("init", 0o100755),
                ("TRAILER!!!", 0)
            ]
        );
    }
}
