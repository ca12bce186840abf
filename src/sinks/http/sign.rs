//! Idempotency keys, and signatures as Standard Webhooks has them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Of a decoded secret, as the specification wants it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The idempotency key of an event: its id where that is visible ASCII, else a hash of it.
pub(super) fn key_of(event_id: &str) -> String {
    let visible = !event_id.is_empty() && event_id.bytes().all(|byte| byte.is_ascii_graphic());
    if visible { event_id.to_owned() } else { hash(event_id) }
}

/// The idempotency key of a batch: a hash of its ids in their order, each after its length.
pub(super) fn key_of_all<'a>(event_ids: impl Iterator<Item = &'a str>) -> String {
    let mut hash = digest::Context::new(&SHA256);
    for id in event_ids {
        hash.update(&(id.len() as u64).to_be_bytes());
        hash.update(id.as_bytes());
    }
    hex(hash.finish().as_ref())
}

fn hash(text: &str) -> String {
    hex(digest::digest(&SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|half| char::from_digit(half.into(), 16)).collect()
}

/// What is signed.
pub(super) struct Message<'a> {
    pub(super) id: String,
    /// Of this attempt, in seconds since 1970.
    pub(super) timestamp: u64,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `key` is the idempotency key. It is the message's id as well, unless it has a full stop: those separate what is
    /// signed, so such a key is hashed.
    pub(super) fn new(key: &str, now: SystemTime, body: &'a [u8]) -> Self {
        let id = if key.contains('.') { hash(key) } else { key.to_owned() };
        Self { id, timestamp: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(), body }
    }
}

/// The secrets that requests are signed with; several while they are being exchanged.
pub(super) struct Signer(Vec<hmac::Key>);

impl Signer {
    /// One or more `whsec_…`, with white space between them.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let key = |word: &str| {
            let secret = word.strip_prefix("whsec_").ok_or("holds no secret of the form whsec_ and base64")?;
            let secret = STANDARD.decode(secret).map_err(|_| "holds a secret that is not base64 after whsec_")?;
            if !SECRET_BYTES.contains(&secret.len()) {
                return Err("holds a secret of less than 24 or more than 64 bytes");
            }
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
        };
        text.split_ascii_whitespace().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// The value of `webhook-signature`: one signature for each secret.
    pub(super) fn sign(&self, message: &Message) -> String {
        let sign = |key: &hmac::Key| {
            let mut context = hmac::Context::with_key(key);
            context.update(message.id.as_bytes());
            context.update(format!(".{}.", message.timestamp).as_bytes());
            context.update(message.body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        };
        let signatures: Vec<String> = self.0.iter().map(sign).collect();
        signatures.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The vector of the specification's own libraries.
    #[test]
    fn signs_as_the_specification_does() {
        let signer = Signer::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let signature = signer.sign(&Message::new(id, at, br#"{"test": 2432232314}"#));
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn signs_with_every_secret_while_they_are_exchanged() {
        let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        let at = UNIX_EPOCH + Duration::from_secs(1);
        let message = Message::new("a", at, b"{}");
        let sign = |text: &str| Signer::parse(text).unwrap().sign(&message);
        assert_eq!(sign(&format!("{new}\n  {old}")), format!("{} {}", sign(new), sign(old)));
        assert_ne!(sign(new), sign(old));
    }

    #[test]
    fn refuses_what_is_no_secret() {
        for text in [
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_?",
            "whsec_c2hvcnQ=",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw x",
        ] {
            assert!(Signer::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_full_stop_is_not_signed_as_part_of_an_id() {
        let message = |key| Message::new(key, UNIX_EPOCH, b"").id;
        assert_eq!(message("a-b"), "a-b");
        assert_eq!(message("a.b").len(), 64);
        assert_ne!(message("a.b"), message("a.c"));
    }

    #[test]
    fn keys_are_the_id_or_a_hash() {
        assert_eq!(key_of("00-a~!"), "00-a~!");
        assert_eq!(key_of("abc d"), "437b4936fc9579d5978880d43786ffb4e5f9510d633a78bb31d4f15aa193363c");
        let distinct = ["ü", "a b", "a\nb", ""].map(key_of);
        assert!(distinct.iter().all(|key| key.len() == 64));
        assert!(distinct.iter().enumerate().all(|(index, key)| !distinct[..index].contains(key)));
    }

    #[test]
    fn keys_of_batches_depend_on_where_ids_end() {
        let key = |ids: &[&str]| key_of_all(ids.iter().copied());
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        let distinct = [key(&["a", "b"]), key(&["b", "a"]), key(&["ab"]), key(&["a"]), key(&["", "ab"]), key_of("a")];
        assert!(distinct.iter().enumerate().all(|(index, key)| !distinct[..index].contains(key)));
    }
}
