//! Under systemd: what the receiver tells a service manager, and the unit that is shipped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use asapp_receiver::config::Config;
use rustix::process::Signal;

use crate::harness::PATIENCE;
use crate::harness::event::{new_event, new_id};
use crate::harness::free_port;
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wire::Wire;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/asapp-receiver.service");
const USERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/asapp-receiver.sysusers.conf");
const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/production.toml");

/// A service manager's side.
struct Manager(UnixDatagram);

impl Manager {
    fn at(setup: &Setup) -> (Self, String) {
        let path = setup.folder().join("notify");
        (Self(UnixDatagram::bind(&path).unwrap()), format!("NOTIFY_SOCKET={}", path.display()))
    }

    /// The next thing it is told.
    #[track_caller]
    fn told(&self) -> String {
        self.told_within(PATIENCE).unwrap()
    }

    /// For a process that has ended: whatever it had said would be in the socket by now.
    #[track_caller]
    fn told_nothing_more(&self) {
        self.0.set_nonblocking(true).unwrap();
        let said = self.0.recv(&mut [0; 1024]);
        assert_eq!(said.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    }

    /// Passes over what it was told so far.
    fn forget(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 1024]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }

    fn told_within(&self, time: Duration) -> io::Result<String> {
        self.0.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

#[test]
fn ready_is_told_once_the_port_answers_and_stopping_as_the_drain_begins() {
    let setup = Setup::new();
    let (manager, variable) = Manager::at(&setup);
    let port = free_port();
    // Every sync of the start takes a while, and `ready` before the end of them would be seen.
    let slow = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=100000:when=1..10"];
    let through = [&["env", &variable, "strace", "-D", "-f", "-qq", "-o", "/dev/null"], &slow[..]].concat();
    let setup =
        setup.set("listen.address", &*format!("127.0.0.1:{port}")).set("listen.pre_drain", "9s").through(&through);
    let starting = std::thread::spawn(move || setup.start_unready());
    let first = manager.told();
    let (id, event) = new_event();
    let stored = Wire::connect(([127, 0, 0, 1], port).into(), &PKI.client).map(|mut wire| wire.post(event.as_bytes()));
    let receiver = starting.join().unwrap();
    assert_eq!(first.lines().next(), Some("READY=1"), "{first}");
    stored.expect("an answer at once").assert_durable("stored", &id);

    receiver.signal(Signal::TERM);
    assert_eq!(manager.told().lines().next(), Some("STOPPING=1"));
    // It is told at the drain's beginning: requests are still served.
    receiver.post(&event).assert_durable("duplicate", &id);
    assert!(receiver.wait().status.success());
    manager.told_nothing_more();
}

#[test]
fn a_reload_is_told_from_its_beginning_to_its_end_whatever_comes_of_it() {
    let setup = Setup::new();
    let (manager, variable) = Manager::at(&setup);
    let receiver = setup.clone().through(&["env", &variable]).start();
    assert!(manager.told().starts_with("READY=1\n"));
    let bad = setup.clone().set_toml("tls.allowed_clients", "[]");
    for (settings, word) in [(&setup, "nothing has changed"), (&bad, "not reloaded"), (&setup, "again those in use")] {
        settings.write();
        receiver.signal(Signal::HUP);
        assert!(manager.told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert!(manager.told().starts_with("READY=1\n"));
        receiver.log.wait(word, |line| line.contains(word).then_some(()));
    }
    receiver.finish();
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let setup = Setup::embedded();
    let (manager, variable) = Manager::at(&setup);
    fs::write(setup.journal(), "no folder").unwrap();
    let ended = setup.through(&["env", &variable]).start_in_vain();
    assert!(!ended.status.success());
    manager.told_nothing_more();
}

#[test]
fn an_abstract_socket_is_told_too_and_one_that_is_missing_stops_nothing() {
    let name = format!("asapp-receiver-{}", new_id());
    let manager = Manager(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap());
    let receiver = Setup::new().through(&["env", &format!("NOTIFY_SOCKET=@{name}")]).start();
    assert!(manager.told().starts_with("READY=1\n"));
    receiver.finish();

    let receiver = Setup::new().through(&["env", "NOTIFY_SOCKET=/nowhere/notify"]).start();
    receiver.store(1);
    let ended = receiver.finish();
    assert!(ended.log.iter().any(|line| line.contains("check NOTIFY_SOCKET")), "{ended:?}");
}

#[test]
fn the_watchdog_hears_from_a_journal_that_answers_and_from_no_other() {
    let setup = Setup::embedded().set("listen.answer_within", "200ms");
    let (manager, variable) = Manager::at(&setup);
    let receiver = setup.through(&["env", &variable, "WATCHDOG_USEC=1500000"]).start();
    assert!(manager.told().starts_with("READY=1\n"));
    // A loaded machine can hold up a sign, but not every one.
    let gaps = (0..5).map(|_| {
        let start = Instant::now();
        assert_eq!(manager.told(), "WATCHDOG=1");
        start.elapsed()
    });
    assert!(gaps.min() < Some(Duration::from_millis(1500)));
    let faults = receiver.inject("fdatasync,fsync:delay_enter=60000000");
    assert_eq!(receiver.post(new_event().1).status, 503);
    // Some may have been on their way, if the machine was slow.
    manager.forget();
    let silence = Duration::from_millis(1500);
    if manager.told_within(silence).is_ok() {
        assert!(manager.told_within(silence).is_err(), "and no other");
    }
    faults.kill(receiver);
}

#[test]
fn the_watchdog_of_another_process_is_none() {
    let setup = Setup::new();
    let (manager, variable) = Manager::at(&setup);
    let receiver = setup.through(&["env", &variable, "WATCHDOG_USEC=30000", "WATCHDOG_PID=1"]).start();
    assert!(manager.told().starts_with("READY=1\n"));
    receiver.store(1);
    assert!(manager.told_within(Duration::from_millis(200)).is_err());
    receiver.finish();
}

#[test]
fn systemd_takes_the_unit_and_finds_it_locked_down() {
    // It looks for the program.
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("asapp-receiver.service");
    let text = fs::read_to_string(UNIT).unwrap();
    fs::write(&unit, text.replace("/usr/local/bin/asapp-receiver", env!("CARGO_BIN_EXE_asapp-receiver"))).unwrap();
    let unit = unit.to_str().unwrap();
    let said = run("systemd-analyze", &["verify", unit]);
    assert_eq!(said, "", "every remark is one too many");
    // In tenths; 9.6 without any of it.
    run("systemd-analyze", &["security", "--offline=true", "--threshold=12", unit]);

    let root = folder.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    run("systemd-sysusers", &[&format!("--root={}", root.display()), USERS]);
    let user = setting("User");
    let known = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(known.lines().any(|line| line.starts_with(&format!("{user}:"))), "{known}");
}

#[test]
fn the_unit_agrees_with_the_settings() {
    let (config, _) = Config::from_sources(&[PathBuf::from(SETTINGS)], std::iter::empty()).unwrap();
    let within = humantime::parse_duration(&setting("TimeoutStopSec")).unwrap();
    assert!(within > config.listen.drain_timeout + Duration::from_secs(5), "{within:?}");
    let state = Path::new("/var/lib").join(setting("StateDirectory"));
    assert_eq!(config.journal.path.parent(), Some(&*state));
    assert_eq!(setting("WorkingDirectory"), state.to_str().unwrap());
    assert_eq!(setting("Type"), "notify");
    let files: u64 = setting("LimitNOFILE").parse().unwrap();
    assert!(files >= config.listen.max_connections as u64 + 256);
    let command = setting("ExecStart");
    assert_eq!(command, "/usr/local/bin/asapp-receiver --config /etc/asapp-receiver/production.toml serve");
}

/// A call that the unit forbids would fail where nobody tried it.
#[test]
fn the_unit_allows_every_system_call_of_a_busy_life() {
    let setup = Setup::new().set("sinks.stdout.type", "stdout").set("sinks.file.type", "file");
    let (manager, variable) = Manager::at(&setup);
    let file = setup.folder().join("events.jsonl");
    let trace = setup.folder().join("trace");
    let setup = setup
        .set("sinks.file.path", &file)
        .set("sinks.file.rotate_bytes", 2000)
        .set("sinks.file.compress", "zstd")
        .through(&[
            "env",
            &variable,
            "WATCHDOG_USEC=300000",
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            trace.to_str().unwrap(),
        ]);
    let busy = |receiver: Receiver| {
        receiver.store(20);
        receiver.sink_settled("file");
        receiver.finish();
    };
    // A fresh journal, and one that is recovered.
    busy(setup.start());
    busy(setup.start());
    assert!(manager.told().starts_with("READY=1\n"));

    let allowed = allowed_calls();
    assert!(allowed.contains("fdatasync") && !allowed.contains("mount") && !allowed.contains("chroot"));
    let used: BTreeSet<String> = fs::read_to_string(trace).unwrap().lines().filter_map(call_of).collect();
    assert!(used.contains("accept4") && used.contains("fdatasync"), "{used:?}");
    let forbidden: Vec<_> = used.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}

/// The call of a line that strace wrote: `PID NAME(…`. A call that it cannot name is none: the process had ended before
/// strace could ask for it. A number without a name (`syscall_0x1f`) is one, and no unit allows it.
fn call_of(line: &str) -> Option<String> {
    let (call, _) = line.split_once(' ')?.1.trim_start().split_once('(')?;
    let is_name = |call: &str| call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (call != "???" && is_name(call)).then(|| call.to_owned())
}

#[test]
fn a_call_that_the_end_cut_off_is_none() {
    for (line, call) in [
        ("17 openat(AT_FDCWD, \"/etc/hosts\", O_RDONLY) = 3", Some("openat")),
        ("17 futex(0x7f, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>", Some("futex")),
        ("1017  syscall_0x1f(0x1) = -1 ENOSYS", Some("syscall_0x1f")),
        ("17 <... futex resumed>) = ?", None),
        ("17 ???( <unfinished ...>", None),
        ("17 <... ??? resumed>) = ?", None),
        ("17 ???() = ?", None),
        ("17 --- SIGTERM {si_signo=SIGTERM} ---", None),
        ("17 +++ exited with 0 +++", None),
    ] {
        assert_eq!(call_of(line).as_deref(), call, "{line}");
    }
}

/// What the unit's `SystemCallFilter` lines leave.
fn allowed_calls() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for filter in settings("SystemCallFilter") {
        let (groups, allows) = filter.strip_prefix('~').map_or((&*filter, true), |groups| (groups, false));
        for group in groups.split_whitespace() {
            let calls = calls_of(group);
            if allows { allowed.extend(calls) } else { allowed = &allowed - &calls }
        }
    }
    allowed
}

/// The calls of a group, such as `@system-service`, and of the groups in it.
fn calls_of(group: &str) -> BTreeSet<String> {
    let text = run("systemd-analyze", &["syscall-filter", group]);
    let words = text.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
    words
        .flat_map(|word| if word.starts_with('@') { calls_of(word) } else { BTreeSet::from([word.to_owned()]) })
        .collect()
}

/// The one value of a key in the unit.
#[track_caller]
fn setting(key: &str) -> String {
    let mut values = settings(key);
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values.remove(0)
}

fn settings(key: &str) -> Vec<String> {
    let text = fs::read_to_string(UNIT).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(ToOwned::to_owned).collect()
}

/// What a program said, on both outputs; it has to end with 0.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}
