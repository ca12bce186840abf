//! Reads typed values out of the merged layers, and keeps going: every problem is collected.
//!
//! A bad value yields a stand-in, so that reading goes on; a problem was noted then, and no [`Config`](crate::config::Config)
//! comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{Map, Value, ValueKind};

use super::problem::{Problem, Warning};
use super::units;
use crate::about::Feature;

/// The origin of values that come from the environment starts so.
pub(super) const ENVIRONMENT: &str = "environment variable ";

/// The origin of a key that no layer has.
const NOWHERE: &str = "not set";

/// What was found out while reading.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Warning>,
    /// Every key that was read, with the origin of its value.
    pub(crate) asked: BTreeMap<String, String>,
    /// Every file and folder that a key names, with that key, and the key's source.
    pub(crate) named: Vec<NamedFile>,
    /// Keys and tables with a problem already.
    bad: BTreeSet<String>,
}

/// What the receiver does with a file or folder that a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Reads,
    /// Appends events to it.
    Writes,
    /// Owns all that is in the folder.
    Owns,
}

/// A file or folder, the key that names it, and where that stands.
#[derive(Debug, Clone)]
pub(crate) struct NamedFile {
    pub(crate) purpose: Use,
    pub(crate) key: String,
    pub(crate) source: String,
    pub(crate) path: PathBuf,
}

/// A table being read.
pub(crate) struct Section<'r, 't> {
    reader: &'r mut Reader,
    path: String,
    /// `None`: not there, or no table (a problem was noted).
    table: Option<&'t Map<String, Value>>,
    known: Vec<&'t str>,
}

/// The keys of a table that `read` reads.
pub(crate) fn keys(read: impl FnOnce(&mut Section<'_, '_>)) -> Vec<String> {
    let (mut reader, table) = (Reader::default(), Map::new());
    let mut section = reader.root(&table);
    read(&mut section);
    section.known.into_iter().map(str::to_owned).collect()
}

impl Reader {
    /// With the problems found so far.
    pub(crate) fn new(problems: Vec<Problem>) -> Self {
        Self { problems, ..Self::default() }
    }

    /// The outermost table.
    pub(crate) fn root<'t>(&mut self, table: &'t Map<String, Value>) -> Section<'_, 't> {
        Section { reader: self, path: String::new(), table: Some(table), known: Vec::new() }
    }

    /// Notes that the values of `keys` (full paths) do not go together, unless one of them is bad already.
    pub(crate) fn contradiction(&mut self, keys: &[&str], wrong: bool, what: impl Display, remedy: impl Display) {
        if let Some((key, source)) = self.judge(keys, wrong) {
            self.problems.push(Problem { key, source, what: what.to_string(), remedy: remedy.to_string() });
        }
    }

    /// As [`contradiction`](Self::contradiction), for what is odd but allowed.
    pub(crate) fn doubt(&mut self, keys: &[&str], odd: bool, what: impl Display) {
        if let Some((key, source)) = self.judge(keys, odd) {
            self.warnings.push(Warning { key, source, what: what.to_string() });
        }
    }

    /// Whether a key of this full path was read, by whatever section it belongs to.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.asked.contains_key(key)
    }

    /// Takes back the problems with keys that no layer has.
    pub(crate) fn forgive_missing(&mut self) {
        self.problems.retain(|problem| !problem.source.starts_with(NOWHERE));
    }

    fn judge(&self, keys: &[&str], hit: bool) -> Option<(String, String)> {
        if !hit || keys.iter().any(|key| self.is_bad(key)) {
            return None;
        }
        let mut sources: Vec<&str> =
            keys.iter().map(|key| self.asked.get(*key).map_or(NOWHERE, String::as_str)).collect();
        sources.dedup();
        Some((keys.join(", "), sources.join(", ")))
    }

    fn is_bad(&self, key: &str) -> bool {
        let parents = key.match_indices(['.', '[']).map(|(end, _)| &key[..end]);
        parents.chain([key]).any(|path| self.bad.contains(path))
    }

    fn note(&mut self, key: String, source: String, what: String, remedy: String) {
        self.bad.insert(key.clone());
        self.problems.push(Problem { key, source, what, remedy });
    }
}

impl<'t> Section<'_, 't> {
    /// The full path of a key.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The names in this table, sorted. Each counts as known.
    pub(crate) fn names(&self) -> Vec<&'t str> {
        let mut names: Vec<&str> = self.table.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// A table in this one; an empty one if it is not there.
    pub(crate) fn section(&mut self, key: &'static str) -> Section<'_, 't> {
        self.known.push(key);
        self.named(key)
    }

    /// A table in this one whose name is the user's.
    pub(crate) fn named(&mut self, name: &str) -> Section<'_, 't> {
        let path = self.path(name);
        let table = match self.table.and_then(|table| table.get(name)) {
            None => None,
            Some(Value { kind: ValueKind::Table(table), .. }) => Some(table),
            Some(other) => {
                self.reader.note(
                    path.clone(),
                    origin(other),
                    format!("is {}, not a table", kind(other)),
                    format!("write its keys under [{path}]"),
                );
                None
            }
        };
        Section { reader: self.reader, path, table, known: Vec::new() }
    }

    /// Every entry of a list of tables; an empty one is refused.
    pub(crate) fn entries<T>(&mut self, key: &'static str, read: impl Fn(&mut Section<'_, 't>) -> T) -> Vec<T> {
        let list = self.path(key);
        let Some(value) = self.get(key) else { return Vec::new() };
        let ValueKind::Array(items) = &value.kind else {
            self.bad(key, format!("is {}, not a list of tables", kind(value)), "write it in a file, as [{ … }]");
            return Vec::new();
        };
        let mut entries = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{list}[{index}]");
            if let ValueKind::Table(table) = &item.kind {
                if table.is_empty() {
                    let remedy = "give the entry at least one key".to_owned();
                    self.reader.note(path.clone(), origin(item), "is empty".to_owned(), remedy);
                }
                let mut entry = Section { reader: self.reader, path, table: Some(table), known: Vec::new() };
                entries.push(read(&mut entry));
                entry.finish();
            } else {
                let what = format!("is {}, not a table", kind(item));
                self.reader.note(path, origin(item), what, "write it as { … }".to_owned());
                self.reader.bad.insert(list.clone());
            }
        }
        entries
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> bool {
        let Some(value) = self.required(key) else { return false };
        match &value.kind {
            ValueKind::Boolean(flag) => *flag,
            ValueKind::String(text) if from_environment(value) && text == "true" => true,
            ValueKind::String(text) if from_environment(value) && text == "false" => false,
            _ => {
                self.bad(key, format!("is {}, not true or false", show(value)), "write true or false");
                false
            }
        }
    }

    /// A whole number.
    pub(crate) fn number<N>(&mut self, key: &'static str, range: RangeInclusive<N>) -> N
    where
        N: TryFrom<i64> + std::str::FromStr + PartialOrd + Display + Copy,
    {
        let Some(value) = self.required(key) else { return *range.start() };
        let number = match &value.kind {
            ValueKind::I64(number) => N::try_from(*number).ok(),
            ValueKind::String(text) if from_environment(value) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let remedy = format!("write a whole number from {} to {}", range.start(), range.end());
                self.bad(key, format!("is {}", show(value)), remedy);
                *range.start()
            }
        }
    }

    /// A number of bytes, with or without a unit.
    pub(crate) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.required(key) else { return *range.start() };
        let size = match &value.kind {
            ValueKind::I64(number) => u64::try_from(*number).ok(),
            ValueKind::String(text) => units::size(text),
            _ => None,
        };
        match size {
            Some(size) if range.contains(&size) => size,
            _ => {
                let least = units::show_size(*range.start());
                let remedy = match *range.end() {
                    u64::MAX => format!("write a size such as \"64MiB\", {least} or more"),
                    most => format!("write a size such as \"64MiB\", from {least} to {}", units::show_size(most)),
                };
                self.bad(key, format!("is {}", show(value)), remedy);
                *range.start()
            }
        }
    }

    /// As [`size`](Self::size), for what must fit into memory.
    pub(crate) fn memory(&mut self, key: &'static str, range: RangeInclusive<u64>) -> usize {
        usize::try_from(self.size(key, range)).unwrap_or(usize::MAX)
    }

    pub(crate) fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        match self.required(key) {
            Some(value) => self.judge_duration(key, value, range),
            None => *range.start(),
        }
    }

    /// A duration, or `"none"`.
    pub(crate) fn duration_or_none(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.get(key)?;
        match &value.kind {
            ValueKind::String(text) if text == "none" => None,
            _ => Some(self.judge_duration(key, value, range)),
        }
    }

    fn judge_duration(&mut self, key: &'static str, value: &Value, range: RangeInclusive<Duration>) -> Duration {
        let duration = if let ValueKind::String(text) = &value.kind { units::duration(text) } else { None };
        match duration {
            Some(duration) if range.contains(&duration) => duration,
            _ => {
                let (least, most) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
                let remedy = format!("write a duration such as \"250ms\" or \"24h\", from {least} to {most}");
                self.bad(key, format!("is {}", show(value)), remedy);
                *range.start()
            }
        }
    }

    /// One of a few words. `options` is never empty.
    pub(crate) fn choice<T: Clone>(&mut self, key: &'static str, options: &[(&str, T)], stand_in: T) -> T {
        let words: Vec<_> = options.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let remedy = format!("write {}", words.join(" or "));
        let Some(value) = self.get(key) else {
            self.missing(key, remedy);
            return stand_in;
        };
        let text = if let ValueKind::String(text) = &value.kind { text.as_str() } else { "" };
        if let Some((_, option)) = options.iter().find(|(word, _)| *word == text) {
            return option.clone();
        }
        self.bad(key, format!("is {}", show(value)), remedy);
        stand_in
    }

    /// Refuses a value, if it is `asked` for, that only builds with a feature know.
    pub(crate) fn needs(&mut self, key: &str, asked: bool, feature: Feature) {
        let what = format!("is not in this build, which lacks the feature {}", feature.name());
        self.contradiction(&[key], asked && !feature.is_in(), what, feature.remedy());
    }

    /// A text that is not empty. Never quoted in a report.
    pub(crate) fn text(&mut self, key: &'t str) -> Option<String> {
        let value = self.get(key)?;
        match &value.kind {
            ValueKind::String(text) if !text.is_empty() => Some(text.clone()),
            ValueKind::String(_) => {
                self.bad(key, "is empty", "write a text, or leave the key out");
                None
            }
            _ => {
                self.bad(key, format!("is {}, not a text", kind(value)), "write it in quotes");
                None
            }
        }
    }

    /// A text of a form of its own; `remedy` says which.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Option<T>,
        remedy: &str,
    ) -> Option<T> {
        let text = self.text(key)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.bad(key, format!("is {}", quote(&text)), remedy);
        }
        parsed
    }

    /// A file that the receiver reads. No sink may write to it.
    pub(crate) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let file = self.text(key).map(PathBuf::from);
        file.iter().for_each(|file| self.name_file(key, file, Use::Reads));
        file
    }

    /// A file or folder that has to be named. Without a `purpose` it is not used.
    pub(crate) fn needed_file(&mut self, key: &'static str, purpose: Option<Use>, remedy: &str) -> PathBuf {
        if !self.has(key) {
            self.missing(key, remedy);
        }
        let file = self.text(key).map(PathBuf::from).unwrap_or_default();
        if let Some(purpose) = purpose.filter(|_| !file.as_os_str().is_empty()) {
            self.name_file(key, &file, purpose);
        }
        file
    }

    /// A list of such files.
    pub(crate) fn files(&mut self, key: &'static str) -> Vec<PathBuf> {
        let files = self.list(key, |text| Some(PathBuf::from(text)), "name PEM files");
        files.iter().for_each(|file| self.name_file(key, file, Use::Reads));
        files
    }

    fn name_file(&mut self, key: &str, path: &Path, purpose: Use) {
        let key = self.path(key);
        let source = self.reader.asked.get(&key).cloned().unwrap_or_else(|| NOWHERE.to_owned());
        self.reader.named.push(NamedFile { purpose, key, source, path: path.to_owned() });
    }

    /// A list of texts; in the environment separated by commas.
    pub(crate) fn list<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Option<T>, remedy: &str) -> Vec<T> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let items: Vec<Option<&str>> = match &value.kind {
            ValueKind::Array(items) => items
                .iter()
                .map(|item| if let ValueKind::String(text) = &item.kind { Some(text.as_str()) } else { None })
                .collect(),
            ValueKind::String(text) if from_environment(value) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Some).collect()
            }
            _ => {
                self.bad(key, format!("is {}, not a list", kind(value)), "write a list of texts, as [\"…\", \"…\"]");
                return Vec::new();
            }
        };
        let mut list = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            match item.filter(|text| !text.is_empty()) {
                None => self.bad(key, format!("has an item that is no text or empty, number {}", index + 1), remedy),
                Some(text) => match parse(text) {
                    Some(item) => list.push(item),
                    None => self.bad(key, format!("has the item {}", quote(text)), remedy),
                },
            }
        }
        list
    }

    /// Notes a problem with the value of `key`.
    pub(crate) fn bad(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let path = self.path(key);
        let source = self.reader.asked.get(&path).cloned().unwrap_or_else(|| NOWHERE.to_owned());
        self.reader.note(path, source, what.into(), remedy.into());
    }

    /// Notes that `key` is needed, unless the whole table is not there for a reason noted already.
    pub(crate) fn missing(&mut self, key: &str, remedy: impl Into<String>) {
        let path = self.path(key);
        if !self.reader.is_bad(&path) {
            self.bad(key, "is missing", remedy);
        }
    }

    /// As [`Reader::contradiction`], for keys of this table.
    pub(crate) fn contradiction(&mut self, keys: &[&str], wrong: bool, what: impl Display, remedy: impl Display) {
        let paths: Vec<String> = keys.iter().map(|key| self.path(key)).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        self.reader.contradiction(&paths, wrong, what, remedy);
    }

    /// As [`Reader::doubt`], for keys of this table.
    pub(crate) fn doubt(&mut self, keys: &[&str], odd: bool, what: impl Display) {
        let paths: Vec<String> = keys.iter().map(|key| self.path(key)).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        self.reader.doubt(&paths, odd, what);
    }

    /// Takes these keys for known, without a look at their values.
    pub(crate) fn ignore(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.get(key);
        }
    }

    /// Whether a key of this table has a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Refuses those of `keys` that were not read: they belong elsewhere, as `what` says.
    pub(crate) fn misplaced(&mut self, keys: &[String], what: &str) {
        let remedy = self.keys_here();
        for key in keys {
            let here = self.table.and_then(|table| table.get_key_value(key)).map(|(key, _)| key.as_str());
            if let Some(key) = here.filter(|key| !self.known.contains(key)) {
                self.get(key);
                self.bad(key, what, &remedy);
            }
        }
    }

    /// Refuses every key that was not read.
    pub(crate) fn finish(self) {
        for name in self.names() {
            if self.known.contains(&name) {
                continue;
            }
            let source = self.table.and_then(|table| table.get(name)).map_or_else(|| NOWHERE.to_owned(), origin_of_any);
            let remedy = match units::nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => self.keys_here(),
            };
            let what = "is no key of these settings".to_owned();
            self.reader.problems.push(Problem { key: self.path(name), source, what, remedy });
        }
    }

    fn keys_here(&self) -> String {
        format!("the keys here are {}", self.known.join(", "))
    }

    fn get(&mut self, key: &'t str) -> Option<&'t Value> {
        self.known.push(key);
        let value = self.table.and_then(|table| table.get(key));
        self.reader.asked.insert(self.path(key), value.map_or_else(|| NOWHERE.to_owned(), origin_of_any));
        value
    }

    /// A key that the built-in defaults give: missing only where its table is.
    fn required(&mut self, key: &'static str) -> Option<&'t Value> {
        let value = self.get(key);
        if value.is_none() {
            self.missing(key, "give it a value");
        }
        value
    }
}

fn origin(value: &Value) -> String {
    value.origin().unwrap_or(NOWHERE).to_owned()
}

/// A merged table has no origin of its own: take that of something in it.
fn origin_of_any(value: &Value) -> String {
    match &value.kind {
        ValueKind::Table(table) if value.origin().is_none() => {
            table.values().map(origin_of_any).min().unwrap_or_else(|| NOWHERE.to_owned())
        }
        _ => origin(value),
    }
}

fn from_environment(value: &Value) -> bool {
    value.origin().is_some_and(|origin| origin.starts_with(ENVIRONMENT))
}

fn kind(value: &Value) -> &'static str {
    match &value.kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a number",
        ValueKind::Float(_) => "a number with a fraction",
        ValueKind::String(_) => "a text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

fn show(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("the text {}", quote(text)),
        ValueKind::Boolean(flag) => flag.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::Float(number) => number.to_string(),
        _ => kind(value).to_owned(),
    }
}

/// In quotes, escaped, and not too long.
fn quote(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
