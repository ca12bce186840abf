//! The command line: arguments in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use asapp_receiver::commands::{Cli, Failure};
use asapp_receiver::telemetry;
use clap::Parser;

fn main() -> ExitCode {
    telemetry::install_panic_hook();
    let cli = Cli::parse();
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli.run());
            // A thread may be stuck in a write that nobody reads; it must not keep the process.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::failed(format!("cannot start the runtime: {error}"))),
    };
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
