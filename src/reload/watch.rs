//! Hints that files may have changed, from inotify. Hints may be missing or idle; whoever gets one looks for himself.
//!
//! The folders are watched, not the files: a file that is replaced is another file. That goes for every symbolic link on
//! the way as well, such as Kubernetes' `..data`, which is swapped by a rename. Only what happens under a name on the way
//! counts, so a busy folder costs nothing.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// As many links on one way, and the kernel gives up too.
const MAX_LINKS: usize = 40;

/// Watches the places where some files are found.
#[derive(Debug)]
pub(super) struct Watch {
    /// `None`: there are no hints to be had.
    inotify: Option<AsyncFd<OwnedFd>>,
    names: BTreeSet<OsString>,
}

impl Watch {
    /// Without any places.
    pub(super) fn new() -> Self {
        let inotify = open()
            .inspect_err(|error| {
                tracing::warn!(%error, "files cannot be watched: they are looked at every tls.reload_interval");
            })
            .ok();
        Self { inotify, names: BTreeSet::new() }
    }

    /// Watches the ways to `files` as they are now. A folder watched before stays so: its hints are idle at worst.
    pub(super) fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let Some(inotify) = &self.inotify else { return };
        let mut steps = BTreeSet::new();
        files.for_each(|file| find_steps(file, &mut steps));
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut folders: Vec<&Path> = steps.iter().map(|(folder, _)| folder.as_path()).collect();
        folders.dedup();
        for folder in folders {
            if let Err(error) = inotify::add_watch(inotify, folder, flags) {
                tracing::debug!(folder = %folder.display(), %error, "a folder cannot be watched");
            }
        }
        self.names = steps.into_iter().map(|(_, name)| name).collect();
    }

    /// Back when one of the files may have changed.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return pending().await };
        loop {
            let Ok(mut ready) = inotify.readable().await else { return pending().await };
            let hint = self.take_all(inotify.get_ref());
            ready.clear_ready();
            if hint {
                return;
            }
        }
    }

    /// Takes everything that is there, and says whether any of it matters.
    fn take_all(&self, inotify: &OwnedFd) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut hint = false;
        while let Ok(event) = events.next() {
            // Without a name it happened to the folder itself, or too much has happened.
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            hint |= name.is_none_or(|name| self.names.contains(name));
        }
        hint
    }
}

#[expect(deprecated, reason = "sound for an OwnedFd, which stays the same descriptor; its successor is an unsafe call")]
fn open() -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// Every folder and name where the way to `file` takes a turn or ends: links, the file itself, what is missing.
fn find_steps(file: &Path, steps: &mut BTreeSet<(PathBuf, OsString)>) {
    let backwards = |path: &Path| path.components().rev().map(|c| c.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut ahead = backwards(file);
    let mut folder = PathBuf::from(".");
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        // Of a folder reached without links, so `..` is its parent; the root takes the place of everything before it.
        let next = folder.join(&name);
        if !matches!(Path::new(&name).components().next(), Some(Component::Normal(_))) {
            folder = next;
            continue;
        }
        if let Ok(target) = fs::read_link(&next) {
            steps.insert((folder.clone(), name));
            links += 1;
            if links > MAX_LINKS {
                return;
            }
            ahead.extend(backwards(&target));
        } else if ahead.is_empty() || !next.is_dir() {
            steps.insert((folder, name));
            return;
        } else {
            folder = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(300);

    fn watch(file: &Path) -> Watch {
        let mut watch = Watch::new();
        watch.follow([file].into_iter());
        watch
    }

    /// As Kubernetes mounts a secret.
    fn mounted() -> TempDir {
        let mount = TempDir::new().unwrap();
        version(&mount, "..1");
        symlink("..1", mount.path().join("..data")).unwrap();
        symlink("..data/key.pem", mount.path().join("key.pem")).unwrap();
        mount
    }

    fn version(mount: &TempDir, name: &str) {
        fs::create_dir(mount.path().join(name)).unwrap();
        fs::write(mount.path().join(name).join("key.pem"), name).unwrap();
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_told_and_nothing_else() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        let other = folder.path().join("other");
        let watch = watch(&file);
        fs::write(&other, "x").unwrap();
        timeout(NEVER, watch.changed()).await.unwrap_err();
        fs::write(&file, "x").unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
        #[allow(clippy::disallowed_methods, reason = "nothing here has to outlive a crash")]
        fs::rename(&other, &file).unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
        fs::remove_file(&file).unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_link_on_the_way_that_is_swapped_is_told_and_the_new_way_followed() {
        let mount = mounted();
        let file = mount.path().join("key.pem");
        let mut watch = watch(&file);
        version(&mount, "..2");
        symlink("..2", mount.path().join("..data_tmp")).unwrap();
        #[allow(clippy::disallowed_methods, reason = "nothing here has to outlive a crash")]
        fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
        watch.follow([file.as_path()].into_iter());
        while timeout(NEVER, watch.changed()).await.is_ok() {}
        fs::write(mount.path().join("..2/key.pem"), "in place").unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_comes_later_is_told() {
        let folder = TempDir::new().unwrap();
        let later = folder.path().join("later");
        let watch = watch(&later.join("deeper/file"));
        fs::create_dir(&later).unwrap();
        timeout(SOON, watch.changed()).await.unwrap();
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = TempDir::new().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let mut steps = BTreeSet::new();
        find_steps(&folder.path().join("a/file"), &mut steps);
        let names: Vec<_> = steps.iter().map(|(_, name)| name.to_str().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| ["a", "b"].contains(name)).count(), 2, "{names:?}");
    }
}
