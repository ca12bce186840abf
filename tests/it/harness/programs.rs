//! Real programs: curl and OpenSSL in front of the receiver, and those in Python that verify.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::pki::{Identity, PKI};
use super::receiver::Receiver;
use super::wire::Answer;

/// What OpenSSL's client said, all of it.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) success: bool,
    /// What came from the server, between OpenSSL's own remarks.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// curl to `path` as the good client, with more of its arguments; the body, if any, comes from its standard input.
#[track_caller]
pub(crate) fn curl(receiver: &Receiver, path: &str, arguments: &[&str], stdin: &[u8]) -> Answer {
    let url = format!("https://localhost:{}{path}", receiver.events.port());
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--max-time", "20", "--noproxy", "*"]);
    command.arg("--cacert").arg(&PKI.ca.certificate).arg("--cert").arg(&PKI.client.chain);
    command.arg("--key").arg(&PKI.client.key).args(arguments).arg(url);
    let said = run(command, stdin);
    let text = said.stdout.as_bytes();
    let Some((answer, _)) = Answer::parse(text) else { panic!("curl: {said:?}") };
    answer
}

/// `openssl s_client` as `client`, with more of its arguments; sends `stdin`, then reads until the end.
#[track_caller]
pub(crate) fn s_client(receiver: &Receiver, client: Option<&Identity>, arguments: &[&str], stdin: &[u8]) -> Said {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &receiver.events.to_string(), "-servername", "localhost"]);
    command.args(["-ign_eof", "-verify_return_error"]).arg("-CAfile").arg(&PKI.ca.certificate);
    if let Some(client) = client {
        command.arg("-cert").arg(&client.chain).arg("-key").arg(&client.key);
    }
    command.args(arguments);
    run(command, stdin)
}

/// A program in `tests/verify`, with the libraries it needs.
#[track_caller]
pub(crate) fn verifier(program: &str) -> Command {
    let mut command = Command::new(installed("python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify").join(program));
    command
}

/// A program that `tests/verify/requirements.txt` brings along.
#[track_caller]
pub(crate) fn installed(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("verify").join("bin").join(program);
    assert!(path.exists(), "{} is missing: tests/run makes it", path.display());
    path
}

/// What a program printed, as JSON.
#[track_caller]
pub(crate) fn json_of(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"))
}

fn run(mut command: Command, stdin: &[u8]) -> Said {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // The program may well end without reading all of it.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Said {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
