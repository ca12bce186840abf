//! How the receiver shows itself to the cluster, and whom it trusts. All files are read again at every reconnect, so that
//! renewed ones need no restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions};
use nkeys::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::link::NatsError;
use crate::config;

/// Per address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that leaves more than two unanswered is given up.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the settings say, as the client wants it.
///
/// # Errors
/// When a file cannot be used.
pub(super) fn options(settings: &config::Nats) -> Result<ConnectOptions, NatsError> {
    let mut options = match login_file(settings) {
        Some(file) => {
            file.read()?;
            ConnectOptions::with_auth_callback(move |nonce| {
                let file = file.clone();
                async move { file.answer(&nonce).await }
            })
        }
        None => ConnectOptions::new(),
    };
    options = options
        .name("asapp-receiver")
        // Addresses that the servers tell come without a scheme; none of them may be spoken to in plaintext then.
        .require_tls(settings.servers.iter().any(|server| server.starts_with("tls://")))
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(pause);
    if let Some(ca) = &settings.ca {
        certificates("journal.nats.ca", ca)?;
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(certificate), Some(key)) = (&settings.certificate, &settings.private_key) {
        certificates("journal.nats.certificate", certificate)?;
        PrivateKeyDer::from_pem_file(key).map_err(|error| {
            let what = format!("cannot be used ({error}): it must hold a PEM key without a passphrase");
            unusable("journal.nats.private_key", key, what)
        })?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Before each address is tried; a fleet that lost a server does not come to the next one all at once.
fn pause(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(5);
    (Duration::from_millis(100) * 2_u32.pow(doublings)).min(LONGEST_PAUSE).mul_f64(fastrand::f64())
}

fn certificates(key: &'static str, file: &Path) -> Result<(), NatsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unusable(key, file, format!("cannot be read ({error})")))?;
    if read.is_empty() {
        return Err(unusable(key, file, "holds no certificate: it must hold PEM certificates".to_owned()));
    }
    Ok(())
}

#[derive(Clone)]
enum LoginFile {
    Credentials(PathBuf),
    Nkey(PathBuf),
}

struct Login {
    jwt: Option<String>,
    key: KeyPair,
}

fn login_file(settings: &config::Nats) -> Option<LoginFile> {
    let credentials = settings.credentials_file.clone().map(LoginFile::Credentials);
    credentials.or_else(|| settings.nkey_file.clone().map(LoginFile::Nkey))
}

impl LoginFile {
    async fn answer(self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let read = tokio::task::spawn_blocking(move || self.read()).await.map_err(AuthError::new)?;
        let Login { jwt, key } = read.map_err(AuthError::new)?;
        let mut auth = Auth::new();
        auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
        auth.nkey = jwt.is_none().then(|| key.public_key());
        auth.jwt = jwt;
        Ok(auth)
    }

    fn read(&self) -> Result<Login, NatsError> {
        let (key, file, what) = match self {
            Self::Credentials(file) => {
                ("journal.nats.credentials_file", file, "holds no JWT and seed of a NATS user, as `nsc` writes them")
            }
            Self::Nkey(file) => ("journal.nats.nkey_file", file, "holds no seed of a NATS user (SU…)"),
        };
        let text =
            std::fs::read_to_string(file).map_err(|error| unusable(key, file, format!("cannot be read ({error})")))?;
        let login = match self {
            Self::Credentials(_) => credentials(&text),
            Self::Nkey(_) => seed(text.lines().map(str::trim).find(|line| line.starts_with("SU")))
                .map(|key| Login { jwt: None, key }),
        };
        login.ok_or_else(|| unusable(key, file, what.to_owned()))
    }
}

fn credentials(text: &str) -> Option<Login> {
    let key = seed(section(text, "USER NKEY SEED"))?;
    let jwt = section(text, "NATS USER JWT")?.to_owned();
    Some(Login { jwt: Some(jwt), key })
}

fn seed(text: Option<&str>) -> Option<KeyPair> {
    KeyPair::from_seed(text?).ok()
}

/// The line after the one that begins a section of this name.
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let begins = |line: &&str| line.contains("BEGIN") && line.contains(name);
    let mut lines = text.lines().skip_while(|line| !begins(line)).skip(1);
    lines.next().map(str::trim).filter(|line| !line.is_empty())
}

fn unusable(key: &'static str, file: &Path, what: String) -> NatsError {
    NatsError::Unfit(vec![format!("{key}: {} {what}", file.display())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_gives_its_token_and_key() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.sig\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let login = credentials(&text).unwrap();
        assert_eq!(login.jwt.as_deref(), Some("eyJ0.eyJq.sig"));
        assert_eq!(login.key.public_key(), key.public_key());
        assert!(credentials(&text.replace("USER NKEY SEED", "OTHER")).is_none());
    }

    #[test]
    fn pauses_grow_and_end() {
        assert!((0..100).all(|_| pause(1) <= Duration::from_millis(100)));
        assert!((0..100).all(|_| pause(usize::MAX) <= LONGEST_PAUSE));
        assert!((0..100).any(|_| pause(20) > Duration::from_secs(1)));
    }
}
