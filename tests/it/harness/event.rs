//! Events as ASAPP would send them.

use std::sync::atomic::{AtomicU64, Ordering};

/// An id that no other event of this test run has.
pub(crate) fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("00000000-0000-4000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A journey event with this id.
pub(crate) fn event(id: &str) -> String {
    let id = serde_json::Value::from(id);
    format!(
        r#"{{"api_version":"v1.4.0","name":"com.asapp.event.journey","event_type":"customer_request","event_id":{id},"meta_data":{{"create_time":"2026-05-01T10:00:00.123Z","event_time":"2026-05-01T10:00:00.120Z","session_id":"sess-1","issue_id":"issue-1","company_id":"acme","customer_id":"cust-1"}},"data":{{"first_utterance_text":"hello"}}}}"#
    )
}

/// An event with an id of its own, and that id.
pub(crate) fn new_event() -> (String, String) {
    let id = new_id();
    let event = event(&id);
    (id, event)
}

/// A journey event of about this many bytes, which no compression makes much smaller.
pub(crate) fn big_event(id: &str, bytes: usize) -> String {
    let text: String = std::iter::repeat_with(fastrand::alphanumeric).take(bytes).collect();
    event(id).replace("hello", &text)
}
