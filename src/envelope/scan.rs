//! The one scan of a body: is it one JSON object (RFC 8259), no deeper than [`MAX_DEPTH`], and what are its routing
//! members? Iterative, without heap, eight bytes a step through strings and indentation. What is `inline(always)` here
//! saves a fifth of the instructions.

/// Containers inside each other, the top object included.
pub(super) const MAX_DEPTH: u32 = 127;

/// What is wrong with a body, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

/// The members of the top object that route an event, compared by their decoded keys.
#[derive(Debug, Default)]
pub(super) struct Routing {
    pub(super) name: Member,
    pub(super) event_type: Member,
    pub(super) event_id: Member,
    pub(super) api_version: Member,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    #[default]
    Missing,
    Once(Value),
    Doubled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    String(Str),
    /// A number, `true`, `false`, an array or an object.
    Other,
}

/// A string in a body, between its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Str {
    pub(super) start: usize,
    pub(super) end: usize,
    /// It holds a backslash, so its text is not its bytes.
    pub(super) escaped: bool,
}

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

/// Checks the whole of `text` before judging any member.
pub(super) fn scan(text: &str) -> Result<Routing, Fault> {
    let mut cursor = Cursor::new(text);
    let mut routing = Routing::default();
    if text.starts_with('\u{feff}') {
        return Err(cursor.fault("starts with a byte order mark"));
    }
    cursor.space();
    match cursor.peek() {
        Some(b'{') => cursor.value(|key, value| routing.note(text, key, value))?,
        Some(_) => return Err(cursor.fault("is not a JSON object")),
        None => return Err(cursor.fault("is empty")),
    };
    cursor.space();
    match cursor.peek() {
        Some(_) => Err(cursor.fault("goes on after its JSON object")),
        None => Ok(routing),
    }
}

impl Routing {
    fn note(&mut self, text: &str, key: Str, value: Value) {
        let member = match &*key.decode(text) {
            "name" => &mut self.name,
            "event_type" => &mut self.event_type,
            "event_id" => &mut self.event_id,
            "api_version" => &mut self.api_version,
            _ => return,
        };
        *member = if *member == Member::Missing { Member::Once(value) } else { Member::Doubled };
    }
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline(always)]
    pub(super) fn step(&mut self) {
        self.at += 1;
    }

    /// Walks over the value that begins here. If it is an object, `member` is called for each of its members, but not for
    /// the members of its members.
    pub(super) fn value(&mut self, mut member: impl FnMut(Str, Value)) -> Result<Value, Fault> {
        // The kinds of the open containers, the innermost in the lowest bit: 1 is an object.
        let mut objects = 0_u128;
        let mut depth = 0;
        // The key whose value is under way, one level down.
        let mut pending = None;
        'value: loop {
            let mut value = match self.peek() {
                Some(b'"') => Value::String(self.string()?),
                Some(open @ (b'{' | b'[')) => {
                    if depth == MAX_DEPTH {
                        return Err(self.fault("is nested deeper than 127"));
                    }
                    depth += 1;
                    objects = objects << 1 | u128::from(open == b'{');
                    self.step();
                    self.space();
                    // An empty container is closed below, like any other.
                    if open == b'{' && self.peek() != Some(b'}') {
                        let key = self.key()?;
                        if depth == 1 {
                            pending = Some(key);
                        }
                        continue 'value;
                    }
                    if open == b'[' && self.peek() != Some(b']') {
                        continue 'value;
                    }
                    Value::Other
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b'n') => self.literal("null", Value::Null)?,
                Some(b't') => self.literal("true", Value::Other)?,
                Some(b'f') => self.literal("false", Value::Other)?,
                Some(_) => return Err(self.fault("has something other than a JSON value")),
                None => return Err(self.fault("ends where a value should follow")),
            };
            loop {
                if depth == 0 {
                    return Ok(value);
                }
                if depth == 1
                    && let Some(key) = pending.take()
                {
                    member(key, value);
                }
                self.space();
                let in_object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.step();
                        self.space();
                        if in_object {
                            let key = self.key()?;
                            if depth == 1 {
                                pending = Some(key);
                            }
                        }
                        continue 'value;
                    }
                    Some(b'}') if in_object => {}
                    Some(b']') if !in_object => {}
                    Some(_) if in_object => return Err(self.fault("has neither `,` nor `}` after a member")),
                    Some(_) => return Err(self.fault("has neither `,` nor `]` after an element")),
                    None => return Err(self.fault("ends inside an object or array")),
                }
                self.step();
                objects >>= 1;
                depth -= 1;
                value = Value::Other;
            }
        }
    }

    /// A member's key, up to where its value begins.
    #[inline(always)]
    pub(super) fn key(&mut self) -> Result<Str, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("has something other than a key in quotes"));
        }
        let key = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.fault("has no `:` after a key"));
        }
        self.step();
        self.space();
        Ok(key)
    }

    /// The string whose opening quote is here.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<Str, Fault> {
        self.step();
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += plain(self.rest());
            match self.peek() {
                Some(b'"') => {
                    let end = self.at;
                    self.step();
                    return Ok(Str { start, end, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return Err(self.fault("has a control character in a string")),
                None => return Err(self.fault("ends inside a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        self.step();
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.step(),
            Some(b'u') => {
                self.step();
                for _ in 0..4 {
                    match self.peek() {
                        Some(digit) if digit.is_ascii_hexdigit() => self.step(),
                        _ => return Err(self.fault("has a `\\u` without four hexadecimal digits")),
                    }
                }
            }
            _ => return Err(self.fault("has an unknown escape in a string")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value, Fault> {
        if self.peek() == Some(b'-') {
            self.step();
        }
        if self.peek() == Some(b'0') {
            self.step();
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.step();
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.step();
            if let Some(b'+' | b'-') = self.peek() {
                self.step();
            }
            self.digits()?;
        }
        Ok(Value::Other)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.fault("has a number without a digit where one is due"));
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.step();
        }
        Ok(())
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, Fault> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return Err(self.fault("has something other than a JSON value"));
            }
            self.step();
        }
        Ok(value)
    }

    /// Passes white space.
    #[inline(always)]
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.step();
            self.at += spaces(self.rest());
        }
    }

    #[inline(always)]
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    #[cold]
    fn fault(&self, what: &'static str) -> Fault {
        Fault { what, at: self.at }
    }
}

/// How many bytes go by before a quote, a backslash or a control character.
#[inline(always)]
fn plain(bytes: &[u8]) -> usize {
    let special = |word: u64| {
        let control = word.wrapping_sub(every(0x20));
        let quote = (word ^ every(b'"')).wrapping_sub(every(1));
        let backslash = (word ^ every(b'\\')).wrapping_sub(every(1));
        // A borrow can mark a byte wrongly, but only behind one marked rightly.
        (control | quote | backslash) & !word & every(0x80)
    };
    let (words, tail) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + first(special);
        }
    }
    let special = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    words.len() * 8 + special.unwrap_or(tail.len())
}

/// How many spaces come first; no need to be complete.
#[inline(always)]
fn spaces(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let other = u64::from_le_bytes(*word) ^ every(b' ');
        if other != 0 {
            return index * 8 + first(other);
        }
    }
    words.len() * 8
}

#[inline(always)]
const fn every(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The index of the first byte with a bit set.
#[inline(always)]
fn first(marks: u64) -> usize {
    (marks.trailing_zeros() / 8) as usize
}
