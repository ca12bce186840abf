//! Text from elsewhere (an event, a target's answer, a file, another program), made safe to show.
//!
//! Control characters (C0 and C1) steer a terminal; bidirectional controls reorder what a person reads, invisible
//! characters hide a part of it. All of them are spelled as JSON spells them, `\u001b`, so that JSON stays the same JSON.
//! This is done once, where text leaves the program for a person: [`commands`](crate::commands) and the log.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// `text` with nothing in it that steers a terminal or cannot be seen. Line feeds and tabs stay.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if text.bytes().all(is_plain) || !with_previous(text).any(is_escaped) {
        Cow::Borrowed(text)
    } else {
        spelled(text, is_escaped)
    }
}

/// The same for a text of one line: line feeds and tabs are spelled too.
#[must_use]
pub fn escaped_line(text: &str) -> Cow<'_, str> {
    let is_escaped = |(previous, c)| is_layout(c) || is_escaped((previous, c));
    if with_previous(text).any(is_escaped) { spelled(text, is_escaped) } else { Cow::Borrowed(text) }
}

/// The same for bytes, of which those that are no UTF-8 are replaced.
#[must_use]
pub fn escaped_bytes(bytes: &[u8]) -> Cow<'_, [u8]> {
    if bytes.iter().copied().all(is_plain) {
        return Cow::Borrowed(bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    Cow::Owned(escaped(&text).into_owned().into_bytes())
}

/// A writer in front of a terminal, or of a log that will be read on one. Each write has to be of whole characters.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(&escaped_bytes(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether `c` takes no room on a screen, ends a line or reorders it, or looks like nothing or like anything.
#[must_use]
pub(crate) fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        // Zero width, bidirectional marks, embeddings, overrides and isolates, separators of lines, invisible operators.
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        // A blank of Braille and one of Khitan, a null note; controls of hieroglyphs, of shorthand and of music.
        | '\u{2800}' | '\u{16fe4}' | '\u{1d159}' | '\u{13430}'..='\u{13440}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        // Annotations, tags, and variation selectors, which carry any bytes.
        | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}' | '\u{fe00}'..='\u{fe0f}'
        // For private use: what they look like is the font's choice.
        | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}')
}

fn spelled(text: &str, is_escaped: impl Fn((char, char)) -> bool) -> Cow<'_, str> {
    let mut spelled = String::with_capacity(text.len() + 16);
    for (previous, c) in with_previous(text) {
        if is_escaped((previous, c)) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A String takes everything.
                let _ = write!(spelled, "\\u{unit:04x}");
            }
        } else {
            spelled.push(c);
        }
    }
    Cow::Owned(spelled)
}

/// Of nearly all text, every byte.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\t' | b' '..=b'~')
}

fn is_layout(c: char) -> bool {
    matches!(c, '\n' | '\t')
}

/// Each character with the one in front of it, a space in front of the first.
fn with_previous(text: &str) -> impl Iterator<Item = (char, char)> {
    text.chars().scan(' ', |previous, c| Some((std::mem::replace(previous, c), c)))
}

fn is_escaped((previous, c): (char, char)) -> bool {
    // Directly behind an emoji it chooses between colour and plain, as people write it.
    let chooses = matches!(c, '\u{fe0e}' | '\u{fe0f}') && is_emoji(previous);
    (is_unseen(c) && !chooses) || (c.is_control() && !is_layout(c))
}

/// The blocks in which those stand that come in both ways.
fn is_emoji(c: char) -> bool {
    matches!(c,
        '\u{a9}' | '\u{ae}' | '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{2190}'..='\u{21ff}'
        | '\u{2300}'..='\u{23ff}' | '\u{24c2}' | '\u{25a0}'..='\u{27bf}' | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}'
        | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_hides_is_spelled_as_json_spells_it() {
        let steering = "\u{0}\u{7}\u{1b}\r\u{7f}\u{80}\u{9b}\u{9d}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\
            \u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}\u{fffb}\u{e0001}\u{e007f}\u{e0100}\
            \u{2800}\u{fe00}\u{fe0e}\u{fe0f}\u{13430}\u{13440}\u{16fe4}\u{1bca0}\u{1bca3}\u{1d159}\u{1d173}\u{1d17a}\
            \u{e000}\u{f8ff}\u{f0000}\u{10fffd}";
        for c in steering.chars() {
            let text = format!("a{c}b");
            let shown = escaped(&text);
            assert!(shown.is_ascii() && shown.starts_with("a\\u") && shown.ends_with('b'), "{shown}");
            assert_eq!(escaped_line(&text), shown);
            assert_eq!(escaped_bytes(text.as_bytes()), shown.as_bytes());
            let json = format!("\"{shown}\"");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text, "the same JSON");
        }
        // One of two that choose an emoji's looks hides something.
        assert_eq!(escaped("❤\u{fe0f}\u{fe0f}"), "❤\u{fe0f}\\ufe0f");
        assert_eq!(escaped("❤\u{fe00}"), "❤\\ufe00");
    }

    #[test]
    fn what_people_write_stays() {
        for text in
            ["", "plain", "a\tb\nc", "é ß 漢字 😀 ❤\u{fe0f} العربية עברית", "\u{301}\u{a0}", "☎\u{fe0e} 🅰\u{fe0f}"]
        {
            assert!(matches!(escaped(text), Cow::Borrowed(_)), "{text}");
            assert_eq!(escaped_bytes(text.as_bytes()), text.as_bytes());
        }
        assert_eq!(escaped_line("a\tb\nc"), "a\\u0009b\\u000ac");
        assert_eq!(escaped_bytes(b"\x1b[2J\x9b"), "\\u001b[2J\u{fffd}".as_bytes());
        let mut out = Escaping(Vec::new());
        out.write_all("{\"a\":\"\u{9b}\"}\n".as_bytes()).unwrap();
        assert_eq!(out.0, b"{\"a\":\"\\u009b\"}\n");
    }
}
