//! Where settings came from: enough to read them again, and to say which keys changed.

use std::fmt;
use std::path::PathBuf;

use ::config::{Map, Value, ValueKind};

/// The sources of a [`Config`](super::Config), and what they said.
#[derive(Clone, Default)]
pub(super) struct Origin {
    pub(super) files: Vec<PathBuf>,
    /// A process cannot be given another environment, so it is not looked at again.
    pub(super) env: Vec<(String, String)>,
    /// All layers merged.
    pub(super) table: Map<String, Value>,
}

impl Origin {
    /// The full paths of all keys whose values differ, sorted.
    pub(super) fn changes(&self, other: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        compare_tables("", &self.table, &other.table, &mut changes);
        changes.sort_unstable();
        changes
    }
}

/// Says no values: there are secrets among them.
impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("files", &self.files).finish_non_exhaustive()
    }
}

fn compare_tables(path: &str, one: &Map<String, Value>, other: &Map<String, Value>, changes: &mut Vec<String>) {
    let nothing = Value::new(None, ValueKind::Nil);
    let only_there = other.keys().filter(|name| !one.contains_key(*name));
    for name in one.keys().chain(only_there) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let of = |table: &Map<String, Value>| table.get(name).unwrap_or(&nothing).clone();
        match (of(one).kind, of(other).kind) {
            (ValueKind::Table(one), ValueKind::Table(other)) => compare_tables(&path, &one, &other, changes),
            (ValueKind::Table(table), ValueKind::Nil) | (ValueKind::Nil, ValueKind::Table(table)) => {
                compare_tables(&path, &table, &Map::new(), changes);
            }
            (one, other) if same(&one, &other) => {}
            _ => changes.push(path),
        }
    }
}

/// Values are the same wherever they come from, which [`Value`]'s own comparison does not think.
fn same(one: &ValueKind, other: &ValueKind) -> bool {
    match (one, other) {
        (ValueKind::Array(one), ValueKind::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(&one.kind, &other.kind))
        }
        (ValueKind::Table(one), ValueKind::Table(other)) => {
            let mut changes = Vec::new();
            compare_tables("", one, other, &mut changes);
            changes.is_empty() && one.len() == other.len()
        }
        _ => one == other,
    }
}
