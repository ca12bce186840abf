//! The data folder: whether it can be used, by whom, and how much room there is.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::Access;
use rustix::io::Errno;

use crate::config::{Config, Engine};
use crate::findings::{Finding, mib};
use crate::journal::{Disk, denied, foreign_journal, holder, unusable_files, volatile_file_system};
use crate::places::folder_of;

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
