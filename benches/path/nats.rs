//! NATS servers for the engine `nats`: one or three on this machine, without TLS between them and the receiver.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::servers::cpu;

/// How long servers may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// Dropped, the servers are killed.
pub(crate) struct Cluster {
    nodes: Vec<Child>,
    clients: Vec<SocketAddr>,
    stores: Vec<PathBuf>,
    name: String,
}

impl Cluster {
    /// `always`: every message is synced before its acknowledgement, instead of every two minutes.
    pub(crate) fn start(program: &Path, folder: &Path, count: usize, always: bool) -> Self {
        fs::create_dir_all(folder).unwrap();
        let (clients, routes, monitors) = (free_ports(count), free_ports(count), free_ports(count));
        let urls: Vec<String> = routes.iter().map(|route| format!("nats-route://{route}")).collect();
        let sync = if always { "sync_interval: always" } else { "" };
        let nodes = (0..count).map(|index| {
            let store = folder.join(format!("store-{index}"));
            let cluster = match count {
                1 => String::new(),
                _ => format!("cluster {{ name: bench, listen: \"{}\", routes: [{}] }}", routes[index], urls.join(", ")),
            };
            let text = format!(
                "server_name: n{index}\nlisten: \"{}\"\nhttp: \"{}\"\nmax_payload: 2MB\n{cluster}\n\
                 jetstream {{ store_dir: \"{}\", max_file_store: 20GB, {sync} }}\n",
                clients[index],
                monitors[index],
                store.display()
            );
            let settings = folder.join(format!("n{index}.conf"));
            fs::write(&settings, text).unwrap();
            let log = folder.join(format!("n{index}.log"));
            let mut command = Command::new(program);
            command.arg("-c").arg(settings).arg("-l").arg(log).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let nodes = nodes.collect();
        let name = format!("R{count} {}", if always { "always" } else { "default" });
        let stores = (0..count).map(|index| folder.join(format!("store-{index}"))).collect();
        let cluster = Self { nodes, clients, stores, name };
        let start = Instant::now();
        while !monitors.iter().all(is_healthy) {
            assert!(start.elapsed() < PATIENCE, "servers that are healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
        cluster
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Processor time of all servers, and bytes in their stores.
    pub(crate) fn spent(&self) -> (Duration, u64) {
        (self.nodes.iter().map(cpu).sum(), self.stores.iter().map(|store| bytes_in(store)).sum())
    }

    /// What a receiver needs to keep its journal there.
    pub(crate) fn settings(&self) -> Vec<String> {
        let urls: Vec<String> = self.clients.iter().map(|client| format!("'nats://{client}'")).collect();
        vec![
            "journal.engine = 'nats'".to_owned(),
            format!("journal.nats.servers = [{}]", urls.join(", ")),
            format!("journal.nats.replicas = {}", self.nodes.len()),
        ]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Of all files in a folder; one that goes away meanwhile does not count.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

/// Whether a server has found the others, and JetStream its leader.
fn is_healthy(monitor: &SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(monitor)?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"))
}

/// Free when this is back; nobody else takes them so soon.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}
