//! The simulator as a child process.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::pki::{Identity, PKI};

const PROGRAM: &str = env!("CARGO_BIN_EXE_asapp-receiver");

/// `simulate` to this URL as `client`.
pub(crate) fn simulate(url: &str, client: &Identity) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["simulate", "--url", url, "--json"]).arg("--ca").arg(&PKI.ca.certificate);
    command.arg("--cert").arg(&client.chain).arg("--key").arg(&client.key).stdin(Stdio::null());
    command
}

/// `simulate --verify` of these files, `-` among them.
pub(crate) fn verification<F: AsRef<Path>>(ledger: &Path, files: &[F]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("simulate").arg("--verify").arg(ledger).arg("--against").args(files.iter().map(AsRef::as_ref));
    command
}

/// What it says, with more arguments.
pub(crate) fn verify<F: AsRef<Path>>(ledger: &Path, files: &[F], arguments: &[&str]) -> Output {
    verification(ledger, files).args(arguments).stdin(Stdio::null()).output().unwrap()
}
