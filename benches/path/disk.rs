//! What the disk itself takes to make an event durable.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Times of appending 2.5 KB to a file and syncing it.
pub(crate) fn sync_times(folder: &Path) -> Vec<Duration> {
    let mut file = File::create(folder.join("disk")).unwrap();
    let event = [b'x'; 2560];
    let times = (0..2000).map(|_| {
        let start = Instant::now();
        file.write_all(&event).unwrap();
        file.sync_data().unwrap();
        start.elapsed()
    });
    times.collect()
}
