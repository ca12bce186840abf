use bytes::Bytes;
use serde::de::IgnoredAny;

use super::*;

const SAMPLES: [&[u8]; 3] = [
    include_bytes!("../../tests/samples/activity.json"),
    include_bytes!("../../tests/samples/journey.json"),
    include_bytes!("../../tests/samples/queue.json"),
];

fn parse(body: impl AsRef<[u8]>) -> Result<Envelope, Rejection> {
    Envelope::parse(Bytes::copy_from_slice(body.as_ref()))
}

/// An event whose other members are these.
fn event(members: &str) -> Envelope {
    let separator = if members.is_empty() { "" } else { "," };
    let body =
        format!(r#"{{"name":"com.asapp.event.activity","event_type":"UNKNOWN","event_id":"1"{separator}{members}}}"#);
    parse(body).unwrap()
}

fn drift(envelope: &Envelope) -> Vec<String> {
    let mut found = Vec::new();
    inspect(envelope, |drift| found.push(drift.to_string()));
    found
}

fn malformed(body: impl AsRef<[u8]>) -> (&'static str, usize, usize) {
    match parse(&body) {
        Err(Rejection::Malformed { what, line, column }) => (what, line, column),
        other => panic!("{other:?} from {}", String::from_utf8_lossy(body.as_ref())),
    }
}

fn incomplete(body: &str) -> (&'static str, &'static str) {
    match parse(body) {
        Err(Rejection::Incomplete { member, what }) => (member, what),
        other => panic!("{other:?} from {body}"),
    }
}

#[test]
fn samples_are_whole_and_without_drift() {
    for (sample, feed) in SAMPLES.into_iter().zip(Feed::DOCUMENTED) {
        let envelope = parse(sample).unwrap();
        assert_eq!(envelope.body(), sample);
        assert_eq!(envelope.feed(), feed);
        assert_eq!(envelope.name(), feed.full().unwrap());
        assert_eq!(envelope.event_id(), "3fa85f64-5717-4562-b3fc-2c963f66afa6");
        assert_eq!(drift(&envelope), [""; 0]);
    }
    assert_eq!(parse(SAMPLES[0]).unwrap().event_type(), "UNKNOWN");
    assert_eq!(parse(SAMPLES[0]).unwrap().api_version(), Some("v1.3.0"));
    assert_eq!(parse(SAMPLES[1]).unwrap().event_type(), "ISSUE_CREATED");
}

#[test]
fn event_types_are_those_of_the_page() {
    let counts = Feed::DOCUMENTED.map(|feed| feed.event_types().count());
    assert_eq!(counts, [8, 36, 8]);
    assert_eq!(Feed::Other.event_types().count(), 0);
}

#[test]
fn what_is_no_json_object_is_malformed() {
    for (body, what, line, column) in [
        ("", "is empty", 1, 1),
        (" \r\n", "is empty", 2, 1),
        ("[]", "is not a JSON object", 1, 1),
        ("\n 1", "is not a JSON object", 2, 2),
        ("null", "is not a JSON object", 1, 1),
        ("nonsense", "is not a JSON object", 1, 1),
        ("\0{}", "is not a JSON object", 1, 1),
        ("\u{feff}{}", "starts with a byte order mark", 1, 1),
        ("{} {}", "goes on after its JSON object", 1, 4),
        ("{}\0", "goes on after its JSON object", 1, 3),
        ("{", "has something other than a key in quotes", 1, 2),
        ("{\"a\":1,\n}", "has something other than a key in quotes", 2, 1),
        ("{a:1}", "has something other than a key in quotes", 1, 2),
        ("{\"a\"}", "has no `:` after a key", 1, 5),
        ("{\"a\":}", "has something other than a JSON value", 1, 6),
        ("{\"a\":[1,]}", "has something other than a JSON value", 1, 9),
        ("{\"a\":nul}", "has something other than a JSON value", 1, 9),
        ("{\"a\":NaN}", "has something other than a JSON value", 1, 6),
        ("{\"a\":", "ends where a value should follow", 1, 6),
        ("{\"a\":1", "ends inside an object or array", 1, 7),
        ("{\"a\":[1", "ends inside an object or array", 1, 8),
        ("{\"a\":[1}", "has neither `,` nor `]` after an element", 1, 8),
        ("{\"a\":1]", "has neither `,` nor `}` after a member", 1, 7),
        ("{\"a\":01}", "has neither `,` nor `}` after a member", 1, 7),
        ("{\"a\":+1}", "has something other than a JSON value", 1, 6),
        ("{\"a\":-}", "has a number without a digit where one is due", 1, 7),
        ("{\"a\":1.}", "has a number without a digit where one is due", 1, 8),
        ("{\"a\":1e+}", "has a number without a digit where one is due", 1, 9),
        ("{\"a\":\"b", "ends inside a string", 1, 8),
        ("{\"a\":\"0123456789\n\"}", "has a control character in a string", 1, 17),
        ("{\"a\":\"\0\"}", "has a control character in a string", 1, 7),
        ("{\"a\":\"\\x\"}", "has an unknown escape in a string", 1, 8),
        ("{\"a\":\"\\u12g4\"}", "has a `\\u` without four hexadecimal digits", 1, 11),
        // Columns are bytes.
        ("{\"é\":x}", "has something other than a JSON value", 1, 7),
    ] {
        assert_eq!(malformed(body), (what, line, column), "{body:?}");
    }
    assert_eq!(malformed(b"{\"a\":\"\n \xff\"}"), ("is not valid UTF-8", 2, 2));
    assert_eq!(malformed(b"{\"a\":\"\xed\xa0\x80\"}"), ("is not valid UTF-8", 1, 7));
    // A body that is malformed anywhere is not judged by its members.
    assert_eq!(malformed("{\"event_id\":1,}").0, "has something other than a key in quotes");
}

#[test]
fn depth_ends_at_127() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("\"n\":{}1{}", open.repeat(depth), close.repeat(depth));
        assert_eq!(drift(&event(&nested(126))), ["field at the event"]);
        let body = format!("{{{}}}", nested(127));
        assert_eq!(malformed(&body).0, "is nested deeper than 127");
        let empty = format!("{{\"n\":{}{{}}{}}}", open.repeat(126), close.repeat(126));
        assert_eq!(malformed(&empty).0, "is nested deeper than 127");
    }
    let mut bomb = b"{\"a\":".to_vec();
    bomb.resize(1 << 20, b'[');
    assert_eq!(malformed(bomb), ("is nested deeper than 127", 1, 132));
}

#[test]
fn a_routing_member_must_be_there_once_and_be_a_text() {
    let members = [("name", r#""name":"n""#), ("event_type", r#""event_type":"t""#), ("event_id", r#""event_id":"i""#)];
    for (member, good) in members {
        let others = members.iter().filter(|other| other.0 != member).map(|other| other.1).collect::<Vec<_>>();
        let body = |instead: &str| format!("{{{},{instead}}}", others.join(","));
        assert!(parse(body(good)).is_ok());
        for (instead, what) in [
            ("\"x\":0".to_owned(), "is missing or null"),
            (format!("\"x\":{{{good}}},\"y\":[{{{good}}}]"), "is missing or null"),
            (format!("\"{member}\":null"), "is missing or null"),
            (format!("\"{member}\":\"\""), "is empty"),
            (format!("\"{member}\":1"), "is not a string"),
            (format!("\"{member}\":[\"i\"]"), "is not a string"),
            (format!("\"{member}\":{{{good}}}"), "is not a string"),
            (format!("{good},{good}"), "comes more than once"),
            (format!("{good},\"{member}\":null"), "comes more than once"),
            (format!("{good},{}", good.replacen('e', "\\u0065", 1)), "comes more than once"),
        ] {
            assert_eq!(incomplete(&body(&instead)), (member, what), "{instead}");
        }
    }
}

#[test]
fn ids_are_exact_decoded_texts_of_bounded_length() {
    let id = |id: &str| format!(r#"{{"name":"n","event_type":"t","event\u005fid":"{id}"}}"#);
    let accepted = |text: &str| parse(id(text)).unwrap().event_id().to_owned();
    assert_eq!(accepted("3FA85F64"), "3FA85F64");
    assert_eq!(accepted(r"\u0061\/\n\ud83d\ude00"), "a/\n😀");
    assert_eq!(accepted(r"\u0000"), "\0");
    assert_eq!(accepted(&"x".repeat(256)), "x".repeat(256));
    assert_eq!(accepted(&r"\u0041".repeat(256)), "A".repeat(256));
    assert_eq!(accepted(&"é".repeat(128)), "é".repeat(128));
    for long in ["x".repeat(257), "é".repeat(129), r"\u0041".repeat(257)] {
        assert_eq!(incomplete(&id(&long)), ("event_id", "is longer than 256 bytes"));
    }
    for half in [r"\ud800", r"a\udc00b", r"\ud800\ud800", r"\ud800x"] {
        assert_eq!(incomplete(&id(half)), ("event_id", "holds half of a surrogate pair"), "{half}");
    }
}

#[test]
fn odd_values_are_kept_byte_for_byte() {
    for value in [
        "18446744073709551616",
        "-0",
        "-0.0e-0",
        "1e999",
        "0.1234567890123456789012345678901234567890",
        r#""\ud800""#,
        r#""\u0000""#,
        r#"{"":[[],{}," \t"]}"#,
        "\r\n\t 1 \r\n",
    ] {
        let envelope = event(&format!("\"x\":{value}"));
        assert!(std::str::from_utf8(envelope.body()).unwrap().contains(value));
        assert_eq!(drift(&envelope), ["field at the event"]);
    }
    let long = format!("\"data\":{{\"max_slots\":{}}}", "9".repeat(10_000));
    assert_eq!(drift(&event(&long)), [""; 0]);
}

#[test]
fn names_and_types_may_hold_anything() {
    let body = r#"{"name":"\ud800","event_type":"\u0054\r\n","event_id":"1","api_version":"\u0076\u0032"}"#;
    let envelope = parse(body).unwrap();
    assert!(envelope.name().contains('\u{fffd}'));
    assert_eq!(envelope.event_type(), "T\r\n");
    assert_eq!(envelope.api_version(), Some("v2"));
    assert_eq!(drift(&envelope), ["api_version at api_version", "feed at name"]);
}

#[test]
fn drift_is_reported_by_documented_names_only() {
    let reported = |members: &str| drift(&event(members));
    assert_eq!(reported(r#""api_version":"v1.99.0""#), [""; 0]);
    assert_eq!(reported(r#""api_version":"string""#), [""; 0]);
    assert_eq!(reported(r#""api_version":null,"meta_data":null,"data":{"max_slots":null}"#), [""; 0]);
    assert_eq!(reported(r#""api_version":"v2.0.0""#), ["api_version at api_version"]);
    assert_eq!(reported(r#""api_version":"2""#), ["api_version at api_version"]);
    assert_eq!(reported(r#""api_version":1.3"#), ["mismatch at api_version"]);
    assert_eq!(reported(r#""api_version":"v1.3.0","api_version":"v1.3.0""#), ["mismatch at api_version"]);
    assert_eq!(reported(r#""secret":"x""#), ["field at the event"]);
    assert_eq!(
        reported(r#""meta_data":[],"data":"x","details":7"#),
        ["mismatch at meta_data", "mismatch at data", "mismatch at details"]
    );
    assert_eq!(
        reported(r#""meta_data":{"client_type":"FAX","secret":{"a":[{}]}}"#),
        ["value at meta_data.client_type", "field at meta_data"]
    );
    assert_eq!(
        reported(r#""meta_data":{"create_time":"yesterday","event_time":1}"#),
        ["mismatch at meta_data.create_time", "mismatch at meta_data.event_time"]
    );
    assert_eq!(
        reported(r#""data":{"queue_ids":[1,null,"a"],"queue_names":"a","max_slots":"3"}"#),
        ["mismatch at data.queue_ids", "mismatch at data.queue_names", "mismatch at data.max_slots"]
    );
    let body = r#"{"name":"com.asapp.event.activity","event_type":"new","event_id":"1"}"#;
    assert_eq!(drift(&parse(body).unwrap()), ["event_type at event_type"]);
    let body = body.replace("new", "UNKNOWN").replace("activity", "journey");
    assert_eq!(drift(&parse(body).unwrap()), ["event_type at event_type"]);
    let body = r#"{"name":"com.asapp.event.billing","event_type":"x","event_id":"1","data":{"a":1}}"#;
    assert_eq!(drift(&parse(body).unwrap()), ["feed at name"]);
    let body = r#"{"name":"com.asapp.event.journey","event_type":"DETECTED","event_id":"1","details":
        {"last_flow_action_called_inputs":{"mine":{"value":1,"value_type":"VALUE_TYPE_INT"},"yours":3},
         "is_resolved":"yes","survey_responses":[{"ordering":true}]}}"#;
    assert_eq!(
        drift(&parse(body).unwrap()),
        [
            "mismatch at details.last_flow_action_called_inputs.value",
            "value at details.last_flow_action_called_inputs.value_type",
            "mismatch at details.last_flow_action_called_inputs",
            "mismatch at details.is_resolved",
            "mismatch at details.survey_responses.ordering"
        ]
    );
}

#[test]
fn debug_shows_no_field_values() {
    let shown = format!("{:?}", event(r#""data":{"rep_name":"marker"}"#));
    assert!(!shown.contains("marker"), "{shown}");
}

/// serde_json is the oracle of what is JSON; the rest of the contract is checked beside it.
#[test]
fn the_scan_agrees_with_serde_json() {
    let mut random = fastrand::Rng::with_seed(7);
    let seeds: Vec<Vec<u8>> = SAMPLES
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain([
            br#"{"name":"n","event_type":"t","event_id":"i"}"#.to_vec(),
            br#" {"a":[1,-0.5e+7,true,false,null,"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud800 \u00ff",[],{},{"":{}}]} "#
                .to_vec(),
            "{\"\u{7f}é€😀\":\"\u{80}\u{7ff}\u{ffff}\",\"b\":0.1e-2}".as_bytes().to_vec(),
        ])
        .collect();
    let bits: &[&[u8]] = &[
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"0",
        b"-",
        b".",
        b"e",
        b"E",
        b"+",
        b" ",
        b"\n",
        b"\t",
        b"\r",
        b"\0",
        b"\x1f",
        b"\x7f",
        b"\x0b",
        b"\x0c",
        b"\\u",
        b"\\ud800",
        b"\\u0000",
        b"null",
        b"true",
        b"[[[[[[[[",
        b"]]]]]]]]",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"01",
        b"1e5",
        b"\"a\":",
        b"\"event_id\":\"x\",",
        b"\"b\"",
        b"/",
        b"'",
        b"NaN",
        b"\xe2\x80\xa8",
    ];
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let mut body = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(0..4) {
            let at = random.usize(..=body.len());
            let end = (at + random.usize(0..4)).min(body.len());
            match random.u8(0..4) {
                0 => drop(body.drain(at..end)),
                1 => body.truncate(if random.u8(0..8) == 0 { at } else { body.len() }),
                2 if at < body.len() => body[at] = random.u8(..),
                _ => drop(body.splice(at..at, bits[random.usize(..bits.len())].iter().copied())),
            }
        }
        let text = std::str::from_utf8(&body);
        let valid = text.is_ok_and(|text| {
            serde_json::from_str::<IgnoredAny>(text).is_ok() && text.trim_start().starts_with('{') && depth(text) <= 127
        });
        match parse(&body) {
            Err(Rejection::Malformed { line, column, .. }) => {
                assert!(!valid, "refused: {}", String::from_utf8_lossy(&body));
                let start = body.split_inclusive(|&byte| byte == b'\n').take(line - 1).map(<[u8]>::len).sum::<usize>();
                assert!(start + column - 1 <= body.len(), "no such place");
                bad += 1;
            }
            outcome => {
                assert!(valid, "let through: {}", String::from_utf8_lossy(&body));
                // Whatever it holds, it can be read.
                if let Ok(envelope) = outcome {
                    drift(&envelope);
                    envelope_agrees(&envelope);
                }
                good += 1;
            }
        }
    }
    assert!(good > 3_000 && bad > 3_000, "{good} good, {bad} bad");
}

/// The routing members are what serde_json reads.
fn envelope_agrees(envelope: &Envelope) {
    #[derive(serde::Deserialize)]
    struct Routing {
        name: String,
        event_type: String,
        event_id: String,
    }
    let Ok(routing) = serde_json::from_slice::<Routing>(envelope.body()) else { return };
    assert_eq!(routing.event_id, envelope.event_id());
    assert_eq!(routing.name, envelope.name());
    assert_eq!(routing.event_type, envelope.event_type());
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
