//! Whether memory stays level under a steady load that turns everything over: the journal, the dedup window, the sink's
//! files.

use std::time::Duration;

use crate::load::{Load, Requests};
use crate::process::Process;
use crate::{Bench, Mib, compare, judge};

/// Until caches and buffers have their size, and the journal is full.
const WARM_UP: u64 = 30;
/// What it may grow by from the first to the last fifth.
const GOAL: Mib = Mib(2.0);

pub(crate) fn run(bench: &Bench) {
    let (rate, seconds) = (bench.options.rate, bench.options.seconds);
    let folder = bench.folder("soak");
    let settings = format!(
        "dedup.capacity = 20000\njournal.max_bytes = '64MiB'\njournal.retention = '10s'\n[sinks.file]\ntype = 'file'\n\
         path = '{}'\nrotate_bytes = '32MiB'\nkeep_files = 2\n",
        folder.join("events.jsonl").display()
    );
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, &settings));
    let mut samples = Vec::new();
    let answered = bench.runtime.block_on(async {
        let load = Load::open(&bench.pki.connector(), receiver.address, 64, &Requests::new(), rate).await;
        tokio::time::sleep(Duration::from_secs(WARM_UP)).await;
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
            samples.push(Mib::of(receiver.resident().0).0);
        }
        load.end().await.answered
    });
    assert_eq!(receiver.metric("stored_total"), answered, "stored, and answered");
    let fifth = samples.len().div_ceil(5);
    let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
    let middle = samples.len() / 2 - fifth / 2;
    let parts = [&samples[..fifth], &samples[middle..middle + fifth], &samples[samples.len() - fifth..]].map(mean);
    let [start, middle, end] = parts.map(Mib);
    let what = format!("{rate} events/s for {seconds} s: growth");
    let remark = format!("{start} at first, {middle}, {end} at last; {:+.2} MiB a minute", slope(&samples) * 60.0);
    judge(&what, GOAL, Mib(end.0 - start.0), &remark);
    let most = samples.iter().copied().fold(0.0, f64::max);
    compare(
        "the most",
        Mib(most),
        &format!("{answered} events, {} commit groups", receiver.metric("journal_groups_total")),
    );
}

/// Of the line that fits best, for each step.
fn slope(samples: &[f64]) -> f64 {
    let middle = (samples.len() - 1) as f64 / 2.0;
    let from_middle = || samples.iter().enumerate().map(|(at, sample)| (at as f64 - middle, sample));
    let (rise, run) = from_middle().fold((0.0, 0.0), |(rise, run), (x, y)| (rise + x * y, run + x * x));
    rise / run
}
