//! The heads of answers, followed byte by byte beside the HTTP library, which skips interim answers without a bound and
//! keeps a status to itself when what comes after the status line is not to its taste.

use hyper::StatusCode;

/// Interim answers (100, 103 and their like) of one exchange. Servers send one, or two.
pub(super) const MOST_INTERIM: u32 = 16;

/// As much of a status line as names the status: `HTTP/1.1 200` and what ends the code.
const STATUS_BYTES: usize = 13;

/// The answers to one request, as far as they have been read.
#[derive(Debug)]
pub(super) struct Heads {
    at: At,
    interim: u32,
    status: Option<StatusCode>,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// In a status line, of which these are the first bytes.
    Status([u8; STATUS_BYTES], usize),
    /// In the head of an interim answer, at or after the end of its status line.
    Fields { is_line_empty: bool },
    /// Past the final status line, or past one that is none.
    Done,
}

/// More interim answers than [`MOST_INTERIM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_INTERIM} interim answers (1xx) and no final one")]
pub(super) struct TooManyInterim;

impl Default for Heads {
    fn default() -> Self {
        Self { at: At::Status([0; STATUS_BYTES], 0), interim: 0, status: None }
    }
}

impl Heads {
    /// The final status, once its line has said it.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Takes the bytes that came next.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Result<(), TooManyInterim> {
        for &byte in bytes {
            self.at = match self.at {
                At::Done => return Ok(()),
                // Empty lines before a status line are skipped, as the HTTP library does.
                At::Status(_, 0) if matches!(byte, b'\r' | b'\n') => continue,
                At::Status(mut line, length) => {
                    line[length] = byte;
                    if length + 1 < STATUS_BYTES { At::Status(line, length + 1) } else { self.judge(line)? }
                }
                At::Fields { is_line_empty: true } if byte == b'\n' => At::Status([0; STATUS_BYTES], 0),
                At::Fields { .. } if byte == b'\n' => At::Fields { is_line_empty: true },
                At::Fields { is_line_empty } => At::Fields { is_line_empty: is_line_empty && byte == b'\r' },
            };
        }
        Ok(())
    }

    fn judge(&mut self, line: [u8; STATUS_BYTES]) -> Result<At, TooManyInterim> {
        let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', code @ .., end @ (b' ' | b'\r' | b'\n')] =
            line
        else {
            return Ok(At::Done);
        };
        let status = StatusCode::from_bytes(&code).ok();
        if !status.is_some_and(|status| status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS) {
            self.status = status;
            return Ok(At::Done);
        }
        self.interim += 1;
        if self.interim > MOST_INTERIM {
            return Err(TooManyInterim);
        }
        Ok(At::Fields { is_line_empty: end == b'\n' })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known after these bytes, in pieces of any size.
    fn after(bytes: &[u8]) -> Result<Option<u16>, TooManyInterim> {
        let outcomes = [1, 2, 5, 13, bytes.len().max(1)].map(|size| {
            let mut heads = Heads::default();
            bytes.chunks(size).try_for_each(|chunk| heads.see(chunk))?;
            Ok(heads.status().map(|status| status.as_u16()))
        });
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn a_status_is_known_from_its_line_on() {
        for (text, status) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.1 200 ", Some(200)),
            ("HTTP/1.1 204\r\n", Some(204)),
            ("HTTP/1.0 503\nA: b\n\n", Some(503)),
            ("\r\n\nHTTP/1.1 422 No\r\n", Some(422)),
            ("HTTP/1.1 101 Switching Protocols\r\n", Some(101)),
            ("HTTP/1.1 999 ?\r\n", Some(999)),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 200", None),
        ] {
            assert_eq!(after(text.as_bytes()), Ok(status), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_status_line_says_nothing() {
        for text in [
            "HTTP/1.1 2000 OK\r\n",
            "HTTP/2.0 200 OK\r\n",
            "HTTP/1.1  200 OK\r\n",
            "HTTP/1.1 099 OK\r\n",
            "HTTP/1.1 2x0 OK\r\n",
            "http/1.1 200 OK\r\n",
            "ICY 200 OK\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\0HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(after(text.as_bytes()), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over_and_counted() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\nB:\r\n\r\nHTTP/1.1 199\n\n";
        assert_eq!(after(interim.as_bytes()), Ok(None));
        assert_eq!(after(format!("{interim}HTTP/1.1 200 OK\r\n\r\n").as_bytes()), Ok(Some(200)));
        // A field's value is no status line.
        assert_eq!(after(b"HTTP/1.1 103 Hints\r\nA: b\r\n HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\n"), Ok(None));
        let most = "HTTP/1.1 100 Continue\r\n\r\n".repeat(16);
        assert_eq!(after(format!("{most}HTTP/1.1 204 \r\n\r\n").as_bytes()), Ok(Some(204)));
        assert_eq!(after(format!("{most}HTTP/1.1 102 \r\n\r\n").as_bytes()), Err(TooManyInterim));
    }

    #[test]
    fn what_follows_the_final_status_is_not_looked_at() {
        let mut text = "HTTP/1.1 200 OK\r\n\r\n".to_owned();
        text.push_str(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(40));
        assert_eq!(after(text.as_bytes()), Ok(Some(200)));
    }
}
