//! Throw-away certificates, and the client's side of mutual TLS. Shared by both benchmarks.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use asapp_receiver::tls::profile;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A folder with certificates of ASAPP's profile.
pub(crate) struct Pki(pub(crate) PathBuf);

impl Pki {
    pub(crate) fn make(folder: &Path) -> Self {
        let folder = folder.join("certs");
        profile::make(&profile::Options::default()).unwrap().write(&folder, false).unwrap();
        Self(folder)
    }

    /// The receiver's settings for a journal in `folder`, on ports of its own.
    pub(crate) fn settings(&self, folder: &Path, more: &str) -> PathBuf {
        let file = |name: &str| self.0.join(name).display().to_string();
        let (server, key, ca) = (file("server.pem"), file("server-key.pem"), file("ca.pem"));
        let journal = folder.join("journal");
        let journal = journal.display();
        let text = format!(
            "listen.address = '127.0.0.1:0'\nadmin.address = '127.0.0.1:0'\njournal.path = '{journal}'\n\
             tls.certificate = '{server}'\ntls.private_key = '{key}'\ntls.client_ca = ['{ca}']\n\
             tls.allowed_clients = [{{ common_name = 'asapp-demo-client' }}]\n{more}\n"
        );
        let path = folder.join("settings.toml");
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        let (roots, chain, key) = self.load("client");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        TlsConnector::from(Arc::new(config))
    }

    /// The CA, and the chain and key of `client` or `server`.
    pub(crate) fn load(&self, whose: &str) -> (RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let file = |name: String| self.0.join(name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("ca.pem".to_owned())).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(file(format!("{whose}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(file(format!("{whose}-key.pem"))).unwrap();
        (roots, chain, key)
    }
}

pub(crate) async fn connect(connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}
