//! `check`: what an operator would otherwise find out at night.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use crate::harness::free_port;
use crate::harness::pki::{Ca, Key, PKI, server_profile};
use crate::harness::receiver::Setup;
use crate::harness::target::{Reply, Target};

/// Settings without a fault.
fn good() -> Setup {
    Setup::embedded()
        .without("listen.answer_within")
        .set("listen.pre_drain", "5s")
        .set("listen.drain_timeout", "25s")
        .set("journal.max_bytes", "64MiB")
        .set("dead_letters.max_bytes", "1MiB")
        .set("quarantine.max_bytes", "1MiB")
        .set("sinks.stdout.type", "stdout")
}

/// What `check` finds, line by line, and its exit code.
struct Found {
    lines: Vec<String>,
    code: Option<i32>,
    output: Output,
}

fn check(setup: &Setup, arguments: &[&str]) -> Found {
    let output = setup.command().arg("check").args(arguments).output().unwrap();
    let lines = String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect();
    Found { lines, code: output.status.code(), output }
}

impl Found {
    /// A line with this verdict and key that has these words.
    #[track_caller]
    fn has(&self, verdict: &str, key: &str, words: &str) -> &Self {
        let begin = format!("{verdict:<8} {key}: ");
        let is_it = |line: &String| line.starts_with(&begin) && line.contains(words);
        assert!(self.lines.iter().any(is_it), "no line `{begin}…{words}` in {:#?}", self.lines);
        self
    }

    #[track_caller]
    fn has_not(&self, words: &str) -> &Self {
        assert!(!self.lines.iter().any(|line| line.contains(words)), "{words} in {:#?}", self.lines);
        self
    }

    #[track_caller]
    fn ends_with(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{:#?}", self.output);
        assert_eq!(self.output.stderr, b"", "{:#?}", self.output);
    }
}

#[test]
fn good_settings_leave_nothing_to_do() {
    let setup = good();
    let found = check(&setup, &[]);
    found
        .has("ok", "settings", "complete")
        .has("ok", "tls", "more days")
        .has("ok", "tls.certificate", "its key is P-256")
        .has("ok", "tls.allowed_clients", "1 listed")
        .has("ok", "tls.client_crl", "stays good here until it ends")
        .has("ok", "listen.address", "is free")
        .has("ok", "listen.drain_timeout", "within the 30s")
        .has("ok", "listen.max_connections", "open files")
        .has("ok", "memory", "at most")
        .has("ok", "journal.path", "will be made")
        .has("ok", "journal.max_bytes", "the settings allow 66 MiB")
        .has("ok", "sinks.stdout", "stdout, required")
        // The tests' CA is none that anyone knows.
        .has("warning", "tls.certificate", "`CN=Test CA` is a public CA");
    let warnings = found.lines.iter().filter(|line| !line.starts_with("ok "));
    // Where the tests run may have no CAs at all, or a journal on tmpfs.
    let expected = |line: &&String| !line.contains("tls.certificate") && !line.contains("which is not durable");
    assert_eq!(warnings.filter(expected).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(!setup.journal().exists(), "check makes nothing");
    found.ends_with(0);
}

#[test]
fn certificates_are_looked_at_as_asapp_would() {
    let days = |days| OffsetDateTime::now_utc() + time::Duration::days(days);
    let soon = PKI.ca.server(|profile| profile.not_after = days(5));
    let with = |identity: &crate::harness::pki::Identity| {
        good().set("tls.certificate", &identity.chain).set("tls.private_key", &identity.key)
    };
    check(&with(&soon), &[]).has("warning", "tls", "is valid for 4 more days").ends_with(0);
    let over = PKI.ca.server(|profile| profile.not_after = days(-1));
    check(&with(&over), &[]).has("error", "tls", "renew it").ends_with(78);
    let weak = PKI.ca.issue(Key::Rsa2048, server_profile());
    check(&with(&weak), &[]).has("error", "tls", "stronger key").has("ok", "tls.certificate", "2048").ends_with(78);
    let strong = PKI.ca.issue(Key::Rsa3072, server_profile());
    check(&with(&strong), &[]).has("ok", "tls.certificate", "its key is RSA with 3072 bits").ends_with(0);

    let at = |url: &str| good().set("endpoints.events.path", "/events").set("endpoints.events.public_url", url);
    let key = "endpoints.events.public_url";
    let named = check(&at("https://localhost:9443/events"), &[]);
    named.has("ok", key, "tls.certificate is for localhost").has_not("its path").ends_with(0);
    check(&at("https://127.0.0.1/events"), &[]).has("ok", key, "127.0.0.1").ends_with(0);
    check(&at("https://events.example.com/events"), &[])
        .has("warning", key, "does not name events.example.com")
        .ends_with(0);
    check(&at("https://localhost/asapp/events"), &[])
        .has("warning", key, "its path /asapp/events is not /events")
        .ends_with(0);

    let list = |hours| PKI.ca.crl(&[], OffsetDateTime::now_utc() + time::Duration::hours(hours));
    let revoked = |hours| good().set("tls.client_crl", [&list(hours)]);
    check(&revoked(100), &[]).has("ok", "tls", "good for 99 more hours").has_not("tls.client_crl: empty").ends_with(0);
    check(&revoked(10), &[]).has("warning", "tls", "fetch the new one").ends_with(0);
    check(&revoked(-1), &[]).has("error", "tls", "fetch the new one").ends_with(78);
}

#[test]
fn who_vouches_for_the_certificate_is_told() {
    let knowing = |setup: Setup, cas: &std::path::Path| {
        setup.through(&["env", &format!("SSL_CERT_FILE={}", cas.display()), "SSL_CERT_DIR=/nowhere"])
    };
    let key = "tls.certificate";
    check(&knowing(good(), &PKI.ca.certificate), &[]).has("ok", key, "vouched for by `CN=Test CA`").ends_with(0);
    let below = PKI.ca.intermediate("Test intermediate CA").server(|_| ());
    let cut = good().set("tls.certificate", &below.chain).set("tls.private_key", &below.key);
    check(&knowing(cut, &PKI.ca.certificate), &[]).has("warning", key, "append the intermediate").ends_with(0);
    let nothing = good().folder().join("none.pem");
    check(&knowing(good(), &nothing), &[]).has("ok", key, "this system has no CAs").ends_with(0);
}

#[test]
fn a_placeholder_is_no_client() {
    let zeros = "0".repeat(64);
    for entry in [
        "common_name = 'REPLACE-with-the-identifier-agreed-with-ASAPP'",
        "subject = 'CN=REPLACE-with-the-identifier-agreed-with-ASAPP,O=ASAPP'",
        "dns = 'REPLACE'",
        "common_name = 'client.example.com'",
        &format!("certificate_sha256 = '{zeros}'"),
    ] {
        let setup = good().set_toml("tls.allowed_clients", &format!("[{{ common_name = 'x' }}, {{ {entry} }}]"));
        check(&setup, &[]).has("error", "tls", "write what identifies ASAPP's certificate").ends_with(78);
        let ended = setup.start_in_vain();
        assert_eq!(ended.status.code(), Some(78), "{entry}: {ended:?}");
        assert!(ended.log.join("\n").contains("tls.allowed_clients holds the placeholder"), "{entry}: {ended:?}");
    }
    let real = good().set_toml("tls.allowed_clients", "[{ organization = 'REPLACEMENT Parts Ltd' }]");
    check(&real, &[]).ends_with(0);
    let any = good().without("tls.allowed_clients").set("tls.allow_any_client", true);
    check(&any, &[])
        .has("warning", "tls.allow_any_client", "lets in every client")
        .has("ok", "tls.client_crl", "empty")
        .ends_with(0);
}

#[test]
fn deadlines_are_held_against_those_of_others() {
    let setup =
        good().set("listen.drain_timeout", "60s").set("listen.pre_drain", "0s").set("listen.answer_within", "5s");
    check(&setup, &[])
        .has("warning", "listen.drain_timeout", "terminationGracePeriodSeconds")
        .has("warning", "listen.pre_drain", "load balancers still send")
        .has("warning", "listen.answer_within, endpoints.events.timeout_ms", "ASAPP gives up before")
        .ends_with(0);
}

#[test]
fn a_receiver_that_runs_is_seen_and_left_alone() {
    let address = format!("127.0.0.1:{}", free_port());
    let receiver = good().set("listen.pre_drain", "0s").set("listen.address", &*address).start();
    let setup = receiver.setup().clone().set("listen.address", &*receiver.events.to_string());
    let setup = setup.set("admin.address", &*receiver.admin.to_string());
    let found = check(&setup, &[]);
    found
        .has("ok", "journal.path", &format!("is in use by process {}", receiver.pid().as_raw_nonzero()))
        .has("warning", "listen.address", "something listens on port")
        .has("warning", "admin.address", "something listens on port")
        .ends_with(0);
    assert!(receiver.is_ready());
    receiver.finish();
    check(&setup, &[]).has_not("in use by").has("ok", "listen.address", "is free").ends_with(0);
}

#[test]
fn the_data_folder_is_looked_at() {
    let setup = good();
    fs::create_dir(setup.journal()).unwrap();
    fs::set_permissions(setup.journal(), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(setup.journal().join("damaged-20260101")).unwrap();
    let mark = fs::File::create(setup.journal().join("mark")).unwrap();
    mark.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    check(&setup, &[])
        .has("ok", "journal.path", "is writable")
        .has("warning", "journal.path", "can be read by others")
        .has("warning", "journal.path", "holds 1 damaged journals")
        .has("warning", "journal.path", "written to in the future")
        .ends_with(0);

    let vast = good().set("journal.max_bytes", "1000TiB");
    check(&vast, &[]).has("warning", "journal.max_bytes", "or lower max_bytes").ends_with(0);
    let lost = good().set("journal.path", "/nowhere/journal");
    check(&lost, &[]).has("error", "journal.path", "make it or mount it").ends_with(78);
    let memory = good().set("journal.engine", "memory").set("journal.allow_loss", true);
    check(&memory, &[]).has("warning", "journal.engine", "loses every event").has_not("journal.path").ends_with(0);
}

#[test]
fn file_sinks_are_looked_at() {
    let setup = good();
    let folder = setup.folder().join("archive");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let file = |setup: Setup, path: &str| {
        setup.set("sinks.archive.type", "file").set("sinks.archive.path", &setup_path(&folder, path))
    };
    let found = check(&file(setup.clone(), "events.jsonl"), &[]);
    found
        .has("ok", "sinks.archive", "file, required")
        .has("warning", "sinks.archive.path", "chmod go-w it")
        .has("warning", "sinks.archive.keep_files", "nothing is ever deleted, on the journal's own disk")
        .ends_with(0);

    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let vast = file(setup.clone(), "events.jsonl").set("sinks.archive.rotate_bytes", "1TiB");
    let vast = vast.set("sinks.archive.keep_files", 1_000);
    check(&vast, &[])
        .has_not("sinks.archive.path")
        .has("warning", "sinks.archive.keep_files", "keep fewer")
        .ends_with(0);
    let modest = file(setup.clone(), "events.jsonl").set("sinks.archive.rotate_bytes", "1MiB");
    check(&modest.set("sinks.archive.keep_files", 3), &[]).has_not("sinks.archive.").ends_with(0);
    let missing = check(&file(setup.clone(), "none/events.jsonl"), &[]);
    missing.has("warning", "sinks.archive.path", "make the folder").ends_with(0);
    check(&file(setup, ""), &[]).has("warning", "sinks.archive.path", "is no regular file").ends_with(0);
}

fn setup_path(folder: &std::path::Path, path: &str) -> std::path::PathBuf {
    if path.is_empty() { folder.to_owned() } else { folder.join(path) }
}

#[test]
fn connect_tries_targets_and_sends_nothing() {
    let (plain, server) = (Target::start(|_| Reply::status(200)), PKI.ca.server(|_| ()));
    let tls = Target::start_tls(&server, None, |_| Reply::status(200));
    let picky = Target::start_tls(&server, Some(&PKI.ca), |_| Reply::status(200));
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let to = |url: &str| good().set("sinks.web.type", "http").set("sinks.web.url", url);
    let key = "sinks.web.url";

    check(&to(&plain.url("/")), &["--connect"]).has("ok", key, "can be reached, without TLS").ends_with(0);
    let trusting = |target: &Target| to(&target.url("/")).set("sinks.web.tls.ca", [&PKI.ca.certificate]);
    check(&trusting(&tls), &["--connect"]).has("ok", key, "can be reached, by TLSv1_3").ends_with(0);
    let shown = trusting(&picky);
    check(&shown, &["--connect"]).has("error", key, "check tls.certificate").ends_with(1);
    let shown = shown.set("sinks.web.tls.certificate", &PKI.client.chain);
    check(&shown.set("sinks.web.tls.private_key", &PKI.client.key), &["--connect"])
        .has("ok", key, "by TLS")
        .ends_with(0);
    let foreign = Ca::new("Other CA");
    let other = to(&tls.url("/")).set("sinks.web.tls.ca", [&foreign.certificate]);
    check(&other, &["--connect"]).has("error", key, "check url, tls.ca").ends_with(1);

    let gone = to(&format!("http://{nobody}/"));
    check(&gone, &["--connect"]).has("error", key, "check url, and that the target runs").ends_with(1);
    check(&gone, &[]).has_not(key).ends_with(0);
    check(&gone.set("sinks.web.enabled", false), &["--connect"]).has_not(key).ends_with(0);
    for target in [plain, tls, picky] {
        assert_eq!(target.requests().len(), 0);
    }
}

#[test]
fn the_certificate_that_a_target_is_shown_is_looked_at() {
    let days = |days| OffsetDateTime::now_utc() + time::Duration::days(days) + time::Duration::hours(1);
    let showing = |client: &crate::harness::pki::Identity| {
        let setup = good().set("sinks.web.type", "http").set("sinks.web.url", "https://crm.example.com/events");
        let setup = setup.set("sinks.web.tls.ca", [&PKI.ca.certificate]);
        setup.set("sinks.web.tls.certificate", &client.chain).set("sinks.web.tls.private_key", &client.key)
    };
    let key = "sinks.web.tls.certificate";
    check(&showing(&PKI.client), &[])
        .has("ok", key, "is valid for 89 more days")
        .has("warning", "sinks.web.url", "crm.example.com is an example's name")
        .ends_with(0);
    let soon = PKI.ca.client(|profile| profile.not_after = days(5));
    check(&showing(&soon), &[]).has("warning", key, "is valid for 5 more days").ends_with(0);
    let over = PKI.ca.client(|profile| profile.not_after = days(-2));
    check(&showing(&over), &[]).has("error", key, "expired on").ends_with(1);
    let early = PKI.ca.client(|profile| profile.not_before = days(2));
    check(&showing(&early), &[]).has("error", key, "is not valid yet").ends_with(1);
    check(&showing(&PKI.server), &[]).has("warning", key, "not meant for client authentication").ends_with(0);
    let other = PKI.ca.client(|_| ());
    let unpaired = showing(&PKI.client).set("sinks.web.tls.private_key", &other.key);
    check(&unpaired, &[]).has("error", "sinks.web.tls.private_key", "does not go with tls.certificate").ends_with(78);
}

#[test]
fn feeds_are_held_against_filters_and_endpoints() {
    let journey = good().set_toml("sinks.stdout.filter.feeds", "['journey']");
    let url = "https://localhost/events";
    let journey = journey.set("endpoints.events.path", "/events").set("endpoints.events.public_url", url);
    check(&journey, &[])
        .has("warning", "feed com.asapp.event.queue", "stored and go nowhere")
        .has("warning", "feed com.asapp.event.activity", "leave it out at ASAPP")
        .has_not("feed com.asapp.event.journey")
        .ends_with(0);
    let some = journey.clone().set_toml("sinks.stdout.filter.exclude_event_types", "['ISSUE_*']");
    check(&some, &[]).has("warning", "feed com.asapp.event.journey", "added to the feed later").ends_with(0);
    let elsewhere = journey.set_toml("endpoints.events.feeds", "['queue']");
    check(&elsewhere, &[]).has("warning", "endpoints", "take no com.asapp.event.journey").ends_with(0);
    check(&good(), &[]).has_not("public_url").ends_with(0);

    let off = good().set("sinks.stdout.enabled", false);
    check(&off, &[])
        .has("warning", "sinks", "all are switched off")
        .has("ok", "sinks.stdout", "switched off; what it has not had holds the journal")
        .ends_with(0);
}

#[test]
fn limits_of_this_machine_are_looked_at() {
    let few = good().through(&["prlimit", "--nofile=300:300"]);
    check(&few, &[]).has("warning", "listen.max_connections", "LimitNOFILE").ends_with(0);
    let vast = good().set("listen.max_in_flight_bytes", "1000GiB");
    check(&vast, &[]).has("warning", "memory", "lower listen.max_connections").ends_with(0);
    let early = good().through(&["faketime", "2001-01-01"]);
    check(&early, &[]).has("warning", "clock", "years behind").has("error", "tls", "check the clock").ends_with(78);
}

#[test]
fn the_admin_port_off_loopback_is_told_and_needs_a_token() {
    let open = good().set("admin.address", "0.0.0.0:0");
    check(&open, &[]).has("error", "admin.address, admin.token_file", "name a file with a token").ends_with(78);
    let token = open.folder().join("token");
    fs::write(&token, "a-token-of-the-test").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o640)).unwrap();
    let missing = check(&open.clone().set("admin.token_file", &token.with_extension("none")), &[]);
    missing.has("error", "admin.token_file", "make it, or mount it").ends_with(78);
    check(&open.set("admin.token_file", &token), &[])
        .has("ok", "admin.address", "put TLS in front")
        .has("warning", "admin.token_file", "chmod 600")
        .has_not("a-token-of-the-test")
        .ends_with(0);
}
