//! Texts for people: tables, and nothing in them that could steer a terminal.

use std::time::Duration;

use serde_json::Value;

use crate::terminal::escaped_line;

/// A longer cell is cut off: the whole text is in the JSON.
const WIDEST: usize = 80;

/// A row for each object, a column for each key; numbers stand to the right.
pub(super) fn table(keys: &[&str], objects: &[&Value]) -> String {
    let mut rows = vec![keys.iter().map(|key| key.replace('_', " ")).collect::<Vec<_>>()];
    rows.extend(objects.iter().map(|object| keys.iter().map(|key| clipped(word(object, key))).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let is_number = |key: &str| objects.iter().all(|object| object[key].is_number() || object[key].is_null());
    let columns: Vec<(usize, bool)> =
        keys.iter().enumerate().map(|(column, key)| (width(column), is_number(key))).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&columns).map(|(cell, &(width, is_number))| {
            if is_number { format!("  {cell:>width$}") } else { format!("  {cell:<width$}") }
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// A line for each key.
pub(super) fn pairs(keys: &[&str], object: &Value) -> String {
    let width = keys.iter().map(|key| key.len()).max().unwrap_or(0);
    keys.iter().map(|key| format!("{:<width$}  {}\n", key.replace('_', " "), word(object, key))).collect()
}

/// A member as a word.
pub(super) fn word(object: &Value, key: &str) -> String {
    match &object[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => escaped_line(text).into_owned(),
        other => other.to_string(),
    }
}

/// `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, bits)| bytes >> bits > 0) {
        Some((unit, bits)) => {
            let tenths = (u128::from(bytes) * 10) >> bits;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// `1h 30m`: at most two units.
pub(super) fn span(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds.max(0.0).round()).unwrap_or(Duration::MAX);
    let text = humantime::format_duration(duration).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn clipped(text: String) -> String {
    if text.chars().count() <= WIDEST {
        return text;
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [serde_json::json!({ "id": 9, "a_b": "x\u{1b}[2J" }), serde_json::json!({ "id": 10, "a_b": null })];
        assert_eq!(table(&["id", "a_b"], &rows.each_ref()), "  id  a b\n   9  x\\u001b[2J\n  10  -\n");
        assert_eq!(pairs(&["id", "a_b"], &rows[1]), "id   10\na b  -\n");
        let long = serde_json::json!({ "a": "x".repeat(100) });
        assert_eq!(table(&["a"], &[&long]).lines().nth(1).unwrap().chars().count(), 2 + WIDEST);
    }

    #[test]
    fn sizes_and_spans_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "16777215.9 TiB"),
            (1_610_612_736, "1.5 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [(0.0, "0s"), (0.6, "1s"), (5400.4, "1h 30m"), (90_061.0, "1day 1h"), (-1.0, "0s")] {
            assert_eq!(span(seconds), text);
        }
    }
}
