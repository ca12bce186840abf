//! Real NATS servers: one for all tests that only need a server, and clusters of three for those that break them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::pki::{Ca, Identity, Key, server_profile};
use super::programs::installed;
use super::receiver::Setup;
use super::wire::Answer;
use super::{PATIENCE, free_port};

pub(crate) mod jetstream;
pub(crate) mod partition;

use partition::Link;

/// A cluster needs as long as its elections: 4 to 9 seconds each.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(60);

/// A running server of its own. Dropped, it is killed.
pub(crate) struct NatsServer {
    process: Process,
    port: u16,
    folder: TempDir,
}

/// Three servers with JetStream, mutual TLS for clients and among each other. Everything that passes between two of them,
/// or between one and its clients, passes a [`Link`], which can be cut. Dropped, they are killed.
pub(crate) struct NatsCluster {
    nodes: Vec<Node>,
    /// Between two nodes, the first of which has connected.
    routes: Vec<(usize, usize, Link)>,
    pub(crate) pki: NatsPki,
    folder: TempDir,
}

/// Who may talk to a cluster, and whom it is made of.
pub(crate) struct NatsPki {
    pub(crate) ca: Ca,
    pub(crate) node: Identity,
    pub(crate) client: Identity,
}

struct Node {
    process: Process,
    clients: Link,
}

/// A server as it was started, to be started again.
struct Process {
    /// `None` while it is down.
    child: Option<Child>,
    settings: PathBuf,
    log: PathBuf,
    monitor: SocketAddr,
}

/// The streams of one journal. Dropped, they are gone.
pub(crate) struct Streams {
    server: &'static NatsServer,
    /// Of the stream of events, which begins the others' names.
    pub(crate) name: String,
}

impl Streams {
    pub(crate) fn new(server: &'static NatsServer) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { server, name: format!("T{}", NEXT.fetch_add(1, Ordering::Relaxed)) }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        for more in ["", "_STATE", "_DEAD_LETTERS", "_QUARANTINE"] {
            // Not every test comes so far as to make them.
            self.server.api(&format!("$JS.API.STREAM.DELETE.{}{more}", self.name), &Value::Null);
        }
    }
}

impl NatsServer {
    /// The one server of this test run, without a cluster and TLS, for streams of one replica. It ends with this process.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<NatsServer> = LazyLock::new(|| {
            clear_away();
            let name = format!("nats-{}-", std::process::id());
            NatsServer::in_folder(tempfile::Builder::new().prefix(&name).tempdir_in(STORES).unwrap(), "")
        });
        &SHARED
    }

    /// A server of the test's own; `settings` is more of its settings file.
    pub(crate) fn start(settings: &str) -> Self {
        Self::in_folder(TempDir::new_in(STORES).unwrap(), settings)
    }

    fn in_folder(folder: TempDir, settings: &str) -> Self {
        let port = free_port();
        let payload = if settings.contains("max_payload") { "" } else { "max_payload: 2MB" };
        // What streams may grow to counts as taken: there are many, and none gets that big.
        let text = format!(
            "
            listen: 127.0.0.1:{port}
            jetstream {{ store_dir: {store:?}, max_file_store: 1PB }}
            {payload}
            {settings}
            ",
            store = folder.path().join("store"),
        );
        let server = Self::of(folder, port, &text);
        server.process.wait_healthy();
        server
    }

    /// One that has this settings file, but for its monitoring port, and listens on `port`. It may not be healthy yet.
    pub(crate) fn of(folder: TempDir, port: u16, text: &str) -> Self {
        let process = Process::start(folder.path(), "server", text, free_port());
        Self { process, port, folder }
    }

    #[track_caller]
    pub(crate) fn wait_healthy(&self) {
        self.process.wait_healthy();
    }

    /// `nats://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:PORT`, the monitoring port.
    pub(crate) fn monitor_url(&self) -> String {
        format!("http://{}", self.process.monitor)
    }

    /// Where it keeps its streams.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same store and port, once nothing of the last one is left.
    pub(crate) fn start_again(&mut self) {
        self.process.start_again();
        self.process.wait_healthy();
    }

    /// Starts it again with other settings.
    pub(crate) fn change(&mut self, from: &str, to: &str) {
        self.kill();
        let text = fs::read_to_string(&self.process.settings).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&self.process.settings, text.replace(from, to)).unwrap();
        self.start_again();
    }

    /// Calls JetStream's API: the answer, an error or not.
    pub(crate) fn api(&self, subject: &str, request: &Value) -> Value {
        // Those without members want nothing at all.
        let request = if request.is_null() { String::new() } else { request.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let ask = format!("PUB {subject} answer {}\r\n{request}\r\n", request.len());
        write!(stream, "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\n{ask}").unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        lines.find(|line| line.starts_with("MSG answer ")).unwrap();
        serde_json::from_str(&lines.next().unwrap()).unwrap()
    }
}

impl NatsCluster {
    /// Three servers `n0` to `n2`, once they can keep streams of three replicas. `settings` is more of each one's
    /// settings file.
    pub(crate) fn start(settings: &str) -> Self {
        let folder = TempDir::new_in(STORES).unwrap();
        let pki = NatsPki::new();
        let ports: Vec<[u16; 3]> = (0..3).map(|_| [free_port(), free_port(), free_port()]).collect();
        let to = |port: u16| Link::to(SocketAddr::from(([127, 0, 0, 1], port)));
        let routes: Vec<(usize, usize, Link)> = (0..3)
            .flat_map(|from| (0..3).filter(move |at| *at != from).map(move |at| (from, at)))
            .map(|(from, at)| (from, at, to(ports[at][1])))
            .collect();
        // A node is told of the others' addresses by its peers, too. That way it must not get around the links.
        let nowhere = Link::to_nowhere();
        let nodes = ports.iter().enumerate().map(|(number, &[client, route, monitor])| {
            let clients = to(client);
            let others = routes.iter().filter(|(from, ..)| *from == number);
            let others: Vec<String> = others.map(|(.., link)| format!("nats-route://{}", link.address)).collect();
            let text = format!(
                "
                server_name: n{number}
                listen: 127.0.0.1:{client}
                client_advertise: \"{advertised}\"
                max_payload: 2MB
                jetstream {{ store_dir: {store:?}, max_file_store: 1PB }}
                {tls}
                cluster {{
                    name: fleet
                    listen: 127.0.0.1:{route}
                    advertise: \"{nowhere}\"
                    routes: [ {others} ]
                    {tls}
                }}
                {settings}
                ",
                advertised = clients.address,
                store = folder.path().join(format!("n{number}")),
                nowhere = nowhere.address,
                others = others.join(", "),
                tls = pki.server_settings(),
            );
            Node { process: Process::start(folder.path(), &format!("n{number}"), &text, monitor), clients }
        });
        let nodes = nodes.collect();
        let cluster = Self { nodes, routes, pki, folder };
        cluster.wait("three servers that know each other", |this| {
            let jetstream = this.nodes.iter().filter_map(|node| node.process.ask("/jsz"));
            let mut metas = jetstream.map(|answer| answer["meta_cluster"].clone());
            metas.any(|meta| {
                let others = meta["replicas"].as_array();
                meta["leader"].is_string()
                    && others.is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["current"] == true))
            })
        });
        cluster.wait_whole();
        cluster
    }

    /// `tls://127.0.0.1:PORT` of each.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("tls://{}", node.clients.address)).collect()
    }

    /// Where each keeps its streams.
    pub(crate) fn stores(&self) -> Vec<PathBuf> {
        (0..3).map(|number| self.folder.path().join(format!("n{number}"))).collect()
    }

    /// The same setup with its journal here.
    pub(crate) fn journal_of(&self, setup: Setup) -> Setup {
        let urls: Vec<String> = self.urls().iter().map(|url| format!("{url:?}")).collect();
        setup
            .set("journal.engine", "nats")
            .set_toml("journal.nats.servers", &format!("[{}]", urls.join(", ")))
            .set("journal.nats.replicas", 3)
            .set("journal.nats.ca", &self.pki.ca.certificate)
            .set("journal.nats.certificate", &self.pki.client.chain)
            .set("journal.nats.private_key", &self.pki.client.key)
    }

    /// Which of the nodes that run leads this stream, as most of those say that answer.
    #[track_caller]
    pub(crate) fn leader_of(&self, stream: &str) -> usize {
        let mut found = None;
        self.wait(&format!("a leader of {stream}"), |this| {
            let answers = this.nodes.iter().filter_map(|node| node.process.streams()).flatten();
            let said: Vec<usize> =
                answers.filter(|said| said["name"] == stream).filter_map(|s| leader_in(&s)).collect();
            let is_it = |one: &usize| this.nodes[*one].process.child.is_some();
            let by_most = |one: &usize| said.iter().filter(|other| *other == one).count() >= 2;
            found = said.iter().copied().find(|one| is_it(one) && by_most(one));
            found.is_some()
        });
        found.unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) {
        self.nodes[number].process.kill();
    }

    /// Starts it again on the same store.
    pub(crate) fn start_again(&mut self, number: usize) {
        self.nodes[number].process.start_again();
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self, number: usize) {
        self.nodes[number].process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, number: usize) {
        self.nodes[number].process.signal(Signal::CONT);
    }

    /// Nothing comes from this node or gets there: neither its peers nor its clients see more of it than silence.
    pub(crate) fn cut(&self, number: usize) {
        self.links(number).for_each(Link::cut);
    }

    /// What was on its way when it was cut arrives now, where anybody still waits for it.
    pub(crate) fn heal(&self, number: usize) {
        self.links(number).for_each(Link::heal);
    }

    fn links(&self, number: usize) -> impl Iterator<Item = &Link> {
        let routes = self.routes.iter().filter(move |(from, to, _)| *from == number || *to == number);
        routes.map(|(.., link)| link).chain([&self.nodes[number].clients])
    }

    /// Waits until all three run, are well, and have all of every stream.
    #[track_caller]
    pub(crate) fn wait_whole(&self) {
        self.wait("all nodes to have everything", |this| {
            let well = |node: &Node| node.process.ask("/healthz").is_some_and(|said| said["status"] == "ok");
            let said: Vec<Vec<Value>> = this.nodes.iter().filter_map(|node| node.process.streams()).collect();
            let names: BTreeSet<&str> = said.iter().flatten().filter_map(|stream| stream["name"].as_str()).collect();
            let is_whole = |name: &&str| {
                let leaders = said.iter().enumerate().filter_map(|(node, streams)| {
                    streams.iter().find(|stream| stream["name"] == **name && leader_in(stream) == Some(node))
                });
                leaders.filter_map(|stream| stream["cluster"]["replicas"].as_array()).any(|followers| {
                    followers.len() == 2 && followers.iter().all(|follower| follower["current"] == true)
                })
            };
            this.nodes.iter().all(well)
                && said.len() == 3
                && said.iter().all(|streams| streams.len() == names.len())
                && names.iter().all(is_whole)
        });
    }

    #[track_caller]
    fn wait(&self, description: &str, mut what: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !what(self) {
            if start.elapsed() > CLUSTER_PATIENCE {
                let said: Vec<String> = self.nodes.iter().map(|node| node.process.last_words()).collect();
                panic!("waited in vain for {description}: {}", said.join("\n\n"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl NatsPki {
    pub(crate) fn new() -> Self {
        let ca = Ca::new("Test CA of NATS");
        // Routes are server and client at once.
        let mut profile: CertificateParams = server_profile();
        profile.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let node = ca.issue(Key::P256, profile);
        let client = ca.client(|_| ());
        Self { ca, node, client }
    }

    /// A server's block `tls`, which lets only this authority's clients in.
    pub(crate) fn server_settings(&self) -> String {
        let (chain, key, ca) = (&self.node.chain, &self.node.key, &self.ca.certificate);
        format!("tls {{ cert_file: {chain:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true, timeout: 5 }}")
    }
}

/// Where the servers keep their streams: where `cargo clean` finds it.
const STORES: &str = env!("CARGO_TARGET_TMPDIR");

/// The stores of shared servers whose processes are gone: nobody was left to clear them away.
fn clear_away() {
    for entry in fs::read_dir(STORES).unwrap().filter_map(Result::ok) {
        let name = entry.file_name();
        let mut words = name.to_str().unwrap_or_default().split('-');
        if let (Some("nats"), Some(process)) = (words.next(), words.next())
            && !Path::new("/proc").join(process).exists()
        {
            // Another run may be at it, too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Process {
    fn start(folder: &Path, name: &str, settings: &str, monitor: u16) -> Self {
        let file = folder.join(name).with_extension("conf");
        fs::write(&file, format!("{settings}\nhttp: 127.0.0.1:{monitor}\n")).unwrap();
        let log = file.with_extension("log");
        let monitor = SocketAddr::from(([127, 0, 0, 1], monitor));
        let mut process = Self { child: None, settings: file, log, monitor };
        process.start_again();
        process
    }

    fn start_again(&mut self) {
        // Whatever becomes of this process, the server does not outlive it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(installed("nats-server"));
        command.arg("-c").arg(&self.settings).arg("-l").arg(&self.log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(self.child.is_none(), "it is running");
        self.child = Some(spawn(command));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    #[track_caller]
    fn wait_healthy(&self) {
        let start = Instant::now();
        while self.ask("/healthz").is_none_or(|said| said["status"] != "ok") {
            assert!(start.elapsed() < PATIENCE, "nats-server did not start: {}", self.last_words());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the monitoring port answers. A node that is down or paused answers nothing.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.monitor).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        // As HTTP/1.1 it would come in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(Answer::parse(&bytes)?.0.body.as_ref()).ok()
    }

    /// What it says of every stream that it knows.
    fn streams(&self) -> Option<Vec<Value>> {
        let answer = self.ask("/jsz?streams=true")?;
        let accounts = answer["account_details"].as_array().cloned().unwrap_or_default();
        Some(accounts.iter().filter_map(|account| account["stream_detail"].as_array()).flatten().cloned().collect())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The number of the node that leads a stream, as somebody says of it.
fn leader_in(stream: &Value) -> Option<usize> {
    stream["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok()
}

/// Starts a child on a thread that lives as long as this process: the kernel tells a child of its parent's death when the
/// thread that started it ends.
fn spawn(command: Command) -> Child {
    type Order = (Command, SyncSender<std::io::Result<Child>>);
    static KEEPER: LazyLock<SyncSender<Order>> = LazyLock::new(|| {
        let (orders, todo) = sync_channel::<Order>(8);
        thread::spawn(move || todo.iter().for_each(|(mut command, answer)| drop(answer.send(command.spawn()))));
        orders
    });
    let (answer, child) = sync_channel(1);
    KEEPER.send((command, answer)).unwrap();
    child.recv().unwrap().unwrap()
}
