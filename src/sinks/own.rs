//! The files that are the receiver's own, in one list, so that no file sink writes to one of them, and no two sinks to one
//! file. Names say little: what is compared is where they lead ([`Place`]).
//!
//! Reading the settings makes the list: every key that names a file is on it, without further ado.

use std::path::{Path, PathBuf};

use super::file::is_rotated_from;
use crate::places::{Contents, Place};
use crate::settings::{NamedFile, Problem, Use};

const STANDARD_OUTPUT: &str = "standard output";
const STANDARD_ERROR: &str = "standard error";
/// Begins the keys whose files may become others while the receiver runs.
const TLS: &str = "tls.";

/// The files of a receiver with these settings.
#[derive(Debug, Clone, Default)]
pub struct OwnFiles {
    /// Settings, keys, certificates, tokens; while it serves, what standard output and error go to.
    taken: Vec<NamedFile>,
    /// The journal's folder, all of whose contents are the journal's.
    journal: Option<NamedFile>,
    /// What file sinks write.
    sinks: Vec<NamedFile>,
}

/// Why a file is not a sink's to write to. Continues a sentence that begins with the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    #[error("leads to the same file as {0}")]
    Same(String),
    #[error("leads into the folder of {0}, whose files are the journal's alone")]
    InJournal(String),
    #[error("is named like a rotated file of {0}, which would compress or delete it")]
    Rotated(String),
}

impl OwnFiles {
    /// Of the settings in `files`, which name the files and folders `named`.
    pub(crate) fn new(named: &[NamedFile], files: &[PathBuf]) -> Self {
        let mut own = Self::default();
        for named in named {
            match named.purpose {
                Use::Reads => own.taken.push(named.clone()),
                Use::Writes => own.sinks.push(named.clone()),
                Use::Owns => own.journal = Some(named.clone()),
            }
        }
        own.taken.extend(files.iter().map(|file| NamedFile {
            purpose: Use::Reads,
            key: "--config".to_owned(),
            source: "command line".to_owned(),
            path: file.clone(),
        }));
        own
    }

    /// The same with what this process writes beside.
    #[must_use]
    pub fn with_streams(&self) -> Self {
        let mut own = self.clone();
        let streams = [(STANDARD_OUTPUT, "/proc/self/fd/1"), (STANDARD_ERROR, "/proc/self/fd/2")];
        own.taken.extend(streams.map(|(name, path)| NamedFile {
            purpose: Use::Writes,
            key: name.to_owned(),
            source: "this process".to_owned(),
            path: PathBuf::from(path),
        }));
        own
    }

    /// The same with the files of `other`'s `[tls]` beside, which is in use, or about to be.
    #[must_use]
    pub fn with_tls_of(&self, other: &Self) -> Self {
        let mut own = self.clone();
        let is_known =
            |named: &NamedFile| self.taken.iter().any(|known| known.key == named.key && known.path == named.path);
        let tls = other.taken.iter().filter(|named| named.key.starts_with(TLS) && !is_known(named));
        own.taken.extend(tls.cloned());
        own
    }

    /// Whether the sink of this name may write to `place`, as files and links are now.
    ///
    /// # Errors
    /// [`Clash`], with whose file it is.
    pub fn permit(&self, sink: &str, place: &Place) -> Result<(), Clash> {
        let key = format!("sinks.{sink}.path");
        self.clash(&key, place, self.sinks.iter()).map_or(Ok(()), |(_, clash)| Err(clash))
    }

    /// Everything that is written to though it is something else too.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let streams = self.taken.iter().filter(|taken| taken.is_stream());
        for (earlier, sink) in self.sinks.iter().enumerate() {
            let place = Place::of(&sink.path);
            // Of two sinks the second is told. What one takes for its rotated file is another matter for each of them.
            let others = self.sinks.iter().take(earlier);
            if let Some((other, clash)) = self.clash(&sink.key, &place, others) {
                problems.push(problem(sink, other, &clash));
            }
            let later = self.sinks.iter().skip(earlier + 1);
            if let Some((other, clash)) = later.clone().find_map(|other| other.rotates_to(&place)) {
                problems.push(problem(sink, other, &clash));
            }
            let taken = self.taken.iter().chain(&self.journal);
            let hit = taken.filter(|taken| sink.rotates_to(&Place::of(&taken.path)).is_some());
            problems.extend(hit.map(|taken| problem(taken, sink, &Clash::Rotated(sink.key.clone()))));
        }
        for stream in streams {
            let place = Place::of(&stream.path);
            let others = self.taken.iter().filter(|taken| !taken.is_stream());
            if let Some((other, clash)) = self.clash_with(&place, others) {
                problems.push(problem(stream, other, &clash));
            }
        }
        problems
    }

    /// What else `place`, to which the key `sink` leads, is.
    fn clash<'a>(
        &'a self,
        sink: &str,
        place: &Place,
        sinks: impl Iterator<Item = &'a NamedFile> + Clone,
    ) -> Option<(&'a NamedFile, Clash)> {
        let others = sinks.filter(|other| other.key != sink);
        let clash = self.clash_with(place, self.taken.iter().chain(others.clone()));
        clash.or_else(|| others.into_iter().find_map(|other| other.rotates_to(place)))
    }

    fn clash_with<'a>(
        &'a self,
        place: &Place,
        mut files: impl Iterator<Item = &'a NamedFile>,
    ) -> Option<(&'a NamedFile, Clash)> {
        let same = files.find(|other| Place::of(&other.path).is(place));
        let same = same.map(|other| (other, Clash::Same(other.key.clone())));
        same.or_else(|| {
            let journal = self.journal.as_ref().filter(|journal| Contents::of(&journal.path).have(place))?;
            Some((journal, Clash::InJournal(journal.key.clone())))
        })
    }
}

impl NamedFile {
    fn is_stream(&self) -> bool {
        [STANDARD_OUTPUT, STANDARD_ERROR].contains(&self.key.as_str())
    }

    /// Whether the sink of this file would take `place` for one of its rotated files.
    fn rotates_to(&self, place: &Place) -> Option<(&Self, Clash)> {
        let own = Place::of(&self.path);
        let (own, other) = own.names_in_one_folder(place)?;
        is_rotated_from(other, own).then(|| (self, Clash::Rotated(self.key.clone())))
    }
}

fn problem(file: &NamedFile, other: &NamedFile, clash: &Clash) -> Problem {
    let path = |file: &NamedFile| if file.is_stream() { String::new() } else { format!(" ({})", shown(&file.path)) };
    let what = match clash {
        Clash::Same(_) => format!("lead to the same file{}", path(file)),
        Clash::InJournal(_) | Clash::Rotated(_) => format!("clash: the first{} {clash}", path(file)),
    };
    let remedy = match clash {
        Clash::Same(_) => "give each a file of its own",
        Clash::InJournal(_) => "write to a file in another folder",
        Clash::Rotated(_) => "give one of them another name",
    };
    let sources =
        if file.source == other.source { file.source.clone() } else { format!("{}, {}", file.source, other.source) };
    Problem { key: format!("{}, {}", file.key, other.key), source: sources, what, remedy: remedy.to_owned() }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
