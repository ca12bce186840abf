//! FAULTS "Storage", but for damage to the files and for want of room (`full`): syncs that fail or hang, folders, restarts.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::CertificateParams;
use time::OffsetDateTime;

use crate::harness::clock::Clock;
use crate::harness::disk::Disk;
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::pki::{Ca, PKI};
use crate::harness::receiver::Setup;
use crate::harness::wire::post;
use crate::harness::{not_tested, wait_for};

#[test]
fn a_sync_that_fails_is_the_end() {
    let setup = Setup::embedded();
    // It would outlast our patience if the end were a drain.
    let receiver = setup.clone().set("listen.pre_drain", "60s").set("listen.drain_timeout", "120s").start();
    let mut wire = receiver.connect();
    let stored: Vec<String> = (0..20).map(|_| new_id()).collect();
    for id in &stored {
        wire.post(event(id).as_bytes()).assert_durable("stored", id);
    }
    let (wal, trace) = (setup.journal().join("journal.db-wal"), setup.folder().join("trace"));
    let faults = receiver.inject_on(&wal, "fdatasync,fsync:error=EIO:delay_enter=5000000", &trace);
    // What waits behind the one whose sync fails is refused too.
    let mut wires: Vec<_> = (0..8).map(|_| receiver.connect()).collect();
    let refused: Vec<String> = (0..8).map(|_| new_id()).collect();
    for (wire, id) in wires.iter_mut().zip(&refused) {
        wire.send(post("/events", "", event(id).as_bytes())).unwrap();
    }
    receiver.wait_metric("in_flight", 8);
    for wire in &mut wires {
        wire.answer().assert_unavailable();
    }
    wait_for("it to be not ready", || (!receiver.is_ready()).then_some(()));
    let ended = receiver.wait();
    drop(faults);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.log.iter().any(|line| line.contains("the journal has failed")), "{ended:?}");
    let trace = fs::read_to_string(trace).unwrap();
    let syncs = trace.lines().filter(|line| line.contains("sync(") || line.contains("sync resumed")).count();
    assert_eq!(syncs, 1, "after a failed sync there is no second one: {trace}");

    let receiver = setup.start();
    for id in &stored {
        receiver.post(event(id)).assert_durable("duplicate", id);
    }
    // Their bytes may have reached the file all the same: then they were synced at the start, and the retry finds them.
    for id in &refused {
        assert_eq!(receiver.post(event(id)).status, 200);
    }
    assert_eq!(receiver.sink_settled("stdout")["stored"], 28);
    receiver.finish();
}

#[test]
fn a_failed_sync_of_the_main_file_is_the_end_too() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let database = setup.journal().join("journal.db");
    let faults = receiver.inject_on(&database, "fdatasync,fsync:error=EIO", Path::new("/dev/null"));
    let mut wire = receiver.connect();
    let mut stored = Vec::new();
    // The log is copied back after some megabytes.
    for _ in 0..200 {
        let id = new_id();
        wire.send(post("/events", "", big_event(&id, 60_000).as_bytes())).unwrap();
        match wire.try_answer() {
            Ok(answer) if answer.status == 200 => stored.push(id),
            _ => break,
        }
    }
    let ended = receiver.wait();
    drop(faults);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(stored.len() > 10);
    let receiver = setup.start();
    for id in &stored {
        // Other bytes than the first time, which stand.
        receiver.post(event(id)).assert_durable("duplicate", id);
    }
    assert_eq!(receiver.metric("conflicts_total"), stored.len() as u64);
    receiver.finish();
}

/// A sync that fails while the process drains is as final as any.
#[test]
fn a_sync_that_fails_at_the_end_shows_in_the_exit_code() {
    let receiver = Setup::embedded().start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let faults = receiver.inject("fdatasync,fsync:error=EIO");
    let ended = receiver.stop();
    drop(faults);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
}

#[test]
fn while_a_sync_is_slow_copies_wait_and_the_account_adds_up() {
    let setup = Setup::embedded().set("listen.answer_within", "4s");
    let receiver = setup.start();
    let (first, event_of_first) = new_event();
    receiver.post(event_of_first).assert_durable("stored", &first);
    let held = receiver.inject("fdatasync,fsync:delay_enter=600000000");

    let ids: Vec<String> = (0..5).map(|_| new_id()).collect();
    let mut wires: Vec<_> = (0..10).map(|_| receiver.connect()).collect();
    let start = Instant::now();
    // Each twice: the second while the first is being written.
    for (number, wire) in wires.iter_mut().enumerate() {
        wire.send(post("/events", "", event(&ids[number / 2]).as_bytes())).unwrap();
    }
    for wire in &mut wires {
        wire.answer().assert_unavailable();
    }
    assert!(start.elapsed() >= Duration::from_millis(3_900), "{:?}", start.elapsed());
    // The sync is still under way, so it was not what they waited for.
    let account = receiver.account();
    assert_eq!((account.received, account.stored, account.in_flight), (11, 1, 10), "{account:?}");
    assert_eq!(receiver.metric("answered_late_total"), 10);
    assert_eq!(receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["last_sequence"], 1);

    drop(held);
    let account = receiver.settled();
    assert_eq!((account.stored, account.duplicate, account.refused), (6, 5, 0), "{account:?}");
    for id in &ids {
        receiver.post(event(id)).assert_durable("duplicate", id);
    }
    assert_eq!(receiver.sink_settled("stdout")["delivered"], 6);
    receiver.finish();
}

/// It need not wait for anything after that, the end of `listen.drain_timeout` least of all.
#[test]
fn a_journal_that_cannot_be_closed_ends_the_drain() {
    let receiver = Setup::embedded().set("listen.drain_timeout", "10m").start();
    receiver.store(3);
    receiver.sink_settled("stdout");
    let faults = receiver.inject("fdatasync,fsync:error=EIO");
    receiver.signal(rustix::process::Signal::TERM);
    let ended = receiver.wait();
    drop(faults);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.log.iter().any(|line| line.contains("the journal has failed")), "{ended:?}");
}

#[test]
fn a_copy_of_an_event_in_flight_shares_its_outcome() {
    let receiver = Setup::embedded().start();
    let (warm, event) = new_event();
    receiver.post(event).assert_durable("stored", &warm);
    let held = receiver.inject("fdatasync,fsync:delay_enter=600000000");
    let (id, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    let (mut one, mut two) = (receiver.connect(), receiver.connect());
    one.send(&request).unwrap();
    receiver.wait_metric("in_flight", 1);
    two.send(&request).unwrap();
    receiver.wait_metric("in_flight", 2);
    drop(held);
    one.answer().assert_durable("stored", &id);
    two.answer().assert_durable("duplicate", &id);

    // And its failure: no copy gets a 200 for an event that was not stored.
    let faults = receiver.inject("pwrite64,ftruncate,fallocate:error=ENOSPC");
    let (_, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    let mut wires: Vec<_> = (0..4).map(|_| receiver.connect()).collect();
    for wire in &mut wires {
        wire.send(&request).unwrap();
    }
    for wire in &mut wires {
        wire.answer().assert_unavailable();
    }
    drop(faults);
    receiver.wait_ready();
    let answers: Vec<_> = wires.iter_mut().map(|wire| wire.post(event.as_bytes()).json()["status"].clone()).collect();
    assert_eq!(answers, ["stored", "duplicate", "duplicate", "duplicate"]);
    receiver.finish();
}

#[test]
fn while_a_sync_never_returns_memory_is_bounded_and_operators_are_answered() {
    let setup = Setup::embedded()
        .set("listen.answer_within", "3s")
        .set("listen.max_in_flight", 4)
        .set("listen.max_in_flight_bytes", "8MiB")
        .set("listen.drain_timeout", "1s");
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.sink_settled("stdout");
    let faults = receiver.inject("fdatasync,fsync:delay_enter=600000000");
    let before = receiver.memory();
    let mut late = 0;
    for _ in 0..60 {
        let answer = receiver.post(big_event(&new_id(), 300_000));
        match answer.status {
            503 => late += 1,
            _ => {
                answer.assert_problem(429, "too-many");
                assert!(answer.header("retry-after").is_some());
            }
        }
    }
    assert_eq!(late, 4, "each holds its place until its write is settled");
    let account = receiver.account();
    assert_eq!((account.received, account.in_flight, account.refused), (61, 4, 56), "{account:?}");
    let grown = receiver.memory().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more");
    assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
    assert_eq!(receiver.sink("stdout")["delivered"], 1);

    // Nothing that hangs can hold the end; strace has to let go of the thread for the process to be gone.
    receiver.signal(rustix::process::Signal::TERM);
    receiver.log.wait("the end of the drain", |line| line.contains("did not close in time").then_some(()));
    faults.kill(receiver);
    let receiver = setup.start();
    receiver.post(event).assert_durable("duplicate", &id);
    receiver.finish();
}

/// Power loss cannot be had here. What it comes down to: bytes that a killed process has written, but not synced, are
/// synced by the next one before anybody can get a 200 that relies on them.
#[test]
fn what_an_earlier_life_wrote_is_synced_before_anyone_is_listened_to() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let mut wire = receiver.connect();
    // The log has its header now. No sink has it, whose place would be synced by itself: the sync that is seen is the event's.
    assert_eq!(wire.post(b"no JSON").status, 400);
    let (wal, trace) = (setup.journal().join("journal.db-wal"), setup.folder().join("trace"));
    let faults = receiver.inject_on(&wal, "fdatasync,fsync:delay_enter=600000000", &trace);
    let (id, event) = new_event();
    wire.send(post("/events", "", event.as_bytes())).unwrap();
    wait_for("the sync to be asked for", || fs::read_to_string(&trace).unwrap().contains("sync(").then_some(()));
    let ended = faults.kill(receiver);
    assert!(!ended.stdout.iter().any(|line| line.contains(&id)));

    let calls = "trace=fdatasync,fsync,listen";
    let words = ["strace", "-D", "-f", "-y", "-o", trace.to_str().unwrap(), "-e", calls];
    let receiver = setup.through(&words).start();
    receiver.post(&event).assert_durable("duplicate", &id);
    let trace = fs::read_to_string(trace).unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    let at = |what: &str, file: &str| lines.iter().position(|line| line.contains(what) && line.contains(file));
    // The operators' port is first, and answers that it is not ready.
    let listening = lines.iter().rposition(|line| line.contains("listen(")).unwrap();
    let (log, main) = (at("sync(", "journal.db-wal>").unwrap(), at("sync(", "journal.db>").unwrap());
    let folder = at("sync(", "/journal>").unwrap();
    assert!(log < main && main < listening && folder < listening, "{trace}");
    receiver.delivered(&id);
    receiver.finish();
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_at_start() {
    let setup = Setup::embedded();
    let refused = |path: &PathBuf, reason: &str| {
        let ended = setup.clone().set("journal.path", path).start_in_vain();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        ended.assert_soon();
        let told = ended.log.iter().find(|line| line.contains(reason));
        assert!(told.is_some_and(|line| line.contains(path.to_str().unwrap())), "{ended:?}");
        assert!(!ended.log.iter().any(|line| line.contains("listening")), "{ended:?}");
    };
    refused(&setup.folder().join("missing/journal"), "does not exist");
    let file = setup.folder().join("file");
    File::create(&file).unwrap();
    refused(&file, "is not a directory");
    refused(&file.join("journal"), "is not a directory");

    let Some(disk) = Disk::tmpfs(16 << 20) else { return };
    let journal = disk.path().join("journal");
    fs::create_dir(&journal).unwrap();
    disk.read_only(true);
    refused(&journal, "is read-only");
    refused(&disk.path().join("other"), "is read-only");

    // And once it can be written to: a warning, as it does not outlive the machine.
    disk.read_only(false);
    let receiver = setup.clone().set("journal.path", &journal).start();
    receiver.log.wait("the warning", |line| (line.contains("not durable") && line.contains("tmpfs")).then_some(()));
    receiver.finish();
}

#[test]
fn the_journal_is_for_its_owner_only() {
    let setup = Setup::embedded();
    fs::create_dir(setup.journal()).unwrap();
    fs::set_permissions(setup.journal(), fs::Permissions::from_mode(0o755)).unwrap();
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&setup.journal()), 0o700);
    let files: Vec<_> = fs::read_dir(setup.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    receiver.finish();
}

/// Root, but without root's privileges: a folder of another user's is what the kernel makes of its mode.
fn unprivileged(setup: Setup) -> Setup {
    setup.through(&["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--"])
}

/// What SQLite would only find out with the first write is found out before anything is listened for, by `check` too.
#[test]
#[allow(clippy::disallowed_methods, reason = "nothing here has to outlive a crash")]
fn a_database_that_cannot_be_written_to_is_refused_at_start() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can give a file to another user");
    }
    let setup = unprivileged(Setup::embedded());
    let receiver = setup.start();
    let ids = receiver.store(3);
    let _ = receiver.kill();
    let refused = |name: &str, words: &str| {
        let path = setup.journal().join(name);
        let checked = setup.command().arg("check").output().unwrap();
        let ended = setup.start_in_vain();
        assert_eq!((checked.status.code(), ended.status.code()), (Some(78), Some(1)), "{name}: {checked:?} {ended:?}");
        for told in [String::from_utf8(checked.stdout).unwrap(), ended.log.join("\n")] {
            assert!(told.contains(path.to_str().unwrap()) && told.contains(words), "{name}: {told}");
        }
    };
    let give = |path: &Path, user: u32, mode: u32| {
        std::os::unix::fs::chown(path, Some(user), None).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let path = setup.journal().join(name);
        give(&path, 12_345, 0o640);
        refused(name, "is of user 12345");
        give(&path, 0, 0o400);
        // The mode alone of a file of its own is no trouble: the start mends it.
        let checked = setup.command().arg("check").output().unwrap();
        assert_ne!(checked.status.code(), Some(78), "{name}: {checked:?}");
        // What stands elsewhere would have its log there.
        let elsewhere = setup.folder().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        refused(name, "is a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused(name, "is a folder");
        fs::remove_dir(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
    }
    give(&setup.journal(), 0, 0o600);
    let checked = setup.command().arg("check").output().unwrap();
    assert_ne!(checked.status.code(), Some(78), "{checked:?}");
    let receiver = setup.start();
    for id in &ids {
        receiver.post(event(id)).assert_durable("duplicate", id);
    }
    receiver.finish();
}

#[test]
fn an_immutable_database_is_called_so() {
    let Some(disk) = Disk::ext4(32 << 20) else { return };
    let setup = Setup::embedded().set("journal.path", &disk.path().join("journal"));
    let receiver = setup.start();
    receiver.store(1);
    receiver.finish();
    let database = disk.path().join("journal/journal.db");
    let chattr = |how: &str| Command::new("chattr").arg(how).arg(&database).status();
    if !chattr("+i").is_ok_and(|status| status.success()) {
        return not_tested("no file can be made immutable here");
    }
    let (checked, ended) = (setup.command().arg("check").output().unwrap(), setup.start_in_vain());
    assert!(chattr("-i").unwrap().success());
    for told in [String::from_utf8(checked.stdout).unwrap(), ended.log.join("\n")] {
        assert!(told.contains("journal.db cannot be used: it or its folder is immutable"), "{told}");
    }
    setup.start().finish();
}

#[test]
fn what_an_sqlite_shell_has_changed_while_it_was_stopped_is_no_damage() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let ids = receiver.store(20);
    receiver.finish();
    let change = |how: &str| {
        let shell = rusqlite::Connection::open(setup.journal().join("journal.db")).unwrap();
        let _: String = shell.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
        shell.execute_batch(how).unwrap();
    };
    let starts = || {
        let receiver = setup.start();
        for id in &ids {
            receiver.post(event(id)).assert_durable("duplicate", id);
        }
        assert_eq!(receiver.metric("journal_lost_events_total"), 0);
        let ended = receiver.finish();
        assert!(!ended.log.iter().any(|line| line.contains("damage")), "{ended:?}");
    };
    change("");
    starts();
    for page in [512, 65_536] {
        change(&format!("PRAGMA page_size = {page}; VACUUM"));
        let before = fs::read(setup.journal().join("journal.db")).unwrap();
        let ended = setup.start_in_vain();
        let told = format!("has pages of {page} bytes instead of 4096");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.log.iter().any(|line| line.contains(&told)), "{ended:?}");
        let checked = setup.command().arg("check").output().unwrap();
        let lines = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.code() == Some(78) && lines.contains(&told), "{lines}");
        assert_eq!(fs::read(setup.journal().join("journal.db")).unwrap(), before);
        // As it says.
        change("PRAGMA page_size = 4096; VACUUM");
        starts();
    }
}

/// Each name that the receiver gives a file of its own in the folder, taken by something else.
#[test]
fn what_has_the_name_of_a_file_of_the_journals_is_put_aside_or_named() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let ids = receiver.store(1);
    receiver.finish();
    let at = |name: &str| setup.journal().join(name);
    for target in [None, Some("/dev/null"), Some("nowhere/mark")] {
        fs::remove_file(at("mark")).unwrap();
        match target {
            None => fs::create_dir(at("mark")).unwrap(),
            Some(target) => std::os::unix::fs::symlink(target, at("mark")).unwrap(),
        }
        let receiver = setup.start();
        receiver.post(event(&ids[0])).assert_durable("duplicate", &ids[0]);
        receiver.finish();
        assert!(fs::symlink_metadata(at("mark")).unwrap().is_file(), "{target:?}");
    }
    let aside = fs::read_dir(setup.journal()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(aside.filter(|name| name.starts_with("mark-set-aside-")).count(), 3);

    fs::write(at("rebuild"), "").unwrap();
    let ended = setup.start_in_vain();
    let told = format!("{} cannot be used: a file has the name of a folder", at("rebuild").display());
    assert!(ended.log.iter().any(|line| line.contains(&told)), "{ended:?}");
    fs::remove_file(at("rebuild")).unwrap();

    for name in ["ballast", "probe"] {
        let _ = fs::remove_file(at(name));
        fs::create_dir(at(name)).unwrap();
        let receiver = setup.start_unready();
        let reason = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["reason"].to_string();
        assert!(reason.contains(at(name).to_str().unwrap()) && reason.contains("move that folder away"), "{reason}");
        fs::remove_dir(at(name)).unwrap();
        receiver.wait_ready();
        receiver.finish();
    }
}

/// A volume as Kubernetes mounts it for a pod with `fsGroup`: root's, writable for a group, its files opened for it.
#[test]
fn a_folder_of_another_users_will_do_if_it_can_be_written_to() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can give a folder to another user");
    }
    let volume = tempfile::tempdir().unwrap();
    let journal = volume.path().to_owned();
    let own_group = rustix::process::getegid().as_raw();
    std::os::unix::fs::chown(&journal, Some(12_345), Some(own_group)).unwrap();
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o2775)).unwrap();
    let setup = unprivileged(Setup::embedded().set("journal.path", &journal));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let files = || fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    for _ in 0..2 {
        let receiver = setup.start();
        receiver.log.wait("the warning", |line| {
            (line.contains("user 12345's, so its mode stays 2775") && line.contains("WARN")).then_some(())
        });
        receiver.store(1);
        receiver.finish();
        assert_eq!(mode(&journal), 0o2775);
        let files = files();
        assert!(files.len() >= 3, "{files:?}");
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
            // As the kubelet does with the next mount.
            fs::set_permissions(file, fs::Permissions::from_mode(0o660)).unwrap();
        }
    }
    let checked = setup.command().arg("check").output().unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(told.contains("is writable") && told.contains("belongs to another user"), "{told}");

    // And one that cannot be written to is refused for what it is.
    for file in files() {
        fs::remove_file(file).unwrap();
    }
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let told = ended.log.iter().find(|line| line.contains("of user 12345")).unwrap_or_else(|| panic!("{ended:?}"));
    assert!(told.contains("mode 755") && told.contains("fsGroup") && told.contains("Permission denied"), "{told}");
    let checked = setup.command().arg("check").output().unwrap();
    assert_eq!(checked.status.code(), Some(78));
    assert!(String::from_utf8(checked.stdout).unwrap().contains("mode 755"));
}

/// A folder may be made in one that can be written to, and not be read.
#[test]
fn a_parent_that_cannot_be_read_keeps_no_journal_from_being_made() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can give a folder to another user");
    }
    let parent = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(parent.path(), Some(12_345), None).unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o733)).unwrap();
    let receiver = unprivileged(Setup::embedded().set("journal.path", &parent.path().join("journal"))).start();
    receiver.store(1);
    receiver.finish();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_second_process_is_kept_out_and_a_killed_one_keeps_nobody_out() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let holder = format!("process {}", receiver.pid().as_raw_nonzero());
    let journal = setup.journal();
    let told = |line: &String| line.contains(journal.to_str().unwrap()) && line.contains(&holder);
    assert!(ended.log.iter().any(told), "{ended:?}");
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);

    let (setup, _) = receiver.kill();
    assert!(setup.journal().join("lock").exists());
    let receiver = setup.start();
    receiver.post(&event).assert_durable("duplicate", &id);
    receiver.finish();
}

/// Wants libfaketime, which `tests/run` installs where it can.
#[test]
fn a_clock_that_jumps_loses_nothing() {
    const YEARS: i64 = 10 * 365 * 86_400;
    // Valid throughout, as certificates go by this clock too.
    let long = |profile: &mut CertificateParams| {
        profile.not_before = OffsetDateTime::now_utc() - time::Duration::seconds(2 * YEARS);
        profile.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(2 * YEARS);
    };
    let ca = Ca::with("Lasting CA", long);
    let (server, client) = (PKI.ca.server(long), ca.client(long));
    let setup = Setup::embedded().set("tls.certificate", &server.chain).set("tls.private_key", &server.key);
    let setup = setup.set("tls.client_ca", [&ca.certificate]);
    let Some((setup, clock)) = Clock::of(setup) else { return };

    let mut delivered = 0;
    // While it lives, and from life to life.
    for jumps in [[0, YEARS], [-YEARS, 0], [YEARS, -YEARS], [0, 0]] {
        clock.set(jumps[0]);
        let receiver = setup.start();
        for jump in jumps {
            clock.set(jump);
            let (id, event) = new_event();
            let mut wire = receiver.connect_as(&client).unwrap();
            wire.post(event.as_bytes()).assert_durable("stored", &id);
            wire.post(event.as_bytes()).assert_durable("duplicate", &id);
            // Retention and the window are looked at every second.
            thread::sleep(Duration::from_millis(1_200));
            assert!(receiver.is_ready());
        }
        delivered += 2;
        assert_eq!(receiver.sink_settled("stdout")["delivered"], delivered);
        let (_, ended) = receiver.kill();
        assert!(!ended.log.iter().any(|line| line.contains("panic") || line.contains("damaged")), "{ended:?}");
    }
}

/// A backlog that a new process finds. The full size takes some minutes to make:
/// `BACKLOG=10000000 cargo test --release --test it -- --ignored --nocapture a_long_backlog`
#[test]
#[ignore = "makes a backlog of millions of events"]
fn a_long_backlog_bounds_neither_start_nor_memory() {
    let events = std::env::var("BACKLOG").map_or(1_000_000, |events| events.parse().unwrap());
    println!("{}", backlog(events, 256 << 20));
}

#[test]
fn a_backlog_is_opened_in_little_time_and_memory() {
    println!("{}", backlog(20_000, 96 << 20));
}

/// Leaves `events` undelivered, then starts a process that delivers them in at most `memory`. The figures.
fn backlog(events: u64, memory: u64) -> String {
    let dark = Setup::embedded().set("sinks.out.type", "stdout").set("sinks.out.enabled", false);
    let receiver = dark.start();
    let clients = 32;
    thread::scope(|scope| {
        for client in 0..clients {
            let receiver = &receiver;
            scope.spawn(move || {
                let mut wire = receiver.connect();
                for number in 0..events.div_ceil(clients) {
                    wire.post(event(&format!("backlog-{client}-{number}")).as_bytes());
                }
            });
        }
    });
    let events = receiver.sink("out")["pending"].as_u64().unwrap();
    let (setup, _) = receiver.kill();
    let bytes = fs::metadata(setup.journal().join("journal.db")).unwrap().len();

    let out = setup.folder().join("out");
    let start = Instant::now();
    let receiver = setup.set("sinks.out.enabled", true).stdout_to(&out).start();
    let (took, busy) = (start.elapsed(), receiver.cpu());
    let opened = receiver.memory();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let deadline = Instant::now() + Duration::from_secs(60 + events / 1_000);
    let mut most = opened;
    while receiver.sink("out")["pending"] != 0 {
        most = most.max(receiver.memory());
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(50));
    }
    // 5 s a GB, and what any start takes; in a debug build checking the rows takes ten times as long.
    let slower = if cfg!(debug_assertions) { 10 } else { 1 };
    assert!(busy < Duration::from_secs(3) + Duration::from_millis(slower * bytes / 200_000), "{busy:?}");
    assert!(most < memory, "{most} bytes of memory");
    receiver.finish();
    let delivered = fs::read(out).unwrap().iter().filter(|&&byte| byte == b'\n').count() as u64;
    assert_eq!(delivered, events + 1);
    format!("{events} events in {bytes} bytes: ready after {took:?}, memory {opened}, while delivering {most}")
}
