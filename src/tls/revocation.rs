//! What the revocation lists say of a client beside what webpki asks them.
//!
//! webpki asks one list: the first by the client's issuer that it takes for an authority on the client. It takes every
//! partition for one where a certificate names no distribution point. So an issuer's other lists are asked here, and a
//! partition covers no certificate that does not name it (RFC 5280 6.3.3). Where lists disagree, the client is refused.

use std::time::Duration;

use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::CrlNumber;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;

const DISTRIBUTION_POINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.31");

/// The lists of one set of files.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<List>);

/// What has to be known of a list after it was checked.
#[derive(Debug)]
pub(super) struct List {
    pub(super) issuer: Name,
    /// The extension `issuingDistributionPoint` as it stands in the list: it is a partition. `None`: it is complete.
    pub(super) scope: Option<Vec<u8>>,
    /// `cRLNumber`, which rises with each list of a scope.
    pub(super) number: Option<Number>,
    /// Since the epoch.
    pub(super) issued_at: Duration,
    /// The client CA whose key has signed it, by its place among them; `None` for an issuer that is not one of them.
    pub(super) signer: Option<usize>,
    /// In ascending order. Empty where the issuer has no other list: webpki has asked this one.
    pub(super) revoked: Vec<SerialNumber>,
}

/// Of up to twenty bytes. Its length comes first, so that the greater one is greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(usize, Vec<u8>);

impl Number {
    /// Of the extension of a list.
    pub(super) fn of(number: &CrlNumber) -> Self {
        // Without leading zeros.
        let bytes = number.0.as_bytes();
        Self(bytes.len(), bytes.to_vec())
    }
}

/// Why a client that webpki would let in is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objection {
    Revoked,
    /// There are only partitions, and it names none.
    NotCovered,
}

impl Lists {
    /// Each of `lists` with the serial numbers that it names.
    pub(super) fn new(lists: Vec<List>) -> Self {
        let shares_issuer = |list: &List| lists.iter().filter(|other| other.issuer == list.issuer).count() > 1;
        let shared: Vec<bool> = lists.iter().map(shares_issuer).collect();
        let kept = lists.into_iter().zip(shared).map(|(mut list, shared)| {
            if shared {
                list.revoked.sort_unstable();
                list.revoked.shrink_to_fit();
            } else {
                list.revoked = Vec::new();
            }
            list
        });
        Self(kept.collect())
    }

    /// Of a client that webpki has found good by the first of the lists that it takes for an authority on it. `now` is
    /// since the epoch.
    pub(super) fn objection(&self, client: &TbsCertificate, now: Duration) -> Option<Objection> {
        let of_issuer = || self.0.iter().filter(|list| list.issuer == *client.issuer());
        let is_superseded = |list: &List| of_issuer().any(|other| other.supersedes(list, now));
        let mut naming = of_issuer().filter(|list| list.revoked.binary_search(client.serial_number()).is_ok());
        if naming.any(|list| !is_superseded(list)) {
            return Some(Objection::Revoked);
        }
        // Complete lists come first, so where there is one, webpki has asked it.
        let only_partitions = of_issuer().next().is_some() && of_issuer().all(|list| list.scope.is_some());
        let mut extensions = client.extensions().into_iter().flatten();
        let names_partition = extensions.any(|extension| extension.extn_id == DISTRIBUTION_POINTS);
        (only_partitions && !names_partition).then_some(Objection::NotCovered)
    }
}

impl List {
    /// What stands in `other` counts no more. Only lists of the same scope can be compared, and only those whose
    /// signatures were verified: nobody else's list may hide what the CA's own says. The greater number is the newer list
    /// (RFC 5280 5.2.3); where the time says otherwise, or only one has a number, both count. A list that is to come replaces none.
    fn supersedes(&self, other: &Self, now: Duration) -> bool {
        let comparable = self.signer.is_some() && self.signer == other.signer && self.scope == other.scope;
        let is_newer = match (&self.number, &other.number) {
            (Some(number), Some(of_other)) => number > of_other && self.issued_at >= other.issued_at,
            (None, None) => self.issued_at > other.issued_at,
            _ => false,
        };
        comparable && is_newer && self.issued_at <= now
    }
}
