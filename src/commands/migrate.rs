//! `migrate`: moves a journal from a folder into a cluster, or back.

use std::path::PathBuf;

use super::output::Failure;

/// Move a journal from a folder into the cluster of the settings, or back
///
/// No receiver may run on either of them meanwhile. What a journal is taken from stays as it is: put it away afterwards,
/// for a receiver that is started on it delivers its events once more. A run that broke off is begun again; what it had
/// moved is found known within journal.nats.duplicate_window.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: asapp-receiver --config /etc/asapp-receiver/cluster.toml migrate --from /var/lib/asapp-receiver/journal"
)]
pub struct Args {
    /// The embedded journal's folder, whose events, dead letters and quarantine go into the cluster
    #[arg(long, value_name = "FOLDER", required_unless_present = "to", conflicts_with = "to")]
    from: Option<PathBuf>,
    /// A new folder, into which those of the cluster go
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Moves the journal.
///
/// # Errors
/// Settings without a cluster, journals that cannot be opened, or what stopped the move; a build without the engine `nats`.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    with_cluster::run(args, files).await
}

#[cfg(not(feature = "nats"))]
mod with_cluster {
    use std::path::PathBuf;

    use super::Args;
    use crate::about::Feature;
    use crate::commands::output::Failure;

    #[expect(clippy::unused_async, reason = "the other build waits")]
    pub(super) async fn run(Args { from: _, to: _, json: _ }: Args, _: &[PathBuf]) -> Result<(), Failure> {
        let remedy = Feature::Nats.remedy();
        Err(Failure::configuration(format!(
            "journal.engine \"nats\" is not in this build, so nothing can be moved: {remedy}"
        )))
    }
}

#[cfg(feature = "nats")]
mod with_cluster {
    use std::path::PathBuf;

    use indicatif::{ProgressBar, ProgressStyle};

    use super::Args;
    use crate::commands::output::{Failure, print, tell};
    use crate::config::Config;
    use crate::journal::{Journal, MigrateError, Moved};

    pub(super) async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
        let (config, _) = Config::load(files)?;
        let Some(settings) = &config.journal.nats else {
            return Err(Failure::configuration(
                "journal.engine is not \"nats\": give the settings of the cluster, such as --config cluster.toml",
            ));
        };
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos} of {len} events, {eta} left") {
            bar.set_style(style);
        }
        let told = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let moved = match (args.from, args.to) {
            (Some(folder), _) => Journal::into_cluster(&config, settings, &folder, told).await,
            (None, Some(folder)) => Journal::into_folder(&config, settings, &folder, told).await,
            (None, None) => return Err(Failure::usage("name a folder with --from or --to")),
        };
        bar.finish_and_clear();
        let Moved { events, known, dead_letters, quarantined } =
            moved.map_err(|error: MigrateError| Failure::from_error(&error))?;
        if args.json {
            let told = serde_json::json!({ "events": events, "known": known, "dead_letters": dead_letters, "quarantined": quarantined });
            return print(&format!("{told}\n"));
        }
        tell(
            "put away what the journal was taken from: a receiver that is started on it delivers its events once more\n",
        );
        print(&format!(
            "moved {events} events ({known} of them were there already), {dead_letters} dead letters, {quarantined} quarantined bodies\n"
        ))
    }
}
