//! A damaged database: set aside whole, and what can be read of it carried over into a new one.
//!
//! 1. Row by row, what is intact in the damaged files goes into `rebuild/new.db`; they themselves are only read, and not
//!    by SQLite ([`remains`](super::remains)). Holes become losses, told and counted ([`carry`](super::carry)).
//! 2. `rebuild/complete` says that the new database is whole and synced. Then the damaged files move into a folder of
//!    their own and the new one takes their place; a crash in between goes on from there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::carry::{Carried, carry_over};
use super::examine::{Seen, examine};
use super::remains::Remains;
use crate::journal::event::millis;
use crate::journal::identity::LogIdentity;
use crate::journal::local::folder::{Folder, make_directory, rename};
use crate::journal::local::layout::DATABASE;
use crate::journal::local::mark::Mark;
use crate::journal::local::sqlite::SqliteStore;
use crate::journal::local::store::StoreError;
use crate::journal::opening::Damage;

const FILES: [&str; 3] = ["journal.db", "journal.db-wal", "journal.db-shm"];

/// Why a damaged journal could not be replaced. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SalvageError {
    #[error(
        "it is damaged ({0}), and there is no way to write a new one beside it, which takes as much room again: {1}"
    )]
    Io(String, io::Error),
    #[error("it is damaged ({0}), and the new one cannot be written: {1}")]
    Store(String, StoreError),
}

/// `user_version` in a database's header, if there is one to read.
pub(crate) fn format_version(database: &Path) -> Option<u32> {
    let mut header = [0; 100];
    File::open(database).ok()?.read_exact(&mut header).ok()?;
    let version = header[60..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    version.filter(|_| header.starts_with(b"SQLite format 3\0"))
}

/// Carries on a replacement that a crash interrupted, or clears the remains of an unfinished one. Gives what the
/// interrupted start had found, as it may not have told.
pub(crate) fn finish(folder: &Folder) -> io::Result<Option<Damage>> {
    let rebuild = folder.file("rebuild");
    let complete = match fs::read(rebuild.join("complete")) {
        Ok(complete) => complete,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if rebuild.exists() {
                fs::remove_dir_all(&rebuild)?;
            }
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let damage = serde_json::from_slice(&complete).ok();
    // What it says may be damaged by now, not that it is there: the new database is whole.
    let mut damage = damage.unwrap_or_else(|| Damage {
        reason: "a start that was interrupted found damage".to_owned(),
        set_aside: PathBuf::new(),
        lost: Vec::new(),
        lost_letters: 0,
        also: vec!["what that start has told, if it came to that: its record is damaged itself".to_owned()],
    });
    let name = damage.set_aside.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| is_ours(name)).map_or_else(|| set_aside_at(millis(SystemTime::now())), str::to_owned);
    damage.set_aside = folder.file(&name);
    replace(folder, &rebuild, &damage.set_aside)?;
    Ok(Some(damage))
}

fn set_aside_at(millis: u64) -> String {
    format!("damaged-{millis}")
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix("damaged-").is_some_and(|millis| millis.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Replaces the folder's database by a new one with all that can be read of it.
pub(crate) fn salvage(folder: &Folder, mark: Option<Mark>, reason: String, seen: Seen) -> Result<Damage, SalvageError> {
    let io = |error| SalvageError::Io(reason.clone(), error);
    let store = |error| SalvageError::Store(reason.clone(), error);
    let rebuild = folder.file("rebuild");
    if rebuild.exists() {
        fs::remove_dir_all(&rebuild).map_err(io)?;
    }
    make_directory(&rebuild).map_err(io)?;
    let path = rebuild.join("new.db");
    let mut new = SqliteStore::create(&path, LogIdentity::random()).map_err(store)?;
    let now = millis(SystemTime::now());
    let mut remains = Remains::of(&folder.file(DATABASE));
    // It is set aside with the rest, and its rows are none of this journal's.
    remains.leave_out_foreign(mark.and_then(|mark| mark.log));
    let carried = carry_over(&remains, &mut new, mark, &reason, now).map_err(store)?;
    drop(remains);
    new.settle().map_err(store)?;
    // Proof that the next step has something to put in the old one's place.
    examine(&new, seen).map_err(|why| store(StoreError::Fatal(why.to_string())))?;
    new.let_go();
    for name in ["new.db-wal", "new.db-shm"] {
        remove(&rebuild.join(name)).map_err(io)?;
    }
    let Carried { lost, lost_letters, also } = carried;
    let damage =
        Damage { set_aside: folder.file(&set_aside_at(now)), lost, lost_letters, also, reason: reason.clone() };
    let complete = rebuild.join("complete.new");
    let told = serde_json::to_vec(&damage).map_err(|error| io(error.into()))?;
    fs::write(&complete, told).and_then(|()| File::open(&complete)?.sync_all()).map_err(io)?;
    rename(&complete, &rebuild.join("complete")).map_err(io)?;
    replace(folder, &rebuild, &damage.set_aside).map_err(io)?;
    Ok(damage)
}

/// Moves the damaged files aside and the new database into their place. Can be done again from any point on.
fn replace(folder: &Folder, rebuild: &Path, aside: &Path) -> io::Result<()> {
    let new = rebuild.join("new.db");
    // Once the new database has moved, what stands in the folder is it.
    if new.exists() {
        if !aside.exists() {
            make_directory(aside)?;
            folder.sync()?;
        }
        for name in FILES {
            let file = folder.file(name);
            if file.exists() {
                rename(&file, &aside.join(name))?;
            }
        }
        rename(&new, &folder.file(DATABASE))?;
    }
    fs::remove_dir_all(rebuild)?;
    folder.sync()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
