//! What one stranger's certificates cost the process before it is refused, whatever they are.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{DistinguishedName, DnType, ExtendedKeyUsagePurpose};
use rustls::ClientConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use crate::made_up::{Chain, hostile};
use crate::process::{Process, wait};
use crate::{Bench, Milliseconds, judge, pki};

const GOAL: Milliseconds = Milliseconds(50.0);
/// A tick of the kernel's account is 10 ms.
const TIMES: u32 = 50;

pub(crate) fn run(bench: &Bench) {
    let folder = bench.folder("chains");
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, "[sinks.stdout]\ntype = 'stdout'\n"));
    let mut authority = DistinguishedName::new();
    authority.push(DnType::OrganizationName, "asapp-receiver throw-away");
    authority.push(DnType::CommonName, "asapp-receiver throw-away CA");
    for chain in hostile(&authority, &ExtendedKeyUsagePurpose::ClientAuth) {
        let connector = stranger(bench, &chain);
        let refusals = || receiver.metric("tls_refused_total");
        let (before, refused) = (receiver.cpu(), refusals());
        bench.runtime.block_on(async {
            for _ in 0..TIMES {
                // In TLS 1.3 the client has finished before it is judged: the refusal comes with the first read.
                if let Ok(mut stream) = pki::connect(&connector, receiver.address).await {
                    assert!(stream.read_u8().await.is_err(), "{} got in", chain.what);
                }
            }
        });
        wait("all to be refused", || refusals() == refused + u64::from(TIMES));
        let each = (receiver.cpu() - before) / TIMES;
        judge(chain.what, GOAL, Milliseconds(each.as_secs_f64() * 1e3), "of processor time a connection");
    }
}

fn stranger(bench: &Bench, chain: &Chain) -> TlsConnector {
    let (roots, ..) = bench.pki.load("server");
    let key = PrivateKeyDer::from_pem_slice(chain.key.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.certificates.clone(), key)
        .unwrap();
    TlsConnector::from(Arc::new(config))
}

impl Process {
    /// Processor time used so far, on all threads.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}
