//! What stdout and files have in common: one event a line, written by one thread at a time that may block.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::plan::{Ordering, Plan};
use super::sink::Failure;
use crate::blocking::joined;
use crate::journal::Event;
use crate::shape::{Shape, push_line};

/// Events and bytes of one write.
const MOST: (usize, usize) = (1024, 4 << 20);
/// How far a lane of lines reads ahead, in sequences.
const AHEAD: u64 = 4096;

/// Lines are written in order, one batch at a time, for which a line waits `max_wait` at most.
pub(super) fn plan(max_wait: Duration) -> Plan {
    let (max_events, max_bytes) = MOST;
    Plan { concurrency: 1, max_events, max_bytes, max_wait, max_ahead: AHEAD, ordering: Ordering::Strict }
}

/// Takes lines. Called where it may block, by one thread at a time.
pub(super) trait Output: Send + 'static {
    /// Back when the lines are out, as surely as this output promises.
    fn put(&mut self, lines: &Lines) -> Result<(), Failure>;
}

/// Makes lines of events and puts them out, in one blocking job a batch.
#[derive(Debug)]
pub(super) struct LineSink<O> {
    shape: Shape,
    /// `None` while a job has it.
    desk: Option<Desk<O>>,
    /// Stays when the future that waits for it is dropped: the next delivery waits for its end first, so that two jobs
    /// never write into each other's lines.
    job: Option<JoinHandle<Done<O>>>,
}

type Done<O> = (Desk<O>, Result<(), Failure>);

#[derive(Debug)]
struct Desk<O> {
    output: O,
    lines: Lines,
}

impl<O: Output> LineSink<O> {
    pub(super) fn new(shape: Shape, output: O) -> Self {
        Self { shape, desk: Some(Desk { output, lines: Lines::default() }), job: None }
    }

    pub(super) async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        // Of a delivery that was dropped; its outcome is nobody's any more.
        let _ = self.join().await;
        let Some(mut desk) = self.desk.take() else { return Err(given_up()) };
        let (shape, events) = (self.shape.clone(), batch.to_vec());
        self.job = Some(tokio::task::spawn_blocking(move || {
            desk.lines.fill(&shape, &events);
            let result = desk.output.put(&desk.lines);
            (desk, result)
        }));
        self.join().await
    }

    /// Waits for the job, if there is one. Dropped before that, it has changed nothing.
    async fn join(&mut self) -> Result<(), Failure> {
        let Some(job) = &mut self.job else { return Ok(()) };
        let done = job.await;
        self.job = None;
        let (desk, result) = joined(done).ok_or_else(given_up)?;
        self.desk = Some(desk);
        result
    }
}

fn given_up() -> Failure {
    Failure::of_target(0, "the write was given up: the receiver is ending".to_owned())
}

/// A batch as lines in one buffer, which is used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Lines {
    text: Vec<u8>,
    /// Where each line ends, behind its newline.
    ends: Vec<usize>,
}

/// Kept for the next batch; what a larger one took is given back.
const KEEP: usize = 8 << 20;

impl Lines {
    fn fill(&mut self, shape: &Shape, events: &[Event]) {
        self.text.clear();
        self.ends.clear();
        self.text.shrink_to(KEEP);
        for event in events {
            self.push(&shape.text(event));
        }
    }

    fn push(&mut self, json: &[u8]) {
        push_line(&mut self.text, json);
        self.text.push(b'\n');
        self.ends.push(self.text.len());
    }

    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// The lines `from..to`.
    pub(super) fn text(&self, from: usize, to: usize) -> &[u8] {
        &self.text[self.start(from)..self.start(to)]
    }

    /// How many lines from `from` on are whole within the next `bytes`.
    pub(super) fn whole(&self, from: usize, bytes: u64) -> usize {
        let end = u64::try_from(self.start(from)).unwrap_or(u64::MAX).saturating_add(bytes);
        self.ends[from..].partition_point(|&line| u64::try_from(line).is_ok_and(|line| line <= end))
    }

    fn start(&self, line: usize) -> usize {
        line.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

/// Writes all of `text`: how many bytes went out, and what stopped the rest.
pub(super) fn write(mut out: &File, text: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < text.len() {
        match out.write(&text[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody set the shared descriptor to not block; a reader that is slow is no failure.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Whether the last line of a regular file is not ended: a write broke off, or an earlier process was killed.
pub(super) fn ends_in_partial_line(file: &File) -> io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    match file.read_exact_at(&mut byte, last) {
        Ok(()) => Ok(byte != *b"\n"),
        // Truncated meanwhile.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::{Failure, LineSink, Lines, Output};
    use crate::config::Format;
    use crate::shape::Shape;

    #[test]
    fn a_line_holds_no_line_end_but_its_own() {
        let mut lines = Lines::default();
        lines.push(b"{\r\n \"a\\n\":\n1}");
        lines.push(b"{}");
        assert_eq!(lines.text(0, 2), b"{   \"a\\n\": 1}\n{}\n");
        assert_eq!(lines.text(1, 2), b"{}\n");
    }

    #[test]
    fn lines_are_counted_as_whole_with_their_newline_only() {
        let mut lines = Lines::default();
        for json in ["{}", "[1]", "[22]"] {
            lines.push(json.as_bytes());
        }
        for (from, bytes, whole) in [(0, 0, 0), (0, 2, 0), (0, 3, 1), (0, 6, 1), (0, 7, 2), (0, u64::MAX, 3)] {
            assert_eq!(lines.whole(from, bytes), whole, "{bytes} from {from}");
        }
        for (from, bytes, whole) in [(1, 3, 0), (1, 4, 1), (1, 9, 2), (2, 4, 0), (2, 5, 1), (3, 9, 0)] {
            assert_eq!(lines.whole(from, bytes), whole, "{bytes} from {from}");
        }
    }

    /// Says when it begins, ends when it is told to, and is owned by one thread at a time, as the type has it.
    struct Held {
        began: SyncSender<usize>,
        go_on: Receiver<()>,
        puts: usize,
    }

    impl Output for Held {
        fn put(&mut self, _: &Lines) -> Result<(), Failure> {
            self.puts += 1;
            self.began.send(self.puts).unwrap();
            self.go_on.recv().unwrap();
            if self.puts == 1 { Err(Failure::of_target(0, "the first fails".to_owned())) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn after_a_delivery_that_was_dropped_the_next_one_waits_for_its_end() {
        let (began, begun) = sync_channel(2);
        let (let_go, go_on) = sync_channel(2);
        let mut sink = LineSink::new(Shape::new(Format::Raw, &[]), Held { began, go_on, puts: 0 });
        for _ in 0..2 {
            let dropped = tokio::time::timeout(std::time::Duration::from_millis(20), sink.deliver(&[])).await;
            assert!(dropped.is_err(), "it is held up");
        }
        assert_eq!(begun.recv(), Ok(1));
        assert!(begun.try_recv().is_err(), "the second has not begun");
        let_go.send(()).unwrap();
        let_go.send(()).unwrap();
        // The outcome of the first is nobody's.
        sink.deliver(&[]).await.unwrap();
        assert_eq!(begun.try_recv(), Ok(2));
    }
}
