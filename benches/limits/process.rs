//! A server as a child process, seen from outside.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::pki::Pki;

/// Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    started: Instant,
    pub(crate) address: SocketAddr,
    /// Of a receiver.
    admin: Option<SocketAddr>,
}

impl Process {
    /// `serve` with these settings, once it is ready, and how long that took from its exec on.
    pub(crate) fn receiver(settings: &Path) -> (Self, Duration) {
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"));
        command.arg("--config").arg(settings).arg("serve");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let listening = lines.find(|line| line.contains("\"listening\"")).expect("a receiver that listens");
        let listening: serde_json::Value = serde_json::from_str(&listening).unwrap();
        let address = |port: &str| listening[port].as_str().unwrap().parse().unwrap();
        let process = Self { child, started, address: address("events"), admin: Some(address("admin")) };
        // It must not block on them; that a sink is down or out of the settings is meant here.
        std::thread::spawn(move || lines.for_each(drop));
        while !process.ask("/readyz").unwrap().starts_with("HTTP/1.1 200 ") {
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = process.started.elapsed();
        (process, took)
    }

    /// The least that any server on this stack has to hold.
    pub(crate) fn bare(pki: &Pki) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve-baseline").arg(&pki.0).stdin(Stdio::null()).stdout(Stdio::piped());
        let (mut child, started) = (command.spawn().unwrap(), Instant::now());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, started, address: line.trim().parse().unwrap(), admin: None }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes, and the most there ever was.
    pub(crate) fn resident(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        (kib("VmRSS:") << 10, kib("VmHWM:") << 10)
    }

    /// Processor time so far, of all its threads that live: it can become less, as threads end.
    pub(crate) fn processor(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of_task = |task: io::Result<fs::DirEntry>| -> Option<u64> {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        Duration::from_nanos(tasks.filter_map(of_task).sum())
    }

    /// The admin port of a receiver.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    /// The sum over the series of a metric.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.ask("/metrics").unwrap();
        let name = format!("asapp_receiver_{name}");
        let of_name = text.lines().filter_map(|line| line.strip_prefix(&name)?.strip_prefix(['{', ' ']));
        of_name.map(|line| line.rsplit([' ', '}']).next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn ask(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin.unwrap())?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something that will be.
pub(crate) fn wait(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < patience, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
