//! The layers of the settings, merged: built-in defaults, files, environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::config::{ConfigError, FileFormat, Format, Map, Source, Value, ValueKind};

use super::problem::Problem;
use super::reader::ENVIRONMENT;
use crate::whole;

/// Environment variables whose names begin with it are settings.
pub const PREFIX: &str = "ASAPP_RECEIVER__";

/// A settings file is never larger; a device has no end.
const LARGEST: u64 = 16 << 20;

/// The key of a problem with a whole file, which cannot be read or parsed.
const NO_FILE: &str = "--config";
const NO_TOML: &str = "TOML";

/// Every layer merged into one table; each value knows its origin. `defaults` is TOML, of which `adapt` makes the defaults
/// for the user's own layers.
pub(crate) fn merge(
    defaults: &str,
    adapt: impl FnOnce(Map<String, Value>, &Map<String, Value>) -> Map<String, Value>,
    files: &[PathBuf],
    env: impl Iterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Map<String, Value> {
    let mut layers: Vec<Layer> = files.iter().filter_map(|file| read(file, problems)).collect();
    layers.extend(variables(env, problems));
    let own = stack(&layers, problems);
    let defaults = parse(&"built-in default".to_owned(), defaults, problems);
    let mut all = vec![Layer(adapt(defaults, &own))];
    all.append(&mut layers);
    stack(&all, problems)
}

/// Whether a problem with this key is one with a whole file: what seems to be missing may be in it.
pub(crate) fn is_of_whole_file(key: &str) -> bool {
    [NO_FILE, NO_TOML].contains(&key)
}

/// The settings in the process's environment.
pub(crate) fn environment(problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => env.push((name.to_owned(), value)),
            Err(_) => problems.push(Problem {
                key: name.to_owned(),
                source: "environment".to_owned(),
                what: "is not UTF-8".to_owned(),
                remedy: "write it in UTF-8".to_owned(),
            }),
        }
    }
    env
}

fn read(file: &Path, problems: &mut Vec<Problem>) -> Option<Layer> {
    let origin = format!("file {}", file.display());
    let text = whole::read_any(file, LARGEST)
        .map_err(|error| error.to_string())
        .and_then(|bytes| whole::text(&bytes).map(str::to_owned).map_err(|what| format!("it {what}")))
        // A file that is being written is empty for a moment. A device such as /dev/null always is.
        .and_then(
            |text| if text.trim().is_empty() && file.is_file() { Err("it is empty".to_owned()) } else { Ok(text) },
        );
    match text {
        Ok(text) => Some(Layer(parse(&origin, &text, problems))),
        Err(why) => {
            let what = format!("cannot be used: {why}");
            let remedy = "give --config a TOML file that holds settings".to_owned();
            problems.push(Problem { key: NO_FILE.to_owned(), source: origin, what, remedy });
            None
        }
    }
}

fn parse(origin: &String, text: &str, problems: &mut Vec<Problem>) -> Map<String, Value> {
    let mut layer = FileFormat::Toml.parse(Some(origin), text).unwrap_or_else(|error| {
        // The parser shows the line it stumbled on, which may hold a secret: keep the place and the reason.
        let text = error.to_string();
        let what = text.lines().filter(|line| !line.contains(" |")).map(str::trim).collect::<Vec<_>>().join(": ");
        // The key says that already.
        let what = what.strip_prefix("TOML ").unwrap_or(&what).to_owned();
        let key = NO_TOML.to_owned();
        problems.push(Problem { key, source: origin.clone(), what, remedy: "correct the file".to_owned() });
        Map::new()
    });
    // In an outermost key the config crate reads `a.b` and `a[9]` as paths.
    layer.retain(|key, _| {
        let plain = !key.contains(['.', '[']);
        if !plain {
            let what = "is no key of these settings".to_owned();
            let remedy = "write keys under the [section] they belong to, without quotes".to_owned();
            problems.push(Problem { key: key.clone(), source: origin.clone(), what, remedy });
        }
        plain
    });
    layer
}

/// One layer for each variable, so that the order is certain. `__` is the only separator, names become lower case, and
/// values stay texts: the read of a key gives them a type.
fn variables(env: impl Iterator<Item = (String, String)>, problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut refuse = |name: &str, what: &str, remedy: String| {
        let key = name.to_owned();
        problems.push(Problem { key, source: "environment".to_owned(), what: what.to_owned(), remedy });
    };
    let mut layers = Vec::new();
    let mut sorted: Vec<(String, String)> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    sorted.sort_unstable();
    for (name, value) in sorted {
        let parts: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let valid =
            |part: &String| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let path = parts.join(".");
        if parts.len() < 2 || !parts.iter().all(valid) {
            refuse(&name, "names no key of these settings", format!("write {PREFIX}SECTION__KEY"));
        } else if let Some(other) = seen.get(&path) {
            refuse(&name, &format!("means the same key as {other}"), "keep one of them".to_owned());
        } else if let Some((_, outer)) = seen.iter().find(|(outer, _)| path.starts_with(&format!("{outer}."))) {
            refuse(&name, &format!("is inside the key that {outer} sets"), "keep one of them".to_owned());
        } else {
            let value = Value::new(Some(&format!("{ENVIRONMENT}{name}")), ValueKind::String(value));
            layers.push(Layer(Map::from([(path.clone(), value)])));
            seen.insert(path, name);
        }
    }
    layers
}

fn stack(layers: &[Layer], problems: &mut Vec<Problem>) -> Map<String, Value> {
    let builder = layers.iter().fold(::config::Config::builder(), |builder, layer| builder.add_source(layer.clone()));
    builder.build().and_then(|merged| merged.collect()).unwrap_or_else(|error| {
        let (key, source, what) = ("settings".to_owned(), "all layers".to_owned(), error.to_string());
        problems.push(Problem { key, source, what, remedy: "correct the named value".to_owned() });
        Map::new()
    })
}

/// A source that was read already.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}
