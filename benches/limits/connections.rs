//! What an idle connection takes, here and in the bare server.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::process::{Process, wait};
use crate::{Bench, Mib, compare, judge, pki};

const GOAL: f64 = 400.0;
/// Handshakes at a time.
const AT_ONCE: usize = 64;

pub(crate) fn run(bench: &Bench) {
    let wanted = bench.options.connections;
    let connections = wanted.min(open_files(wanted + 200) - 200);
    if connections < wanted {
        println!("{connections} connections: more would need more open files (ulimit -Hn)");
    }
    let goal = Mib(GOAL * connections as f64 / 1e4);
    let settings = format!(
        "listen.max_connections = {}\nlisten.idle_timeout = '1h'\n[sinks.stdout]\ntype = 'stdout'\n",
        connections + 100
    );
    let folder = bench.folder("connections");
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, &settings));
    let ours = measure(bench, &receiver, connections);
    wait("all to be served", || receiver.metric("stored_total") == connections as u64);
    drop(receiver);
    let bare = measure(bench, &Process::bare(&bench.pki), connections);
    for (when, ours, bare) in
        [("after the handshake", ours.connected, bare.connected), ("after a request each", ours.served, bare.served)]
    {
        let remark = |taken: Mib| format!("{:.1} KiB a connection", taken.each(connections) / 1024.0);
        judge(&format!("{connections} idle connections, {when}"), goal, ours, &remark(ours));
        compare("the same, a bare server", bare, &format!("{}; ratio {:.2}", remark(bare), ours.0 / bare.0));
    }
}

/// Resident memory above that without connections.
struct Measured {
    connected: Mib,
    served: Mib,
}

fn measure(bench: &Bench, server: &Process, connections: usize) -> Measured {
    let before = server.resident().0;
    let taken = || Mib::between(before, server.resident().0);
    bench.runtime.block_on(async {
        let mut streams = connect(bench, server.address, connections).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let connected = taken();
        for stream in &mut streams {
            post(stream).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        Measured { connected, served: taken() }
    })
}

async fn connect(bench: &Bench<'_>, address: SocketAddr, connections: usize) -> Vec<TlsStream<TcpStream>> {
    let connector = bench.pki.connector();
    let (mut streams, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..connections {
        let connector = connector.clone();
        tasks.spawn(async move { pki::connect(&connector, address).await.unwrap() });
        if tasks.len() >= AT_ONCE {
            streams.push(tasks.join_next().await.unwrap().unwrap());
        }
    }
    streams.extend(tasks.join_all().await);
    streams
}

/// Sends an event of a usual size and reads the answer.
pub(crate) async fn post(stream: &mut TlsStream<TcpStream>) {
    let (id, text) = (uuid::Uuid::new_v4(), "x".repeat(2200));
    let body =
        format!(r#"{{"name":"com.asapp.event.queue","event_type":"x","event_id":"{id}","data":{{"text":"{text}"}}}}"#);
    send(stream, &body).await;
}

/// Sends this event and reads its 200.
pub(crate) async fn send(stream: &mut TlsStream<TcpStream>, body: &str) {
    let length = body.len();
    let head = format!("POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    // What TLS holds back when this task has had its turn, reading does not send.
    stream.flush().await.unwrap();
    let mut answer = [0; 1024];
    // The answer's head and body come in one piece, or the body is empty.
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..read]));
}

/// Asks for as many open files as that; says how many there are.
fn open_files(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = (wanted as u64).min(maximum.unwrap_or(u64::MAX));
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).unwrap();
    }
    usize::try_from(wanted).unwrap()
}
