//! A journal moves: out of a folder into a cluster, and back.

mod migration;

use std::path::Path;
use std::sync::Arc;

use super::local::{self, DATABASE};
use super::{Cursor, Held, Journal};
use crate::admission::Admission;
use crate::config::{self, Config};
use crate::telemetry::Metrics;
use migration::Migration;
pub use migration::{MigrateError, Moved};

impl Journal {
    /// Moves what the embedded journal in `folder` holds into the cluster of `settings`. `told` hears how many events are
    /// done, of how many.
    ///
    /// # Errors
    /// [`MigrateError`]; what was moved stays.
    pub async fn into_cluster(
        config: &Config,
        settings: &config::Nats,
        folder: &Path,
        told: impl FnMut(u64, u64),
    ) -> Result<Moved, MigrateError> {
        if !folder.join(DATABASE).exists() {
            return Err(MigrateError::Nothing);
        }
        let metrics = Arc::new(Metrics::new());
        let migration = Migration::open(config, settings, &metrics).await?;
        let (source, sinks, _) = Self::start(Arc::new(embedded_in(config, folder)), metrics).await?;
        let (Held::Local(inner), sinks) = (&source.held, embedded(sinks)) else { return Err(MigrateError::Nothing) };
        let moved = migration.to_cluster(inner, &sinks, told).await;
        source.close().await;
        moved
    }

    /// Moves what the cluster of `settings` holds into a new embedded journal in `folder`, as
    /// [`into_cluster`](Self::into_cluster) does.
    ///
    /// # Errors
    /// [`MigrateError`]; what was moved stays.
    pub async fn into_folder(
        config: &Config,
        settings: &config::Nats,
        folder: &Path,
        told: impl FnMut(u64, u64),
    ) -> Result<Moved, MigrateError> {
        let metrics = Arc::new(Metrics::new());
        let migration = Migration::open(config, settings, &metrics).await?;
        let admission = Admission::new(&config.listen, Arc::clone(&metrics));
        let (target, sinks, _) = Self::start(Arc::new(embedded_in(config, folder)), metrics).await?;
        let (Held::Local(inner), sinks) = (&target.held, embedded(sinks)) else { return Err(MigrateError::Nothing) };
        let moved = migration.to_folder(inner, &sinks, &admission, told).await;
        target.close().await;
        moved
    }
}

/// The same settings for an embedded journal in this folder.
fn embedded_in(config: &Config, folder: &Path) -> Config {
    let mut config = config.clone();
    config.journal.engine = config::Engine::Sqlite;
    config.journal.path = folder.to_owned();
    config.journal.nats = None;
    config
}

fn embedded(cursors: Vec<Cursor>) -> Vec<local::Cursor> {
    let embedded = |cursor| if let Cursor::Local(cursor) = cursor { Some(cursor) } else { None };
    cursors.into_iter().filter_map(embedded).collect()
}
