//! Until when certificates and revocation lists are good.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::crl::TbsCertList;
use x509_cert::der::Decode;
use x509_cert::time::Time;

use super::identity::rfc4514;
use crate::pem;

/// Until when something in a file is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The setting that names the file.
    pub key: String,
    pub file: PathBuf,
    /// RFC 4514: whom a certificate names; who issued a revocation list.
    pub subject: String,
    pub at: SystemTime,
    /// How long before that it is time to do something.
    pub soon: Duration,
}

/// Time to have a certificate renewed by hand.
const CERTIFICATE_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Lists are renewed by a job, daily or weekly.
pub(super) const LIST_SOON: Duration = Duration::from_secs(48 * 60 * 60);

impl Expiry {
    /// Of each certificate in a PEM file with a certificate and those above it, read now; none if it cannot be read.
    #[must_use]
    pub fn of_chain(key: &str, file: &Path) -> Vec<Self> {
        Self::read(key, file, pem::chain)
    }

    /// Of each CA in a PEM file, read now; none if it cannot be read.
    #[must_use]
    pub fn of_authorities(key: &str, file: &Path) -> Vec<Self> {
        Self::read(key, file, pem::authorities)
    }

    fn read(
        key: &str,
        file: &Path,
        reader: fn(&[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Fault>,
    ) -> Vec<Self> {
        let ders = pem::read(file).ok().and_then(|bytes| reader(&bytes).ok()).unwrap_or_default();
        let certificates = ders.iter().filter_map(|der| Certificate::from_der(der).ok());
        certificates.map(|certificate| Self::of_certificate(key, file, &certificate)).collect()
    }

    pub(super) fn of_certificate(key: impl Into<String>, file: &Path, certificate: &Certificate) -> Self {
        let tbs = certificate.tbs_certificate();
        Self::new(key.into(), file, rfc4514(tbs.subject()), tbs.validity().not_after, CERTIFICATE_SOON)
    }

    /// `None` for a list that does not say when the next one is due.
    pub(super) fn of_list<P: x509_cert::certificate::Profile>(
        key: &str,
        file: &Path,
        list: &TbsCertList<P>,
    ) -> Option<Self> {
        list.next_update.map(|next| Self::new(key.to_owned(), file, rfc4514(&list.issuer), next, LIST_SOON))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        self.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// Whole days from `now` on; below zero once it is over.
    #[must_use]
    pub fn days_left(&self, now: SystemTime) -> i64 {
        const DAY: u64 = 24 * 60 * 60;
        let days = |time: Duration| i64::try_from(time.as_secs() / DAY).unwrap_or(i64::MAX);
        match self.at.duration_since(now) {
            Ok(left) => days(left),
            Err(over) => -1 - days(over.duration()),
        }
    }

    #[must_use]
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.at <= now
    }

    /// Also when it is over.
    #[must_use]
    pub fn ends_soon(&self, now: SystemTime) -> bool {
        self.at.duration_since(now).map_or(true, |left| left <= self.soon)
    }

    fn new(key: String, file: &Path, subject: String, at: Time, soon: Duration) -> Self {
        let at = UNIX_EPOCH.checked_add(at.to_unix_duration()).unwrap_or(UNIX_EPOCH);
        Self { key, file: file.to_owned(), subject, at, soon }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_down_and_past_zero() {
        let day = Duration::from_secs(24 * 60 * 60);
        let at = UNIX_EPOCH + 100 * day;
        let expiry = Expiry { key: String::new(), file: PathBuf::new(), subject: String::new(), at, soon: day };
        let second = Duration::from_secs(1);
        for (now, left) in [(at - 2 * day, 2), (at - day + second, 0), (at, 0), (at + second, -1), (at + day, -2)] {
            assert_eq!(expiry.days_left(now), left, "{now:?}");
        }
    }
}
