//! Which events a sink gets, and the feeds that settings name.

use globset::{Glob, GlobSet};
use serde::{Deserialize, Serialize};

use crate::settings::Section;

/// Which events a sink wants; every given list must let the event pass, an empty one lets all pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Full feed names.
    pub feeds: Vec<String>,
    /// Globs.
    pub event_types: Vec<String>,
    /// Globs.
    pub exclude_event_types: Vec<String>,
    pub company_ids: Vec<String>,
    pub company_segments: Vec<String>,
    pub company_subdivisions: Vec<String>,
}

pub(super) fn filter(mut s: Section<'_, '_>) -> Filter {
    let pattern = |text: &str| glob(text).map(|_| text.to_owned());
    let globs = "write event types of at most 256 bytes, with * and ? as wildcards";
    let exact = |text: &str| Some(text.to_owned());
    let filter = Filter {
        feeds: feeds(&mut s),
        event_types: s.list("event_types", pattern, globs),
        exclude_event_types: s.list("exclude_event_types", pattern, globs),
        company_ids: s.list("company_ids", exact, "write texts"),
        company_segments: s.list("company_segments", exact, "write texts"),
        company_subdivisions: s.list("company_subdivisions", exact, "write texts"),
    };
    s.finish();
    filter
}

pub(super) fn feeds(s: &mut Section<'_, '_>) -> Vec<String> {
    s.list(
        "feeds",
        feed_name,
        "write \"activity\", \"journey\" or \"queue\", or a full name such as com.asapp.event.queue",
    )
}

/// The full name of a feed given by its short or full name. A name of ASAPP's that is not documented yet passes.
pub(crate) fn feed_name(name: &str) -> Option<String> {
    const PREFIX: &str = "com.asapp.event.";
    match name {
        "activity" | "journey" | "queue" => Some(format!("{PREFIX}{name}")),
        _ if name.starts_with("com.asapp.") && !name.ends_with('.') => Some(name.to_owned()),
        _ => None,
    }
}

/// A glob over event types that can surely be used. The bound is what keeps it so: globset goes down into nested braces by
/// recursion, on any thread's stack, and refuses too large a pattern only when it is used.
pub(crate) fn glob(text: &str) -> Option<Glob> {
    const LONGEST: usize = 256;
    let glob = (text.len() <= LONGEST).then(|| Glob::new(text).ok()).flatten()?;
    GlobSet::new([&glob]).is_ok().then_some(glob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeds() {
        assert_eq!(feed_name("activity").as_deref(), Some("com.asapp.event.activity"));
        assert_eq!(feed_name("com.asapp.event.survey").as_deref(), Some("com.asapp.event.survey"));
        for bad in ["", "activities", "com.example.event.activity", "com.asapp."] {
            assert_eq!(feed_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn globs() {
        let deep = |depth| format!("{}a{}", "{".repeat(depth), "}".repeat(depth));
        for good in ["CALL*", "{a,b}?", "[!x]", &"a".repeat(256), &deep(127)] {
            assert!(glob(good).is_some(), "{good}");
        }
        for bad in ["[a", "{a", "a}", &"a".repeat(257), &deep(100_000)] {
            assert!(glob(bad).is_none(), "{bad}");
        }
    }
}
