//! The disk under a folder: where it is mounted, and what it has left.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

/// A file system as the kernel describes it, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `None` where the kernel does not list it.
    pub mount: Option<Mount>,
    pub total_bytes: u64,
    /// What this user may still write; a user's quota shows in it on some file systems only.
    pub free_bytes: u64,
}

/// A line of the kernel's list of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub device: String,
    pub file_system: String,
}

impl Disk {
    /// The disk that holds `path`, which is absolute and without links.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn under(path: &Path) -> io::Result<Self> {
        let room = statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
        let mount = fs::read("/proc/self/mountinfo").ok().and_then(|list| Mount::of(path, &list));
        Ok(Self { mount, total_bytes: bytes(room.f_blocks), free_bytes: bytes(room.f_bavail) })
    }

    /// The same disk, with what it has left now.
    pub(crate) fn again(&self, path: &Path) -> io::Result<Self> {
        let room = statvfs(path)?;
        let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
        Ok(Self { total_bytes: room.f_blocks.saturating_mul(room.f_frsize), free_bytes, mount: self.mount.clone() })
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mount {
            Some(Mount { point, device, file_system }) => {
                write!(f, "the disk at {} ({device}, {file_system})", point.display())?;
            }
            None => f.write_str("the journal's disk")?,
        }
        write!(f, " has {} of {} MiB free", self.free_bytes >> 20, self.total_bytes >> 20)
    }
}

impl Mount {
    /// The mount that holds `path`: of those above it the nearest, and of several at one place the last.
    fn of(path: &Path, list: &[u8]) -> Option<Self> {
        let mounts = list.split(|&byte| byte == b'\n').filter_map(Self::parse);
        mounts.filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
    }

    /// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|&byte| byte == b' ');
        let point = unescaped(words.nth(4)?);
        let mut words = words.skip_while(|&word| word != b"-").skip(1);
        let text = |word: &[u8]| String::from_utf8_lossy(&unescaped(word)).into_owned();
        let (file_system, device) = (text(words.next()?), text(words.next()?));
        Some(Self { point: std::ffi::OsString::from_vec(point).into(), device, file_system })
    }
}

/// The kernel writes spaces and the like as `\040`.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        let code = after.first_chunk::<3>().and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = &after[3..];
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 8:17 / /var/lib rw,nosuid shared:2 master:7 - xfs /dev/sdb1 rw
41 40 0:50 /sub /var/lib/my\\040data rw - btrfs /dev/mapper/a\\134b rw
42 40 0:51 / /var/lib rw - tmpfs tmpfs rw
";

    #[test]
    fn the_nearest_mount_above_a_path_is_the_disk_that_holds_it() {
        let found = |path: &str| {
            let Mount { point, device, file_system } = Mount::of(Path::new(path), LIST).unwrap();
            (point.display().to_string(), device, file_system)
        };
        let mount = |point: &str, device: &str, kind: &str| (point.to_owned(), device.to_owned(), kind.to_owned());
        assert_eq!(found("/srv/journal"), mount("/", "/dev/sda1", "ext4"));
        assert_eq!(found("/var/library"), mount("/", "/dev/sda1", "ext4"));
        // Mounted over: what is on top is what is written to.
        assert_eq!(found("/var/lib/journal"), mount("/var/lib", "tmpfs", "tmpfs"));
        assert_eq!(found("/var/lib/my data/journal"), mount("/var/lib/my data", "/dev/mapper/a\\b", "btrfs"));
    }

    #[test]
    fn a_disk_says_where_it_is_and_what_it_has_left() {
        let disk = Disk::under(Path::new("/")).unwrap();
        assert!(disk.free_bytes <= disk.total_bytes && disk.total_bytes > 0, "{disk:?}");
        let mount =
            Some(Mount { point: "/data".into(), device: "/dev/sdb".to_owned(), file_system: "ext4".to_owned() });
        let disk = Disk { mount, total_bytes: 40 << 20, free_bytes: 3 << 20 };
        assert_eq!(disk.to_string(), "the disk at /data (/dev/sdb, ext4) has 3 of 40 MiB free");
    }
}
