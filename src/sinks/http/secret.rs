//! Secrets in files, which change while the receiver runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::unusable::Unusable;
use crate::whole;

/// A change is seen within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A file that holds a secret. While it cannot be used, there is no secret: the old one may have been withdrawn.
pub(super) struct SecretFile<T> {
    file: Arc<Source<T>>,
    /// What was read last, and when.
    last: Mutex<(Instant, Arc<T>)>,
}

struct Source<T> {
    key: &'static str,
    path: PathBuf,
    parse: fn(&str) -> Result<T, String>,
}

impl<T: Send + Sync + 'static> SecretFile<T> {
    /// `parse` gets the text without the white space around it, which is never empty, and says what is wrong with it.
    pub(super) fn open(key: &'static str, path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<Self, Unusable> {
        let file = Source { key, path: path.to_owned(), parse };
        let secret = file.read()?;
        Ok(Self { file: Arc::new(file), last: Mutex::new((Instant::now(), Arc::new(secret))) })
    }

    /// The secret as it was at most a second ago, or why there is none.
    pub(super) async fn get(&self) -> Result<Arc<T>, String> {
        let (at, secret) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if at.elapsed() < LOOK_AGAIN {
            return Ok(secret);
        }
        // The whole file, not its times: it is small, and times are coarse.
        let now = Instant::now();
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let secret =
            Arc::new(read.map_err(|_| "the read was given up")?.map_err(|bad| format!("{}: {bad}", bad.key()))?);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (now, Arc::clone(&secret));
        Ok(secret)
    }
}

impl<T> Source<T> {
    fn read(&self) -> Result<T, Unusable> {
        let bad = |what: String, remedy: &'static str| Unusable::new(self.key, Some(&self.path), what, remedy);
        let bytes = whole::read(&self.path, whole::SECRET)
            .map_err(|error| bad(format!("cannot be read ({error})"), "check the path and its permissions"))?;
        let text = whole::text(&bytes).map_err(|what| bad(what, "write the secret into it, and nothing else"))?;
        match text.trim_ascii() {
            "" => Err(bad("is empty".to_owned(), "write the secret into it")),
            text => (self.parse)(text).map_err(|what| bad(what, "write the secret into it, and nothing else")),
        }
    }
}

/// Whether any user of this machine can read the file.
pub(super) fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o007 != 0)
}
