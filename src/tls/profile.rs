//! Throw-away certificates that follow ASAPP's profile, for `certs`, `demo` and tests.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize,
};
use time::{Duration, OffsetDateTime};

/// ASAPP's profile wants less than three years.
pub const MAX_DAYS: u32 = 1094;

/// What to make.
#[derive(Debug, Clone)]
pub struct Options {
    /// DNS names and IP addresses of the server; the first one is its common name.
    pub names: Vec<String>,
    pub client_cn: String,
    /// From now on, 1 to [`MAX_DAYS`].
    pub days: u32,
    pub key_type: KeyType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// P-256.
    Ecdsa,
    /// 3072 bits.
    Rsa,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            names: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
            client_cn: "asapp-demo-client".to_owned(),
            days: 365,
            key_type: KeyType::Ecdsa,
        }
    }
}

/// Certificates and keys, each as PEM. The CA's own key is thrown away: nothing more can be issued.
#[derive(Clone)]
pub struct Pki {
    pub ca: String,
    pub server: String,
    pub server_key: String,
    pub client: String,
    pub client_key: String,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} days are not possible: ASAPP's profile wants 1 to {MAX_DAYS} (less than three years)")]
    Days(u32),
    #[error("`{0}` is neither a host name nor an IP address")]
    Name(String),
    #[error("{} is there already: give another folder, or `--force` to replace it", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("certificates cannot be made")]
    Make(#[from] rcgen::Error),
}

/// Makes a CA, a server certificate for `serverAuth` only and a client certificate for `clientAuth` only.
///
/// # Errors
/// Days out of range, a name that cannot stand in a certificate.
pub fn make(options: &Options) -> Result<Pki, Error> {
    if !(1..=MAX_DAYS).contains(&options.days) {
        return Err(Error::Days(options.days));
    }
    for name in &options.names {
        CertificateParams::new([name.clone()]).map_err(|_| Error::Name(name.clone()))?;
    }
    let ca_key = key(options)?;
    let mut ca = params("asapp-receiver throw-away CA", options)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let ca = Issuer::new(ca, ca_key);

    let server_cn = options.names.first().map_or("localhost", String::as_str);
    let mut server = params(server_cn, options)?;
    server.subject_alt_names = CertificateParams::new(options.names.clone())?.subject_alt_names;
    let (server, server_key) = issue(server, ExtendedKeyUsagePurpose::ServerAuth, options, &ca)?;
    let client = params(&options.client_cn, options)?;
    let (client, client_key) = issue(client, ExtendedKeyUsagePurpose::ClientAuth, options, &ca)?;
    Ok(Pki { ca: ca_pem, server, server_key, client, client_key })
}

impl Pki {
    /// Writes `ca.pem`, `server.pem`, `server-key.pem`, `client.pem` and `client-key.pem` (keys for the owner only), synced.
    ///
    /// # Errors
    /// A file is there already and `force` is not set (then nothing was written), or writing failed.
    pub fn write(&self, folder: &Path, force: bool) -> Result<(), Error> {
        let files = [
            ("ca.pem", &self.ca, 0o644),
            ("server.pem", &self.server, 0o644),
            ("server-key.pem", &self.server_key, 0o600),
            ("client.pem", &self.client, 0o644),
            ("client-key.pem", &self.client_key, 0o600),
        ]
        .map(|(name, text, mode)| (folder.join(name), text, mode));
        for (path, ..) in &files {
            // Also true for a link to nowhere.
            if !force && path.symlink_metadata().is_ok() {
                return Err(Error::Exists(path.clone()));
            }
        }
        fs::create_dir_all(folder).map_err(|error| Error::Write(folder.to_owned(), error))?;
        for (path, text, mode) in &files {
            write_new(path, text, *mode).map_err(|error| Error::Write(path.clone(), error))?;
        }
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| Error::Write(folder.to_owned(), error))
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

/// Creates the file with `mode` from its first moment on, in place of what was there.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn issue(
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    options: &Options,
    ca: &Issuer<'_, KeyPair>,
) -> Result<(String, String), Error> {
    let key = key(options)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}

fn params(common_name: &str, options: &Options) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "asapp-receiver throw-away");
    params.distinguished_name.push(DnType::CommonName, common_name);
    // An hour back, for clients whose clock is behind.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = params.not_before + Duration::days(options.days.into()) + Duration::hours(1);
    Ok(params)
}

fn key(options: &Options) -> Result<KeyPair, rcgen::Error> {
    match options.key_type {
        KeyType::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyType::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
    }
}
