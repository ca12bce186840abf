//! The servers under load, each a process of its own on one core.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::pki::Pki;

pub(crate) const RECEIVER: &str = env!("CARGO_BIN_EXE_asapp-receiver");

/// The core of the servers, and the one of the load.
pub(crate) struct Cores {
    servers: usize,
    load: usize,
}

impl Cores {
    pub(crate) fn choose() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let servers = cores.next().unwrap();
        Self { servers, load: cores.next().unwrap_or(servers) }
    }

    /// Starts `command` on the servers' core: a child keeps to its parent's.
    fn start(&self, command: &mut Command) -> Child {
        keep_to(self.servers);
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    /// Keeps this thread, and those that it starts, to the load's core.
    pub(crate) fn keep_for_load(&self) {
        keep_to(self.load);
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, load } = self;
        match servers == load {
            true => write!(f, "server and load share core {load}, the only one: expect worse figures"),
            false => write!(f, "server on core {servers}, load on core {load}"),
        }
    }
}

fn keep_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).unwrap();
}

/// A server. Dropped, it is killed.
pub(crate) struct Server {
    name: String,
    child: Child,
    address: SocketAddr,
    /// Of a receiver.
    admin: Option<SocketAddr>,
    /// Answers the load has had.
    expected: Cell<u64>,
}

impl Server {
    pub(crate) fn baseline(cores: &Cores, pki: &Pki) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve-baseline").arg(&pki.0).stdout(Stdio::piped());
        let mut child = cores.start(&mut command);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Self { name: "bare server".to_owned(), child, address, admin: None, expected: Cell::new(0) }
    }

    /// A receiver with a fresh journal in `folder`.
    pub(crate) fn receiver(program: &Path, cores: &Cores, pki: &Pki, folder: &Path, settings: &[String]) -> Self {
        fs::create_dir(folder).unwrap();
        let settings = pki.settings(folder, &settings.join("\n"));
        let mut command = Command::new(program);
        command.arg("--config").arg(settings).arg("serve").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = cores.start(&mut command);
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = log.lines().map(Result::unwrap);
        let listening = lines.find(|line| line.contains("\"listening\"")).expect("a receiver that listens");
        let listening: serde_json::Value = serde_json::from_str(&listening).unwrap();
        let address = |field: &str| listening[field].as_str().unwrap().parse().unwrap();
        // What else it has to say belongs on the terminal.
        std::thread::spawn(move || lines.for_each(|line| println!("{line}")));
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, address: address("events"), admin: Some(address("admin")), child, expected: Cell::new(0) }
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Processor time used so far, in the kernel too.
    pub(crate) fn cpu(&self) -> Duration {
        // A tick of /proc is a hundredth of a second whatever the kernel's own are.
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let (user, system): (u32, u32) = (fields[11].parse().unwrap(), fields[12].parse().unwrap());
        TICK * (user + system)
    }

    /// Commit groups written so far.
    pub(crate) fn groups(&self) -> u64 {
        self.metric("journal_groups_total").unwrap_or(0)
    }

    /// The load has had so many answers more.
    pub(crate) fn expect(&self, answered: u64) {
        self.expected.set(self.expected.get() + answered);
    }

    /// Every event that was answered is stored: nothing was measured but that.
    pub(crate) fn check(&self) {
        if let Some(stored) = self.metric("stored_total") {
            assert_eq!(stored, self.expected.get(), "{}: stored, and answered", self.name);
        }
    }

    /// `None` for a server without an admin port.
    fn metric(&self, name: &str) -> Option<u64> {
        let mut stream = TcpStream::connect(self.admin?).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("asapp_receiver_")?.strip_prefix(name));
        Some(line.unwrap().trim().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
