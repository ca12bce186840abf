//! Cuts members out of a body, and leaves every other byte as it is.

use std::ops::Range;

use bytes::Bytes;

use super::scan::{Cursor, Fault, MAX_DEPTH, Str};

/// What to cut out, by JSON pointers (RFC 6901).
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// Below the event itself.
    root: Branches,
}

/// The steps that lead on from one place. Every member of a body is looked up here, so a lookup does not get slower with
/// each pointer.
#[derive(Debug, Default)]
struct Branches {
    /// In the order of their names.
    named: Vec<Branch>,
    /// Where in `named` those are that mean an element of an array; in the order of the elements.
    indexed: Vec<(usize, usize)>,
}

/// A step on the way to what is cut out.
#[derive(Debug)]
struct Branch {
    /// Decoded.
    name: String,
    /// Empty: this is cut out.
    next: Branches,
}

impl Cuts {
    /// One that is no pointer cuts nothing; the empty pointer, which means the whole event, does not either.
    pub(crate) fn new<'p>(pointers: impl IntoIterator<Item = &'p str>) -> Self {
        let mut root = Branches::default();
        for pointer in pointers {
            let steps: Vec<String> =
                pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
            // Further down there is nothing in any body.
            if steps.len() <= MAX_DEPTH as usize {
                root.plant(&steps);
            }
        }
        Self { root }
    }

    /// Whether every body stays as it is.
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// `body` without the members and elements that the pointers mean in it, each with one comma beside it: every one of
    /// a name that comes twice, however the name is escaped. `body` is that of an event, and the result is valid JSON
    /// again; without anything to cut it shares the body's bytes.
    pub(crate) fn apply(&self, body: Bytes) -> Bytes {
        let mut found = Vec::new();
        let walked = match std::str::from_utf8(&body) {
            Ok(text) => {
                let mut cursor = Cursor::new(text);
                cursor.space();
                walk(&self.root, &mut cursor, &mut found).is_ok()
            }
            Err(_) => false,
        };
        if !walked {
            // An event's body can be read; of one that cannot, nothing must get out.
            return Bytes::from_static(b"{}");
        }
        if found.is_empty() {
            return body;
        }
        let mut left = Vec::with_capacity(body.len());
        let mut at = 0;
        for Range { start, end } in found {
            left.extend_from_slice(&body[at..start]);
            at = end;
        }
        left.extend_from_slice(&body[at..]);
        left.into()
    }
}

impl Branches {
    fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    fn plant(&mut self, steps: &[String]) {
        let [step, rest @ ..] = steps else { return };
        let found = self.named.binary_search_by(|branch| branch.name.cmp(step));
        let at = found.unwrap_or_else(|at| {
            self.named.insert(at, Branch { name: step.clone(), next: Self::default() });
            self.index();
            at
        });
        let next = &mut self.named[at].next;
        if rest.is_empty() {
            // It takes with it whatever other pointers mean in it.
            *next = Self::default();
        } else if found.is_err() || !next.is_empty() {
            next.plant(rest);
        }
    }

    fn index(&mut self) {
        let element = |name: &str| name.parse().ok().filter(|index: &usize| index.to_string() == name);
        let all = self.named.iter().enumerate();
        self.indexed = all.filter_map(|(at, branch)| Some((element(&branch.name)?, at))).collect();
        self.indexed.sort_unstable();
    }

    fn of_member(&self, name: &str) -> Option<&Branch> {
        let at = self.named.binary_search_by(|branch| branch.name.as_str().cmp(name)).ok()?;
        self.named.get(at)
    }

    fn of_element(&self, index: usize) -> Option<&Branch> {
        let found = self.indexed.binary_search_by_key(&index, |(element, _)| *element).ok()?;
        self.named.get(self.indexed.get(found)?.1)
    }
}

/// Passes the value at the cursor; what is to be cut out of it goes to `found`, in order.
fn walk(branches: &Branches, cursor: &mut Cursor<'_>, found: &mut Vec<Range<usize>>) -> Result<(), Fault> {
    let close = match cursor.peek() {
        Some(b'{') => b'}',
        Some(b'[') => b']',
        _ => return skip(cursor),
    };
    cursor.step();
    cursor.space();
    // Where what is being cut begins, and where the last thing that stays ends.
    let (mut cut_from, mut stayed_to, mut end) = (None, None, cursor.at());
    let mut index = 0;
    while cursor.peek() != Some(close) {
        let start = cursor.at();
        let branch = if close == b'}' {
            let key = cursor.key()?;
            member(branches, key, cursor.text())
        } else {
            branches.of_element(index)
        };
        if branch.is_some_and(|branch| branch.next.is_empty()) {
            cut_from.get_or_insert(start);
            skip(cursor)?;
        } else {
            found.extend(cut_from.take().map(|from| from..start));
            match branch {
                Some(branch) => walk(&branch.next, cursor, found)?,
                None => skip(cursor)?,
            }
            stayed_to = Some(cursor.at());
        }
        end = cursor.at();
        cursor.space();
        if cursor.peek() == Some(b',') {
            cursor.step();
            cursor.space();
        }
        index += 1;
    }
    // What is cut at the end takes the comma before it along, if there is one.
    found.extend(cut_from.map(|from| stayed_to.unwrap_or(from)..end));
    cursor.step();
    Ok(())
}

fn member<'b>(branches: &'b Branches, key: Str, text: &str) -> Option<&'b Branch> {
    // Half of a surrogate pair is in no pointer.
    let decoded = if key.escaped { Some(key.decode_exactly(text)?) } else { None };
    let name = decoded.as_deref().or_else(|| text.get(key.start..key.end))?;
    branches.of_member(name)
}

fn skip(cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    cursor.value(|_, _| {}).map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn cut(pointers: &[&str], body: &str) -> String {
        let left = Cuts::new(pointers.iter().copied()).apply(Bytes::copy_from_slice(body.as_bytes()));
        String::from_utf8(left.to_vec()).unwrap()
    }

    #[test]
    fn members_go_with_one_comma_and_all_else_stays() {
        let body = "{ \"a\" : 1 ,\t\"b\":\n[ 1e0 , {} ] , \"c\" :\"\\u0041\" }";
        for (pointers, left) in [
            (&["/a"][..], "{ \"b\":\n[ 1e0 , {} ] , \"c\" :\"\\u0041\" }"),
            (&["/b"], "{ \"a\" : 1 ,\t\"c\" :\"\\u0041\" }"),
            (&["/c"], "{ \"a\" : 1 ,\t\"b\":\n[ 1e0 , {} ] }"),
            (&["/a", "/b"], "{ \"c\" :\"\\u0041\" }"),
            (&["/b", "/c"], "{ \"a\" : 1 }"),
            (&["/a", "/c"], "{ \"b\":\n[ 1e0 , {} ] }"),
            (&["/a", "/b", "/c"], "{  }"),
            (&["/b/0"], "{ \"a\" : 1 ,\t\"b\":\n[ {} ] , \"c\" :\"\\u0041\" }"),
            (&["/b/1", "/a"], "{ \"b\":\n[ 1e0 ] , \"c\" :\"\\u0041\" }"),
            (&["/b/0", "/b/1"], "{ \"a\" : 1 ,\t\"b\":\n[  ] , \"c\" :\"\\u0041\" }"),
            // Overlapping, in both orders.
            (&["/b/0", "/b"], "{ \"a\" : 1 ,\t\"c\" :\"\\u0041\" }"),
            (&["/b", "/b/0"], "{ \"a\" : 1 ,\t\"c\" :\"\\u0041\" }"),
            (&["/a", "/a"], "{ \"b\":\n[ 1e0 , {} ] , \"c\" :\"\\u0041\" }"),
        ] {
            assert_eq!(cut(pointers, body), left, "{pointers:?}");
        }
        for pointer in ["/d", "/a/0", "/b/2", "/b/00", "/b/-", "/b/+1", "/b/1/x", "/c/0", "", "a", "/"] {
            assert_eq!(cut(&[pointer], body), body, "{pointer}");
        }
    }

    #[test]
    fn every_spelling_of_a_name_is_meant() {
        for (pointer, body, left) in [
            ("/name", r#"{"na\u006de":1,"name":2,"\u006E\u0061me":3,"Name":4}"#, r#"{"Name":4}"#),
            ("/a/b", r#"{"a":{"b":1},"a":2,"\u0061":{"c":3,"b":4}}"#, r#"{"a":{},"a":2,"\u0061":{"c":3}}"#),
            ("/a~1b/m~0n", r#"{"a/b":{"m~n":1,"m~0n":2},"a\/b":{"m~n":3}}"#, r#"{"a/b":{"m~0n":2},"a\/b":{}}"#),
            ("/~01", r#"{"~1":1,"/":2,"~01":3}"#, r#"{"/":2,"~01":3}"#),
            ("/", r#"{"":1,"a":{"":2}}"#, r#"{"a":{"":2}}"#),
            ("/a/", r#"{"":1,"a":{"":2}}"#, r#"{"":1,"a":{}}"#),
            ("/é", r#"{"é":1,"\u00e9":2,"e":3}"#, r#"{"e":3}"#),
            ("/😀", r#"{"\ud83d\ude00":1,"\ud83d":2}"#, r#"{"\ud83d":2}"#),
            ("/\u{fffd}", r#"{"\ud800":1}"#, r#"{"\ud800":1}"#),
            ("/a/0", r#"{"a":[1,2],"a":{"0":1,"00":2}}"#, r#"{"a":[2],"a":{"00":2}}"#),
            ("/\"\\", r#"{"\"\\":1}"#, "{}"),
        ] {
            assert_eq!(cut(&[pointer], body), left, "{pointer}");
        }
    }

    #[test]
    fn without_anything_to_cut_the_bytes_are_shared() {
        let body = Bytes::from_static(br#"{"a":1}"#);
        assert_eq!(Cuts::new(["/b"]).apply(body.clone()).as_ptr(), body.as_ptr());
        assert!(Cuts::new([]).is_empty() && !Cuts::new(["/b"]).is_empty());
    }

    #[test]
    fn what_is_no_event_does_not_get_out() {
        for body in [r#"{"a":1,"b""#, r#"{"a":1]"#, "{,}", "{\"a\":1", "\u{0}"] {
            assert_eq!(cut(&["/b"], body), "{}", "{body}");
        }
        assert_eq!(Cuts::new(["/b"]).apply(Bytes::from_static(b"\xff")), "{}");
    }

    #[test]
    fn pointers_and_bodies_may_be_as_deep_as_there_are_any() {
        let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert_eq!(cut(&[&"/a".repeat(127)], &deep(127)), deep(127).replace("\"a\":1", ""));
        assert_eq!(cut(&[&"/a".repeat(128)], &deep(127)), deep(127));
        assert_eq!(cut(&[&"/a".repeat(100_000)], &deep(127)), deep(127));
    }

    /// Random bodies and pointers: the same as taking the values out of what serde_json reads.
    #[test]
    fn agrees_with_taking_values_out_of_a_tree() {
        for seed in 0..3_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let body = object(&mut random, 4);
            let pointers: Vec<String> = (0..random.usize(1..6)).map(|_| pointer(&mut random)).collect();
            let left = cut(&pointers.iter().map(String::as_str).collect::<Vec<_>>(), &body);

            let mut expected: Value = serde_json::from_str(&body).unwrap();
            // Of an array the last first, so that the others keep their places.
            let mut steps: Vec<Vec<&str>> = pointers.iter().map(|pointer| pointer[1..].split('/').collect()).collect();
            steps.sort_unstable();
            steps.dedup();
            steps.iter().rev().for_each(|steps| take_out(&mut expected, steps));
            let found: Value = serde_json::from_str(&left).unwrap_or_else(|error| panic!("{error} in {left}"));
            assert_eq!(found, expected, "{pointers:?} of {body}");

            let mut bytes = body.bytes();
            assert!(left.bytes().all(|byte| bytes.any(|other| other == byte)), "{left} is no part of {body}");
        }
    }

    const NAMES: [&str; 4] = ["a", "b", "0", "1"];

    fn pointer(random: &mut fastrand::Rng) -> String {
        (0..random.usize(1..4)).map(|_| format!("/{}", random.choice(NAMES).unwrap())).collect()
    }

    fn space(random: &mut fastrand::Rng) -> &'static str {
        random.choice(["", "", " ", "\n\t", "\r\n  "]).unwrap()
    }

    fn object(random: &mut fastrand::Rng, depth: usize) -> String {
        let members = (0..random.usize(0..5)).map(|_| {
            let name = random.choice(NAMES).unwrap();
            let code = name.bytes().next().unwrap();
            let name = if random.bool() { name.to_owned() } else { format!("\\u00{code:02x}") };
            let (a, b, c, d) = (space(random), space(random), space(random), space(random));
            format!("{a}\"{name}\"{b}:{c}{}{d}", value(random, depth))
        });
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }

    fn value(random: &mut fastrand::Rng, depth: usize) -> String {
        match random.usize(0..if depth == 0 { 4 } else { 7 }) {
            0 => "null".to_owned(),
            1 => format!("{}", random.i32(..)),
            2 => r#""}],\"{[:""#.to_owned(),
            3 => "[{},[ ],\"\"]".to_owned(),
            4 => {
                let elements = (0..random.usize(0..4)).map(|_| {
                    let (a, b) = (space(random), space(random));
                    format!("{a}{}{b}", value(random, depth - 1))
                });
                format!("[{}]", elements.collect::<Vec<_>>().join(","))
            }
            _ => object(random, depth - 1),
        }
    }

    fn take_out(value: &mut Value, steps: &[&str]) {
        let [step, rest @ ..] = steps else { return };
        match value {
            Value::Object(members) if rest.is_empty() => _ = members.remove(*step),
            Value::Object(members) => members.get_mut(*step).into_iter().for_each(|member| take_out(member, rest)),
            Value::Array(elements) => match step.parse::<usize>() {
                Ok(index) if index < elements.len() && rest.is_empty() => _ = elements.remove(index),
                Ok(index) => elements.get_mut(index).into_iter().for_each(|element| take_out(element, rest)),
                Err(_) => {}
            },
            _ => {}
        }
    }
}
