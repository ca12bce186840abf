//! Which events a sink wants (SPEC section 5).

use std::borrow::Cow;
use std::collections::BTreeSet;

use globset::{GlobSet, GlobSetBuilder};

use crate::config;
use crate::envelope::Company;
use crate::journal::Event;

/// A sink's filter, ready to use. An empty list lets everything pass.
#[derive(Debug)]
pub struct Filter {
    feeds: Vec<String>,
    event_types: GlobSet,
    exclude_event_types: GlobSet,
    /// Sets, as an event may have any number of values to be looked up.
    company_ids: BTreeSet<String>,
    company_segments: BTreeSet<String>,
    company_subdivisions: BTreeSet<String>,
}

impl Filter {
    #[must_use]
    pub fn new(settings: &config::Filter) -> Self {
        let set = |wanted: &[String]| wanted.iter().cloned().collect();
        Self {
            feeds: settings.feeds.clone(),
            event_types: globs(&settings.event_types),
            exclude_event_types: globs(&settings.exclude_event_types),
            company_ids: set(&settings.company_ids),
            company_segments: set(&settings.company_segments),
            company_subdivisions: set(&settings.company_subdivisions),
        }
    }

    #[must_use]
    pub fn passes(&self, event: &Event) -> bool {
        self.wants_type(event.name(), event.event_type())
            && (!self.reads_company() || self.company_passes(event.body()))
    }

    /// Whether events of this feed (full name) pass, as long as their type and company do.
    #[must_use]
    pub fn wants_feed(&self, feed: &str) -> bool {
        self.feeds.is_empty() || self.feeds.iter().any(|wanted| wanted == feed)
    }

    /// Whether events of this feed (full name) and type pass, as long as their company does.
    #[must_use]
    pub fn wants_type(&self, feed: &str, event_type: &str) -> bool {
        self.wants_feed(feed)
            && (self.event_types.is_empty() || self.event_types.is_match(event_type))
            && !self.exclude_event_types.is_match(event_type)
    }

    /// Whether the body has to be read at all.
    fn reads_company(&self) -> bool {
        !(self.company_ids.is_empty() && self.company_segments.is_empty() && self.company_subdivisions.is_empty())
    }

    /// A value that is missing, or of another type than documented, matches nothing that is asked for.
    fn company_passes(&self, body: &[u8]) -> bool {
        let company = Company::read(body);
        let asks = |wanted: &BTreeSet<String>, values: &[Cow<'_, str>]| {
            wanted.is_empty() || values.iter().any(|value| wanted.contains(&**value))
        };
        asks(&self.company_ids, company.id.as_slice())
            && asks(&self.company_subdivisions, company.subdivision.as_slice())
            && asks(&self.company_segments, &company.segments)
    }
}

/// The settings' reader has tried every glob before; one that does not compile matches nothing.
fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in patterns.iter().filter_map(|pattern| config::glob(pattern)) {
        set.add(glob);
    }
    set.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(settings: config::Filter, meta_data: &str) -> bool {
        Filter::new(&settings).company_passes(format!(r#"{{"meta_data":{meta_data}}}"#).as_bytes())
    }

    #[test]
    fn a_company_is_found_whatever_else_is_odd() {
        let id = || config::Filter { company_ids: vec!["acme".into(), "17".into()], ..config::Filter::default() };
        for (meta_data, found) in [
            (r#"{"company_id":"acme"}"#, true),
            (r#"{"company_id":"\u0061cme","company_segments":[1,null,{}],"company_subdivision":false}"#, true),
            (r#"{"company_id":"x","company_id":"acme"}"#, true),
            (r#"{"company_id":17}"#, true),
            (r#"{"company_id":"acme","half":"\ud800","company_subdivision":"\ud800"}"#, true),
            (r#"{"company_id":"acme","company_id":"x"}"#, false),
            (r#"{"company_id":"Acme"}"#, false),
            (r#"{"company_id":["acme"]}"#, false),
            ("{}", false),
            ("null", false),
        ] {
            assert_eq!(passes(id(), meta_data), found, "{meta_data}");
        }
    }

    #[test]
    fn every_list_must_let_an_event_pass_and_one_segment_suffices() {
        let both = || config::Filter {
            company_segments: vec!["b".into(), "c".into()],
            company_subdivisions: vec!["d".into()],
            ..config::Filter::default()
        };
        assert!(passes(both(), r#"{"company_segments":["a","b"],"company_subdivision":"d"}"#));
        assert!(!passes(both(), r#"{"company_segments":["a"],"company_subdivision":"d"}"#));
        assert!(!passes(both(), r#"{"company_segments":["b"]}"#));
        assert!(!passes(both(), r#"{"company_segments":"b","company_subdivision":"d"}"#));
        assert!(passes(config::Filter::default(), "null"));
    }
}
