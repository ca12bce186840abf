//! Where settings came from: enough to read them again, and to say which keys changed.

use std::fmt;
use std::path::PathBuf;

use ::config::{Map, Value, ValueKind};

/// The sources of a [`Config`](crate::config::Config), and what they said.
#[derive(Clone, Default)]
pub(crate) struct Origin {
    pub(crate) files: Vec<PathBuf>,
    /// A process cannot be given another environment, so it is not looked at again.
    pub(crate) env: Vec<(String, String)>,
    /// All layers merged.
    pub(crate) table: Map<String, Value>,
}

impl Origin {
    /// The full paths of all keys whose values differ, sorted.
    pub(crate) fn changes(&self, other: &Self) -> Vec<String> {
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

/// A table that only one of them has is one change.
fn compare_tables(path: &str, one: &Map<String, Value>, other: &Map<String, Value>, changes: &mut Vec<String>) {
    let missing = ValueKind::Nil;
    let only_there = other.keys().filter(|name| !one.contains_key(*name));
    for name in one.keys().chain(only_there) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let [one, other] = [one, other].map(|table| table.get(name).map_or(&missing, |value| &value.kind));
        match (one, other) {
            (ValueKind::Table(one), ValueKind::Table(other)) => compare_tables(&path, one, other, changes),
            (one, other) if same(one, other) => {}
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
            changes.is_empty()
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use ::config::{FileFormat, Format};

    use super::*;

    fn origin(source: &str, toml: &str) -> Origin {
        Origin { table: FileFormat::Toml.parse(Some(&source.to_owned()), toml).unwrap(), ..Origin::default() }
    }

    #[test]
    fn changes_are_told_by_key_wherever_values_come_from() {
        let one = origin("a", "a = 1\nlist = [{ x = 1 }, 2]\n[t]\nsame = 'x'\nother = 1\ngone = 1\n[t.deep]\nx = 1");
        assert!(
            one.changes(&origin(
                "b",
                "list = [{ x = 1 }, 2]\na = 1\nt = { same = 'x', other = 1, gone = 1, deep.x = 1 }"
            ))
            .is_empty()
        );
        let two = origin(
            "b",
            "a = 1\nlist = [{ x = 2 }, 2]\n[t]\nsame = 'x'\nother = 2\n[t.deep]\nx = 2\n[new]\nx = 1\ny = 1",
        );
        let changes = ["list", "new", "t.deep.x", "t.gone", "t.other"];
        assert_eq!(one.changes(&two), changes);
        assert_eq!(two.changes(&one), changes);
    }
}
