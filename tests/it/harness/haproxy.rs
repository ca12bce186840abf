//! HAProxy as a layer-4 load balancer, and two receivers behind it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use super::receiver::{Ended, Receiver, Setup};
use super::{PATIENCE, free_port, wait_for};
#[cfg(feature = "nats")]
use super::{
    pki::PKI,
    wire::{Wire, tls},
};

/// A running HAProxy. Dropped, it is killed.
pub(crate) struct HaProxy {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

/// Two receivers behind HAProxy, which asks their `/readyz` five times a second and sends
/// connections to those that are ready. Each can end and come back while clients go on.
pub(crate) struct Fleet {
    pub(crate) haproxy: HaProxy,
    setups: [Setup; 2],
    receivers: [Option<Receiver>; 2],
}

impl HaProxy {
    /// In TCP mode in front of these servers: each `address:port` with the options of HAProxy's `server` line. They are
    /// called `s0`, `s1` and so on, and asked for their health as the option `check` says.
    pub(crate) fn start(check: &str, servers: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut text = format!(
            "
            global
                stats socket {stats}
            defaults
                mode tcp
                timeout connect 10s
                timeout client 60s
                timeout server 60s
                timeout check 5s
            listen events
                bind {address}
                balance roundrobin
                option redispatch 1
                option {check}
                default-server inter 200ms fall 1 rise 1
            ",
            stats = stats(folder.path()).display(),
        );
        for (number, server) in servers.iter().enumerate() {
            writeln!(text, "server s{number} {server}").unwrap();
        }
        let settings = folder.path().join("haproxy.cfg");
        fs::write(&settings, text).unwrap();
        let mut command = Command::new("haproxy");
        // In the foreground, and quiet.
        command.args(["-db", "-q", "-f"]).arg(settings).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        wait_for("HAProxy to listen", || UnixStream::connect(stats(folder.path())).ok());
        Self { child, address, folder }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Waits until HAProxy takes this server for up, or for down.
    #[track_caller]
    pub(crate) fn wait_up(&self, number: usize, up: bool) {
        let wanted = if up { "UP" } else { "DOWN" };
        wait_for(&format!("s{number} to be {wanted}"), || (self.status(number) == wanted).then_some(()));
    }

    /// The column `status` of HAProxy's `show stat`.
    fn status(&self, number: usize) -> String {
        let mut socket = UnixStream::connect(stats(self.folder.path())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"show stat\n").unwrap();
        let mut table = String::new();
        socket.read_to_string(&mut table).unwrap();
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
        let column = rows[0].iter().position(|name| *name == "status").unwrap();
        let name = format!("s{number}");
        rows.iter().find(|row| row.get(1) == Some(&&*name)).unwrap()[column].to_owned()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stats(folder: &Path) -> PathBuf {
    folder.join("stats")
}

impl Fleet {
    /// `header` is how HAProxy's `server` line asks for PROXY headers: `send-proxy` or `send-proxy-v2`. The setups get
    /// ports that they keep.
    pub(crate) fn start(header: &str, setups: [Setup; 2]) -> Self {
        let mut servers = Vec::new();
        let setups = setups.map(|setup| {
            let (events, admin) = (free_port(), free_port());
            servers.push(format!("127.0.0.1:{events} {header} check port {admin}"));
            setup
                .set("listen.address", &*format!("127.0.0.1:{events}"))
                .set("admin.address", &*format!("127.0.0.1:{admin}"))
                .set("listen.proxy_protocol", "required")
                .set_toml("listen.trusted_proxies", "['127.0.0.1']")
        });
        let receivers = [0, 1].map(|number| Some(setups[number].start()));
        let fleet = Self { haproxy: HaProxy::start("httpchk GET /readyz", &servers), setups, receivers };
        (0..2).for_each(|number| fleet.haproxy.wait_up(number, true));
        fleet
    }

    /// A connection of the good client to this receiver, past HAProxy.
    #[cfg(feature = "nats")]
    #[track_caller]
    pub(crate) fn connect(&self, number: usize) -> Wire {
        let tcp = TcpStream::connect(self.receiver(number).events).unwrap();
        Wire::handshake_after(b"PROXY UNKNOWN\r\n", tcp, tls(Some(&PKI.client), &[])).unwrap()
    }

    /// One that is running.
    #[track_caller]
    pub(crate) fn receiver(&self, number: usize) -> &Receiver {
        self.receivers[number].as_ref().unwrap()
    }

    /// SIGTERM, then the end. Checks that HAProxy notices while the receiver still takes connections.
    #[track_caller]
    pub(crate) fn drain(&mut self, number: usize) -> Ended {
        let receiver = self.receivers[number].take().unwrap();
        receiver.signal(Signal::TERM);
        self.haproxy.wait_up(number, false);
        let late = TcpStream::connect(receiver.events);
        assert!(late.is_ok(), "the event port was closed before the balancer had noticed: {late:?}");
        receiver.wait()
    }

    /// SIGKILL; HAProxy has noticed when this returns.
    #[track_caller]
    pub(crate) fn kill(&mut self, number: usize) {
        self.receivers[number].take().unwrap().kill();
        self.haproxy.wait_up(number, false);
    }

    /// Starts it again on the same folder, and waits until HAProxy has noticed.
    #[track_caller]
    pub(crate) fn start_again(&mut self, number: usize) {
        self.receivers[number] = Some(self.setups[number].start());
        self.haproxy.wait_up(number, true);
    }

    /// Checks that all of them end well; their setups, whose folders live on.
    #[track_caller]
    pub(crate) fn finish(self) -> [Setup; 2] {
        self.receivers.into_iter().flatten().for_each(|receiver| drop(receiver.finish()));
        self.setups
    }
}
