//! What the verbs print and ask, and how they fail.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::config::Problems;
use crate::terminal;

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    On,
    Away,
}

/// Why a command ends with an exit code other than 0.
#[derive(Debug, Clone)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// The command was right, but it did not work out.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// As [`failed`](Self::failed), with the causes of the error.
    pub fn from_error(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        Self::failed(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }

    /// What was written on the command line is not enough.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// The settings, or what they name, must be corrected first.
    pub fn configuration(text: impl Into<String>) -> Self {
        Self { code: 78, text: text.into() }
    }

    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }

    /// What to print on stderr, with nothing in it that steers a terminal; empty when everything is printed already.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        terminal::escaped(&self.text)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::configuration(problems.to_string())
    }
}

/// Prints to stdout. A reader that has gone away is no failure: it has seen what it wanted.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_on(text.as_bytes()).map(|_| ())
}

/// Prints to stdout, and says whether anyone is still reading. Whatever events hold, it does not steer a terminal.
pub(super) fn print_on(text: &[u8]) -> Result<Go, Failure> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { terminal::escaped_bytes(text) } else { Cow::Borrowed(text) };
    match out.write_all(&text).and_then(|()| out.flush()) {
        Ok(()) => Ok(Go::On),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Go::Away),
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Does `work`, whose only purpose is what it prints: when stdout has no reader any more, it ends, and that is no failure.
pub(super) async fn while_read(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        biased;
        done = work => done,
        () = reader_gone() => Ok(()),
    }
}

/// Back when the other end of stdout is closed, without waiting for a write to fail: `tail | head -1` ends with its first
/// line. Never, where stdout has no other end, as a file.
pub(super) async fn reader_gone() {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    // Only waited for, so it may go on blocking writers. Files cannot be waited for.
    let watched = stdout.ok().and_then(|out| pipe::Sender::from_owned_fd_unchecked(out).ok());
    // A pipe without a reader is an error, a socket without a peer has been hung up: of either nothing else comes here.
    let gone = match &watched {
        Some(stdout) => stdout.ready(Interest::ERROR.add(Interest::READABLE)).await.is_ok(),
        None => false,
    };
    if !gone {
        std::future::pending().await
    }
}

/// Tells a person something on stderr, beside the output.
pub(super) fn tell(text: &str) {
    // When stderr is gone, there is no one to tell.
    let _ = io::stderr().lock().write_all(terminal::escaped(text).as_bytes());
}

/// Asks whether something that cannot be undone is meant; `what` says how much it is. Only a person is asked: a program has
/// to give `--yes`.
///
/// # Errors
/// It is not meant.
pub(super) fn agree(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{what}: give --yes to mean it")));
    }
    tell(&format!("{what}. Go on? [y/N] "));
    let mut answer = String::new();
    match io::stdin().read_line(&mut answer) {
        Ok(_) if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) => Ok(()),
        _ => Err(Failure::failed("nothing was changed")),
    }
}

/// `1 event`, `2 events`.
pub(super) fn count(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// `"90s"`, `"5m"`: a duration on the command line.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a duration such as 30s or 5m".to_owned())
}

/// Events a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1_000_000.0 => Ok(rate),
        _ => Err("write a number of events a second, above 0 and up to 1000000".to_owned()),
    }
}
