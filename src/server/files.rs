//! Open files: enough for the connections, and some kept for everything else.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For the admin port, the journal, the sinks and the runtime.
const OTHERS: u64 = 256;

/// Of the admin port, where the system allows enough open files.
const ADMIN_CONNECTIONS: u64 = 128;

/// How many open files this many connections take, with those of everything else.
#[must_use]
pub fn open_files_for(connections: usize) -> u64 {
    OTHERS.saturating_add(connections as u64)
}

/// How many of `wanted` connections there are files for. The system is asked for as many as that takes; where it allows
/// fewer, further connections wait in the kernel's backlog, and never take the files of the admin port and the journal.
#[must_use]
pub fn connections_within_limits(wanted: usize) -> usize {
    let needed = open_files_for(wanted);
    let open_files = open_files(needed);
    let connections = open_files.saturating_sub(OTHERS.min(open_files / 2)).max(1);
    let within = usize::try_from(connections).unwrap_or(usize::MAX).min(wanted);
    if within < wanted {
        tracing::warn!(
            open_files,
            connections = within,
            "listen.max_connections needs {needed} open files: raise the limit (LimitNOFILE of systemd, ulimit -n)"
        );
    }
    within
}

/// How many connections the admin port may have: half of the files that [`connections_within_limits`] keeps for everything
/// but events, so that no stranger at the admin port takes the journal's or the event port's. Call it afterwards.
#[must_use]
pub fn admin_connections_within_limits() -> usize {
    let others = OTHERS.min(open_files(0) / 2);
    usize::try_from((others / 2).clamp(4, ADMIN_CONNECTIONS)).unwrap_or(usize::MAX)
}

/// Asks the system for as many open files as `needed`. It may allow fewer, which is reported, or more.
#[must_use]
pub fn open_files(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = current.unwrap_or(u64::MAX);
    let most = maximum.unwrap_or(u64::MAX).min(needed);
    if allowed < most && setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).is_ok() {
        return most;
    }
    allowed
}
