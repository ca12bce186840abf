//! How long a large journal takes to open: with everything delivered, and with a sink that has had nothing.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};

use crate::fill::{Bodies, IDLE_SINK, fill};
use crate::process::Process;
use crate::{Bench, Mib, Seconds, compare, judge};

const GOAL: f64 = 10.0;
const MEAN_BODY: usize = 2200;

pub(crate) fn run(bench: &Bench) {
    let (events, group) = (bench.options.start_events, bench.options.start_group);
    let folder = bench.folder("start");
    let room = "journal.max_bytes = '1TiB'\n";
    fill(
        bench,
        &bench.pki.settings(&folder, &format!("{room}{IDLE_SINK}")),
        events,
        group,
        Bodies::simulated(MEAN_BODY),
    );
    let journal = folder.join("journal");
    let goal = Seconds(GOAL * events as f64 / 5e6);
    let delivered = format!("{room}{IDLE_SINK}[sinks.stdout]\ntype = 'stdout'\nstart = 'latest'\n");
    let backlog = format!("{room}[sinks.idle]\ntype = 'http'\nurl = 'http://127.0.0.1:1/'\n");
    let mut live = 0;
    for (what, settings, cached) in [
        ("nothing to deliver, read from disk", &delivered, false),
        ("nothing to deliver, in the page cache", &delivered, true),
        ("all to deliver, read from disk", &backlog, false),
    ] {
        if !cached {
            evict(&journal);
        }
        let (receiver, took) = Process::receiver(&bench.pki.settings(&folder, settings));
        // A lane reads ahead.
        std::thread::sleep(Duration::from_secs(2));
        let (resident, peak) = receiver.resident();
        live = receiver.metric("journal_bytes");
        let remark = format!("resident: {}, at most {}", Mib::of(resident), Mib::of(peak));
        judge(&format!("{events} events, {what}"), goal, Seconds(took.as_secs_f64()), &remark);
    }
    let on_disk = fs::read_dir(&journal).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    compare(
        "that journal, live bytes",
        Mib::of(live),
        &format!("{} on disk; {group} events at a time", Mib::of(on_disk)),
    );
    fs::remove_dir_all(&folder).unwrap();
}

/// Lets the kernel forget what it has read of these files.
fn evict(folder: &Path) {
    for file in fs::read_dir(folder).unwrap() {
        let file = File::open(file.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}
