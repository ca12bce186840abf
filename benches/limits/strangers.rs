//! What strangers cost: the processor time of one connection that is refused, whatever it presents, and how long a good
//! client and a probe wait beside many who come again and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rcgen::{DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connections::{post, send};
use crate::process::Process;
use crate::{Bench, Milliseconds, compare, judge, made_up, pki};

/// Of processor time, for one connection.
const COST: Milliseconds = Milliseconds(50.0);
/// For a 200 on an open connection, on a new one, and for a probe.
const OPEN: Milliseconds = Milliseconds(1_000.0);
const NEW: Milliseconds = Milliseconds(5_000.0);
const PROBE: Milliseconds = Milliseconds(1_000.0);
/// Connections of each kind that are measured one after the other.
const EACH: usize = 20;

pub(crate) fn run(bench: &Bench) {
    let folder = bench.folder("strangers");
    let settings = "[sinks.stdout]\ntype = 'stdout'\n";
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, settings));
    let kinds = kinds(bench);
    let idle = receiver.processor();
    std::thread::sleep(Duration::from_millis(200));
    compare(
        "a fifth of a second without anybody",
        millis(receiver.processor().saturating_sub(idle)),
        "of processor time",
    );
    for kind in &kinds {
        let costs: Vec<Duration> = (0..EACH)
            .map(|_| {
                let before = receiver.processor();
                bench.runtime.block_on(kind.come(receiver.address));
                // What goes on after the answer is its cost, too.
                std::thread::sleep(Duration::from_millis(5));
                receiver.processor().saturating_sub(before)
            })
            .collect();
        let mean = costs.iter().sum::<Duration>() / u32::try_from(EACH).unwrap();
        let most = millis(costs.into_iter().max().unwrap());
        judge(
            &format!("a stranger: {}", kind.what),
            COST,
            most,
            &format!("the worst of {EACH}; {} each", millis(mean)),
        );
    }
    let (strangers, seconds) = (bench.options.strangers, bench.options.stranger_seconds);
    let mut crowds: Vec<(&str, Vec<&Kind>)> = kinds.iter().map(|kind| (kind.what, vec![kind])).collect();
    crowds.push(("of all kinds", kinds.iter().collect()));
    for (what, crowd) in crowds {
        let waits = bench.runtime.block_on(beside(bench, &receiver, &crowd, strangers, Duration::from_secs(seconds)));
        let beside = format!("beside {strangers}: {what}");
        let came = format!("{} came; {}", waits.came, waits.open.summary());
        judge(&format!("{beside}: 200, open connection"), OPEN, waits.open.worst(), &came);
        judge(&format!("{beside}: 200, new connection"), NEW, waits.new.worst(), &waits.new.summary());
        judge(&format!("{beside}: /livez"), PROBE, waits.probe.worst(), &waits.probe.summary());
    }
}

/// What a stranger does.
struct Kind {
    what: &'static str,
    how: How,
}

enum How {
    Tls(TlsConnector),
    /// Bytes, and then it waits for the end.
    Bytes(Vec<u8>),
}

impl Kind {
    /// One connection, to its end.
    async fn come(&self, to: SocketAddr) {
        let Ok(mut stream) = TcpStream::connect(to).await else { return };
        let mut answer = [0; 1024];
        let end = async {
            match &self.how {
                How::Tls(connector) => {
                    // In TLS 1.3 the refusal comes with the first read.
                    let Ok(mut stream) = connector.connect("localhost".try_into().unwrap(), stream).await else {
                        return;
                    };
                    let _ = stream
                        .write_all(b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
                        .await;
                    let _ = stream.flush().await;
                    if let Ok(read @ 1..) = stream.read(&mut answer).await {
                        panic!("{}: let in: {}", self.what, String::from_utf8_lossy(&answer[..read]));
                    }
                }
                How::Bytes(bytes) => {
                    let _ = stream.write_all(bytes).await;
                    let _ = stream.shutdown().await;
                    while let Ok(1..) = stream.read(&mut answer).await {}
                }
            }
        };
        // A handshake's deadline is 10 s.
        let _ = timeout(Duration::from_secs(20), end).await;
    }
}

fn kinds(bench: &Bench) -> Vec<Kind> {
    let (roots, chain, _) = bench.pki.load("client");
    let tls = |what, config: ClientConfig| Kind { what, how: How::Tls(TlsConnector::from(Arc::new(config))) };
    let presenting = |chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>| {
        let key = CertifiedKey::new(chain, any_supported_type(key).unwrap());
        client(&roots).with_client_cert_resolver(Arc::new(Presents(Arc::new(key))))
    };
    // Its key is not that of the certificate, which everybody may have.
    let other = KeyPair::generate().unwrap();
    let other = PrivateKeyDer::try_from(other.serialize_der()).unwrap();
    let mut kinds = vec![
        tls("no certificate", client(&roots).with_no_client_auth()),
        tls("a good certificate without its key", presenting(chain.clone(), &other)),
        tls("the same 30 times", presenting(std::iter::repeat_n(chain[0].clone(), 30).collect(), &other)),
        Kind { what: "plain HTTP", how: How::Bytes(b"POST /events HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()) },
        Kind { what: "a ClientHello of 64 KB in 4,000 records", how: How::Bytes(hello(16)) },
        Kind { what: "a ClientHello of 15 KB, a byte a record", how: How::Bytes(hello(1)) },
        Kind { what: "64 KB of nothing", how: How::Bytes(vec![0; 64 << 10]) },
    ];
    // As the server tells everybody whom it asks for a certificate.
    let mut authority = DistinguishedName::new();
    authority.push(DnType::OrganizationName, "asapp-receiver throw-away");
    authority.push(DnType::CommonName, "asapp-receiver throw-away CA");
    for chain in made_up::hostile(&authority, &ExtendedKeyUsagePurpose::ClientAuth) {
        let key = PrivateKeyDer::from_pem_slice(chain.key.as_bytes()).unwrap();
        kinds.push(tls(chain.what, presenting(chain.certificates, &key)));
    }
    kinds
}

fn client(roots: &RootCertStore) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots.clone())
}

/// A handshake message that is all length, in records of so many bytes; it never ends.
fn hello(piece: usize) -> Vec<u8> {
    let (records, length) = if piece == 1 { (15_000, 0x3fff_u16) } else { (4_000, 0xfff0) };
    let mut body = vec![1, 0];
    body.extend(length.to_be_bytes());
    body.extend([3, 3]);
    body.resize(records * piece, 0);
    let size = u8::try_from(piece).unwrap();
    body.chunks(piece).flat_map(|part| [&[0x16, 3, 1, 0, size][..], part].concat()).collect()
}

/// Shows this, whatever it is asked for.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// How long others waited while strangers came.
#[derive(Default)]
struct Waits {
    came: u64,
    open: Times,
    new: Times,
    probe: Times,
}

async fn beside(bench: &Bench<'_>, receiver: &Process, crowd: &[&Kind], strangers: usize, length: Duration) -> Waits {
    let (connector, to) = (bench.pki.connector(), receiver.address);
    let mut open = pki::connect(&connector, to).await.unwrap();
    let came = AtomicU64::new(0);
    let one = async |number: usize| {
        // Forgotten when the time is up.
        for kind in crowd.iter().cycle().skip(number) {
            kind.come(to).await;
            came.fetch_add(1, Relaxed);
        }
    };
    let all = futures_util::future::join_all((0..strangers).map(one));
    let good = async {
        let (mut waits, end) = (Waits::default(), Instant::now() + length);
        let (client, admin) = (connector.clone(), receiver.admin());
        let mut others = JoinSet::new();
        others.spawn(async move {
            let mut times = Times::default();
            while Instant::now() < end {
                let begun = Instant::now();
                post(&mut pki::connect(&client, to).await.unwrap()).await;
                times.0.push(begun.elapsed());
            }
            (times, true)
        });
        others.spawn(async move {
            let mut times = Times::default();
            while Instant::now() < end {
                let begun = Instant::now();
                let mut stream = TcpStream::connect(admin).await.unwrap();
                let mut answer = String::new();
                stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                times.0.push(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (times, false)
        });
        while Instant::now() < end {
            let begun = Instant::now();
            post(&mut open).await;
            waits.open.0.push(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while let Some(times) = others.join_next().await {
            match times.unwrap() {
                (times, true) => waits.new = times,
                (times, false) => waits.probe = times,
            }
        }
        waits
    };
    let mut waits = tokio::select! {
        waits = good => waits,
        _ = all => unreachable!("strangers never end"),
    };
    waits.came = came.load(Relaxed);
    waits
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn worst(&self) -> Milliseconds {
        millis(self.0.iter().max().copied().unwrap_or_default())
    }

    fn summary(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |percent: usize| millis(sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default());
        format!("{} times; p50 {}, p99 {}", sorted.len(), at(50), at(99))
    }
}

fn millis(time: Duration) -> Milliseconds {
    Milliseconds(time.as_secs_f64() * 1e3)
}

/// What the largest bodies cost that a sender with a good certificate can make: each is scanned, looked through for drift,
/// filtered, redacted and shaped.
pub(crate) fn bodies(bench: &Bench) {
    let folder = bench.folder("bodies");
    let pointers: Vec<String> = (0..64).map(|n| format!("'/data/member-{n}/x', '/meta_data/{n}'")).collect();
    let settings = format!(
        "[sinks.stdout]\ntype = 'stdout'\nformat = 'cloudevents'\nredact = [{}]\n\
         filter.event_types = ['*a*b*c*d*e*f*', '*?x*?x*?x*', '*']\nfilter.exclude_event_types = ['*z*y*z*y*']\n\
         filter.company_segments = ['none', 'of', 'these', '1']\n",
        pointers.join(", ")
    );
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, &settings));
    let connector = bench.pki.connector();
    let mut stream = bench.runtime.block_on(pki::connect(&connector, receiver.address)).unwrap();
    let times = |part: &str, room: usize| part.repeat(room / part.len());
    let data = |part: &str, last: &str| format!(r#""data":{{{}{last}}}"#, times(part, BODY));
    for (what, rest) in [
        ("one long text", format!(r#""data":{{"x":"{}"}}"#, times("x", BODY))),
        ("escapes", format!(r#""data":{{"x":"{}"}}"#, times(r"\u0061", BODY))),
        ("white space", format!(r#""data":{{{}}}"#, times("\n", BODY))),
        ("unknown members", data(r#""a":1,"#, r#""a":1"#)),
        ("one member again and again", data(r#""queue_id":"q","#, r#""queue_id":"q""#)),
        ("escaped keys", data(r#""\u0061":1,"#, r#""a":1"#)),
        ("members of the event itself", format!(r#"{}"data":{{}}"#, times(r#""a":1,"#, BODY))),
        ("members that are cut out", format!(r#""data":{{"member-1":{{{}"x":1}}}}"#, times(r#""x":1,"#, BODY))),
        ("every second one cut out", format!(r#""data":{{"member-1":{{{}"x":1}}}}"#, times(r#""x":1,"y":1,"#, BODY))),
        (
            "arrays within each other",
            format!(r#""data":{{"x":[{}1]}}"#, times(&format!("{}1{},", "[".repeat(120), "]".repeat(120)), BODY)),
        ),
        ("company segments", format!(r#""data":{{}},"meta_data":{{"company_segments":[{}2]}}"#, times("2,", BODY))),
        ("a long company", format!(r#""data":{{}},"meta_data":{{"company_id":"{}"}}"#, times("\u{e9}", BODY))),
        ("numbers", format!(r#""data":{{"x":{}}}"#, times("1", BODY))),
    ] {
        let event = format!(
            r#"{{"name":"com.asapp.event.queue","event_type":"x","event_id":"{}",{rest}}}"#,
            uuid::Uuid::new_v4()
        );
        judged(bench, &receiver, &mut stream, what, &event);
    }
    let long = times("ab", BODY);
    let event = format!(r#"{{"name":"com.asapp.event.queue","event_type":"{long}","event_id":"1","data":{{}}}}"#);
    judged(bench, &receiver, &mut stream, "a long event type", &event);
    let event = format!(r#"{{"name":"{long}","event_type":"x","event_id":"2","data":{{}}}}"#);
    judged(bench, &receiver, &mut stream, "a long name", &event);
}

/// Nearly as much as `listen.max_body_bytes`.
const BODY: usize = (1 << 20) - 1024;

fn judged(bench: &Bench, receiver: &Process, stream: &mut TlsStream<TcpStream>, what: &str, event: &str) {
    let before = receiver.processor();
    let begun = Instant::now();
    bench.runtime.block_on(send(stream, event));
    let answered = millis(begun.elapsed());
    std::thread::sleep(Duration::from_millis(300));
    let cost = millis(receiver.processor().saturating_sub(before));
    judge(
        &format!("a body of 1 MiB: {what}"),
        COST,
        cost,
        &format!("with all that comes after the 200, which took {answered}"),
    );
}
