//! An initramfs: the archive format that the kernel unpacks ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

/// Types of files, as in `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_000;
const LINK: u32 = 0o120_000;

/// Headers, names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;

/// Writes an archive. Directories come before what is in them.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a program.
    pub fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | 0o755, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), to.as_bytes())
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive. Without it, the kernel takes the archive for cut.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(|_| {
            io::Error::other(format!(
                "{path} is too large for an initramfs: {} bytes",
                content.len()
            ))
        })?;
        let (inode, uid, gid, links, time, checksum) = (self.entries, 0, 0, 1, 0, 0);
        let (major, minor) = device;
        let name_len = path.len() as u32 + 1;
        let mut header = b"070701".to_vec();
        for field in [
            inode, mode, uid, gid, links, time, size, 0, 0, major, minor, name_len, checksum,
        ] {
            write!(header, "{field:08x}")?;
        }
        header.extend(path.bytes().chain([0]));
        self.padded(&header)?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.out.write_all(&[0; ALIGNMENT][..rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_the_trailer_ends_it() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").expect("a Vec takes all");
        archive.program("bin/a", b"12345").expect("a Vec takes all");
        archive.device("console", 5, 1).expect("a Vec takes all");
        let bytes = archive.finish().expect("a Vec takes all");
        let text = String::from_utf8(bytes).expect("ASCII");
        let zero = "00000000";
        let expected = [
            "070701",
            "00000001",
            "000041ed",
            zero,
            zero,
            "00000001",
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            "00000004",
            zero,
            "bin\0",
            "\0\0",
            "070701",
            "00000002",
            "000081ed",
            zero,
            zero,
            "00000001",
            zero,
            "00000005",
            zero,
            zero,
            zero,
            zero,
            "00000006",
            zero,
            "bin/a\0",
            "12345\0\0\0",
            "070701",
            "00000003",
            "00002180",
            zero,
            zero,
            "00000001",
            zero,
            zero,
            zero,
            zero,
            "00000005",
            "00000001",
            "00000008",
            zero,
            "console\0",
            "\0\0",
            "070701",
            "00000004",
            zero,
            zero,
            zero,
            "00000001",
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            "0000000b",
            zero,
            "TRAILER!!!\0",
            "\0\0\0",
        ];
        assert_eq!(text, expected.concat());
    }
}
