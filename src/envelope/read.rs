//! Reads the fields of an event out of a body that was scanned before, leniently.
//!
//! A reader stands at a value and leaves it behind. As the body is known to be valid, nothing here can fail but a
//! value's type, and that is told as drift.

use std::borrow::Cow;
use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::scan::{Cursor, Str};
use super::{Drift, Kind};

/// A number as it stands in the body, however large or precise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<'a>(&'a str);

/// What something is called: a text that is not empty, decoded, or a number as it stands in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id<'a>(pub Cow<'a, str>);

/// Members under names that are data, in the order they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Named<'a, T>(pub Vec<(Cow<'a, str>, T)>);

/// The names on the way to a field, all of them documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    names: [&'static str; 3],
    depth: usize,
}

pub(super) struct Reader<'a, 'd> {
    cursor: Cursor<'a>,
    path: Path,
    drift: &'d mut dyn FnMut(Drift<'_>),
}

/// A type that a field can have.
pub(super) trait Read<'a>: Sized {
    /// Reads the value the reader stands at; `None`, told as drift, when it is of another type.
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self>;
}

/// An object with documented fields.
pub(super) trait Record<'a>: Default {
    const FIELDS: &'static [&'static str];

    /// Reads the value the reader stands at into the field at this index of `FIELDS`.
    fn set(&mut self, field: usize, reader: &mut Reader<'a, '_>);
}

/// A record whose fields are all optional, with its reader.
macro_rules! record {
    ($(#[$doc:meta])* $vis:vis struct $name:ident<$a:lifetime> { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        $vis struct $name<$a> { $($(#[$field_doc])* pub $field: Option<$type>,)* }

        impl<$a> $crate::envelope::read::Record<$a> for $name<$a> {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn set(&mut self, field: usize, reader: &mut $crate::envelope::read::Reader<$a, '_>) {
                #[allow(non_camel_case_types)]
                #[derive(Clone, Copy)]
                enum At { $($field),* }
                const ALL: &[At] = &[$(At::$field),*];
                match ALL.get(field) {
                    $(Some(At::$field) => self.$field = reader.read(),)*
                    None => reader.skip(),
                }
            }
        }

        impl<$a> $crate::envelope::read::Read<$a> for $name<$a> {
            fn read(reader: &mut $crate::envelope::read::Reader<$a, '_>) -> Option<Self> {
                reader.object()
            }
        }
    };
}
pub(super) use record;

/// An enum of the documented values, open for those that ASAPP adds; `$kind` is the drift such a value is.
macro_rules! open {
    ($(#[$doc:meta])* pub enum $name:ident<$a:lifetime> { $($variant:ident = $value:literal,)* }) => {
        $crate::envelope::read::open! { @ Value, $(#[$doc])* $name<$a> { $($variant = $value,)* } }
    };
    ($(#[$doc:meta])* pub enum $name:ident<$a:lifetime>: $kind:ident { $($variant:ident = $value:literal,)* }) => {
        $crate::envelope::read::open! { @ $kind, $(#[$doc])* $name<$a> { $($variant = $value,)* } }
    };
    (@ $kind:ident, $(#[$doc:meta])* $name:ident<$a:lifetime> { $($variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name<$a> {
            $($variant,)*
            /// A value this version does not know.
            Other(std::borrow::Cow<$a, str>),
        }

        impl $name<'_> {
            /// The documented values.
            pub const DOCUMENTED: &'static [&'static str] = &[$($value),*];

            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Other(value) => value,
                }
            }
        }

        impl<$a> $crate::envelope::read::Read<$a> for $name<$a> {
            fn read(reader: &mut $crate::envelope::read::Reader<$a, '_>) -> Option<Self> {
                let text: std::borrow::Cow<$a, str> = reader.read()?;
                Some(match &*text {
                    $($value => Self::$variant,)*
                    _ => {
                        reader.tell_unknown($crate::envelope::Kind::$kind, &text);
                        Self::Other(text)
                    }
                })
            }
        }
    };
}
pub(super) use open;

impl<'a, 'd> Reader<'a, 'd> {
    /// `text` is the body of an envelope; every drift is told to `drift`.
    pub(super) fn new(text: &'a str, drift: &'d mut dyn FnMut(Drift<'_>)) -> Self {
        let mut cursor = Cursor::new(text);
        cursor.space();
        Self { cursor, path: Path::default(), drift }
    }

    /// The value as a `T`; `None` when it is null, or of another type, which is told.
    pub(super) fn read<T: Read<'a>>(&mut self) -> Option<T> {
        if self.cursor.peek() == Some(b'n') {
            self.skip();
            return None;
        }
        T::read(self)
    }

    pub(super) fn object<R: Record<'a>>(&mut self) -> Option<R> {
        if self.cursor.peek() != Some(b'{') {
            return self.mismatch();
        }
        let mut record = R::default();
        let mut expected = 0;
        while let Some(key) = self.next_key() {
            let name = key.decode(self.cursor.text());
            let Some(field) = position(R::FIELDS, expected, &name) else {
                (self.drift)(Drift { kind: Kind::Field, path: self.path, name: Some(&name) });
                self.skip();
                continue;
            };
            let outer = self.path;
            self.path = outer.then(R::FIELDS[field]);
            record.set(field, self);
            self.path = outer;
            expected = field + 1;
        }
        Some(record)
    }

    /// Passes the value, and tells that it is not what is documented.
    pub(super) fn mismatch<T>(&mut self) -> Option<T> {
        self.tell(Kind::Mismatch);
        self.skip();
        None
    }

    pub(super) fn tell(&mut self, kind: Kind) {
        (self.drift)(Drift { kind, path: self.path, name: None });
    }

    /// Of a text that is not among the documented ones. What an event is called is a name; all else is a value.
    pub(super) fn tell_unknown(&mut self, kind: Kind, text: &str) {
        let name = (kind == Kind::EventType).then_some(text);
        (self.drift)(Drift { kind, path: self.path, name });
    }

    pub(super) fn skip(&mut self) {
        let _ = self.cursor.value(|_, _| {});
    }

    /// The value as it stands in the body.
    pub(super) fn raw(&mut self) -> Option<&'a str> {
        let start = self.cursor.at();
        self.skip();
        self.cursor.text().get(start..self.cursor.at())
    }

    /// Steps from the opening brace, or from behind a member, to the next member's value.
    fn next_key(&mut self) -> Option<Str> {
        if self.at_end(b'}') { None } else { self.cursor.key().ok() }
    }

    /// Steps over the opening bracket or a comma to what follows; at the end, over the closing bracket.
    fn at_end(&mut self, close: u8) -> bool {
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

/// Where `key` stands among `fields`, looked for from `expected` on: fields mostly come in the documented order.
fn position(fields: &[&str], expected: usize, key: &str) -> Option<usize> {
    let (before, after) = fields.split_at_checked(expected)?;
    match after.iter().position(|field| *field == key) {
        Some(index) => Some(expected + index),
        None => before.iter().position(|field| *field == key),
    }
}

impl<'a> Read<'a> for Cow<'a, str> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        if reader.cursor.peek() != Some(b'"') {
            return reader.mismatch();
        }
        let str = reader.cursor.string().ok()?;
        Some(str.decode(reader.cursor.text()))
    }
}

impl<'a> Read<'a> for Number<'a> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        match reader.cursor.peek() {
            Some(b'-' | b'0'..=b'9') => reader.raw().map(Self),
            _ => reader.mismatch(),
        }
    }
}

impl<'a> Read<'a> for Id<'a> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        let id = match reader.cursor.peek() {
            Some(b'"') => reader.read::<Cow<'a, str>>()?,
            _ => Cow::Borrowed(reader.read::<Number<'a>>()?.as_str()),
        };
        if id.is_empty() { None } else { Some(Self(id)) }
    }
}

impl<'a> Read<'a> for bool {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        let value = match reader.cursor.peek() {
            Some(b't') => true,
            Some(b'f') => false,
            _ => return reader.mismatch(),
        };
        reader.skip();
        Some(value)
    }
}

impl<'a> Read<'a> for OffsetDateTime {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        let text: Cow<'a, str> = reader.read()?;
        let time = Self::parse(&text, &Rfc3339).ok();
        if time.is_none() {
            reader.tell(Kind::Mismatch);
        }
        time
    }
}

/// Elements that are null or of another type are left out.
impl<'a, T: Read<'a>> Read<'a> for Vec<T> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        if reader.cursor.peek() != Some(b'[') {
            return reader.mismatch();
        }
        let mut elements = Self::new();
        while !reader.at_end(b']') {
            elements.extend(reader.read::<T>());
        }
        Some(elements)
    }
}

/// An object whose keys are data; values that are null or of another type are left out.
impl<'a, T: Read<'a>> Read<'a> for Named<'a, T> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        if reader.cursor.peek() != Some(b'{') {
            return reader.mismatch();
        }
        let mut members = Vec::new();
        while let Some(key) = reader.next_key() {
            let name = key.decode(reader.cursor.text());
            members.extend(reader.read().map(|value| (name, value)));
        }
        Some(Self(members))
    }
}

impl<'a> Number<'a> {
    /// Exactly as in the body.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// `None` when it is no whole number, or too large for one.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        self.0.parse().ok()
    }

    /// The nearest one there is; infinite when it is too large.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0.parse().unwrap_or(f64::NAN)
    }
}

impl Path {
    pub(super) fn of(name: &'static str) -> Self {
        Self::default().then(name)
    }

    fn then(mut self, name: &'static str) -> Self {
        if let Some(next) = self.names.get_mut(self.depth) {
            *next = name;
            self.depth += 1;
        }
        self
    }
}

impl Default for Path {
    /// The event itself.
    fn default() -> Self {
        Self { names: [""; 3], depth: 0 }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.get(..self.depth) {
            None | Some([]) => f.write_str("the event"),
            Some(names) => f.write_str(&names.join(".")),
        }
    }
}
