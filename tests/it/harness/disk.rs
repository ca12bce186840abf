//! Disks and pipes of a test's own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

/// A mounted file system. Dropped, it is gone.
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    /// An ext4 of this size, in blocks so small that a page is written short when it is full. `None`, and the reason
    /// printed, where the machine does not let this user mount one.
    pub(crate) fn ext4(bytes: u64) -> Option<Self> {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let image = image.to_str().unwrap();
        let made = run("mkfs.ext4", &["-q", "-b", "1024", "-m", "0", "-O", "^has_journal", image])
            .and_then(|()| Self::mount(&folder, &["-o", "loop", image]));
        Self::or_reason(folder, made)
    }

    /// A tmpfs of this size; as [`ext4`](Self::ext4) otherwise.
    pub(crate) fn tmpfs(bytes: u64) -> Option<Self> {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let made = Self::mount(&folder, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
        Self::or_reason(folder, made)
    }

    fn mount(folder: &TempDir, arguments: &[&str]) -> Result<(), String> {
        let point = folder.path().join("mounted");
        fs::create_dir(&point).unwrap();
        run("mount", &[arguments, &[point.to_str().unwrap()]].concat())
    }

    fn or_reason(folder: TempDir, made: Result<(), String>) -> Option<Self> {
        match made {
            Ok(()) => Some(Self { folder }),
            Err(reason) => {
                super::not_tested(&format!("no file system can be mounted here: {reason}"));
                None
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Fills what is left with a file of somebody else's; `remove` it to make room.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for size in [1 << 20, 64 << 10, 1 << 10, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }

    pub(crate) fn read_only(&self, on: bool) {
        let how = if on { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", how, self.path().to_str().unwrap()]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A receiver that was just killed may hold it for a moment.
        let _ = run("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// A pipe with a name, for a standard output that nobody reads, or not yet.
pub(crate) struct Pipe {
    folder: TempDir,
    /// Both ends, so that neither opening nor reading waits for the other.
    ends: Option<File>,
    reading: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        run("mkfifo", &[folder.path().join("pipe").to_str().unwrap()]).unwrap();
        let mut pipe = Self { folder, ends: None, reading: Arc::default(), reader: None, bytes: Arc::default() };
        pipe.open();
        pipe
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("pipe")
    }

    /// Is there to be written to again.
    pub(crate) fn open(&mut self) {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(O_NONBLOCK);
        self.ends = Some(options.open(self.path()).unwrap());
    }

    /// Goes away: writers get an error.
    pub(crate) fn close(&mut self) {
        self.pause();
        self.ends = None;
    }

    /// Reads from now on.
    pub(crate) fn read(&mut self) {
        self.reading.store(true, Ordering::SeqCst);
        let (reading, bytes) = (Arc::clone(&self.reading), Arc::clone(&self.bytes));
        let mut ends = self.ends.as_ref().unwrap().try_clone().unwrap();
        self.reader = Some(thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while reading.load(Ordering::SeqCst) {
                match ends.read(&mut buffer) {
                    Ok(read) => bytes.lock().unwrap().extend_from_slice(&buffer[..read]),
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        }));
    }

    /// Reads no more.
    pub(crate) fn pause(&mut self) {
        self.reading.store(false, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }

    /// All lines that were read, and what is left in the pipe.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        self.pause();
        let mut bytes = self.bytes.lock().unwrap();
        if let Some(mut ends) = self.ends.as_ref() {
            // Until there is nothing more to read now.
            let _ = ends.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).lines().map(ToOwned::to_owned).collect()
    }
}

const O_NONBLOCK: i32 = 0o4000;
