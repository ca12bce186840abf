//! The built-in defaults, and the names that the user gives endpoints and sinks in place of theirs.

use std::path::PathBuf;

use ::config::{Map, Value, ValueKind};

use crate::settings::{Problem, merge};

/// `config/default.toml`: every key, with its default where it has one.
const DEFAULTS: &str = include_str!("../../config/default.toml");

/// What there is when the user names none.
const DEFAULT_ENDPOINT: &str = "events";
const DEFAULT_SINK: &str = "stdout";

/// The defaults, `files` in order, and `env`, merged.
pub(super) fn merged(
    files: &[PathBuf],
    env: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Map<String, Value> {
    merge(DEFAULTS, adapt, files, env, problems)
}

/// The defaults under the names that the user chose: the default endpoint and sink make way for the user's, which start
/// from their values.
pub(super) fn adapt(mut defaults: Map<String, Value>, own: &Map<String, Value>) -> Map<String, Value> {
    type Start = fn(&Map<String, Value>, &str, &Value) -> Value;
    let named: [(&str, &str, Start); 2] = [("endpoints", DEFAULT_ENDPOINT, endpoint), ("sinks", DEFAULT_SINK, sink)];
    for (section, default_name, start) in named {
        let Some(Value { kind: ValueKind::Table(templates), .. }) = defaults.get_mut(section) else { continue };
        let unnamed = Map::from([(default_name.to_owned(), Map::<String, Value>::new().into())]);
        let own = table(own.get(section)).filter(|own| !own.is_empty()).unwrap_or(&unnamed);
        *templates = own.iter().map(|(name, entry)| (name.clone(), start(templates, name, entry))).collect();
    }
    defaults
}

/// What an endpoint starts from: the default one, whose path it does not share.
fn endpoint(templates: &Map<String, Value>, name: &str, _: &Value) -> Value {
    let mut entry = table(templates.get(DEFAULT_ENDPOINT)).cloned().unwrap_or_default();
    if name != DEFAULT_ENDPOINT {
        entry.remove("path");
    }
    entry.into()
}

/// What a sink starts from: what all sinks share, which stands with the default one, and the keys of its own type, which
/// stand under the type's name. A sink that is named like a type need not name its type.
fn sink(templates: &Map<String, Value>, name: &str, own: &Value) -> Value {
    let kind = match table(Some(own)).and_then(|own| own.get("type")) {
        Some(Value { kind: ValueKind::String(kind), .. }) => kind,
        _ => name,
    };
    let mut entry = table(templates.get(DEFAULT_SINK)).cloned().unwrap_or_default();
    entry.remove("type");
    entry.extend(table(templates.get(kind)).cloned().unwrap_or_default());
    entry.into()
}

fn table(value: Option<&Value>) -> Option<&Map<String, Value>> {
    match value {
        Some(Value { kind: ValueKind::Table(table), .. }) => Some(table),
        _ => None,
    }
}
