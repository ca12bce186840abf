//! The simulator as a child process.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::pki::{Identity, PKI};
use super::programs::json_of;

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

/// A simulator that goes on until it is told to stop. Dropped, it is killed.
pub(crate) struct Simulator(Option<Child>);

impl Simulator {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// SIGTERM, then its summary.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Value {
        let child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json_of(&output)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
