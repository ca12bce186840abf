//! The whole path over loopback: mutual TLS, HTTP, scan, dedup, sync, 200, and out to a file. Beside it, in the
//! same run, the least that any server on this stack has to do ([`baseline`]). The README has the last results.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot go on ends there")]
#![allow(clippy::print_stdout, reason = "it prints its results")]
#![allow(clippy::cast_precision_loss, reason = "counts of a minute are exact in a float")]

mod baseline;
mod disk;
mod load;
mod nats;
#[path = "../pki.rs"]
mod pki;
mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use load::{Load, Requests};
use pki::Pki;
use servers::{Cores, Run, Server};

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(700);

/// CPU per event, events a second and time to the 200, over mutual TLS on loopback, with sync on
#[derive(Debug, Parser)]
#[command(after_help = "Example: cargo bench --bench path -- --rounds 1 --seconds 2 --connections 64")]
struct Options {
    /// Connections of the closed-loop runs
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
    connections: Vec<usize>,
    /// Closed-loop runs of each server, taking turns; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each of them is measured
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Events a second of the open-loop runs; 0 leaves them out
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// How long each of those is measured
    #[arg(long, default_value_t = 12)]
    open_loop_seconds: u64,
    /// Count instructions in user space too, with valgrind's callgrind; leaves everything else out
    #[arg(long)]
    instructions: bool,
    /// Where the journal is made: on the disk that is meant
    #[arg(long, value_name = "FOLDER", default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// Let the load sleep when there is nothing to do
    #[arg(long)]
    sleep: bool,
    /// A setting of the receiver, as in its files; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Another receiver to measure beside this one, such as the one before a change; may be repeated
    #[arg(long, value_name = "PROGRAM")]
    against: Vec<PathBuf>,
    /// A setting of one more receiver, on top of the others, to measure beside this one; may be repeated
    #[arg(long = "beside", value_name = "KEY=VALUE")]
    beside: Vec<String>,
    /// Measure the engine nats instead, beside the embedded one: clusters of this server with one node and with three, which
    /// sync every two minutes (their default) and always
    #[arg(long, value_name = "PROGRAM")]
    nats_server: Option<PathBuf>,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// This process is the bare server, with the certificates in this folder
    #[arg(long, hide = true)]
    serve_baseline: Option<PathBuf>,
}

fn main() {
    let options = Options::parse();
    if let Some(folder) = options.serve_baseline {
        return baseline::serve(&Pki(folder));
    }
    let folder = TempDir::with_prefix_in("bench-", &options.folder).unwrap();
    if let Some(kind) = asapp_receiver::journal::volatile_file_system(folder.path()) {
        println!("No sync here: {} is on {kind}. Give another --folder.\n", folder.path().display());
    }
    let cores = Cores::choose();
    let bench = Bench::new(&options, folder.path());
    println!("{}; {cores}\n", bench.requests);
    if options.instructions {
        return bench.instructions(&cores);
    }
    if let Some(program) = &options.nats_server {
        cores.share();
        println!("Servers and load on both cores\n");
        return bench.clusters(program);
    }
    cores.keep_for_servers();
    let servers = bench.servers("one");
    cores.keep_for_load();
    for &connections in &options.connections {
        bench.closed_loop(&servers, connections);
    }
    if options.rate > 0 {
        bench.open_loop(&servers);
    }
    drop(servers);
    cores.share();
    println!("Server and load on both cores\n");
    bench.closed_loop(&bench.servers("both"), options.connections[0]);
}

struct Bench<'a> {
    options: &'a Options,
    folder: &'a Path,
    pki: Pki,
    requests: Requests,
    runtime: Runtime,
}

/// A closed-loop run.
struct Measured {
    cpu_us: f64,
    rate: f64,
    p50: f64,
    p99: f64,
    /// Events in a commit group.
    group: f64,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options, folder: &'a Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { options, folder, pki: Pki::make(folder), requests: Requests::new(), runtime }
    }

    /// The bare one first; the journals in folders of this name.
    fn servers(&self, name: &str) -> Vec<Server> {
        let Options { against, settings, beside, .. } = self.options;
        let folder = self.folder.join(name);
        fs::create_dir(&folder).unwrap();
        let own = Path::new(servers::RECEIVER);
        let receiver = |program: &Path, number: usize, settings: &[String]| {
            Server::receiver(program, Run::Plain, &self.pki, &folder.join(number.to_string()), settings)
        };
        let mut servers = vec![Server::baseline(Run::Plain, &self.pki)];
        for program in std::iter::once(own).chain(against.iter().map(PathBuf::as_path)) {
            servers.push(receiver(program, servers.len(), settings));
        }
        if !beside.is_empty() {
            servers.push(receiver(own, servers.len(), &[&settings[..], beside].concat()).named("… beside"));
        }
        servers
    }

    /// One cluster at a time: its servers work also when nobody asks.
    fn clusters(&self, program: &Path) {
        for (nodes, always) in [(1, false), (1, true), (3, false), (3, true)] {
            let folder = self.folder.join(format!("nats-{nodes}-{always}"));
            let cluster = nats::Cluster::start(program, &folder, nodes, always);
            let receiver = |name: &str, settings: &[String]| {
                let own = Path::new(servers::RECEIVER);
                let settings = [&self.options.settings[..], settings].concat();
                Server::receiver(own, Run::Plain, &self.pki, &folder.join(name), &settings).named(name)
            };
            let servers = [receiver("sqlite", &[]), receiver(cluster.name(), &cluster.settings())];
            for &connections in &self.options.connections {
                self.closed_loop(&servers, connections);
            }
            if self.options.rate > 0 {
                self.open_loop(&servers);
            }
            let ((cpu, bytes), events) = (cluster.spent(), servers[1].answered() as f64);
            let (cpu, bytes) = (cpu.as_secs_f64() * 1e6 / events, bytes as f64 / events / nodes as f64);
            println!("NATS: {cpu:.0} µs of CPU an event on all servers, {bytes:.0} bytes an event on each\n");
        }
    }

    /// As many events as go through `connections` connections, each of which waits for its 200.
    fn closed_loop(&self, servers: &[Server], connections: usize) {
        let Options { rounds, seconds, .. } = *self.options;
        println!("{connections} connections, closed loop, medians of {rounds} × {seconds} s");
        println!(
            "{:>16} {:>13} {:>7} {:>7} {:>7} {:>9} {:>7} {:>7} {:>13}",
            "", "CPU µs/event", "ratio", "(best", "ratio)", "events/s", "p50 ms", "p99 ms", "events/commit"
        );
        let mut runs: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (server, runs) in servers.iter().zip(&mut runs) {
                runs.push(self.runtime.block_on(self.run(server, connections)));
            }
        }
        let bare = (median(&runs[0], |run| run.cpu_us), least(&runs[0]));
        for (server, runs) in servers.iter().zip(&runs) {
            let of = |what: fn(&Measured) -> f64| median(runs, what);
            let (name, cpu, best, rate) = (server.name(), of(|run| run.cpu_us), least(runs), of(|run| run.rate));
            let (p50, p99, group) = (of(|run| run.p50), of(|run| run.p99), of(|run| run.group));
            let (ratio, best_ratio) = (cpu / bare.0, best / bare.1);
            println!(
                "{name:>16} {cpu:>13.1} {ratio:>7.2} {best:>7.1} {best_ratio:>7.2} {rate:>9.0} {p50:>7.2} {p99:>7.2} {group:>13.1}"
            );
        }
        println!();
    }

    async fn run(&self, server: &Server, connections: usize) -> Measured {
        let load = Load::closed(&self.pki.connector(), server.address(), connections, &self.requests).await;
        let awake = (!self.options.sleep).then(|| {
            JoinSet::from_iter([async {
                loop {
                    tokio::task::yield_now().await;
                }
            }])
        });
        tokio::time::sleep(WARM_UP).await;
        let (groups, answered, cpu, start) = (server.groups(), load.answered(), server.cpu(), Instant::now());
        load.measure();
        tokio::time::sleep(Duration::from_secs(self.options.seconds)).await;
        let (cpu, took) = (server.cpu() - cpu, start.elapsed());
        let answered = (load.answered() - answered) as f64;
        let groups = (server.groups() - groups) as f64;
        let done = load.end().await;
        drop(awake);
        server.expect(done.answered);
        let times = Times::of(done.times);
        Measured {
            cpu_us: cpu.as_secs_f64() * 1e6 / answered,
            rate: answered / took.as_secs_f64(),
            p50: times.at(0.5),
            p99: times.at(0.99),
            group: if groups > 0.0 { answered / groups } else { 0.0 },
        }
    }

    /// A steady rate; an event's time runs from when it was due, however late it could be sent.
    fn open_loop(&self, servers: &[Server]) {
        let Options { rate, open_loop_seconds: seconds, .. } = *self.options;
        println!("{rate} events/s, open loop, 64 connections, {seconds} s");
        println!(
            "{:>16} {:>13} {:>7} {:>7} {:>7} {:>7} {:>7}",
            "", "CPU µs/event", "p50 ms", "p90", "p99", "p99.9", "max"
        );
        let mut disk = disk::sync_times(self.folder);
        for server in servers {
            let (times, cpu) = self.runtime.block_on(async {
                let load = Load::open(&self.pki.connector(), server.address(), 64, &self.requests, rate).await;
                tokio::time::sleep(WARM_UP).await;
                let (answered, cpu) = (load.answered(), server.cpu());
                load.measure();
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                let cpu = (server.cpu() - cpu).as_secs_f64() * 1e6 / (load.answered() - answered) as f64;
                let done = load.end().await;
                server.expect(done.answered);
                (Times::of(done.times), cpu)
            });
            println!("{:>16} {cpu:>13.0} {times}", server.name());
        }
        disk.extend(disk::sync_times(self.folder));
        println!("{:>16} {:>13} {}   (write and fdatasync of 2.5 KB)\n", "disk", "", Times::of(disk));
    }

    /// Instructions in user space an event, which noise does not change. Under valgrind a server is slow and one of its
    /// threads runs at a time, so its groups are not those of the other runs.
    fn instructions(&self, cores: &Cores) {
        let Options { seconds, connections, settings, .. } = self.options;
        cores.keep_for_servers();
        let counts = |name: &str| self.options.folder.join(format!("callgrind.{name}"));
        let (bare, own) = (counts("bare"), counts("receiver"));
        let receiver = Path::new(servers::RECEIVER);
        let servers = [
            (Server::baseline(Run::Counted(&bare), &self.pki), &bare),
            (Server::receiver(receiver, Run::Counted(&own), &self.pki, &self.folder.join("counted"), settings), &own),
        ];
        cores.keep_for_load();
        println!("{} connections, closed loop, under valgrind", connections[0]);
        println!("{:>16} {:>19} {:>7} {:>13}", "", "instructions/event", "ratio", "events/commit");
        let mut first = None;
        for (server, counts) in &servers {
            let (each, group) = self.runtime.block_on(async {
                let load = Load::closed(&self.pki.connector(), server.address(), connections[0], &self.requests).await;
                tokio::time::sleep(10 * WARM_UP).await;
                let (answered, groups) = (load.answered(), server.groups());
                server.count();
                tokio::time::sleep(Duration::from_secs(2 * seconds)).await;
                let instructions = server.counted(counts) as f64;
                let (answered, groups) = ((load.answered() - answered) as f64, server.groups() - groups);
                server.expect(load.end().await.answered);
                (instructions / answered, answered / groups as f64)
            });
            let ratio = each / *first.get_or_insert(each);
            println!("{:>16} {each:>19.0} {ratio:>7.2} {group:>13.1}", server.name());
        }
    }
}

/// Sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// In milliseconds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the list")]
    fn at(&self, quantile: f64) -> f64 {
        let index = (quantile * (self.0.len() - 1) as f64).ceil() as usize;
        self.0[index].as_secs_f64() * 1e3
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p90, p99, p999, max] = [0.5, 0.9, 0.99, 0.999, 1.0].map(|quantile| self.at(quantile));
        write!(f, "{p50:>7.2} {p90:>7.2} {p99:>7.2} {p999:>7.2} {max:>7.2}")
    }
}

/// The CPU per event of the run that other programs disturbed least.
fn least(runs: &[Measured]) -> f64 {
    runs.iter().map(|run| run.cpu_us).fold(f64::INFINITY, f64::min)
}

fn median(runs: &[Measured], what: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(what).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
