//! How the receiver shows itself to the cluster, and whom it trusts. All files are read again at every reconnect, so that
//! renewed ones need no restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions};
use nkeys::KeyPair;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::runtime::Handle;

use super::error::NatsError;
use crate::outbound::trust;
use crate::tls::{self, Anchors};
use crate::{config, whole};

/// Per address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that leaves more than two unanswered is given up.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the settings say, as the client wants it.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn options(settings: &config::Nats) -> Result<ConnectOptions, NatsError> {
    let trust = Trust::read(settings)?;
    let options = match login_file(settings) {
        Some(file) => {
            file.read()?;
            ConnectOptions::with_auth_callback(move |nonce| {
                let file = file.clone();
                async move { file.answer(&nonce).await }
            })
        }
        None => ConnectOptions::new(),
    };
    Ok(options
        .name("asapp-receiver")
        // Addresses that the servers tell come without a scheme; none of them may be spoken to in plaintext then.
        .require_tls(settings.servers.iter().any(|server| server.starts_with("tls://")))
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .tls_client_config(trust.client_config()?)
        .reconnect_delay_callback(move |attempt| {
            trust.renew();
            pause(attempt)
        }))
}

/// Before each address is tried; a fleet that lost a server does not come to the next one all at once.
fn pause(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(5);
    (Duration::from_millis(100) * 2_u32.pow(doublings)).min(LONGEST_PAUSE).mul_f64(fastrand::f64())
}

/// Whom the receiver trusts as a server of the cluster, and the certificate that it shows. Both are read again before each
/// connection; what cannot be read then leaves what was read before in use.
struct Trust {
    settings: config::Nats,
    anchors: Arc<Anchors>,
    shown: RwLock<Option<Arc<CertifiedKey>>>,
    /// Why the files as they are now are not in use.
    problem: Mutex<Option<String>>,
}

impl Trust {
    fn read(settings: &config::Nats) -> Result<Arc<Self>, NatsError> {
        Ok(Arc::new(Self {
            settings: settings.clone(),
            anchors: Arc::new(Anchors::new(roots(settings)?)),
            shown: RwLock::new(shown(settings)?),
            problem: Mutex::default(),
        }))
    }

    fn client_config(self: &Arc<Self>) -> Result<ClientConfig, NatsError> {
        let config = tls::trusting_as_of_now(Arc::clone(&self.anchors), rustls::ALL_VERSIONS);
        let config = config.map_err(|error| NatsError::Unfit(vec![format!("journal.nats.servers: {error}")]))?;
        Ok(config.with_client_cert_resolver(Arc::clone(self) as _))
    }

    /// Reads the files again, on a thread that may wait: this connection may still be made with what they were.
    fn renew(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let trust = Arc::clone(self);
        runtime.spawn_blocking(move || {
            let read = roots(&trust.settings).and_then(|roots| Ok((roots, shown(&trust.settings)?)));
            let problem = match read {
                Ok((roots, shown)) => {
                    trust.anchors.replace(roots);
                    *trust.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            let mut last = trust.problem.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(problem) = problem.as_ref().filter(|problem| last.as_ref() != Some(*problem)) {
                tracing::error!(
                    problem,
                    "the files for TLS to the cluster cannot be used: those read before stay in use"
                );
            }
            *last = problem;
        });
    }
}

impl ResolvesClientCert for Trust {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_certs(&self) -> bool {
        self.settings.certificate.is_some()
    }
}

/// Says nothing of the key.
impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// The CAs of the settings, or the system's.
pub(crate) fn roots(settings: &config::Nats) -> Result<RootCertStore, NatsError> {
    match &settings.ca {
        None => Ok(trust::system_roots()),
        Some(file) => Ok(trust::roots("journal.nats.ca", &[file])?),
    }
}

fn shown(settings: &config::Nats) -> Result<Option<Arc<CertifiedKey>>, NatsError> {
    let (Some(certificate), Some(key)) = (&settings.certificate, &settings.private_key) else { return Ok(None) };
    let shown = trust::shown(("journal.nats.certificate", certificate), ("journal.nats.private_key", key))?;
    Ok(Some(Arc::new(shown)))
}

impl From<trust::Unusable<'_>> for NatsError {
    fn from(unusable: trust::Unusable<'_>) -> Self {
        Self::Unfit(vec![unusable.to_string()])
    }
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
        let (key, file) = match self {
            Self::Credentials(file) => ("journal.nats.credentials_file", file),
            Self::Nkey(file) => ("journal.nats.nkey_file", file),
        };
        let bytes = whole::read(file, whole::SECRET)
            .map_err(|error| unusable(key, file, format!("cannot be read ({error})")))?;
        let text = whole::text(&bytes).map_err(|what| unusable(key, file, what))?;
        let login = match self {
            Self::Credentials(_) => credentials(text),
            Self::Nkey(_) => nkey(text),
        };
        login.map_err(|what| unusable(key, file, what.to_owned()))
    }
}

/// A token and a seed, as `nsc` writes them, once each.
fn credentials(text: &str) -> Result<Login, &'static str> {
    const NONE: &str = "holds no JWT and seed of a NATS user, as `nsc` writes them";
    let seed = section(text, "USER NKEY SEED")?.ok_or(NONE)?;
    let jwt = section(text, "NATS USER JWT")?.ok_or(NONE)?;
    let key = KeyPair::from_seed(seed).map_err(|_| NONE)?;
    Ok(Login { jwt: Some(jwt.to_owned()), key })
}

/// One seed; its public key may be beside it, and comments.
fn nkey(text: &str) -> Result<Login, &'static str> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut seeds = lines().filter(|line| line.starts_with('S'));
    let seed = seeds.next().filter(|seed| seed.starts_with("SU"));
    let key = seed.and_then(|seed| KeyPair::from_seed(seed).ok()).ok_or("holds no seed of a NATS user (SU…)")?;
    if seeds.next().is_some() {
        return Err("holds more than one seed: keep the one of the user who is meant");
    }
    if lines().any(|line| Some(line) != seed && line != key.public_key()) {
        return Err("holds something besides a seed and its public key: delete it");
    }
    Ok(Login { jwt: None, key })
}

/// The one line of the one section of this name.
fn section<'a>(text: &'a str, name: &str) -> Result<Option<&'a str>, &'static str> {
    let is_boundary = |line: &str, word: &str| line.starts_with("--") && line.contains(word) && line.contains(name);
    let mut lines = text.lines().map(str::trim).skip_while(|line| !is_boundary(line, "BEGIN")).skip(1);
    let mut content = lines.by_ref().take_while(|line| !is_boundary(line, "END")).filter(|line| !line.is_empty());
    let first = content.next();
    if content.next().is_some() {
        return Err("holds a section of more than one line, or without an end: have `nsc` write it again");
    }
    if lines.any(|line| is_boundary(line, "BEGIN")) {
        return Err("holds the credentials of more than one user: keep those of the one who is meant");
    }
    let ends = text.lines().filter(|line| is_boundary(line.trim(), "END")).count();
    match (first, ends) {
        (Some(_), 0) => Err("is cut off: have `nsc` write it again"),
        (first, _) => Ok(first),
    }
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
        for good in [text.clone(), text.replace('\n', "\r\n"), text.replace('\n', "\n  ")] {
            let login = credentials(&good).unwrap();
            assert_eq!(login.jwt.as_deref(), Some("eyJ0.eyJq.sig"));
            assert_eq!(login.key.public_key(), key.public_key());
        }
        for (bad, words) in [
            (text.replace("USER NKEY SEED", "OTHER"), "no JWT and seed"),
            (format!("{text}{text}"), "more than one user"),
            (text.replace("eyJ0.eyJq.sig", "eyJ0.eyJq\n.sig"), "more than one line"),
            (text[..text.rfind("\n------END").unwrap()].to_owned(), "cut off"),
            (text.replace(&seed, "SUNSENSE"), "no JWT and seed"),
        ] {
            let said = credentials(&bad).err().unwrap();
            assert!(said.contains(words), "{said}: {bad}");
        }
    }

    #[test]
    fn an_nkey_file_has_one_seed() {
        let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
        let (seed, public) = (key.seed().unwrap(), key.public_key());
        for good in [seed.clone(), format!("# mine\r\n {seed}\r\n"), format!("{seed}\n{public}\n")] {
            assert_eq!(nkey(&good).ok().unwrap().key.public_key(), public, "{good}");
        }
        let account = KeyPair::new_account().seed().unwrap();
        for (bad, words) in [
            (format!("{seed}\n{}", other.seed().unwrap()), "more than one seed"),
            (format!("{seed}\n{}", other.public_key()), "something besides"),
            (format!("{seed} {seed}"), "no seed"),
            (account, "no seed"),
            (public.clone(), "no seed"),
        ] {
            assert!(nkey(&bad).err().unwrap().contains(words), "{words}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        assert!((0..100).all(|_| pause(1) <= Duration::from_millis(100)));
        assert!((0..100).all(|_| pause(usize::MAX) <= LONGEST_PAUSE));
        assert!((0..100).any(|_| pause(20) > Duration::from_secs(1)));
    }
}
