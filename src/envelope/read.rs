//! Walks through a body that was scanned before.
//!
//! A reader stands at a value, and each of its steps leaves that value behind. As the body is known to be valid JSON, a
//! step cannot fail; in a body that is not, the reader comes to the end all the same.

use std::borrow::Cow;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::scan::Cursor;

pub(super) struct Reader<'a> {
    cursor: Cursor<'a>,
}

/// A value as it stands in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raw<'a>(&'a str);

/// The values of the wanted fields, each wanted as its section and its name in there. A field that is missing, or whose
/// section is, is `None`; of a section or field that comes twice the last one counts.
pub(super) fn pick<'a, const N: usize>(body: &'a [u8], wanted: [[&str; 2]; N]) -> [Option<Raw<'a>>; N] {
    let mut found = [None; N];
    let mut event = Reader::new(std::str::from_utf8(body).unwrap_or_default());
    if event.first() != Some(b'{') {
        return found;
    }
    while let Some(section) = event.next_member() {
        if !wanted.iter().any(|[of, _]| *of == section) {
            event.skip();
            continue;
        }
        wanted.iter().zip(&mut found).filter(|([of, _], _)| *of == section).for_each(|(_, found)| *found = None);
        if event.first() != Some(b'{') {
            event.skip();
            continue;
        }
        while let Some(name) = event.next_member() {
            let value = event.raw();
            if let Some((_, found)) = wanted.iter().zip(&mut found).find(|(wanted, _)| **wanted == [&*section, &*name])
            {
                *found = value;
            }
        }
    }
    found
}

/// RFC 3339, and nothing but that.
pub(super) fn time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

impl<'a> Reader<'a> {
    pub(super) fn new(json: &'a str) -> Self {
        let mut cursor = Cursor::new(json);
        cursor.space();
        Self { cursor }
    }

    /// The value's first byte, which gives its type away.
    pub(super) fn first(&self) -> Option<u8> {
        self.cursor.peek()
    }

    pub(super) fn skip(&mut self) {
        let _ = self.cursor.value(|_, _| {});
    }

    /// The value, decoded if it is a text.
    pub(super) fn text(&mut self) -> Option<Cow<'a, str>> {
        if self.first() != Some(b'"') {
            self.skip();
            return None;
        }
        self.cursor.string().ok().map(|text| text.decode(self.cursor.text()))
    }

    fn raw(&mut self) -> Option<Raw<'a>> {
        let start = self.cursor.at();
        self.skip();
        self.cursor.text().get(start..self.cursor.at()).map(Raw)
    }

    /// Steps from an object, or from one of its members, to the next member's value and gives its decoded name; behind
    /// the last member it steps out of the object.
    pub(super) fn next_member(&mut self) -> Option<Cow<'a, str>> {
        if self.is_at_end(b'}') {
            return None;
        }
        self.cursor.key().ok().map(|name| name.decode(self.cursor.text()))
    }

    /// Steps from an array, or from one of its elements, to the next element; behind the last one it steps out of the
    /// array, and gives `false`.
    pub(super) fn next_element(&mut self) -> bool {
        !self.is_at_end(b']')
    }

    /// Steps over the opening bracket or a comma to what follows; at the end, over the closing bracket.
    fn is_at_end(&mut self, close: u8) -> bool {
        self.cursor.space();
        if self.cursor.peek() != Some(close) {
            self.cursor.step();
            self.cursor.space();
            if self.cursor.peek() != Some(close) {
                return self.cursor.peek().is_none();
            }
        }
        self.cursor.step();
        true
    }
}

impl<'a> Raw<'a> {
    /// The text, decoded, or the number as it stands in the body; `None` when it is empty, or neither.
    pub(super) fn id(self) -> Option<Cow<'a, str>> {
        let id = match self.0.as_bytes().first()? {
            b'-' | b'0'..=b'9' => Cow::Borrowed(self.0),
            _ => Reader::new(self.0).text()?,
        };
        if id.is_empty() { None } else { Some(id) }
    }

    /// The ids of a list; those of its elements that are none are left out.
    pub(super) fn ids(self) -> Vec<Cow<'a, str>> {
        let mut list = Reader::new(self.0);
        let mut ids = Vec::new();
        if list.first() == Some(b'[') {
            while list.next_element() {
                ids.extend(list.raw().and_then(Self::id));
            }
        }
        ids
    }
}
