//! What an operator can do to the streams of servers, by the servers' API.

use std::future::IntoFuture;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, ServerAddr};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::NatsPki;

/// A cluster that has just been killed takes a while to have leaders.
const PATIENCE: Duration = Duration::from_secs(90);
const TRY: Duration = Duration::from_secs(5);

/// A client of its own.
pub(crate) struct JetStream {
    runtime: Runtime,
    client: Client,
}

/// A stream as it was, without its consumers.
pub(crate) struct Backup {
    stream: String,
    config: Value,
    state: Value,
    chunks: Vec<Bytes>,
}

impl JetStream {
    /// With `pki`, over mutual TLS.
    pub(crate) fn connect(urls: &[String], pki: Option<&NatsPki>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let servers: Vec<ServerAddr> = urls.iter().map(|url| url.parse().unwrap()).collect();
        let mut options = ConnectOptions::new().retry_on_initial_connect().max_reconnects(None);
        if let Some(pki) = pki {
            options = options.require_tls(true).add_root_certificates(pki.ca.certificate.clone());
            options = options.add_client_certificate(pki.client.chain.clone(), pki.client.key.clone());
        }
        let client = runtime.block_on(options.connect(servers)).unwrap();
        Self { runtime, client }
    }

    /// What the API answers, an error or not; asked again while nobody does.
    #[track_caller]
    pub(crate) fn api(&self, subject: &str, request: &Value) -> Value {
        let payload = if request.is_null() { String::new() } else { request.to_string() };
        self.ask(&format!("$JS.API.{subject}"), payload.into())
    }

    #[track_caller]
    fn ask(&self, subject: &str, payload: Bytes) -> Value {
        let begun = Instant::now();
        loop {
            let request = self.client.request(subject.to_owned(), payload.clone()).into_future();
            let answer = self.runtime.block_on(async { timeout(TRY, request).await });
            if let Ok(Ok(answer)) = answer {
                let said: Value = serde_json::from_slice(&answer.payload).unwrap_or(Value::Null);
                // No leader yet.
                if ![10_008, 10_009, 10_007].iter().any(|code| said["error"]["err_code"] == *code) {
                    return said;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{subject} is not answered");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    pub(crate) fn info(&self, stream: &str) -> Value {
        self.api(&format!("STREAM.INFO.{stream}"), &Value::Null)
    }

    #[track_caller]
    pub(crate) fn delete(&self, stream: &str) {
        let deleted = self.api(&format!("STREAM.DELETE.{stream}"), &Value::Null);
        assert!(deleted["error"].is_null(), "{deleted}");
    }

    #[track_caller]
    pub(crate) fn make(&self, config: &Value) {
        let made = self.api(&format!("STREAM.CREATE.{}", config["name"].as_str().unwrap()), config);
        assert!(made["error"].is_null(), "{made}");
    }

    #[track_caller]
    pub(crate) fn purge(&self, stream: &str) {
        let purged = self.api(&format!("STREAM.PURGE.{stream}"), &Value::Null);
        assert!(purged["error"].is_null(), "{purged}");
    }

    /// Stores a message.
    #[track_caller]
    pub(crate) fn publish(&self, subject: &str, payload: &'static str) {
        let stored = self.ask(subject, payload.into());
        assert!(stored["error"].is_null(), "{stored}");
    }

    /// Purges the messages of a subject, or of those that it matches.
    #[track_caller]
    pub(crate) fn purge_subject(&self, stream: &str, subject: &str) {
        let purged = self.api(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": subject }));
        assert!(purged["purged"].as_u64() > Some(0), "{purged}");
    }

    /// The newest message of a subject, as JSON.
    pub(crate) fn newest(&self, stream: &str, subject: &str) -> Option<Value> {
        let found = self.api(&format!("STREAM.MSG.GET.{stream}"), &json!({ "last_by_subj": subject }));
        let data = STANDARD.decode(found["message"]["data"].as_str()?).ok()?;
        serde_json::from_slice(&data).ok()
    }

    #[track_caller]
    pub(crate) fn backup(&self, stream: &str) -> Backup {
        let inbox = self.client.new_inbox();
        let mut messages = self.runtime.block_on(self.client.subscribe(inbox.clone())).unwrap();
        let request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": 65536 });
        let begun = self.api(&format!("STREAM.SNAPSHOT.{stream}"), &request);
        assert!(begun["error"].is_null(), "{begun}");
        let chunks = self.runtime.block_on(async {
            let mut chunks = Vec::new();
            loop {
                let message = timeout(TRY, messages.next()).await.unwrap().unwrap();
                if let Some(reply) = message.reply {
                    self.client.publish(reply, Bytes::new()).await.unwrap();
                }
                if message.payload.is_empty() {
                    return chunks;
                }
                chunks.push(message.payload);
            }
        });
        let (config, state) = (begun["config"].clone(), begun["state"].clone());
        Backup { stream: stream.to_owned(), config, state, chunks }
    }

    /// Makes the stream again out of its backup; it must not be there.
    #[track_caller]
    pub(crate) fn restore(&self, backup: &Backup) {
        let request = json!({ "config": backup.config, "state": backup.state });
        let begun = self.api(&format!("STREAM.RESTORE.{}", backup.stream), &request);
        assert!(begun["error"].is_null(), "{begun}");
        let subject = begun["deliver_subject"].as_str().unwrap();
        for chunk in &backup.chunks {
            let sent = self.client.request(subject.to_owned(), chunk.clone()).into_future();
            self.runtime.block_on(async { timeout(TRY, sent).await }).unwrap().unwrap();
        }
        let restored = self.ask(subject, Bytes::new());
        assert!(restored["error"].is_null(), "{restored}");
    }
}
