//! Several revocation lists of one authority: a client is let in only if none of them objects, whatever their order.

use std::path::PathBuf;
use std::sync::LazyLock;

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::harness::pki::{Identity, PKI};
use crate::harness::receiver::{Receiver, Setup};
use crate::tls::{accepted, refused};

/// TLS has alerts for a client that was revoked, and for one of which that is not known.
const REVOKED: u8 = 44;
const UNKNOWN: u8 = 48;

fn with<const N: usize>(lists: [&PathBuf; N]) -> Receiver {
    Setup::new().set("tls.client_crl", lists).start()
}

fn in_any_order(one: &PathBuf, other: &PathBuf, check: impl Fn(&Receiver)) {
    for lists in [[one, other], [other, one]] {
        let receiver = with(lists);
        check(&receiver);
        receiver.finish();
    }
}

/// A good client with this serial number.
fn numbered(serial: u64) -> Identity {
    PKI.ca.client(|profile| profile.serial_number = Some(SerialNumber::from(serial)))
}

/// The same, whose certificate names where its revocation list is.
fn below(serial: u64, uri: &str) -> Identity {
    PKI.ca.client(|profile| {
        profile.serial_number = Some(SerialNumber::from(serial));
        profile.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![uri.to_owned()] }];
    })
}

fn partition(uri: &str, scope: Option<CrlScope>) -> impl Fn(&mut CertificateRevocationListParams) {
    let point =
        CrlIssuingDistributionPoint { distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] }, scope };
    move |crl| crl.issuing_distribution_point = Some(point.clone())
}

const ONE: &str = "http://ca.example/1.crl";
const OTHER: &str = "http://ca.example/2.crl";

#[test]
fn of_two_lists_of_an_authority_the_newer_one_counts() {
    let (serial, now) = (78, OffsetDateTime::now_utc());
    let older = PKI.ca.crl_of(now - Duration::days(3), &[], now + Duration::days(30));
    let newer = PKI.ca.crl_of(now - Duration::days(1), &[serial], now + Duration::days(30));
    let revoked = numbered(serial);
    in_any_order(&older, &newer, |receiver| {
        assert_eq!(refused(receiver, Some(&revoked)), 44);
        accepted(receiver, &PKI.client);
    });
}

#[test]
fn a_newer_partition_does_not_hide_what_the_complete_list_says() {
    let complete = PKI.ca.crl_with(&[90], |crl| crl.this_update -= Duration::hours(3));
    let part = PKI.ca.crl_with(&[91], partition(ONE, None));
    in_any_order(&complete, &part, |receiver| {
        for revoked in [numbered(90), below(90, ONE), numbered(91), below(91, ONE), below(91, OTHER)] {
            assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
        }
        // The complete list is about all clients.
        accepted(receiver, &PKI.client);
        accepted(receiver, &below(92, OTHER));
    });
}

#[test]
fn a_partition_is_about_those_who_name_it_and_every_one_is_asked() {
    let newer = PKI.ca.crl_with(&[], partition(ONE, None));
    let older = PKI.ca.crl_with(&[93], |crl| {
        partition(OTHER, Some(CrlScope::UserCertsOnly))(crl);
        crl.this_update -= Duration::hours(3);
    });
    in_any_order(&newer, &older, |receiver| {
        for revoked in [numbered(93), below(93, ONE), below(93, OTHER)] {
            assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
        }
        assert_eq!(refused(receiver, Some(&PKI.client)), UNKNOWN, "it names no partition");
        assert_eq!(refused(receiver, Some(&below(94, "http://ca.example/3.crl"))), UNKNOWN);
        assert_eq!(receiver.metric(r#"tls_refused_total{reason="revocation-unknown"}"#), 2);
        accepted(receiver, &below(94, ONE));
        accepted(receiver, &below(94, OTHER));
    });
}

#[test]
fn one_partition_alone_is_no_full_cover_and_that_is_said() {
    let warned = |receiver: Receiver, words: &str| {
        let ended = receiver.finish();
        assert!(ended.log.iter().any(|line| line.contains("WARN") && line.contains(words)), "{words}: {ended:?}");
    };
    let receiver = with([&PKI.ca.crl_with(&[], partition(ONE, None))]);
    assert_eq!(refused(&receiver, Some(&PKI.client)), UNKNOWN);
    assert_eq!(refused(&receiver, Some(&below(95, OTHER))), UNKNOWN);
    accepted(&receiver, &below(95, ONE));
    warned(receiver, "tls.client_crl has the list of `CN=Test CA` in partitions only");

    let receiver = with([&PKI.ca.crl_with(&[], partition(ONE, Some(CrlScope::CaCertsOnly)))]);
    assert_eq!(refused(&receiver, Some(&PKI.client)), UNKNOWN);
    assert_eq!(refused(&receiver, Some(&below(95, ONE))), UNKNOWN);
    warned(receiver, "tls.client_crl has no list of `CN=Test CA`");
}

/// `time` is in seconds from the moment that most of these lists are of.
fn numbered_list(number: &[u8], time: i64, revoked: &[u64]) -> PathBuf {
    static MOMENT: LazyLock<OffsetDateTime> = LazyLock::new(|| OffsetDateTime::now_utc() - Duration::hours(1));
    PKI.ca.crl_with(revoked, |crl| {
        crl.crl_number = SerialNumber::from_slice(number);
        crl.this_update = *MOMENT + Duration::seconds(time);
    })
}

#[test]
fn the_list_with_the_greater_number_counts_whatever_its_place() {
    let revoked = numbered(96);
    for (time, greater) in [(0, vec![2]), (-5, vec![2]), (0, vec![1, 0])] {
        in_any_order(&numbered_list(&[1], 0, &[]), &numbered_list(&greater, time, &[96]), |receiver| {
            assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
            accepted(receiver, &PKI.client);
        });
    }
    // As when the hold on a certificate ends.
    for (time, greater) in [(0, vec![10]), (5, vec![10]), (0, vec![1, 0])] {
        in_any_order(&numbered_list(&[9], 0, &[96]), &numbered_list(&greater, time, &[]), |receiver| {
            accepted(receiver, &revoked);
        });
    }
    // A CA that has begun to count anew.
    in_any_order(&numbered_list(&[2, 0], -5, &[]), &numbered_list(&[1], 0, &[96]), |receiver| {
        assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
    });
    in_any_order(&numbered_list(&[2, 0], -5, &[96]), &numbered_list(&[1], 0, &[]), |receiver| {
        assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
    });
}

#[test]
fn a_list_of_the_future_does_not_stand_in_for_the_one_in_force() {
    const DAY: i64 = 86_400;
    let revoked = numbered(98);
    let future = numbered_list(&[2], DAY, &[]);
    in_any_order(&future, &numbered_list(&[1], 0, &[98]), |receiver| {
        assert_eq!(refused(receiver, Some(&revoked)), REVOKED);
        accepted(receiver, &PKI.client);
    });
    in_any_order(&numbered_list(&[2], DAY, &[98]), &numbered_list(&[1], 0, &[]), |receiver| {
        assert_eq!(refused(receiver, Some(&revoked)), REVOKED, "what it revokes is revoked");
        accepted(receiver, &PKI.client);
    });
    let receiver = with([&future]);
    accepted(&receiver, &revoked);
    let warned = |line: &String| line.contains("which is to come");
    assert!(receiver.finish().log.iter().any(warned));
}

#[test]
fn an_unverified_list_of_an_intermediate_takes_nothing_back() {
    let intermediate = PKI.ca.intermediate("Intermediate with lists");
    let client = intermediate.client_with_issuer(|profile| profile.serial_number = Some(SerialNumber::from(97_u64)));
    let list = |number: u8, revoked: &[u64]| {
        intermediate.crl_with(revoked, |crl| crl.crl_number = SerialNumber::from_slice(&[number]))
    };
    let lists = [&list(1, &[97]), &list(2, &[])];
    let receiver = with(lists);
    assert_eq!(refused(&receiver, Some(&client)), REVOKED);
    receiver.finish();
    let known = Setup::new().set("tls.client_ca", [&PKI.ca.certificate, &intermediate.certificate]);
    let receiver = known.set("tls.client_crl", lists).start();
    accepted(&receiver, &client);
    receiver.finish();
}
