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

    /// Where servers that are started from now on run: a child keeps to its parent's cores.
    pub(crate) fn keep_for_servers(&self) {
        keep_to([self.servers]);
    }

    /// Keeps this thread, and those that it starts, to the load's core.
    pub(crate) fn keep_for_load(&self) {
        keep_to([self.load]);
    }

    /// For servers and load alike.
    pub(crate) fn share(&self) {
        keep_to([self.servers, self.load]);
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

fn keep_to(cores: impl IntoIterator<Item = usize>) {
    let mut set = CpuSet::new();
    cores.into_iter().for_each(|core| set.set(core));
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

/// Processor time that a process has used so far, in the kernel too.
pub(crate) fn cpu(process: &Child) -> Duration {
    // A tick of /proc is a hundredth of a second whatever the kernel's own are.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let (user, system): (u32, u32) = (fields[11].parse().unwrap(), fields[12].parse().unwrap());
    TICK * (user + system)
}

/// How a server is run.
#[derive(Clone, Copy)]
pub(crate) enum Run<'a> {
    Plain,
    /// Under callgrind, which counts instructions once it is told to, and writes what they were spent on to this file.
    Counted(&'a Path),
}

impl Run<'_> {
    fn command(self, program: &Path) -> Command {
        let mut command = match self {
            Self::Plain => Command::new(program),
            Self::Counted(counts) => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--tool=callgrind", "--instr-atstart=no"]);
                command.arg(format!("--callgrind-out-file={}", counts.display())).arg(program);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }
}

impl Server {
    pub(crate) fn baseline(run: Run<'_>, pki: &Pki) -> Self {
        let mut command = run.command(&std::env::current_exe().unwrap());
        let mut child = command.arg("--serve-baseline").arg(&pki.0).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Self { name: "bare server".to_owned(), child, address, admin: None, expected: Cell::new(0) }
    }

    /// A receiver with a fresh journal in `folder`, and one `raw` file sink there unless the settings have sinks.
    pub(crate) fn receiver(program: &Path, run: Run<'_>, pki: &Pki, folder: &Path, settings: &[String]) -> Self {
        fs::create_dir(folder).unwrap();
        let mut settings = settings.to_vec();
        if !settings.iter().any(|setting| setting.starts_with("sinks.")) {
            let path = folder.join("events.jsonl");
            let path = path.display();
            settings.push(format!(
                "sinks.file = {{ type = 'file', path = '{path}', rotate_bytes = '512MiB', keep_files = 1 }}"
            ));
        }
        let settings = pki.settings(folder, &settings.join("\n"));
        let mut command = run.command(program);
        command.arg("--config").arg(settings).arg("serve").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
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
        cpu(&self.child)
    }

    /// Events that the load had answers for.
    pub(crate) fn answered(&self) -> u64 {
        self.expected.get()
    }

    /// From now on instructions are counted, those in user space; of a server run [`Run::Counted`].
    pub(crate) fn count(&self) {
        self.control("--instr=on");
    }

    /// Instructions counted since; what they were spent on is in the file at `counts`, for callgrind_annotate.
    pub(crate) fn counted(&self, counts: &Path) -> u64 {
        self.control("--dump");
        // The first dump's number is appended to the name.
        let counts = counts.with_added_extension("1");
        let text = fs::read_to_string(&counts).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
        total.trim().parse().unwrap()
    }

    fn control(&self, what: &str) {
        let output = Command::new("callgrind_control").arg(what).arg(self.child.id().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Commit groups written so far.
    pub(crate) fn groups(&self) -> u64 {
        self.metric("journal_groups_total").unwrap_or(0)
    }

    /// The load has had so many answers more.
    pub(crate) fn expect(&self, answered: u64) {
        self.expected.set(self.expected.get() + answered);
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
    /// Every event that was answered is stored: nothing was measured but that.
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(stored) = self.metric("stored_total")
        {
            assert_eq!(stored, self.expected.get(), "{}: stored, and answered", self.name);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
