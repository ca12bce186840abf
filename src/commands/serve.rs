//! `serve`: runs the receiver until SIGTERM or SIGINT, then drains.

use std::path::PathBuf;

use super::Failure;
use crate::config::Config;
use crate::telemetry;

/// Run the receiver until SIGTERM or SIGINT, then drain
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver --config /etc/asapp-receiver/production.toml serve")]
pub struct Args {}

/// Serves until told to stop.
///
/// # Errors
/// Settings that cannot be used, a start that did not work out, a journal that failed.
pub async fn run(_: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let (config, warnings) = Config::load(files)?;
    telemetry::init_logging(&config.log).map_err(|error| Failure::failed(error.to_string()))?;
    for warning in warnings {
        tracing::warn!(key = warning.key, source = warning.source, "settings: {}", warning.what);
    }
    Err(Failure::failed("serve is not written yet"))
}
