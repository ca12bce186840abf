use super::{
    link::{Link, NatsError},
    records::Records,
};
use crate::config::Config;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
#[derive(Debug, Clone, Default)]
pub(super) struct Stock {
    pub count: u64,
    pub bytes: u64,
    pub newest: u64,
}
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub first: u64,
    pub bytes: u64,
    pub oldest: Option<SystemTime>,
    pub healthy: Result<(), String>,
    pub dead: Stock,
    pub quarantine: Stock,
    pub sync_always: Option<bool>,
}
pub(super) struct Janitor;
impl Janitor {
    pub(super) async fn start(
        link: &Link,
        _r: &Records,
        _c: &Config,
        tail: &watch::Sender<u64>,
        _f: &watch::Sender<bool>,
        tasks: &TaskTracker,
        ending: CancellationToken,
    ) -> Result<watch::Receiver<Seen>, NatsError> {
        let (tx, rx) = watch::channel(Seen {
            first: 1,
            bytes: 0,
            oldest: None,
            healthy: Ok(()),
            dead: Stock::default(),
            quarantine: Stock::default(),
            sync_always: None,
        });
        let (link, tail) = (link.clone(), tail.clone());
        tasks.spawn(async move {
            while ending.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
                if let Ok(i) = link.info(link.names().events()).await {
                    tail.send_if_modified(|t| {
                        let n = *t < i.state.last_sequence;
                        *t = (*t).max(i.state.last_sequence);
                        n
                    });
                    tx.send_modify(|s| {
                        s.first = i.state.first_sequence;
                        s.bytes = i.state.bytes;
                    });
                }
            }
        });
        Ok(rx)
    }
}
