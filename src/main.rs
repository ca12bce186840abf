//! The command line: arguments in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use asapp_receiver::commands::{Cli, Failure};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))
        .and_then(|runtime| runtime.block_on(cli.run()));
    match outcome {
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
