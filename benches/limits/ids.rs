//! What the dedup window takes: the same process with a full one and with one of a thousand ids.

use std::time::Duration;

use crate::fill::{Bodies, IDLE_SINK, fill};
use crate::load::{Load, Requests};
use crate::process::{Process, wait};
use crate::{Bench, Mib, compare, judge};

const GOAL: f64 = 64.0;
/// Ids of the window to compare with.
const FEW: usize = 1000;

pub(crate) fn run(bench: &Bench) {
    let ids = bench.options.ids;
    let goal = Mib(GOAL * ids as f64 / 1e6);
    // More than the window holds, so that loading it forgets some.
    let (few, full) = (measure(bench, FEW, FEW), measure(bench, ids, ids + ids / 4));
    for (when, few, full) in [
        ("after a restart".to_owned(), few.restarted, full.restarted),
        (format!("after {} new ones", bench.options.more_ids), few.turned, full.turned),
    ] {
        let taken = Mib::between(few, full);
        let remark = format!("{:.1} bytes an id; the process: {}", taken.each(ids - FEW), Mib::of(full));
        judge(&format!("{ids} dedup ids, {when}"), goal, taken, &remark);
    }
    compare("the most while it started, of the whole process", Mib::of(full.peak), "");
}

struct Measured {
    restarted: u64,
    /// While it started.
    peak: u64,
    /// After new ids have taken the place of old ones.
    turned: u64,
}

fn measure(bench: &Bench, capacity: usize, count: usize) -> Measured {
    let folder = bench.folder(&format!("ids-{capacity}"));
    let dedup = format!("dedup.capacity = {capacity}\n");
    fill(bench, &bench.pki.settings(&folder, &format!("{dedup}{IDLE_SINK}")), count, 1024, Bodies::short());
    let serve = format!("{dedup}{IDLE_SINK}[sinks.stdout]\ntype = 'stdout'\n");
    let (receiver, _) = Process::receiver(&bench.pki.settings(&folder, &serve));
    let (restarted, peak) = receiver.resident();
    let more = bench.options.more_ids;
    bench.runtime.block_on(async {
        let load = Load::closed(&bench.pki.connector(), receiver.address, 64, &Requests::new()).await;
        while load.answered() < more {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        load.end().await;
    });
    wait("the window to be full", || receiver.metric("dedup_ids") == capacity as u64);
    wait("the sink to have it all", || receiver.metric("sink_pending{sink=\"stdout\"}") == 0);
    Measured { restarted, peak, turned: receiver.resident().0 }
}
