//! The receiver as a child process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::event::{event, new_id};
#[cfg(feature = "nats")]
use super::nats::{NatsServer, Streams};
use super::pki::{CLIENT_NAME, Identity, PKI};
use super::target::Target;
use super::wire::{Answer, Wire};
use super::{PATIENCE, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_asapp-receiver");

/// How a receiver is to be started; the same setup can be started again on the same folder.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Of the shared server.
    #[cfg(feature = "nats")]
    _streams: Option<Arc<Streams>>,
    folder: Arc<TempDir>,
    settings: BTreeMap<String, String>,
    wrapper: Vec<String>,
    stdout: Option<PathBuf>,
}

/// A running receiver. Dropped, it is killed.
pub(crate) struct Receiver {
    child: Child,
    setup: Setup,
    pub(crate) events: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) stdout: Lines,
    pub(crate) log: Lines,
}

/// Faults under way. Dropped, they are over.
pub(crate) struct Faults(Child);

/// A receiver that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    pub(crate) stdout: Vec<String>,
    pub(crate) log: Vec<String>,
}

/// The lines that a child has written so far.
#[derive(Clone)]
pub(crate) struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

/// SPEC 1.5 of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Account {
    pub(crate) received: u64,
    pub(crate) stored: u64,
    pub(crate) duplicate: u64,
    pub(crate) rejected: u64,
    pub(crate) refused: u64,
    pub(crate) in_flight: u64,
}

/// What this test run keeps journals in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Memory,
    #[cfg(feature = "nats")]
    Nats,
}

impl Engine {
    fn of_this_run() -> Self {
        match std::env::var("TEST_ENGINE").as_deref() {
            Err(_) | Ok("sqlite") => Self::Sqlite,
            Ok("memory") => Self::Memory,
            #[cfg(feature = "nats")]
            Ok("nats") => Self::Nats,
            Ok(other) => panic!("TEST_ENGINE: no engine is called {other}"),
        }
    }
}

impl Setup {
    /// A receiver with the tests' certificates, ports of its own and a fresh journal, of the engine that the environment
    /// variable `TEST_ENGINE` names: `sqlite`, unless told.
    pub(crate) fn new() -> Self {
        match Engine::of_this_run() {
            Engine::Sqlite => Self::embedded(),
            Engine::Memory => Self::embedded().set("journal.engine", "memory").set("journal.allow_loss", true),
            #[cfg(feature = "nats")]
            Engine::Nats => Self::embedded().on(NatsServer::shared()).patient(),
        }
    }

    /// The same for a test of the embedded engine's own: its files, its limits, how fast it is, what it says.
    pub(crate) fn embedded() -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        let setup = Self {
            #[cfg(feature = "nats")]
            _streams: None,
            folder,
            settings: BTreeMap::new(),
            wrapper: Vec::new(),
            stdout: None,
        };
        let journal = setup.folder.path().join("journal");
        setup
            .set("listen.address", "127.0.0.1:0")
            .set("admin.address", "127.0.0.1:0")
            .set("tls.certificate", &PKI.server.chain)
            .set("tls.private_key", &PKI.server.key)
            .set("tls.client_ca", [&PKI.ca.certificate])
            .set_toml("tls.allowed_clients", &format!("[{{ common_name = '{CLIENT_NAME}' }}]"))
            .set("journal.path", &journal)
            .set("log.level", "debug")
            .set("listen.pre_drain", "0s")
            .set("listen.drain_timeout", "10s")
            .patient()
    }

    /// Answers late rather than not at all: a machine that several share may stand still for seconds.
    fn patient(self) -> Self {
        self.set("listen.answer_within", "15s")
    }

    /// With a fresh journal on this server. Its streams go with the last copy of this setup.
    #[cfg(feature = "nats")]
    pub(crate) fn on(self, server: &'static NatsServer) -> Self {
        let streams = Streams::new(server);
        let setup = self.in_stream(server, &streams.name);
        Self { _streams: Some(Arc::new(streams)), ..setup }
    }

    /// With its journal on this server, in streams whose names begin so.
    #[cfg(feature = "nats")]
    pub(crate) fn in_stream(self, server: &NatsServer, stream: &str) -> Self {
        self.set("journal.engine", "nats")
            .set_toml("journal.nats.servers", &format!("[{:?}]", server.url()))
            .set("journal.nats.stream", stream)
            .set("journal.nats.replicas", 1)
            .set("journal.nats.partitions", 1)
            // Whoever takes its server away waits for each answer.
            .without("listen.answer_within")
    }

    /// For a test in which the journal outlives its process: an engine that keeps nothing gives way to the embedded one.
    pub(crate) fn durable(self) -> Self {
        if self.engine() == "memory" { self.without("journal.engine") } else { self }
    }

    /// Whose journal it is.
    pub(crate) fn engine(&self) -> &str {
        self.settings.get("journal.engine").map_or("sqlite", |name| name.trim_matches('"'))
    }

    /// Sets a key to a value of its own type.
    pub(crate) fn set(self, key: &str, value: impl Setting) -> Self {
        let value = value.to_toml();
        self.set_toml(key, &value)
    }

    /// Sets a key to a value written in TOML.
    pub(crate) fn set_toml(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a key back.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// With HTTP sinks of these names, each to the path of its name, that soon try again what the target does not take.
    #[cfg(feature = "nats")]
    pub(crate) fn sinks_to(self, target: &Target, sinks: &[&str]) -> Self {
        sinks.iter().fold(self, |setup, sink| {
            setup
                .set(&format!("sinks.{sink}.type"), "http")
                .set(&format!("sinks.{sink}.url"), &*target.url(&format!("/{sink}")))
                .set(&format!("sinks.{sink}.retry.initial_backoff"), "20ms")
                .set(&format!("sinks.{sink}.retry.max_backoff"), "200ms")
        })
    }

    /// Adds one sink for each way in which CloudEvents go out: `stdout` (structured), `binary` and `batch` (HTTP, to the
    /// target's `/binary` and `/batch`, in strict order).
    pub(crate) fn cloudevents_to(self, target: &Target, batch: u64) -> Self {
        self.set("sinks.stdout.format", "cloudevents")
            .set("sinks.binary.type", "http")
            .set("sinks.binary.url", &*target.url("/binary"))
            .set("sinks.binary.format", "cloudevents")
            .set("sinks.binary.ordering", "strict")
            .set("sinks.batch.type", "http")
            .set("sinks.batch.url", &*target.url("/batch"))
            .set("sinks.batch.format", "cloudevents")
            .set("sinks.batch.ordering", "strict")
            .set("sinks.batch.batch.max_events", batch)
    }

    /// Starts the receiver through another program, such as `prlimit …`.
    pub(crate) fn through(mut self, program: &[&str]) -> Self {
        self.wrapper = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Lets standard output go to the end of this file, or into this pipe, instead of [`Receiver::stdout`].
    pub(crate) fn stdout_to(mut self, file: &Path) -> Self {
        self.stdout = Some(file.to_owned());
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// The receiver, once it is ready.
    #[track_caller]
    pub(crate) fn start(&self) -> Receiver {
        let receiver = self.start_unready();
        receiver.wait_ready();
        receiver
    }

    /// The receiver, once it has told its ports.
    #[track_caller]
    pub(crate) fn start_unready(&self) -> Receiver {
        let (child, stdout, log) = self.spawn();
        let listening = log.wait("the line `listening`", |line| {
            let line = log_line(line)?;
            (line["message"] == "listening").then_some(line)
        });
        let address = |port: &str| listening[port].as_str().and_then(|text| text.parse().ok()).unwrap();
        let (events, admin) = (address("events"), address("admin"));
        Receiver { child, setup: self.clone(), events, admin, stdout, log }
    }

    /// For a receiver that should not start: waits until it has ended.
    #[track_caller]
    pub(crate) fn start_in_vain(&self) -> Ended {
        let (child, stdout, log) = self.spawn();
        end(child, &stdout, &log)
    }

    /// The settings file, which this writes, whole at once: a receiver that runs on this folder sees it.
    #[allow(clippy::disallowed_methods, reason = "nothing here has to outlive a crash")]
    pub(crate) fn write(&self) -> PathBuf {
        let file = self.folder.path().join("settings.toml");
        let text: String = self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
        file
    }

    /// A command of the program with this setup's settings.
    pub(crate) fn command(&self) -> Command {
        let file = self.write();
        let mut words = self.wrapper.iter().map(String::as_str).chain([PROGRAM]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--config").arg(file).current_dir(self.folder.path());
        command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        command
    }

    fn spawn(&self) -> (Child, Lines, Lines) {
        let mut command = self.command();
        let stdout = self.stdout.as_ref().map_or_else(Stdio::piped, |file| {
            fs::OpenOptions::new().append(true).create(true).open(file).unwrap().into()
        });
        command.arg("serve").stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map_or_else(Lines::none, Lines::read);
        let log = Lines::read(child.stderr.take().unwrap());
        (child, stdout, log)
    }
}

impl Receiver {
    /// A connection of the good client.
    #[track_caller]
    pub(crate) fn connect(&self) -> Wire {
        Wire::connect(self.events, &PKI.client).unwrap()
    }

    pub(crate) fn connect_as(&self, client: &Identity) -> std::io::Result<Wire> {
        Wire::connect(self.events, client)
    }

    /// Posts one event as the good client on a connection of its own.
    #[track_caller]
    pub(crate) fn post(&self, body: impl AsRef<[u8]>) -> Answer {
        self.connect().post(body.as_ref())
    }

    /// Posts this many events on one connection, and gives their ids.
    #[track_caller]
    pub(crate) fn store(&self, count: usize) -> Vec<String> {
        let mut wire = self.connect();
        let ids: Vec<String> = (0..count).map(|_| new_id()).collect();
        for id in &ids {
            wire.post(event(id).as_bytes()).assert_durable("stored", id);
        }
        ids
    }

    /// Waits until an event with this id came out on stdout, and gives its line.
    #[track_caller]
    pub(crate) fn delivered(&self, id: &str) -> String {
        self.stdout.wait(id, |line| line.contains(id).then(|| line.to_owned()))
    }

    /// How often an event with this id came out on stdout so far.
    pub(crate) fn deliveries(&self, id: &str) -> usize {
        self.stdout.so_far().iter().filter(|line| line.contains(id)).count()
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ask_admin("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        wait_for("the receiver to be ready", || self.is_ready().then_some(()));
    }

    /// `GET path` on the admin port.
    pub(crate) fn ask_admin(&self, path: &str) -> std::io::Result<Answer> {
        self.ask_admin_as(path, "")
    }

    /// The same, with more header lines.
    pub(crate) fn ask_admin_as(&self, path: &str, headers: &str) -> std::io::Result<Answer> {
        loop {
            let begun = Instant::now();
            let answer = self.try_admin(path, headers);
            // Who takes two seconds over a request is not waited for, and this machine may have stood still.
            if answer.is_ok() || !(Duration::from_secs(2)..PATIENCE).contains(&begun.elapsed()) {
                return answer;
            }
        }
    }

    fn try_admin(&self, path: &str, headers: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.admin);
        stream.write_all(head.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Answer::parse(&bytes).map(|(answer, _)| answer).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    /// Any call of the admin port, with a JSON body.
    #[track_caller]
    pub(crate) fn call_admin(&self, method: &str, path: &str, body: &str) -> Answer {
        let head = "Content-Type: application/json\r\n";
        self.call_admin_as(method, path, head, body.as_bytes())
    }

    /// Any call of the admin port, with these header lines and body.
    #[track_caller]
    pub(crate) fn call_admin_as(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (to, length) = (self.admin, body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {length}\r\n");
        stream.write_all(&[head.as_bytes(), headers.as_bytes(), b"\r\n", body].concat()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::parse(&bytes).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes))).0
    }

    /// A command of the program for operators, told where this receiver is.
    pub(crate) fn operate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).arg("--admin").arg(format!("http://{}", self.admin));
        command.env_clear().stdin(Stdio::null());
        command
    }

    /// Every sample of `/metrics`, by name and labels.
    #[track_caller]
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.ask_admin("/metrics").unwrap().text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                Some((series.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    /// The sum over all series of `asapp_receiver_NAME`, or the one series if `name` has labels.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> u64 {
        sum(&self.metrics(), name)
    }

    /// Waits until a metric has reached `at_least`, for as long as it grows.
    #[track_caller]
    pub(crate) fn wait_metric(&self, name: &str, at_least: u64) {
        let mut seen = 0;
        while seen < at_least {
            let least = seen.saturating_add(1).min(at_least);
            seen = wait_for(&format!("{name} to reach {at_least}, beyond {seen}"), || {
                Some(self.metric(name)).filter(|value| *value >= least)
            });
        }
    }

    /// Out of one answer of `/metrics`, so that its parts belong together.
    #[track_caller]
    pub(crate) fn account(&self) -> Account {
        let metrics = self.metrics();
        Account {
            received: sum(&metrics, "received_total"),
            stored: sum(&metrics, "stored_total"),
            duplicate: sum(&metrics, "duplicate_total"),
            rejected: sum(&metrics, "rejected_total"),
            refused: sum(&metrics, "refused_total"),
            in_flight: sum(&metrics, "in_flight"),
        }
    }

    /// Waits until nothing is in flight, and checks that the account adds up.
    #[track_caller]
    pub(crate) fn settled(&self) -> Account {
        let account =
            wait_for("nothing to be in flight", || Some(self.account()).filter(|account| account.in_flight == 0));
        assert_eq!(account.received, account.stored + account.duplicate + account.rejected + account.refused);
        account
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Makes system calls of the receiver fail or wait from now on, as strace's `inject` says: `fdatasync:error=EIO`.
    #[track_caller]
    pub(crate) fn inject(&self, fault: &str) -> Faults {
        self.strace(fault, &[], Path::new("/dev/null"))
    }

    /// The same, for one file only; the calls go into `trace`, a line each.
    #[track_caller]
    pub(crate) fn inject_on(&self, file: &Path, fault: &str, trace: &Path) -> Faults {
        self.strace(fault, &["-P", file.to_str().unwrap()], trace)
    }

    #[track_caller]
    fn strace(&self, fault: &str, arguments: &[&str], trace: &Path) -> Faults {
        let calls = fault.split(':').next().unwrap_or_default();
        let mut command = Command::new("strace");
        command.args(["-f", "-e", &format!("trace={calls}"), "-e", &format!("inject={fault}")]);
        command.args(arguments).arg("-o").arg(trace).arg("-p").arg(self.child.id().to_string());
        let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Lines::read(strace.stderr.take().unwrap());
        said.wait("strace to be attached", |line| line.contains("attached").then_some(()));
        Faults(strace)
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// A sink, as `status` shows it.
    #[track_caller]
    pub(crate) fn sink(&self, name: &str) -> Value {
        let status = self.ask_admin("/api/v1/status").unwrap().json();
        let sinks = status["sinks"].as_array().unwrap();
        let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap().clone();
        let part = |word: &str| sink[word].as_u64().unwrap();
        let settled = ["delivered", "filtered", "dead_lettered", "evicted", "pending"].map(part).iter().sum::<u64>();
        assert_eq!(part("stored"), settled, "{sink}");
        sink
    }

    /// Waits until a sink has settled everything, for as long as it settles something, and gives its account.
    #[track_caller]
    pub(crate) fn sink_settled(&self, name: &str) -> Value {
        let mut least = u64::MAX;
        loop {
            let (pending, sink) = wait_for(&format!("{name} to have less than {least} pending"), || {
                let sink = self.sink(name);
                let pending = sink["pending"].as_u64().unwrap();
                (pending < least).then_some((pending, sink))
            });
            if pending == 0 {
                return sink;
            }
            least = pending;
        }
    }

    /// SIGTERM, then the end.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, then the setup to start it again with.
    #[track_caller]
    pub(crate) fn kill(mut self) -> (Setup, Ended) {
        self.child.kill().unwrap();
        (self.setup.clone(), self.wait())
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        end_of(&mut self.child, &self.stdout, &self.log)
    }

    /// Checks what has to hold at the end of every test that did not break the receiver: the account adds up, SIGTERM
    /// ends it with 0, and nothing panicked.
    #[track_caller]
    pub(crate) fn finish(self) -> Ended {
        self.settled();
        let ended = self.stop();
        assert!(ended.status.success(), "{ended:?}");
        assert!(!ended.log.iter().any(|line| line.contains("panic")), "{ended:?}");
        ended
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Faults {
    /// SIGKILL for the receiver in the midst of a call that strace holds up: the call is never made.
    #[track_caller]
    pub(crate) fn kill(mut self, mut receiver: Receiver) -> Ended {
        receiver.child.kill().unwrap();
        // It would let go of the thread only after the delay.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        receiver.wait()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SIGKILL would take the receiver along.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Ended {
    /// A process that has no reason to go on ends within 5 s. Where the machine is so busy that a start and an end take
    /// long, it may take as much longer.
    #[track_caller]
    pub(crate) fn assert_soon(&self) {
        let soon = Duration::from_secs(5);
        if self.took >= soon {
            let begun = Instant::now();
            Setup::embedded().start().stop();
            let life = begun.elapsed();
            assert!(self.took < soon + 10 * life, "while a whole life took {life:?}: {self:?}");
        }
    }
}

#[track_caller]
fn end(mut child: Child, stdout: &Lines, log: &Lines) -> Ended {
    end_of(&mut child, stdout, log)
}

#[track_caller]
fn end_of(child: &mut Child, stdout: &Lines, log: &Lines) -> Ended {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the receiver did not end; its log:\n{}", log.so_far().join("\n"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ended { status, took: start.elapsed(), stdout: stdout.to_end(), log: log.to_end() }
}

/// The sum over all series of `asapp_receiver_NAME`, or the one series if `name` has labels.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are small")]
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> u64 {
    let name = format!("asapp_receiver_{name}");
    let of_name = metrics.iter().filter(|(series, _)| **series == name || series.split('{').next() == Some(&name));
    of_name.map(|(_, value)| *value as u64).sum()
}

/// A log line's fields; `None` for a line that is no JSON object.
pub(crate) fn log_line(line: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    let nested = line.as_object_mut()?.remove("fields");
    if let (Some(Value::Object(fields)), Some(all)) = (nested, line.as_object_mut()) {
        all.extend(fields);
    }
    Some(line)
}

impl Lines {
    fn none() -> Self {
        let lines = Self(Arc::default());
        lines.0.0.lock().unwrap().ended = true;
        lines
    }

    pub(crate) fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                writer.0.0.lock().unwrap().lines.push(text);
                writer.0.1.notify_all();
            }
            writer.0.0.lock().unwrap().ended = true;
            writer.0.1.notify_all();
        });
        lines
    }

    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    /// Waits for the first line that `find` makes something of.
    #[track_caller]
    pub(crate) fn wait<T>(&self, description: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut written = self.0.0.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(found) = written.lines[seen..].iter().find_map(|line| find(line)) {
                return found;
            }
            seen = written.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if written.ended || left.is_zero() {
                let lines = written.lines.join("\n");
                drop(written);
                panic!("waited in vain for {description} in:\n{lines}");
            }
            written = self.0.1.wait_timeout(written, left).unwrap().0;
        }
    }

    /// All lines, once there can be no more.
    pub(crate) fn to_end(&self) -> Vec<String> {
        let written = self.0.0.lock().unwrap();
        let (written, _) = self.0.1.wait_timeout_while(written, PATIENCE, |written| !written.ended).unwrap();
        written.lines.clone()
    }
}

/// A value of a settings file.
pub(crate) trait Setting {
    fn to_toml(self) -> String;
}

impl Setting for &str {
    fn to_toml(self) -> String {
        serde_json::Value::from(self).to_string()
    }
}

impl Setting for &PathBuf {
    fn to_toml(self) -> String {
        self.to_str().unwrap().to_toml()
    }
}

impl Setting for u64 {
    fn to_toml(self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn to_toml(self) -> String {
        self.to_string()
    }
}

impl<const N: usize> Setting for [&PathBuf; N] {
    fn to_toml(self) -> String {
        let values: Vec<String> = self.into_iter().map(Setting::to_toml).collect();
        format!("[{}]", values.join(", "))
    }
}
