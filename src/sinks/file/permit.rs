//! Which files a file sink may write to, and what helps where it cannot.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::watch;

use crate::places::Place;
use crate::sinks::own::{Clash, OwnFiles};

/// What helps against an error with the file or its folder, where that is sure; to follow the error's own words.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => ": make its folder, or mount its volume",
        Some(Errno::ACCESS) => ": let the receiver's user read and write it and its folder",
        Some(Errno::PERM) => ": look whether it or its folder is immutable or append-only (lsattr), or another user's",
        Some(Errno::ROFS) => ": mount its volume writable",
        Some(Errno::NOSPC | Errno::DQUOT) => ": make room; it goes on by itself",
        Some(Errno::NAMETOOLONG) => ": give it a shorter name; rotation adds up to 29 bytes",
        Some(Errno::MFILE | Errno::NFILE) => ": permit more open files (LimitNOFILE, ulimit -n)",
        Some(Errno::EXIST) => ": move away what has its name already",
        Some(Errno::BUSY) => ": it is a mount of its own; mount its folder instead",
        Some(Errno::STALE) => ": mount its volume anew",
        _ => "",
    }
}

/// What a sink may touch: no file that is another sink's or the receiver's own, wherever links and mounts lead by now.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    pub(super) sink: String,
    /// Changes with the TLS files in use.
    pub(super) own: watch::Receiver<Arc<OwnFiles>>,
}

impl Permit {
    /// Where `path` leads, if the sink may write there.
    pub(super) fn place(&self, path: &Path) -> Result<Place, Clash> {
        let place = Place::of(path);
        let own = Arc::clone(&self.own.borrow());
        own.permit(&self.sink, &place).map(|()| place)
    }
}
