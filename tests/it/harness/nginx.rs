//! nginx, as the target of an HTTP sink or as somebody's receiver.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::pki::{Ca, Identity};
use super::{free_port, wait_for};

/// A running nginx. Dropped, it is killed.
pub(crate) struct Nginx {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Nginx {
    /// Over TLS, only for clients with a certificate of this authority; `server` goes into the `server` block.
    pub(crate) fn start(identity: &Identity, client_ca: &Ca, server: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let port = free_port();
        let root = folder.path().display();
        let (chain, key) = (identity.chain.display(), identity.key.display());
        let ca = client_ca.certificate.display();
        fs::write(
            folder.path().join("nginx.conf"),
            format!(
                "
                daemon off;
                master_process off;
                pid {root}/pid;
                error_log {root}/error.log info;
                events {{}}
                http {{
                    log_format told '$request_method $uri $status $http_idempotency_key $ssl_client_s_dn';
                    log_format version '$server_protocol';
                    access_log {root}/access.log told;
                    access_log {root}/versions.log version;
                    client_body_temp_path {root}/bodies;
                    proxy_temp_path {root}/proxy;
                    fastcgi_temp_path {root}/fastcgi;
                    uwsgi_temp_path {root}/uwsgi;
                    scgi_temp_path {root}/scgi;
                    server {{
                        listen 127.0.0.1:{port} ssl http2;
                        root {root};
                        ssl_certificate {chain};
                        ssl_certificate_key {key};
                        ssl_client_certificate {ca};
                        ssl_verify_client on;
                        {server}
                    }}
                }}
                "
            ),
        )
        .unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
        command.arg("-e").arg(folder.path().join("error.log"));
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        wait_for("nginx to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { child, port, folder }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// A line for each request: method, path, status, idempotency key, the client's subject.
    pub(crate) fn access_log(&self) -> Vec<String> {
        self.stored("access.log").lines().map(ToOwned::to_owned).collect()
    }

    /// The version of HTTP that each request used.
    pub(crate) fn versions(&self) -> Vec<String> {
        self.stored("versions.log").lines().map(ToOwned::to_owned).collect()
    }

    /// A file below its root.
    pub(crate) fn stored(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
