//! `check`: would `serve` start with these settings? A line per finding; never opens a listener.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::{Failure, print};
use crate::config::{self, Config};
use crate::journal::volatile_file_system;
use crate::shape::Shape;
use crate::sinks;
use crate::tls::{self, ServerTls};

/// Check settings, certificates, data folder and sinks, without opening a listener
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver --config /etc/asapp-receiver/production.toml check")]
pub struct Args {}

/// Prints what was found.
///
/// # Errors
/// When something found would keep the receiver from starting.
pub fn run(_: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let findings = find(files);
    let lines: Vec<String> = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(&lines.concat())?;
    if findings.iter().any(|finding| finding.verdict == Verdict::Error) {
        return Err(Failure::configuration(""));
    }
    Ok(())
}

struct Finding {
    verdict: Verdict,
    /// A key of the settings.
    key: String,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Error,
}

fn find(files: &[PathBuf]) -> Vec<Finding> {
    let (config, warnings) = match Config::load(files) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let found = |p: config::Problem| {
                let text = format!("{} ({}): {}", p.what, p.source, p.remedy);
                Finding { verdict: Verdict::Error, key: p.key, text }
            };
            return problems.0.into_iter().map(found).collect();
        }
    };
    let mut findings = vec![Finding::good("settings", "complete and without contradictions")];
    findings.extend(warnings.into_iter().map(|warning| {
        let text = format!("{} ({})", warning.what, warning.source);
        Finding { verdict: Verdict::Warning, key: warning.key, text }
    }));
    findings.extend(tls(&config.tls));
    if config.journal.engine == config::Engine::Sqlite {
        findings.extend(data_folder(&config));
    }
    findings.extend(config.admin.token_file.as_deref().map(|path| secret("admin.token_file", path)));
    findings.extend(config.sinks.iter().flat_map(sink));
    findings
}

fn tls(settings: &config::Tls) -> Vec<Finding> {
    let found = ServerTls::load(settings).map_or_else(|findings| findings, |tls| tls.findings());
    let finding = |found: tls::Finding| {
        let verdict = match found.severity {
            tls::Severity::Info => Verdict::Good,
            tls::Severity::Warning => Verdict::Warning,
            tls::Severity::Error => Verdict::Error,
        };
        Finding { verdict, key: "tls".to_owned(), text: found.to_string() }
    };
    found.into_iter().map(finding).collect()
}

fn data_folder(config: &Config) -> Vec<Finding> {
    const KEY: &str = "journal.path";
    let path = config.journal.path.as_path();
    let shown = path.display();
    let (place, found) = match std::fs::metadata(path) {
        Ok(found) => (path, Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (folder_of(path), None),
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
    if let Err(error) = rustix::fs::access(place, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return vec![Finding::error(KEY, format!("{} cannot be written to by this user: {error}", place.display()))];
    }

    let state = if found.is_some() { "is writable" } else { "will be made" };
    let mut findings = vec![Finding::good(KEY, format!("{shown} {state}"))];
    if found.is_some_and(|found| found.mode() & 0o077 != 0) {
        let text = format!("{shown} can be read by others: the start makes it owner-only");
        findings.push(Finding::warning(KEY, text));
    }
    if let Some(kind) = volatile_file_system(place) {
        let text = format!("{shown} is on {kind}, which is not durable: mount a disk there");
        findings.push(Finding::warning(KEY, text));
    }
    let wanted = [config.journal.max_bytes, config.quarantine.max_bytes, config.dead_letters.max_bytes]
        .into_iter()
        .fold(0, u64::saturating_add);
    match rustix::fs::statvfs(place) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let text = format!("{} MiB are free; the settings allow {} MiB in all", free >> 20, wanted >> 20);
            let verdict = if free < wanted && found_nothing_yet(path) { Verdict::Warning } else { Verdict::Good };
            findings.push(Finding { verdict, key: KEY.to_owned(), text });
        }
        Err(error) => findings.push(Finding::warning(KEY, format!("the free space is unknown: {error}"))),
    }
    findings
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether the folder is empty: what lies in a used one is part of the room it may take.
fn found_nothing_yet(path: &Path) -> bool {
    std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

fn secret(key: &str, path: &Path) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path).and_then(|found| Ok((found, std::fs::read(path)?))) {
        Err(error) => Finding::error(key, format!("{shown} cannot be read: {error}")),
        Ok((_, secret)) if secret.trim_ascii().is_empty() => {
            Finding::error(key, format!("{shown} is empty: write the secret into it"))
        }
        Ok((found, _)) if found.mode() & 0o077 != 0 => {
            Finding::warning(key, format!("{shown} can be read by others: chmod 600 it"))
        }
        Ok(_) => Finding::good(key, format!("{shown} is readable by its owner only")),
    }
}

fn sink(sink: &config::Sink) -> Vec<Finding> {
    let kind = match sink.kind {
        config::SinkKind::Stdout => "stdout",
        config::SinkKind::File(_) => "file",
        config::SinkKind::Http(_) => "http",
    };
    let duty = match (sink.enabled, sink.required) {
        (false, _) => "switched off",
        (true, true) => "required",
        (true, false) => "not required",
    };
    let key = format!("sinks.{}", sink.name);
    let mut findings = vec![Finding::good(&key, format!("{kind}, {duty}"))];
    if let config::SinkKind::File(file) = &sink.kind {
        findings.extend(unwritable(&format!("{key}.path"), &file.path));
    }
    if let config::SinkKind::Http(http) = &sink.kind {
        findings.extend(http.secret_files().map(|(file, path)| secret(&format!("{key}.{file}"), path)));
        let unusable = sinks::Http::new(http, Shape::new(sink.format, &sink.redact)).err();
        findings.extend(unusable.map(|bad| Finding::error(&format!("{key}.{}", bad.key()), bad.to_string())));
    }
    findings
}

/// Why a file sink's events would wait. It does not keep the receiver from starting.
fn unwritable(key: &str, path: &Path) -> Option<Finding> {
    let why = match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => "is no regular file".to_owned(),
        Ok(_) => rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).err()?.to_string(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let access = rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK);
            format!("cannot be made in its folder: {}", access.err()?)
        }
        Err(error) => error.to_string(),
    };
    Some(Finding::warning(key, format!("{} {why}; its events would wait in the journal until it can", path.display())))
}

impl Finding {
    fn good(key: &str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, key: key.to_owned(), text: text.into() }
    }

    fn warning(key: &str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, key: key.to_owned(), text: text.into() }
    }

    fn error(key: &str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, key: key.to_owned(), text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        };
        write!(f, "{verdict:<8} {}: {}", self.key, self.text)
    }
}
