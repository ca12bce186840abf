//! Tables for people.

use serde_json::Value;

/// A longer cell is cut off: the whole text is in the JSON.
const WIDEST: usize = 100;

/// A row for each object, a column for each key; numbers stand to the right.
pub(super) fn table(keys: &[&str], objects: &[&Value]) -> String {
    let mut rows = vec![keys.iter().map(|key| key.replace('_', " ")).collect::<Vec<_>>()];
    rows.extend(objects.iter().map(|object| keys.iter().map(|key| word(object, key)).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let columns: Vec<(usize, bool)> = keys
        .iter()
        .enumerate()
        .map(|(column, key)| (width(column), objects.iter().all(|object| object[key].is_number())))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&columns).map(|(cell, &(width, is_number))| {
            if is_number { format!("  {cell:>width$}") } else { format!("  {cell:<width$}") }
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// A member as a word, without anything that could steer a terminal.
pub(super) fn word(object: &Value, key: &str) -> String {
    let text = match &object[key] {
        Value::Null => return "-".to_owned(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        other => other.to_string(),
    };
    if text.chars().count() <= WIDEST {
        return text;
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}
