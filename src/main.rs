//! The command line: arguments in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use asapp_receiver::commands::Cli;
use asapp_receiver::telemetry;
use clap::Parser;

fn main() -> ExitCode {
    telemetry::install_panic_hook();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text().is_empty() {
                // When stderr is gone too, there is no one to tell.
                let _ = writeln!(std::io::stderr(), "asapp-receiver: {}", failure.text());
            }
            ExitCode::from(failure.code())
        }
    }
}
