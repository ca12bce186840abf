//! The streams: made where they are not there, else compared with what the journal's promises need, and never changed.

use std::time::Duration;

use async_nats::ServerInfo;
use async_nats::jetstream::stream::{Info, PeerInfo};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::error::{NO_STREAM, NatsError};
use super::fitness;
use super::fitness::{Kind, Verdict};
use super::link::Link;
use super::monitor;
use crate::config::{self, Config};

/// A new cluster, or one that has just lost a leader, needs a while.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

/// What `check` shows of a cluster; a line each, begun by the key of the settings that it is about.
#[derive(Debug, Default)]
pub struct ClusterFindings {
    pub facts: Vec<String>,
    pub warnings: Vec<String>,
    /// With these the receiver would not start.
    pub problems: Vec<String>,
    /// What the cluster did not do or tell now.
    pub failure: Option<String>,
}

/// Connects, looks, and changes nothing; half a minute at most.
pub async fn examine_cluster(config: &Config, settings: &config::Nats) -> ClusterFindings {
    let examined = async {
        let link = Link::connect(settings).await?;
        examine(&link, config, settings).await
    };
    match examined.await {
        Ok(found) => ClusterFindings {
            facts: found.facts(),
            warnings: found.verdict.warnings,
            problems: found.verdict.problems,
            failure: None,
        },
        Err(NatsError::Unfit(problems)) => ClusterFindings { problems, ..ClusterFindings::default() },
        Err(error) => {
            let failure = Some(format!("journal.nats.servers: {error}"));
            ClusterFindings { failure, ..ClusterFindings::default() }
        }
    }
}

/// Makes the streams that are not there, unless something found does not do. Gives what an operator should know.
///
/// # Errors
/// [`NatsError::Unfit`] with all that must be different.
pub(crate) async fn ensure(link: &Link, config: &Config) -> Result<Vec<String>, NatsError> {
    let Some(settings) = &config.journal.nats else { return Ok(Vec::new()) };
    let Findings { server, streams, mut verdict, .. } = examine(link, config, settings).await?;
    if !verdict.problems.is_empty() {
        return Err(NatsError::Unfit(verdict.problems));
    }
    for (kind, ..) in streams.into_iter().filter(|(.., info)| info.is_none()) {
        let made = make(link, config, settings, kind).await?;
        verdict.extend(fitness::of_stream(kind, link.names(), &made.config, &server, config, settings));
    }
    if verdict.problems.is_empty() { Ok(verdict.warnings) } else { Err(NatsError::Unfit(verdict.problems)) }
}

/// Looks, and makes nothing.
///
/// # Errors
/// [`NatsError::Unavailable`] and [`NatsError::Refused`], when something cannot be seen.
async fn examine(link: &Link, config: &Config, settings: &config::Nats) -> Result<Findings, NatsError> {
    let server = link.client().server_info();
    let mut verdict = fitness::of_server(&server, config, settings);
    // Without JetStream nobody answers.
    let kinds = Kind::ALL.into_iter().filter(|_| server.jetstream);
    let infos = kinds.map(async |kind| (kind, patiently(|| link.info(kind.name(link.names()))).await));
    let mut streams = Vec::new();
    for (kind, info) in join_all(infos).await {
        let info = match info {
            Ok(info) => Some(info),
            Err(NatsError::Refused { code: NO_STREAM, .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(info) = &info {
            verdict.extend(fitness::of_stream(kind, link.names(), &info.config, &server, config, settings));
        }
        streams.push((kind, kind.name(link.names()).to_owned(), info));
    }
    let sync_always = monitor::sync_always(settings).await;
    verdict.warnings.extend(match (sync_always, &settings.monitor_url) {
        (Some(true), _) => None,
        (Some(false), _) => Some(
            "journal.nats.monitor_url: this server acknowledges events up to two minutes before they are on its disk: \
             a power failure of all replicas at once loses them; set sync_interval: always in the servers' \
             jetstream section, or keep the replicas on separate power"
                .to_owned(),
        ),
        (None, Some(url)) => Some(format!(
            "journal.nats.monitor_url: {url} does not tell whether this server has events on its disk before it \
             acknowledges them (sync_interval: always)"
        )),
        (None, None) => Some(
            "journal.nats.monitor_url: not set, so whether the servers have events on their disks before they \
             acknowledge them (sync_interval: always) is unknown; name a server's monitoring port"
                .to_owned(),
        ),
    });
    Ok(Findings { server, streams, verdict, sync_always })
}

/// What there is in the cluster, and how it goes with the settings.
#[derive(Debug)]
struct Findings {
    server: ServerInfo,
    streams: Vec<(Kind, String, Option<Info>)>,
    verdict: Verdict,
    sync_always: Option<bool>,
}

impl Findings {
    fn facts(&self) -> Vec<String> {
        let ServerInfo { server_name, version, cluster, .. } = &self.server;
        let place = cluster.as_ref().map_or("in no cluster".to_owned(), |cluster| format!("in the cluster {cluster}"));
        let mut facts = vec![format!("journal.nats.servers: connected to {server_name}, {version}, {place}")];
        let streams = self.streams.iter().map(|(_, name, info)| state(name, info.as_ref()));
        facts.extend(streams.map(|state| format!("journal.nats.stream: {state}")));
        if self.sync_always == Some(true) {
            let text = "this server has events on its disk before it acknowledges them (sync_interval: always)";
            facts.push(format!("journal.nats.monitor_url: {text}"));
        }
        facts
    }
}

fn state(name: &str, info: Option<&Info>) -> String {
    let Some(info) = info else { return format!("{name} is not there yet, and will be made") };
    let Info { config, state, cluster, .. } = info;
    let room = if config.max_bytes > 0 { format!(" of {}", config.max_bytes) } else { String::new() };
    let mut text = format!("{name}: {} messages, {} bytes{room}", state.messages, state.bytes);
    if let Some(cluster) = cluster.as_ref().filter(|cluster| cluster.name.is_some()) {
        let leader = cluster.leader.as_deref().map_or("no leader".to_owned(), |leader| format!("leader {leader}"));
        text.push_str(&format!(", {leader}"));
        for replica in &cluster.replicas {
            let PeerInfo { name, current, offline, lag, .. } = replica;
            let state = match (offline, current, lag) {
                (true, ..) => "is away".to_owned(),
                (_, false, Some(lag)) => format!("is {lag} behind"),
                (_, false, None) => "is behind".to_owned(),
                _ => "is current".to_owned(),
            };
            text.push_str(&format!(", {name} {state}"));
        }
    }
    text
}

/// Another receiver may be making the same.
async fn make(link: &Link, config: &Config, settings: &config::Nats, kind: Kind) -> Result<Info, NatsError> {
    const EXISTS_DIFFERENTLY: u64 = 10058;
    let wanted = kind.wanted(link.names(), config, settings);
    let subject = format!("STREAM.CREATE.{}", wanted.name);
    let made = match patiently(|| link.api(&subject, &wanted)).await {
        Err(NatsError::Refused { code: EXISTS_DIFFERENTLY, .. }) => link.info(&wanted.name).await,
        Err(NatsError::Refused { code, text }) => {
            let remedy = remedy_of_refusal(code);
            return Err(NatsError::Unfit(vec![format!("{} cannot be made: {text} ({code}): {remedy}", wanted.name)]));
        }
        made => made,
    };
    if made.is_ok() {
        tracing::info!(stream = wanted.name, "stream made");
    }
    made
}

fn remedy_of_refusal(code: u64) -> &'static str {
    match code {
        10074 => "journal.nats.replicas = 1 is what a single server can keep",
        10005 => "the cluster has fewer servers that can take it than journal.nats.replicas, or too little storage",
        10047 | 10023 | 10002 | 10028 => {
            "the whole of max_bytes is reserved: lower journal.nats.max_bytes, dead_letters.max_bytes or \
             quarantine.max_bytes, or give the servers or the account more (max_file_store)"
        }
        10065 => "another stream takes these subjects: remove it, or name another in journal.nats.stream",
        10076 | 10039 => "enable JetStream on the servers and for the receiver's account",
        10027 => "the account may have no more streams: raise that limit; the receiver needs four",
        _ => "see what the servers' logs say of it",
    }
}

/// Asks again while the cluster does not answer, for 10 s.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, NatsError>>>(
    ask: impl Fn() -> F,
) -> Result<T, NatsError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(NatsError::Unavailable(_)) if Instant::now() < end => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}
