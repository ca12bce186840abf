//! The data folder, the secrets, and the files of sinks: whether they can be used, by whom, and how much room there is.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::Access;
use rustix::io::Errno;

use super::Finding;
use crate::config::{self, Config, Engine, FileSink};
use crate::journal::{Disk, denied, foreign_journal, holder, unusable_files, volatile_file_system};
use crate::{sinks, whole};

/// Clocks of file servers may differ by so much.
const LEEWAY: Duration = Duration::from_secs(60);

pub(super) fn look(config: &Config) -> Vec<Finding> {
    const KEY: &str = "journal.path";
    if config.journal.engine != Engine::Sqlite {
        return Vec::new();
    }
    let path = config.journal.path.as_path();
    let shown = path.display();
    let (place, found) = match fs::metadata(path) {
        Ok(found) => (path, Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (folder_of(path), None),
        Err(error) => return vec![Finding::error(KEY, format!("{shown} cannot be looked at: {error}"))],
    };
    if found.as_ref().is_some_and(|found| !found.is_dir()) {
        return vec![Finding::error(KEY, format!("{shown} is no folder: name another one"))];
    }
    if !place.is_dir() {
        return vec![Finding::error(
            KEY,
            format!("{shown} does not exist, and neither does the folder it would be made in: make it or mount it"),
        )];
    }
    let own = rustix::process::geteuid().as_raw();
    let accessed = rustix::fs::access(place, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK);
    // The start gives a folder of its own the mode that it needs.
    let is_repaired = accessed == Err(Errno::ACCESS) && found.as_ref().is_some_and(|found| found.uid() == own);
    if let Err(error) = accessed
        && !is_repaired
    {
        let text = format!("{} cannot be written to: {error}: {}", place.display(), denied(place, &error.into()));
        return vec![Finding::error(KEY, text)];
    }

    let state = match &found {
        Some(_) if is_repaired => "cannot be used with its mode: the start makes it 700",
        Some(_) => "is writable",
        None => "will be made",
    };
    let mut findings = vec![Finding::good(KEY, format!("{shown} {state}"))];
    if found.is_some() && !is_repaired {
        let unusable = unusable_files(path).into_iter().filter(|error| !error.ends_with_the_start(own));
        let errors: Vec<Finding> = unusable.map(|error| Finding::error(KEY, error.to_string())).collect();
        if !errors.is_empty() {
            findings = errors;
        } else if let Some(error) = foreign_journal(path) {
            findings = vec![Finding::error(KEY, error.to_string())];
        }
    }
    if let Some(found) = &found {
        findings.extend(of_used(path, found));
    }
    if let Some(kind) = volatile_file_system(place) {
        let text = format!("{shown} is on {kind}, which is not durable: mount a disk there");
        findings.push(Finding::warning(KEY, text));
    }
    if let Some(kind) = network_file_system(place) {
        let text =
            format!("{shown} is on {kind}: locks and syncs are as good as its server makes them; use a local disk");
        findings.push(Finding::warning(KEY, text));
    }
    findings.push(room(config, path, place));
    findings
}

fn of_used(path: &Path, found: &Metadata) -> Vec<Finding> {
    const KEY: &str = "journal.path";
    let shown = path.display();
    let mut findings = Vec::new();
    let is_open = found.mode() & 0o077 != 0;
    if is_open && found.uid() != rustix::process::geteuid().as_raw() {
        let text = format!(
            "{shown} belongs to another user, so its mode stays {:o}, and others may see the names in it; the files are \
             owner-only: leave it so, or chown it to the receiver's user",
            found.mode() & 0o7777
        );
        findings.push(Finding::warning(KEY, text));
    } else if is_open {
        let text = format!("{shown} can be read by others: the start makes it owner-only");
        findings.push(Finding::warning(KEY, text));
    }
    if let Some(holder) = holder(path) {
        let text = format!("{shown} is in use by {holder}: another receiver would not start on it");
        findings.push(Finding::good(KEY, text));
    }
    let written = fs::metadata(path.join("mark")).and_then(|mark| mark.modified());
    if written.is_ok_and(|written| written.duration_since(SystemTime::now()).is_ok_and(|ahead| ahead > LEEWAY)) {
        let text = format!("{shown} was written to in the future: check the clock of this machine");
        findings.push(Finding::warning(KEY, text));
    }
    let damaged = fs::read_dir(path).map_or(0, |entries| {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with("damaged-")).count()
    });
    if damaged > 0 {
        let text =
            format!("{shown} holds {damaged} damaged journals that were set aside: examine them, then delete them");
        findings.push(Finding::warning(KEY, text));
    }
    findings
}

/// Whether the disk has what the settings allow. What lies in a used folder is part of that.
fn room(config: &Config, path: &Path, place: &Path) -> Finding {
    const KEY: &str = "journal.max_bytes";
    let used: u64 = fs::read_dir(path).map_or(0, |entries| {
        entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.blocks() * 512).sum()
    });
    let disk = match fs::canonicalize(place).and_then(|place| Disk::under(&place)) {
        Ok(disk) => disk,
        Err(error) => return Finding::warning(KEY, format!("the free space is unknown: {error}")),
    };
    let (most, wanted) = (config.most_kept(), config.disk_bytes());
    let has = disk.free_bytes.saturating_add(used);
    let settings = format!("the settings allow {} of events, dead letters and quarantine", mib(most));
    let rule = format!("make it {}, or lower max_bytes", mib(wanted));
    if has < most {
        let text = format!(
            "{settings}; {disk}, and {} are in use here: full, delivered events go early, then events get 503; {rule}",
            mib(used)
        );
        return Finding::warning(KEY, text);
    }
    if has < wanted {
        let text = format!("{settings}; {disk}, too little to carry a damaged journal over into a new one; {rule}");
        return Finding::warning(KEY, text);
    }
    Finding::good(KEY, format!("{settings}; {disk}"))
}

/// A file that holds a secret.
pub(super) fn secret(key: &str, path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path).and_then(|found| Ok((found, whole::read(path, whole::SECRET)?))) {
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => ": give the receiver's user the file",
                io::ErrorKind::NotFound => ": make it, or mount it",
                _ => "",
            };
            Finding::error(key, format!("{shown} cannot be read: {error}{remedy}"))
        }
        Ok((_, secret)) if secret.trim_ascii().is_empty() => {
            Finding::error(key, format!("{shown} is empty: write the secret into it"))
        }
        Ok((found, _)) if found.mode() & 0o077 != 0 => {
            Finding::warning(key, format!("{shown} can be read by others: chmod 600 it"))
        }
        Ok(_) => Finding::good(key, format!("{shown} is readable by its owner only")),
    }
}

/// What would make a file sink's events wait, or lose them. Nothing of it keeps the receiver from starting.
pub(super) fn file_sink(key: &str, file: &FileSink, journal: &config::Journal) -> Vec<Finding> {
    let path_key = format!("{key}.path");
    let (shown, folder) = (file.path.display(), folder_of(&file.path));
    if let Some(why) = unwritable(&file.path) {
        let text = format!("{shown} {why}; its events would wait in the journal until it can");
        return vec![Finding::warning(path_key, text)];
    }
    let mut findings = Vec::new();
    if let Ok(found) = fs::metadata(folder)
        && found.mode() & 0o022 != 0
        && found.mode() & 0o1000 == 0
    {
        let text =
            format!("others can write to the folder {}, and so exchange the file: chmod go-w it", folder.display());
        findings.push(Finding::warning(&path_key, text));
    }
    let rotates = file.rotate_bytes.is_some() || file.rotate_every.is_some();
    let name = file.path.file_name().map_or(0, OsStr::len);
    let longest = rustix::fs::statvfs(folder).map_or(u64::MAX, |found| found.f_namemax);
    if rotates && name.saturating_add(sinks::LONGEST_SUFFIX) as u64 > longest {
        let text = format!(
            "its name has {name} bytes, and a rotated file's up to {} bytes more, which {} does not permit (at most \
             {longest}): it would not be rotated or compressed; give it a shorter name",
            sinks::LONGEST_SUFFIX,
            folder.display()
        );
        findings.push(Finding::warning(&path_key, text));
    }
    let is_endless = file.keep_files.is_none();
    if is_endless && journal.engine == Engine::Sqlite && is_same_disk(folder, existing(&journal.path)) {
        let text = "nothing is ever deleted, on the journal's own disk, until it is full and events are refused: \
                    set it together with rotate_bytes, move the file, or have something else clear it away";
        findings.push(Finding::warning(format!("{key}.keep_files"), text));
    }
    let most = file.rotate_bytes.zip(file.keep_files).map(|(bytes, files)| bytes.saturating_mul(files as u64 + 1));
    if let (Some(most), Ok(free)) = (most, free(folder))
        && free < most
    {
        let text = format!(
            "with rotate_bytes up to {} on a disk that has {} left: full, its events would wait in the journal; \
             keep fewer files, or make room",
            mib(most),
            mib(free)
        );
        findings.push(Finding::warning(format!("{key}.keep_files"), text));
    }
    findings
}

fn unwritable(path: &Path) -> Option<String> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Some("is no regular file".to_owned()),
        Ok(_) => {
            let denied = rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).err()?;
            Some(format!("cannot be read and written by this user ({denied})"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let denied = rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK).err()?;
            let remedy = match denied {
                Errno::NOENT | Errno::NOTDIR => ": make the folder",
                Errno::ACCESS => ": give the folder to the receiver's user",
                Errno::ROFS => ": mount its volume writable",
                _ => "",
            };
            Some(format!("cannot be made in its folder ({denied}){remedy}"))
        }
        Err(error) => Some(format!("cannot be looked at ({error})")),
    }
}

fn network_file_system(path: &Path) -> Option<&'static str> {
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0x517b;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    match rustix::fs::statfs(path).ok()?.f_type {
        NFS => Some("NFS"),
        SMB | CIFS | SMB2 => Some("SMB"),
        _ => None,
    }
}

fn is_same_disk(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.dev() == b.dev())
}

/// The folder itself, or the one that it would be made in.
fn existing(path: &Path) -> &Path {
    if path.exists() { path } else { folder_of(path) }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn free(path: &Path) -> io::Result<u64> {
    let fs = rustix::fs::statvfs(path)?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
