//! Which events a sink wants (SPEC section 5).

use std::borrow::Cow;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use crate::config;
use crate::journal::Event;

/// A sink's filter, ready to use. An empty list lets everything pass.
#[derive(Debug)]
pub struct Filter {
    settings: config::Filter,
    event_types: GlobSet,
    exclude_event_types: GlobSet,
    /// Whether the body has to be read at all.
    reads_company: bool,
}

/// What of an event's `meta_data` a filter can ask for.
#[derive(Debug, Default, Deserialize)]
struct Company<'a> {
    #[serde(borrow, default)]
    company_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    company_subdivision: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    company_segments: Option<Vec<Cow<'a, str>>>,
}

#[derive(Debug, Deserialize)]
struct WithCompany<'a> {
    #[serde(borrow, default)]
    meta_data: Option<Company<'a>>,
}

impl Filter {
    #[must_use]
    pub fn new(settings: &config::Filter) -> Self {
        Self {
            event_types: globs(&settings.event_types),
            exclude_event_types: globs(&settings.exclude_event_types),
            reads_company: !(settings.company_ids.is_empty()
                && settings.company_segments.is_empty()
                && settings.company_subdivisions.is_empty()),
            settings: settings.clone(),
        }
    }

    #[must_use]
    pub fn passes(&self, event: &Event) -> bool {
        self.wants_type(event.name(), event.event_type()) && (!self.reads_company || self.company_passes(event.body()))
    }

    /// Whether events of this feed (full name) pass, as long as their type and company do.
    #[must_use]
    pub fn wants_feed(&self, feed: &str) -> bool {
        self.settings.feeds.is_empty() || self.settings.feeds.iter().any(|wanted| wanted == feed)
    }

    /// Whether events of this feed (full name) and type pass, as long as their company does.
    #[must_use]
    pub fn wants_type(&self, feed: &str, event_type: &str) -> bool {
        self.wants_feed(feed)
            && (self.event_types.is_empty() || self.event_types.is_match(event_type))
            && !self.exclude_event_types.is_match(event_type)
    }

    /// A value that is missing, or of another type than documented, matches nothing that is asked for.
    fn company_passes(&self, body: &[u8]) -> bool {
        let company =
            serde_json::from_slice::<WithCompany>(body).ok().and_then(|body| body.meta_data).unwrap_or_default();
        let Company { company_id, company_subdivision, company_segments } = company;
        let asks = |wanted: &[String], value: Option<&str>| {
            wanted.is_empty() || value.is_some_and(|value| wanted.iter().any(|wanted| wanted == value))
        };
        asks(&self.settings.company_ids, company_id.as_deref())
            && asks(&self.settings.company_subdivisions, company_subdivision.as_deref())
            && (self.settings.company_segments.is_empty()
                || company_segments
                    .iter()
                    .flatten()
                    .any(|segment| asks(&self.settings.company_segments, Some(segment))))
    }
}

/// The settings' reader has tried every glob before; one that does not compile matches nothing.
fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in patterns.iter().filter_map(|pattern| Glob::new(pattern).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_default()
}
