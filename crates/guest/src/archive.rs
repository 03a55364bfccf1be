//! initramfs archives: newc entries in a fixed order, with nothing of the host in them.
//!
//! The kernel unpacks several archives one after the other, later files replacing earlier ones
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst); that is how a command is
//! added to an initramfs that is already made, also to a compressed one.

use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Archives begin and end at multiples of this many bytes, so that another can follow.
pub const ALIGNMENT_BYTES: usize = 512;

#[derive(Clone, Debug)]
enum Node {
    Folder,
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
    Char { mode: u32, major: u32, minor: u32 },
}

/// An archive being put together. Paths are relative, without a leading `/`; folders on the way
/// to a file are made as needed. A path given twice keeps what came last.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder (mode 0755).
    pub fn folder(&mut self, path: &str) -> &mut Self {
        self.add(path, Node::Folder)
    }

    /// Adds a file with the given permission bits, such as 0o755.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, Node::File { mode, content: content.into() })
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, Node::Link { target: target.to_owned() })
    }

    /// Adds a character device node with the given permission bits.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.add(path, Node::Char { mode, major, minor })
    }

    fn add(&mut self, path: &str, node: Node) -> &mut Self {
        let mut parents = path;
        while let Some((parent, _)) = parents.rsplit_once('/') {
            self.nodes.entry(parent.to_owned()).or_insert(Node::Folder);
            parents = parent;
        }
        self.nodes.insert(path.to_owned(), node);
        self
    }

    /// The archive's bytes, padded with zeros so that another archive can follow.
    ///
    /// Errors only when a file is larger than the format's 4 GiB.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // A folder sorts before everything in it, which is the order in which the kernel needs them.
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            let entry = Builder::new(path).ino(index as u32 + 1).nlink(1).mtime(0).uid(0).gid(0);
            let (entry, content): (_, &[u8]) = match node {
                Node::Folder => (entry.mode(0o755).set_mode_file_type(ModeFileType::Directory), &[]),
                Node::File { mode, content } => {
                    (entry.mode(*mode).set_mode_file_type(ModeFileType::Regular), content)
                }
                Node::Link { target } => {
                    (entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink), target.as_bytes())
                }
                Node::Char { mode, major, minor } => {
                    let entry = entry.mode(*mode).rdev_major(*major).rdev_minor(*minor);
                    (entry.set_mode_file_type(ModeFileType::Char), &[])
                }
            };
            let length = u32::try_from(content.len())
                .map_err(|_| io::Error::other(format!("{path} does not fit into an initramfs")))?;
            let mut writer = entry.write(&mut out, length);
            writer.write_all(content)?;
            writer.finish()?;
        }
        trailer(&mut out)?;
        out.resize(out.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        Ok(out)
    }
}

/// `initrd` followed by another archive, each where the kernel will find it.
pub fn join(mut initrd: Vec<u8>, more: &[u8]) -> Vec<u8> {
    initrd.resize(initrd.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    initrd.extend_from_slice(more);
    initrd
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn example() -> Archive {
        let mut archive = Archive::new();
        archive.link("bin/sh", "busybox").file("etc/a", 0o640, "text\n").file(
            "bin/busybox",
            0o755,
            [1, 2, 3],
        );
        archive.char_device("dev/console", 0o600, 5, 1);
        archive
    }

    /// The listing by the cpio program, when the host has one.
    fn listing(bytes: &[u8]) -> Option<String> {
        let mut child = Command::new("cpio")
            .args(["-itv", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        Some(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
    }

    #[test]
    fn the_cpio_program_reads_what_we_write() {
        let Some(listing) = listing(&example().to_bytes().unwrap()) else { return };
        let lines: Vec<_> = listing.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
        let names: Vec<_> = lines.iter().map(|words| (words[0], *words.last().unwrap())).collect();
        assert_eq!(
            names,
            [
                ("drwxr-xr-x", "bin"),
                ("-rwxr-xr-x", "bin/busybox"),
                ("lrwxrwxrwx", "busybox"),
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
                ("drwxr-xr-x", "etc"),
                ("-rw-r-----", "etc/a"),
            ]
        );
        assert!(listing.contains("5,   1") && listing.contains("1970"), "{listing}");
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut other = Archive::new();
        other.char_device("dev/console", 0o600, 5, 1).file("bin/busybox", 0o755, [1, 2, 3]);
        other.file("etc/a", 0o640, "old").file("etc/a", 0o640, "text\n").link("bin/sh", "busybox");
        assert_eq!(example().to_bytes().unwrap(), other.to_bytes().unwrap());
    }

    #[test]
    fn a_second_archive_starts_where_the_kernel_looks() {
        let joined = join(vec![7; 1000], b"070701");
        assert_eq!(joined.len(), 1024 + 6);
        assert_eq!(&joined[1000..1024], &[0; 24]);
        assert_eq!(&joined[1024..], b"070701");
    }
}
