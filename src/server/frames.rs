//! What a client's HTTP/2 frames are worth, so that a flood of those that are worth nothing ends.
//!
//! The library bounds resets, pings and settings, and what heads take. It reads frames of every other kind for ever:
//! window updates, priorities, empty data, unknown kinds. Here each byte that comes is counted once, as part
//! of a request or not, by the frame's first nine.

/// What a connection may send beyond its requests, and as much again as those.
const ALLOWANCE: u64 = 64 * 1024;
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PADDED: u8 = 8;
/// Padding is at most half of a frame as long as this.
const MOSTLY_DATA: usize = 512;

/// A connection's frames so far.
#[derive(Debug)]
pub(super) struct Frames {
    /// What is left of the preface or of a frame's payload.
    rest: usize,
    head: [u8; HEAD],
    /// How much of `head` has come.
    filled: usize,
    /// Bytes of requests, and of everything else.
    useful: u64,
    idle: u64,
}

/// More than a client that means it would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a flood of HTTP/2 frames that are part of no request")]
pub(super) struct Flood;

impl Frames {
    pub(super) fn new() -> Self {
        Self { rest: PREFACE, head: [0; HEAD], filled: 0, useful: 0, idle: 0 }
    }

    /// Counts what has come.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = &bytes[passed..];
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                self.count()?;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let is_useful = match kind {
            HEADERS => true,
            DATA if flags & PADDED != 0 => length >= MOSTLY_DATA,
            DATA => length > 0,
            _ => false,
        };
        let bytes = (HEAD + length) as u64;
        self.rest = length;
        if is_useful {
            self.useful += bytes;
        } else {
            self.idle += bytes;
        }
        if self.idle > ALLOWANCE + self.useful { Err(Flood) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{ALLOWANCE, DATA, Flood, Frames, HEADERS, PADDED};

    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + usize::from(length), 0xff);
        frame
    }

    fn connection() -> Frames {
        let mut frames = Frames::new();
        frames.pass(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        frames
    }

    /// How many times it goes through.
    fn passed(frames: &mut Frames, bytes: &[u8], most: u64) -> u64 {
        (0..most).take_while(|_| frames.pass(bytes) == Ok(())).count() as u64
    }

    #[test]
    fn what_is_part_of_no_request_comes_to_an_end() {
        for (kind, flags, length) in [
            (WINDOW_UPDATE, 0, 4),
            (2, 0, 5),
            (4, 0, 6),
            (6, 0, 8),
            (0xbe, 0, 200),
            (0xbe, 0, 0),
            (DATA, 0, 0),
            (DATA, PADDED, 200),
        ] {
            let bytes = frame(kind, flags, length);
            let most = ALLOWANCE / bytes.len() as u64;
            assert_eq!(passed(&mut connection(), &bytes, 2 * most), most, "kind {kind}");
        }
    }

    #[test]
    fn requests_never_do_and_earn_as_much_again() {
        let mut frames = connection();
        let request = [frame(HEADERS, 4, 40), frame(WINDOW_UPDATE, 0, 4), frame(DATA, 0, 1), frame(6, 0, 8)].concat();
        assert_eq!(passed(&mut frames, &request, 100_000), 100_000);
        let bytes = frame(WINDOW_UPDATE, 0, 4);
        let earned = ALLOWANCE + 100_000 * (49 + 10 - 13 - 17);
        assert_eq!(passed(&mut frames, &bytes, u64::MAX), earned / 13);
    }

    #[test]
    fn frames_may_come_in_any_pieces() {
        let whole = [frame(HEADERS, 4, 40), frame(WINDOW_UPDATE, 0, 4), frame(DATA, 0, 200)].concat();
        let mut all = connection();
        all.pass(&whole).unwrap();
        for size in 1..whole.len() {
            let mut pieces = connection();
            whole.chunks(size).for_each(|piece| pieces.pass(piece).unwrap());
            assert_eq!((pieces.useful, pieces.idle, pieces.rest), (all.useful, all.idle, all.rest), "pieces of {size}");
        }
        assert_eq!((all.useful, all.idle), (49 + 209, 13));
    }

    #[test]
    fn a_flood_says_what_it_is() {
        assert!(Flood.to_string().contains("part of no request"));
    }
}
