//! FAULTS "Sinks" where it is about files: what becomes of lines when the file is renamed, deleted, truncated, not to be
//! written to, or its disk is full; and rotation.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::disk::Disk;
use crate::harness::event::{big_event, event, new_id};
use crate::harness::not_tested;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wait_for;
use crate::sinks::events;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// With one sink, `out`, to the file that comes with it.
fn file_sink() -> (Setup, PathBuf) {
    let setup = Setup::new();
    let folder = setup.folder().join("out");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("events.jsonl");
    (to_file(setup, "out", &path), path)
}

fn to_file(setup: Setup, sink: &str, path: &Path) -> Setup {
    let key = |key: &str| format!("sinks.{sink}.{key}");
    setup.set(&key("type"), "file").set(&key("path"), &path.to_owned()).set(&key("retry.max_backoff"), "300ms")
}

/// Stores events and waits until `out` has them.
#[track_caller]
fn deliver(receiver: &Receiver, count: usize) -> Vec<String> {
    let ids = receiver.store(count);
    receiver.sink_settled("out");
    events(&ids)
}

/// Waits until `out` fails for a reason that has these words.
#[track_caller]
fn failing(receiver: &Receiver, words: &[&str]) {
    wait_for(&format!("the failure {words:?} to show"), || {
        let sink = receiver.sink("out");
        let said = sink["last_error"].as_str()?;
        (sink["state"] == "failing" && words.iter().all(|word| said.contains(word))).then_some(())
    });
    // A sink's outage is none of the clients' business.
    receiver.wait_ready();
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(ToOwned::to_owned).collect()
}

/// What is beside the file, by what its name has more.
fn rotated(path: &Path) -> BTreeMap<String, PathBuf> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let more = |entry: PathBuf| {
        let suffix = entry.file_name().unwrap().to_str().unwrap().strip_prefix(name)?.to_owned();
        (!suffix.is_empty()).then_some((suffix, entry))
    };
    entries.filter_map(more).collect()
}

/// Every line of the path's files, oldest first, as `gzip` and `zstd` unpack them.
fn all_lines(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for file in rotated(path).values().chain([&path.to_owned()]) {
        let unpacked = match file.extension().unwrap().to_str().unwrap() {
            "gz" => output("gzip", &["-dc"], file),
            "zst" => output("zstd", &["-dcq"], file),
            _ => fs::read_to_string(file).unwrap(),
        };
        assert!(unpacked.is_empty() || unpacked.ends_with('\n'), "{}", file.display());
        all.extend(unpacked.lines().map(ToOwned::to_owned));
    }
    all
}

fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output().unwrap();
    assert!(output.status.success(), "{program} {}: {output:?}", file.display());
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until no rotated file is left that ends otherwise, and none is half done.
#[track_caller]
fn compressed(path: &Path, extension: &str) {
    wait_for("compression", || rotated(path).keys().all(|more| more.ends_with(extension)).then_some(()));
}

/// Lines that broke off are followed by the event they are the beginning of.
#[track_caller]
fn without_broken(lines: Vec<String>) -> Vec<String> {
    let is_whole = |line: &String| serde_json::from_str::<Value>(line).is_ok();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !is_whole(line)) {
        assert!(lines[at + 1].starts_with(line.as_str()), "joined or lost: {line:.80}");
    }
    lines.into_iter().filter(is_whole).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "it need not survive a power cut")]
fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

/// As if the last line had been written so long ago.
fn aged(path: &Path, by: Duration) {
    let file = OpenOptions::new().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn events_are_lines_of_a_file_that_is_for_its_owner() {
    let (setup, path) = file_sink();
    let receiver = setup.start();
    let mut expected = deliver(&receiver, 3);
    let id = new_id();
    receiver.post(event(&id).replacen(':', ":\r\n ", 1)).assert_durable("stored", &id);
    receiver.sink_settled("out");
    expected.push(event(&id).replacen(':', ":   ", 1));
    assert_eq!(mode(&path), 0o600);
    receiver.finish();
    let receiver = setup.start();
    expected.extend(deliver(&receiver, 3));
    receiver.finish();
    assert_eq!(lines(&path), expected);
    assert_eq!(rotated(&path), BTreeMap::new());
}

#[test]
fn a_file_that_was_renamed_deleted_or_truncated_goes_on_where_its_path_leads() {
    let (setup, path) = file_sink();
    let receiver = setup.start();
    let before = deliver(&receiver, 3);
    let aside = path.with_extension("jsonl.1");
    rename(&path, &aside);
    let after = deliver(&receiver, 3);
    assert_eq!((lines(&aside), lines(&path)), (before, after));

    // Another one in its place, as logrotate's `create` makes it; it keeps its mode.
    rename(&path, &aside);
    File::create(&path).unwrap();
    set_mode(&path, 0o640);
    let after = deliver(&receiver, 3);
    assert_eq!((lines(&path), mode(&path)), (after, 0o640));

    fs::remove_file(&path).unwrap();
    let after = deliver(&receiver, 3);
    assert_eq!(lines(&path), after);

    // `copytruncate`: no hole where the old lines were.
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let mut after = deliver(&receiver, 3);
    assert_eq!(lines(&path), after);

    // Cut in the midst of a line.
    let length = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 10).unwrap();
    let cut = after[2].len() - 9;
    after[2].truncate(cut);
    after.extend(deliver(&receiver, 3));
    assert_eq!(lines(&path), after);
    receiver.finish();
}

#[test]
fn while_its_folder_is_gone_only_this_sink_waits() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.other.type", "stdout");
    let receiver = setup.start();
    let before = deliver(&receiver, 2);
    let (folder, aside) = (path.parent().unwrap(), path.parent().unwrap().with_extension("aside"));
    rename(folder, &aside);
    let ids = receiver.store(20);
    failing(&receiver, &["events.jsonl cannot be opened", "make its folder"]);
    assert_eq!(receiver.sink("out")["pending"], 20);
    assert_eq!(receiver.sink_settled("other")["delivered"], 22);
    fs::create_dir(folder).unwrap();
    receiver.sink_settled("out");
    assert_eq!(receiver.sink("out")["state"], "ok");
    assert_eq!((lines(&aside.join("events.jsonl")), lines(&path)), (before, events(&ids)));
    receiver.finish();
}

#[test]
fn only_a_regular_file_is_written_to() {
    let (setup, path) = file_sink();
    let receiver = setup.start();
    let mut expected = Vec::new();
    let elsewhere = path.with_extension("elsewhere");
    for in_the_way in ["folder", "pipe", "link"] {
        match in_the_way {
            "folder" => fs::create_dir(&path).unwrap(),
            "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            _ => symlink(&elsewhere, &path).unwrap(),
        }
        expected.extend(events(&receiver.store(2)));
        failing(&receiver, &["is not a regular file", "name another path"]);
        if in_the_way == "folder" {
            fs::remove_dir(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        receiver.sink_settled("out");
        rename(&path, &path.with_extension(in_the_way));
    }
    assert!(!elsewhere.exists());
    receiver.finish();
    let written = ["folder", "pipe", "link"].map(|in_the_way| lines(&path.with_extension(in_the_way)));
    assert_eq!(written.concat(), expected);
}

/// As an administrator, but bound by permissions as anybody is.
const BOUND: [&str; 3] = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"];

#[test]
fn what_is_not_permitted_is_tried_again_until_it_is() {
    if !rustix::process::geteuid().is_root() {
        return not_tested("only root can give up its privileges");
    }
    let (setup, path) = file_sink();
    let folder = path.parent().unwrap();
    let setup = setup.set("sinks.out.rotate_bytes", 2_000).through(&BOUND);
    let receiver = setup.start();
    set_mode(folder, 0o500);
    let mut expected = events(&receiver.store(2));
    failing(&receiver, &["cannot be opened", "let the receiver's user"]);
    set_mode(folder, 0o700);
    receiver.sink_settled("out");

    // It cannot be renamed: told once, and it grows.
    set_mode(folder, 0o500);
    for _ in 0..3 {
        expected.extend(deliver(&receiver, 4));
    }
    receiver.log.wait("the warning", |line| line.contains("cannot be rotated").then_some(()));
    let told = receiver.log.so_far().iter().filter(|line| line.contains("cannot be rotated")).count();
    assert_eq!((told, rotated(&path).len()), (1, 0));
    assert_eq!(lines(&path), expected);
    set_mode(folder, 0o700);
    expected.extend(deliver(&receiver, 4));
    assert!(!rotated(&path).is_empty());
    receiver.finish();
    assert_eq!(all_lines(&path), expected);
}

#[test]
fn on_a_full_disk_lines_that_broke_off_are_ended_and_every_event_comes_once() {
    let Some(disk) = Disk::ext4(16 << 20) else { return };
    let path = disk.path().join("events.jsonl");
    let receiver = to_file(Setup::new(), "out", &path).start();
    let mut expected = deliver(&receiver, 2);
    // Until a line broke off: where the disk cuts depends on the sizes of the batches.
    for round in 0..20 {
        let filler = disk.fill();
        // Room for a few and a half.
        let length = fs::metadata(&filler).unwrap().len();
        File::options().write(true).open(&filler).unwrap().set_len(length - 20_000 - 700 * round).unwrap();
        let mut wire = receiver.connect();
        for _ in 0..20 {
            let id = new_id();
            let event = big_event(&id, 3_000);
            wire.post(event.as_bytes()).assert_durable("stored", &id);
            expected.push(event);
        }
        failing(&receiver, &["cannot be written to", "make room"]);
        fs::remove_file(filler).unwrap();
        receiver.sink_settled("out");
        if round >= 2 && lines(&path).len() > expected.len() {
            break;
        }
    }
    receiver.finish();
    let written = lines(&path);
    assert!(written.len() > expected.len(), "no line broke off");
    assert_eq!(without_broken(written), expected);
}

#[test]
fn a_full_quota_and_a_failing_disk_are_tried_again() {
    let (setup, path) = file_sink();
    let receiver = setup.start();
    let mut expected = deliver(&receiver, 1);
    for (fault, words) in [("EDQUOT", "make room"), ("EIO", "cannot be written to")] {
        let faults = receiver.inject_on(&path, &format!("write:error={fault}"), Path::new("/dev/null"));
        let ids = receiver.store(5);
        failing(&receiver, &[words]);
        assert_eq!(receiver.sink("out")["pending"], 5);
        drop(faults);
        receiver.sink_settled("out");
        expected.extend(events(&ids));
    }
    receiver.finish();
    assert_eq!(lines(&path), expected);
}

#[test]
fn with_sync_batch_no_event_counts_before_it_is_synced() {
    let (setup, path) = file_sink();
    let setup = setup.durable();
    let receiver = setup.start();
    let mut expected = deliver(&receiver, 1);
    let trace = setup.folder().join("trace");
    let faults = receiver.inject_on(&path, "fdatasync:delay_enter=600000000", &trace);
    let id = receiver.store(1);
    wait_for("the sync to be asked for", || fs::read_to_string(&trace).unwrap().contains("fdatasync(").then_some(()));
    expected.extend(events(&id));
    assert_eq!(lines(&path), expected, "it is written, and yet");
    assert_eq!(receiver.sink("out")["pending"], 1);
    faults.kill(receiver);

    // What was not seen to succeed is done again.
    let receiver = setup.start();
    receiver.sink_settled("out");
    expected.extend(events(&id));
    assert_eq!(lines(&path), expected);

    let faults = receiver.inject_on(&path, "fdatasync:error=EIO", &trace);
    let id = receiver.store(1);
    failing(&receiver, &["cannot be synced"]);
    assert_eq!(receiver.sink("out")["pending"], 1);
    drop(faults);
    receiver.sink_settled("out");
    let written = lines(&path);
    let (before, after) = written.split_at(expected.len());
    assert_eq!(before, expected);
    assert!(after.len() > 1 && after.iter().all(|line| *line == event(&id[0])), "{after:?}");
    receiver.finish();
}

/// Stops the receiver in the midst of a sync of the file, lets `meanwhile` have its way with it, and goes on.
fn while_it_syncs(receiver: &Receiver, path: &Path, meanwhile: impl FnOnce()) {
    let trace = receiver.setup().folder().join("trace");
    let faults = receiver.inject_on(path, "fdatasync:signal=STOP:when=1", &trace);
    let mut wire = receiver.connect();
    let id = new_id();
    wire.send(crate::harness::wire::post("/events", "", event(&id).as_bytes())).unwrap();
    wait_for("the stop", || fs::read_to_string(&trace).unwrap().contains("stopped by SIGSTOP").then_some(()));
    assert!(lines(path).contains(&event(&id)), "it is written, and not yet acknowledged");
    meanwhile();
    drop(faults);
    receiver.signal(Signal::CONT);
    wire.answer().assert_durable("stored", &id);
    receiver.sink_settled("out");
}

#[test]
fn what_is_taken_away_while_it_is_written_is_written_again() {
    let (setup, path) = file_sink();
    let receiver = setup.start();
    let ends_in_new_line = |path: &Path, before: &[String]| {
        let (new, old) = (lines(path), before.len());
        assert_eq!(new[..old], *before);
        assert_eq!(new.len(), old + 1, "{new:?}");
        assert!(new[old].starts_with('{'));
        new
    };
    deliver(&receiver, 2);
    while_it_syncs(&receiver, &path, || fs::remove_file(&path).unwrap());
    ends_in_new_line(&path, &[]);

    let other = path.with_extension("other");
    fs::write(&other, "{\"other\":1}\n").unwrap();
    while_it_syncs(&receiver, &path, || rename(&other, &path));
    ends_in_new_line(&path, &["{\"other\":1}".to_owned()]);

    while_it_syncs(&receiver, &path, || File::options().write(true).open(&path).unwrap().set_len(0).unwrap());
    let after = ends_in_new_line(&path, &[]);

    // Under another name it is still there, and nothing is doubled.
    let aside = path.with_extension("aside");
    while_it_syncs(&receiver, &path, || rename(&path, &aside));
    ends_in_new_line(&aside, &after);
    assert!(!path.exists());

    let (folder, gone) = (path.parent().unwrap().to_owned(), path.parent().unwrap().with_extension("gone"));
    let first = deliver(&receiver, 1);
    while_it_syncs(&receiver, &path, || rename(&folder, &gone));
    ends_in_new_line(&gone.join("events.jsonl"), &first);
    fs::create_dir(&folder).unwrap();
    let last = deliver(&receiver, 1);
    assert_eq!(lines(&path), last);
    receiver.finish();
}

#[test]
fn a_compressed_file_of_other_bytes_costs_no_rotated_one() {
    let (setup, path) = file_sink();
    let beside = |more: &str| path.with_file_name(format!("events.jsonl{more}"));
    let stamps = [".20260101T000000.000Z", ".20260102T000000.000Z", ".20260103T000000.000Z", ".20260104T000000.000Z"];
    let [copied, other, half, zstd] = stamps;
    let line = |stamp: &str| format!("{{\"of\":\"{stamp}\"}}\n");
    for stamp in stamps {
        fs::write(beside(stamp), line(stamp)).unwrap();
    }
    for stamp in [copied, other, half] {
        assert!(Command::new("gzip").arg("-k").arg(beside(stamp)).status().unwrap().success());
    }
    assert!(Command::new("zstd").args(["-q", "-k"]).arg(beside(zstd)).status().unwrap().success());
    fs::write(beside(other), line("another")).unwrap();
    let whole = fs::read(beside(&format!("{half}.gz"))).unwrap();
    fs::write(beside(&format!("{half}.gz")), &whole[..whole.len() - 12]).unwrap();

    let setup = setup.set("sinks.out.compress", "gzip").set("sinks.out.rotate_bytes", 10_000);
    let receiver = setup.start();
    wait_for("copies to be known", || (!beside(copied).exists() && !beside(zstd).exists()).then_some(()));
    for stamp in [other, half] {
        receiver.log.wait("the warning", |line| line.contains("are both kept").then_some(()));
        assert!(beside(stamp).exists() && beside(&format!("{stamp}.gz")).exists());
    }
    receiver.finish();
    assert_eq!(fs::read_to_string(beside(other)).unwrap(), line("another"));
    assert_eq!(fs::read_to_string(beside(half)).unwrap(), line(half));
}

#[test]
fn what_only_looks_like_a_rotated_file_is_not_deleted() {
    let (setup, path) = file_sink();
    let beside = |more: &str| path.with_file_name(format!("events.jsonl{more}"));
    let (link, folder, file) = (".20260101T000000.000Z", ".20260102T000000.000Z", ".20260103T000000.000Z");
    symlink("elsewhere", beside(link)).unwrap();
    fs::create_dir(beside(folder)).unwrap();
    fs::write(beside(file), "{}\n").unwrap();
    let setup = setup.set("sinks.out.keep_files", 1).set("sinks.out.rotate_bytes", 1_000);
    let receiver = setup.start();
    deliver(&receiver, 10);
    wait_for("the oldest to be deleted", || (rotated(&path).len() == 3 && !beside(file).exists()).then_some(()));
    receiver.finish();
    assert!(beside(link).symlink_metadata().is_ok() && beside(folder).is_dir());
}

#[test]
fn a_failure_names_its_own_cause() {
    let (setup, path) = file_sink();
    // With the time of its rotation it is too long a name.
    let long = path.with_file_name("e".repeat(240));
    let setup = to_file(setup, "out", &long).set("sinks.out.rotate_bytes", 1_000);
    let checked = setup.command().arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.lines().any(|line| line.starts_with("warning  sinks.out.path: ") && line.contains("29 bytes")),
        "{said}"
    );
    let receiver = setup.start();
    let expected = deliver(&receiver, 10);
    let told = receiver.log.wait("the warning", |line| line.contains("cannot be rotated").then(|| line.to_owned()));
    assert!(told.contains("shorter name") && !told.contains("permit"), "{told}");
    assert_eq!(lines(&long), expected);
    receiver.finish();

    let Some(disk) = Disk::tmpfs(1 << 20) else { return };
    let receiver = to_file(Setup::new(), "out", &disk.path().join("events.jsonl")).start();
    disk.read_only(true);
    let expected = events(&receiver.store(1));
    failing(&receiver, &["Read-only file system", "mount its volume writable"]);
    disk.read_only(false);
    receiver.sink_settled("out");
    receiver.finish();
    assert_eq!(lines(&disk.path().join("events.jsonl")), expected);
}

#[test]
fn with_sync_interval_all_is_synced_within_the_second_and_a_failure_shows() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.sync", "interval");
    let receiver = setup.start();
    let mut expected = deliver(&receiver, 1);
    let trace = receiver.setup().folder().join("trace");
    let traced = || fs::read_to_string(&trace).unwrap_or_default();
    let faults = receiver.inject_on(&path, "fdatasync:delay_enter=1", &trace);
    expected.extend(deliver(&receiver, 1));
    // Nothing more comes.
    wait_for("a sync", || traced().contains("fdatasync(").then_some(()));
    drop(faults);

    let faults = receiver.inject_on(&path, "fdatasync:error=EIO:when=1", &trace);
    expected.extend(deliver(&receiver, 1));
    wait_for("the failed sync", || traced().contains("INJECTED").then_some(()));
    drop(faults);
    let ids = receiver.store(1);
    receiver.log.wait("the failure", |line| line.contains("could not be synced").then_some(()));
    receiver.sink_settled("out");
    expected.extend(events(&ids));
    receiver.finish();
    assert_eq!(lines(&path), expected);
}

#[test]
fn with_sync_never_nothing_is_synced() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.sync", "never");
    let receiver = setup.start();
    deliver(&receiver, 1);
    let trace = receiver.setup().folder().join("trace");
    let faults = receiver.inject_on(&path, "fdatasync,fsync,write:delay_enter=1", &trace);
    deliver(&receiver, 1);
    std::thread::sleep(Duration::from_millis(1_200));
    drop(faults);
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("write(") && !trace.contains("sync("), "{trace}");
    receiver.finish();
}

#[test]
fn rotation_by_size_loses_and_doubles_nothing_packed_or_not() {
    let (setup, plain) = file_sink();
    let beside = |name: &str| plain.with_file_name(name);
    let (gzip, zstd, few) = (beside("gzip.jsonl"), beside("zstd.jsonl"), beside("few.jsonl"));
    let mut setup = to_file(to_file(to_file(setup, "gzip", &gzip), "zstd", &zstd), "few", &few);
    for (sink, compress) in [("out", "none"), ("gzip", "gzip"), ("zstd", "zstd"), ("few", "none")] {
        setup = setup.set(&format!("sinks.{sink}.rotate_bytes"), 20_000);
        setup = setup.set(&format!("sinks.{sink}.compress"), compress);
    }
    let setup = setup.set("sinks.few.keep_files", 3);
    let receiver = setup.start();
    let mut expected = Vec::new();
    let mut wire = receiver.connect();
    for number in 0..400 {
        let id = new_id();
        // Now and then one that is larger than a file may be.
        let event = if number % 150 == 149 { big_event(&id, 30_000) } else { event(&id) };
        wire.post(event.as_bytes()).assert_durable("stored", &id);
        expected.push(event);
    }
    for sink in ["out", "gzip", "zstd", "few"] {
        assert_eq!(receiver.sink_settled(sink)["delivered"], 400);
    }
    compressed(&gzip, ".gz");
    compressed(&zstd, ".zst");
    let kept = wait_for("the oldest to be deleted", || Some(rotated(&few)).filter(|files| files.len() == 3));
    receiver.finish();
    for path in [&plain, &gzip, &zstd] {
        assert_eq!(all_lines(path), expected, "{}", path.display());
        assert!(rotated(path).len() >= 9, "{:?}", rotated(path));
        assert!(rotated(path).values().chain([path]).all(|file| mode(file) == 0o600));
    }
    for (more, file) in rotated(&plain) {
        let shape: String = more.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, ".00000000T000000.000Z");
        let size = fs::metadata(&file).unwrap().len();
        assert!(size <= 20_000 || lines(&file).len() == 1, "{more} has {size} bytes");
    }
    // The newest.
    assert!(kept.keys().all(|more| more.starts_with(".2")));
    let kept = all_lines(&few);
    assert!(kept.len() > 40 && expected.ends_with(&kept), "{}", kept.len());
}

#[test]
fn rotation_by_time_goes_by_the_last_line_over_restarts() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.rotate_every", "365d");
    fs::write(&path, "{\"old\":1}\n").unwrap();
    aged(&path, YEAR);
    let receiver = setup.start();
    let mut year = deliver(&receiver, 2);
    receiver.finish();
    let receiver = setup.start();
    year.extend(deliver(&receiver, 2));
    receiver.finish();
    assert_eq!(lines(&path), year);
    aged(&path, YEAR * 2);
    let receiver = setup.start();
    // Not before there is something to write.
    assert_eq!(rotated(&path).len(), 1);
    let new = deliver(&receiver, 2);
    receiver.finish();
    let files: Vec<Vec<String>> = rotated(&path).values().map(|file| lines(file)).collect();
    assert_eq!(files, [vec!["{\"old\":1}".to_owned()], year]);
    assert_eq!(lines(&path), new);
}

#[test]
fn rotation_by_time_happens_while_it_runs() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.rotate_every", "200ms").set("sinks.out.compress", "gzip");
    let receiver = setup.start();
    let mut expected = Vec::new();
    wait_for("some rotations", || {
        expected.extend(deliver(&receiver, 1));
        (rotated(&path).len() >= 4).then_some(())
    });
    compressed(&path, ".gz");
    receiver.finish();
    assert_eq!(all_lines(&path), expected);
}

#[test]
fn what_a_crash_left_of_a_rotation_is_finished_and_nothing_else_touched() {
    let (setup, path) = file_sink();
    let beside = |more: &str| path.with_file_name(format!("events.jsonl{more}"));
    let (first, second, third) = (".20260101T000000.000Z", ".20260102T000000.000Z", ".20260103T000000.000Z");
    // Not yet compressed; half compressed; compressed, but not yet deleted.
    fs::write(beside(first), "{\"a\":1}\n").unwrap();
    set_mode(&beside(first), 0o640);
    fs::write(beside(second), "{\"a\":2}\n").unwrap();
    fs::write(beside(&format!("{second}.gz.tmp")), "half").unwrap();
    fs::write(beside(third), "{\"a\":3}\n").unwrap();
    assert!(Command::new("gzip").arg("-k").arg(beside(third)).status().unwrap().success());
    let strangers = [
        ".1",
        ".bak",
        ".20260101",
        ".20261301T000000.000Z",
        ".20260101T000000.000Z.gz.bak",
        ".20260101T000000.000Z.tmp",
    ];
    for stranger in strangers {
        fs::write(beside(stranger), "mine").unwrap();
    }
    fs::write(path.with_file_name("other.jsonl.20260101T000000.000Z"), "mine").unwrap();
    let setup = setup.set("sinks.out.compress", "gzip").set("sinks.out.rotate_bytes", 10_000);
    let receiver = setup.start();
    wait_for("all to be finished", || {
        let mut left: Vec<String> =
            rotated(&path).into_keys().filter(|more| !strangers.contains(&more.as_str())).collect();
        left.sort();
        (left == [first, second, third].map(|stamp| format!("{stamp}.gz"))).then_some(())
    });
    for (stamp, line) in [(first, "{\"a\":1}\n"), (second, "{\"a\":2}\n"), (third, "{\"a\":3}\n")] {
        assert_eq!(output("gzip", &["-dc"], &beside(&format!("{stamp}.gz"))), line);
    }
    assert_eq!(mode(&beside(&format!("{first}.gz"))), 0o640);
    receiver.finish();
    let untouched = strangers.map(beside).into_iter().chain([path.with_file_name("other.jsonl.20260101T000000.000Z")]);
    assert!(untouched.into_iter().all(|file| fs::read_to_string(file).unwrap() == "mine"));
}

#[test]
fn what_is_no_regular_file_is_neither_waited_for_nor_followed_when_rotated_ones_are_compressed() {
    let (setup, path) = file_sink();
    let beside = |more: &str| path.with_file_name(format!("events.jsonl{more}"));
    let (pipe, link, file) = (".20260101T000000.000Z", ".20260102T000000.000Z", ".20260103T000000.000Z");
    assert!(Command::new("mkfifo").arg(beside(pipe)).status().unwrap().success());
    fs::write(path.with_file_name("secret"), "another's").unwrap();
    std::os::unix::fs::symlink(path.with_file_name("secret"), beside(link)).unwrap();
    fs::write(beside(file), "{}\n").unwrap();
    let receiver = setup.set("sinks.out.compress", "gzip").set("sinks.out.rotate_bytes", 10_000).start();
    wait_for("the file to be compressed", || beside(&format!("{file}.gz")).exists().then_some(()));
    wait_for("the original to be deleted", || (!beside(file).exists()).then_some(()));
    let left: Vec<String> = rotated(&path).into_keys().collect();
    assert_eq!(left, [pipe.to_owned(), link.to_owned(), format!("{file}.gz")]);
    assert_eq!(fs::read_to_string(path.with_file_name("secret")).unwrap(), "another's");
    receiver.finish();
}

#[test]
fn a_clock_set_back_does_not_make_new_files_the_oldest() {
    let (setup, path) = file_sink();
    let future = path.with_file_name("events.jsonl.20990101T000000.000Z");
    fs::write(&future, "{}\n").unwrap();
    let setup = setup.set("sinks.out.keep_files", 1).set("sinks.out.rotate_bytes", 1_000);
    let receiver = setup.start();
    let expected = deliver(&receiver, 3);
    wait_for("the oldest to be deleted", || (rotated(&path).len() == 1 && !future.exists()).then_some(()));
    receiver.finish();
    assert!(rotated(&path).keys().all(|more| more.starts_with(".20990101T000000.00")), "{:?}", rotated(&path));
    assert!(expected.ends_with(&all_lines(&path)));
}

/// After it there is no later name.
#[test]
fn a_file_of_the_last_year_holds_up_no_rotation() {
    let (setup, path) = file_sink();
    let last = [".99990101T000000.000Z", ".99991231T235959.999Z.gz"];
    for last in last {
        fs::write(path.with_file_name(format!("events.jsonl{last}")), "mine").unwrap();
    }
    let setup = setup.set("sinks.out.keep_files", 1).set("sinks.out.rotate_bytes", 1_000);
    let receiver = setup.start();
    let expected = deliver(&receiver, 5);
    for last in last {
        receiver.log.wait("the warning", |line| (line.contains(last) && line.contains("let alone")).then_some(()));
    }
    let kept = wait_for("the others to be deleted", || Some(rotated(&path)).filter(|files| files.len() == 3));
    for last in last {
        assert_eq!(fs::read_to_string(&kept[last]).unwrap(), "mine");
        fs::remove_file(&kept[last]).unwrap();
    }
    receiver.finish();
    let written = all_lines(&path);
    assert!(written.len() < 5 && expected.ends_with(&written), "{written:?}");
}

#[test]
fn a_file_that_is_a_mount_of_its_own_grows_on_and_its_folder_is_the_remedy() {
    let (setup, path) = file_sink();
    let mounted = path.with_file_name("mounted.jsonl");
    for file in [&path, &mounted] {
        fs::write(file, "").unwrap();
    }
    if !Command::new("mount").arg("--bind").args([&mounted, &path]).status().unwrap().success() {
        return not_tested("files cannot be mounted here");
    }
    let receiver = setup.set("sinks.out.rotate_bytes", 1_000).start();
    let expected = deliver(&receiver, 5);
    let told = receiver.log.wait("the warning", |line| line.contains("cannot be rotated").then(|| line.to_owned()));
    receiver.finish();
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    assert!(told.contains("mount its folder instead") && told.contains("events.jsonl.20"), "{told}");
    assert_eq!(lines(&mounted), expected);
}

#[test]
fn a_compression_that_fails_holds_nobody_up_and_is_done_later() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.compress", "zstd").set("sinks.out.rotate_bytes", 2_000);
    let receiver = setup.start();
    let left = path.with_file_name("events.jsonl.20260101T000000.000Z");
    let in_the_way = path.with_file_name("events.jsonl.20260101T000000.000Z.zst.tmp");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(&left, "").unwrap();
    let mut expected = deliver(&receiver, 10);
    receiver.log.wait("the warning", |line| line.contains("cannot be compressed").then_some(()));
    assert!(left.exists());
    fs::remove_dir(&in_the_way).unwrap();
    expected.extend(deliver(&receiver, 10));
    compressed(&path, ".zst");
    receiver.finish();
    assert_eq!(all_lines(&path), expected);
}

#[test]
fn who_may_read_the_file_may_read_the_next_one() {
    let (setup, path) = file_sink();
    let setup = setup.set("sinks.out.compress", "gzip").set("sinks.out.rotate_bytes", 2_000);
    let receiver = setup.start();
    deliver(&receiver, 1);
    set_mode(&path, 0o640);
    deliver(&receiver, 20);
    compressed(&path, ".gz");
    receiver.finish();
    assert!(rotated(&path).len() > 1);
    assert!(rotated(&path).values().chain([&path]).all(|file| mode(file) == 0o640));
}

/// Whatever a SIGKILL interrupts: a write, a rename, a compression.
#[test]
fn after_kills_under_load_every_event_is_there_in_whole_lines() {
    let (setup, path) = file_sink();
    let setup = setup.durable();
    let setup = setup.set("sinks.out.rotate_bytes", 6_000).set("sinks.out.compress", "gzip").set("log.level", "info");
    let mut random = fastrand::Rng::with_seed(20_261_122);
    let mut expected = Vec::new();
    for _ in 0..15 {
        let receiver = setup.start();
        expected.extend(events(&receiver.store(random.usize(1..120))));
        std::thread::sleep(Duration::from_micros(random.u64(0..3_000)));
        let (_, ended) = receiver.kill();
        assert!(!ended.log.iter().any(|line| line.contains("ERROR")), "{ended:?}");
    }
    let receiver = setup.start();
    receiver.sink_settled("out");
    compressed(&path, ".gz");
    receiver.finish();
    let written = without_broken(all_lines(&path));
    // Repeats come after a crash only; without them, all is in order.
    let mut seen = std::collections::HashSet::new();
    let first: Vec<String> = written.into_iter().filter(|line| seen.insert(line.clone())).collect();
    assert_eq!(first, expected);
}
