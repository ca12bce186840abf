//! Files that are read whole or not at all, and the text in them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A file of one secret is never larger.
pub(crate) const SECRET: u64 = 64 << 10;

/// All of a regular file, of `most` bytes or fewer.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    // A pipe would be waited for without end.
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    read_any(file, most)
}

/// The same of anything that somebody gives by hand, such as a pipe of the shell's.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read_any(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A device would be read without end.
    File::open(file)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {} KiB", most >> 10)));
    }
    Ok(bytes)
}

/// The text of a file, without a byte order mark.
///
/// # Errors
/// Why it is none.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("is UTF-16: write it as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text =
        std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8 after byte {}", error.valid_up_to()))?;
    match text.find('\0') {
        Some(place) => Err(format!("holds a NUL byte after byte {place}, so is no text")),
        None => Ok(text),
    }
}

/// The one word of a file with a token. White space around it is no part of it.
///
/// # Errors
/// Why it is none. Never quotes it.
pub(crate) fn word(bytes: &[u8]) -> Result<&str, String> {
    let word = text(bytes)?.trim_ascii();
    if word.is_empty() {
        return Err("is empty".to_owned());
    }
    if !word.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds more than a token: it must be one word of visible ASCII".to_owned());
    }
    if is_placeholder(word) {
        return Err("holds the placeholder of a shipped example, not a token".to_owned());
    }
    Ok(word)
}

/// Whether it is what the shipped settings and examples have in place of what only their user knows.
pub(crate) fn is_placeholder(text: &str) -> bool {
    text == "REPLACE" || text.contains("REPLACE-with-") || text.contains("REPLACE with ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_taken_whatever_an_editor_made_of_it() {
        for text in ["a-token", "a-token\n", "\u{feff}a-token\r\n", " \n a-token \n\n"] {
            assert_eq!(word(text.as_bytes()), Ok("a-token"), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_word_is_refused_and_not_quoted() {
        let utf16 = [0xff, 0xfe, b's', 0, b'3', 0];
        for (bytes, words) in [
            (&b""[..], "is empty"),
            (b"\xef\xbb\xbf \r\n", "is empty"),
            (b"s3cret s3cret", "one word"),
            (b"s3cret\ns3cret\n", "one word"),
            ("s3cret\u{a0}".as_bytes(), "one word"),
            ("s3cr\u{e9}t".as_bytes(), "one word"),
            (b"s3cret\x07", "one word"),
            (b"s3cret\xff", "not UTF-8 after byte 6"),
            (b"s3cret\0", "NUL"),
            (&utf16, "UTF-16"),
            (b"REPLACE\n", "placeholder"),
        ] {
            let said = word(bytes).unwrap_err();
            assert!(said.contains(words) && !said.contains("s3cr"), "{said}");
        }
    }

    #[test]
    fn files_are_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "12345678").unwrap();
        assert_eq!(read(&file, 8).unwrap(), b"12345678");
        let refused = |file: &Path, most| read(file, most).unwrap_err().to_string();
        assert!(refused(&file, 7).contains("larger"));
        assert!(refused(folder.path(), 8).contains("no regular file"));
        assert!(refused(Path::new("/dev/zero"), 8).contains("no regular file"));
        assert!(refused(&folder.path().join("none"), 8).contains("No such file"));
        assert!(read_any(Path::new("/dev/zero"), 8).unwrap_err().to_string().contains("larger"));
        assert_eq!(read_any(Path::new("/dev/null"), 8).unwrap(), b"");
    }

    #[test]
    fn names_of_people_are_no_placeholders() {
        for name in ["REPLACEMENT Parts Ltd", "CN=REPLACER", "asapp.REPLACE.example", "Replace with care"] {
            assert!(!is_placeholder(name), "{name}");
        }
        for name in ["REPLACE", "CN=REPLACE-with-the-identifier-agreed-with-ASAPP,O=x", "REPLACE with the PEM file"] {
            assert!(is_placeholder(name), "{name}");
        }
    }
}
