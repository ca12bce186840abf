//! `feed-config`: what ASAPP has to be configured with for each feed, worked out from the settings alone.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::output::{Failure, print};
use crate::config::{Config, Endpoint, Problem, Problems};
use crate::dispatch::Filter;
use crate::envelope::Feed;

/// Print what to hand to ASAPP, as JSON: for each feed its URL, time-out, retries and event list
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver --config /etc/asapp-receiver/production.toml feed-config")]
pub struct Args {}

/// Prints it.
///
/// # Errors
/// Settings that cannot be used, or a feed that a sink wants and ASAPP could not send anywhere.
pub fn run(_: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let (config, _) = Config::load(files)?;
    let feeds = work_out(&config)?;
    let text = serde_json::to_string_pretty(&HandOver { feeds }).map_err(|error| Failure::from_error(&error))?;
    print(&format!("{text}\n"))
}

#[derive(Debug, Serialize)]
struct HandOver {
    feeds: Vec<FeedConfig>,
}

/// A feed, as ASAPP has to know it.
#[derive(Debug, Serialize)]
pub(super) struct FeedConfig {
    feed: String,
    configure: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    /// The types to send; absent: all, those to come too.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_list: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Target {
    url: String,
    timeout_ms: u64,
    retries: u32,
}

impl FeedConfig {
    pub(super) fn feed(&self) -> &str {
        &self.feed
    }

    /// Why it is not to be configured.
    pub(super) fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// What the filters want of a feed.
enum Wanted {
    Nothing(&'static str),
    Everything,
    Types(Vec<&'static str>),
}

/// What ASAPP has to know of each feed.
///
/// # Errors
/// When a sink wants a feed that no endpoint takes, or that has no address.
pub(super) fn work_out(config: &Config) -> Result<Vec<FeedConfig>, Problems> {
    let filters: Vec<Filter> =
        config.sinks.iter().filter(|sink| sink.enabled).map(|sink| Filter::new(&sink.filter)).collect();
    let mut problems = Vec::new();
    let feeds = names(config).into_iter().map(|feed| {
        let mut warnings = Vec::new();
        let event_list = match wanted(&filters, &feed) {
            Wanted::Nothing(reason) => {
                let reason = Some(reason);
                return FeedConfig { feed, configure: false, reason, target: None, event_list: None, warnings };
            }
            Wanted::Everything => None,
            Wanted::Types(types) => {
                let warning = "event_list also excludes every event type that is added to the feed later";
                warnings.push(warning.to_owned());
                Some(types)
            }
        };
        let target = target(&config.endpoints, &feed, &mut warnings).map_err(|problem| problems.push(problem)).ok();
        FeedConfig { feed, configure: true, reason: None, target, event_list, warnings }
    });
    let feeds = feeds.collect();
    if problems.is_empty() { Ok(feeds) } else { Err(Problems(problems)) }
}

/// The documented feeds, then those that only the settings name.
fn names(config: &Config) -> Vec<String> {
    let documented: Vec<&str> = Feed::DOCUMENTED.iter().filter_map(|feed| feed.full()).collect();
    let sinks = config.sinks.iter().filter(|sink| sink.enabled).map(|sink| &sink.filter.feeds);
    let named = config.endpoints.iter().map(|endpoint| &endpoint.feeds).chain(sinks).flatten();
    let others: BTreeSet<&str> = named.map(String::as_str).filter(|name| !documented.contains(name)).collect();
    documented.into_iter().chain(others).map(str::to_owned).collect()
}

/// An empty list would mean all types to ASAPP, so none is ever given.
fn wanted(filters: &[Filter], feed: &str) -> Wanted {
    if !filters.iter().any(|filter| filter.wants_feed(feed)) {
        return Wanted::Nothing("no sink that is switched on wants this feed");
    }
    let documented: Vec<&'static str> = Feed::of(feed).event_types().collect();
    let wants = |event_type: &&str| filters.iter().any(|filter| filter.wants_type(feed, event_type));
    let types: Vec<&'static str> = documented.iter().copied().filter(wants).collect();
    if types.len() == documented.len() {
        Wanted::Everything
    } else if types.is_empty() {
        Wanted::Nothing("the filters of the sinks leave out every event type of this feed")
    } else {
        Wanted::Types(types)
    }
}

/// Where the feed is to be posted. Of several endpoints that take it, those with an address come first, then those that
/// are bound to it.
fn target(endpoints: &[Endpoint], feed: &str, warnings: &mut Vec<String>) -> Result<Target, Problem> {
    let is_bound = |endpoint: &Endpoint| endpoint.feeds.iter().any(|bound| bound == feed);
    let mut taking: Vec<&Endpoint> =
        endpoints.iter().filter(|endpoint| endpoint.feeds.is_empty() || is_bound(endpoint)).collect();
    taking.sort_by_key(|endpoint| (endpoint.public_url.is_none(), !is_bound(endpoint)));
    let problem = |key: String, what: String, remedy: &str| Problem {
        key,
        source: "settings".to_owned(),
        what,
        remedy: remedy.to_owned(),
    };
    let Some((endpoint, others)) = taking.split_first() else {
        let what = format!("take no {feed}, which a sink wants");
        let remedy = "add the feed to the feeds of an endpoint, or leave it out in the sinks' filters";
        return Err(problem("endpoints".to_owned(), what, remedy));
    };
    let Some(url) = endpoint.public_url.clone() else {
        let what = format!("is missing: {feed} would have nowhere to go");
        let remedy = "write the address ASAPP posts to, as https://HOST/PATH";
        return Err(problem(format!("endpoints.{}.public_url", endpoint.name), what, remedy));
    };
    if !others.is_empty() {
        let others: Vec<String> = others.iter().map(|other| format!("endpoints.{}", other.name)).collect();
        let (chosen, others) = (&endpoint.name, others.join(", "));
        warnings.push(format!("the url is that of endpoints.{chosen}; {others} would take this feed too"));
    }
    Ok(Target { url, timeout_ms: endpoint.timeout_ms, retries: endpoint.retries })
}
