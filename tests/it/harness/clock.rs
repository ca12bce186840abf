//! The wall clock of a receiver, set by the test: libfaketime, which `tests/run` installs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::not_tested;
use super::receiver::Setup;

/// How far a receiver's clock is from the machine's. Its timers are not touched.
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// A receiver with this clock, which is right until it is set. `None`, and said so, where there is no libfaketime.
    pub(crate) fn of(setup: Setup) -> Option<(Setup, Self)> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        if !Path::new(&library).is_file() {
            not_tested("libfaketime is not installed");
            return None;
        }
        let clock = Self(setup.folder().join("clock"));
        clock.set(0);
        let preload = format!("LD_PRELOAD={library}");
        let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.0.display());
        let setup = setup.through(&["env", &preload, &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        Some((setup, clock))
    }

    /// Sets it ahead, or back, by so many seconds.
    pub(crate) fn set(&self, seconds: i64) {
        // It is read all the time, so it is written in one step, and never empty.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.0).unwrap();
        file.write_all_at(format!("{seconds:+012}s\n").as_bytes(), 0).unwrap();
    }
}
