//! The command line, as a shell sees it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::free_port;
#[cfg(not(feature = "otlp"))]
use crate::harness::receiver::Setup;

#[test]
fn each_command_explains_itself_with_an_example() {
    for command in [
        "",
        "serve",
        "check",
        "certs",
        "demo",
        "simulate",
        "feed-config",
        "status",
        "tail",
        "replay",
        "dead-letters",
        "quarantine",
        "sinks",
    ] {
        let mut args: Vec<&str> = vec![command, "--help"];
        args.retain(|arg| !arg.is_empty());
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let text = stdout(&output);
        assert!(text.contains("Example: asapp-receiver"), "{command}: {text}");
    }
    let version = stdout(&run(&["--version"]));
    let [first, commit, features, sqlite] = version.lines().collect::<Vec<_>>()[..] else { panic!("{version}") };
    assert_eq!(first, concat!("asapp-receiver ", env!("CARGO_PKG_VERSION")));
    assert!(commit.starts_with("commit: ") && sqlite.starts_with("SQLite: 3."), "{version}");
    for (name, is_in) in
        [("nats", cfg!(feature = "nats")), ("otlp", cfg!(feature = "otlp")), ("tls12", cfg!(feature = "tls12"))]
    {
        let told = features.trim_start_matches("features: ").split(", ").any(|feature| feature == name);
        assert_eq!(told, is_in, "{name}: {version}");
    }
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_traces_says_so_where_a_collector_is_named() {
    let receiver = Setup::new().through(&["env", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"]).start();
    let log = receiver.finish().log;
    assert!(log.iter().any(|line| line.contains("cargo build --release --features otlp")), "{log:?}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [&["listen"][..], &[], &["check", "--colour"], &["simulate"], &["demo", "--rate", "0"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn wrong_settings_exit_with_78_and_are_all_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    fs::write(&file, "[listen]\nmax_connections = 0\nport = 1\n").unwrap();
    for (command, told) in [("serve", stderr as fn(&Output) -> String), ("check", stdout)] {
        let output = run(&["--config", file.to_str().unwrap(), command]);
        assert_eq!(output.status.code(), Some(78), "{command}");
        let text = told(&output);
        for key in ["listen.max_connections", "listen.port", "tls.certificate", "tls.private_key", "tls.client_ca"] {
            assert!(text.contains(key), "{command}: {key} is not in {text}");
        }
    }
}

#[test]
fn check_looks_at_the_data_folder_and_at_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let used = folder.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::set_permissions(&used, fs::Permissions::from_mode(0o755)).unwrap();
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, "").unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "s3cret-of-sixteen-letters").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();

    for (journal, line) in [
        (folder.path().join("new"), "ok       journal.path:"),
        (used, "warning  journal.path:"),
        (no_folder.clone(), "error    journal.path:"),
        (no_folder.join("below"), "error    journal.path:"),
        (folder.path().join("a/b"), "error    journal.path:"),
    ] {
        let text = stdout(&check(folder.path(), &journal));
        assert!(text.lines().any(|found| found.starts_with(line)), "{}: {text}", journal.display());
        assert!(text.contains("warning  admin.token_file:") && !text.contains("s3cret"), "{text}");
        assert!(text.contains("ok       sinks.crm: http, required"), "{text}");
        assert!(text.contains("warning  sinks.crm.bearer_token_file:"), "{text}");
        assert!(text.contains("error    sinks.crm.tls.private_key:"), "{text}");
        assert!(text.contains("warning  sinks.gone.path:") && text.contains("warning  sinks.dir.path:"), "{text}");
        assert!(text.contains("ok       sinks.good: file") && !text.contains("sinks.good.path"), "{text}");
    }
    assert!(!folder.path().join("new").exists(), "check makes nothing");
}

#[test]
fn what_certs_makes_satisfies_check() {
    for kind in ["ecdsa", "rsa"] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs");
        let make = |more: &[&str]| run(&[&["certs", dir.to_str().unwrap(), "--key-type", kind], more].concat());
        assert_eq!(make(&[]).status.code(), Some(0), "{kind}");
        assert_eq!(fs::metadata(dir.join("server-key.pem")).unwrap().permissions().mode() & 0o777, 0o600);

        let again = make(&[]);
        assert_eq!(again.status.code(), Some(1));
        assert!(stderr(&again).contains("--force"), "{again:?}");
        assert_eq!(make(&["--force"]).status.code(), Some(0), "{kind}");

        let env = [
            ("TLS__CERTIFICATE", dir.join("server.pem")),
            ("TLS__PRIVATE_KEY", dir.join("server-key.pem")),
            ("TLS__CLIENT_CA", dir.join("ca.pem")),
            ("TLS__ALLOW_ANY_CLIENT", "true".into()),
            ("JOURNAL__PATH", folder.path().join("journal")),
        ];
        let env = env.map(|(key, value)| (format!("ASAPP_RECEIVER__{key}"), value));
        let output = command(&["check"]).envs(env).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(stdout(&output).contains("warning  tls.allow_any_client"), "{output:?}");
    }
}

#[test]
fn status_asks_the_admin_port() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "s3cret\n").unwrap();
    let status = r#"{"process":{"received":12,"stored":12,"duplicate":0,"rejected":0,"refused":0,"in_flight":0},
        "journal":{"state":"open","engine":"sqlite","first_sequence":1,"last_sequence":12,"bytes":4096},
        "sinks":[{"name":"stdout","state":"delivering","stored":12,"delivered":7,"pending":5,"cursor":7,
        "last_error":"broken\u001b[2Jpipe"}]}"#;

    let (request, output) = ask(200, status, &["--token-file", token.to_str().unwrap()]);
    assert!(request.starts_with("GET /api/v1/status HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains("authorization: bearer s3cret\r\n"), "{request}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    assert!(
        text.contains("sqlite") && text.contains("delivering") && text.contains("sink stdout: broken\\u001b[2Jpipe"),
        "{text}"
    );

    let (_, output) = ask(200, status, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["sinks"][0]["cursor"], 7);

    let (_, output) = ask(401, r#"{"detail":"no token"}"#, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--token-file"), "{output:?}");
}

#[test]
fn status_ready_is_an_exit_code() {
    let (request, output) = ask(200, r#"{"ready":true}"#, &["--ready"]);
    assert!(request.starts_with("GET /readyz "), "{request}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let (_, output) = ask(503, r#"{"ready":false,"reason":"draining"}"#, &["--ready"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not ready: draining"), "{output:?}");

    let free = free_port();
    let output = run(&["status", "--ready", "--admin", &format!("http://127.0.0.1:{free}")]);
    assert_eq!(output.status.code(), Some(1));
}

/// Where the settings say that the receiver is.
#[test]
fn operators_commands_find_the_receiver_by_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let token = write("token", "a-token-of-sixteen-letters\n");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                request.push(byte[0]);
            }
            if request.is_empty() {
                return requests;
            }
            requests.push(String::from_utf8(request).unwrap().to_ascii_lowercase());
            let body = r#"{"dead_letters":[],"quarantine":[],"replays":[],"ready":true}"#;
            let length = body.len();
            write!(stream, "HTTP/1.1 200 x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").unwrap();
        }
    });
    // What else is in there is no matter of these commands, nor what is missing.
    let settings = format!(
        "[admin]\naddress = '0.0.0.0:{port}'\ntoken_file = '{token}'\n[tls]\nprivate_key = '/root/unreadable'\n\
         [listen]\nport = 1\n[sinks.x]\ntype = 'none'\n"
    );
    let config = write("settings.toml", &settings);
    let verbs = [
        &["status"][..],
        &["status", "--ready"],
        &["tail", "--no-follow"],
        &["dead-letters", "list"],
        &["quarantine", "list"],
        &["replay", "list"],
    ];
    for verb in verbs {
        let output = run(&[&["--config", &config], verb].concat());
        assert!(output.status.code() == Some(0) || verb[0] == "tail", "{verb:?}: {output:?}");
    }
    let env = [("ADMIN__ADDRESS", format!("127.0.0.1:{port}")), ("ADMIN__TOKEN_FILE", token.clone())];
    let env = env.map(|(key, value)| (format!("ASAPP_RECEIVER__{key}"), value));
    assert_eq!(command(&["status"]).envs(env.clone()).output().unwrap().status.code(), Some(0));
    // The environment wins over files, the command line over both.
    let elsewhere = write("elsewhere.toml", "[admin]\naddress = '127.0.0.1:1'\ntoken_file = '/nowhere'\n");
    let output = command(&["--config", &elsewhere, "status"]).envs(env).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let url = format!("http://localhost:{port}");
    let output = run(&["--config", &elsewhere, "status", "--admin", &url, "--token-file", &token]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // Whoever may not read the token can still ask for what needs none.
    let untold = format!("[admin]\naddress = '[::]:{port}'\ntoken_file = '/nowhere'\n");
    let untold = write("untold.toml", &untold.replace("[::]", "127.0.0.1"));
    assert_eq!(run(&["--config", &untold, "status", "--ready"]).status.code(), Some(0));
    let output = run(&["--config", &untold, "status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("admin.token_file /nowhere") && stderr(&output).contains("--token-file"),
        "{output:?}"
    );

    drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    let requests = server.join().unwrap();
    assert_eq!(requests.len(), verbs.len() + 4, "{requests:?}");
    for request in &requests {
        let is_probe = request.starts_with("get /readyz ");
        assert_eq!(request.contains("authorization: bearer a-token-of-sixteen-letters\r\n"), !is_probe, "{request}");
        let hosts = [format!("host: 127.0.0.1:{port}\r\n"), format!("host: localhost:{port}\r\n")];
        assert!(hosts.iter().any(|host| request.contains(host)), "{request}");
    }
}

#[test]
fn settings_that_mean_nothing_to_a_command_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    fs::write(&file, "[admin]\naddress = '127.0.0.1:0'\n").unwrap();
    let file = file.to_str().unwrap();
    let certs = folder.path().join("certs");
    let simulate = ["simulate", "--url", "https://x/", "--ca", "a", "--cert", "b", "--key", "c"];
    for verb in [&["certs", certs.to_str().unwrap()][..], &["demo"], &simulate] {
        let output = command(&[verb, &["--config", file]].concat()).current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{verb:?}: {output:?}");
        assert!(stderr(&output).contains(verb[0]) && stderr(&output).contains("--config"), "{output:?}");
    }
    assert!(!certs.exists() && !folder.path().join("data").exists());

    // Settings that do not say where it is, or say nonsense.
    for (settings, told) in [
        ("[admin]\naddress = '127.0.0.1:0'\n", "--admin"),
        ("[admin]\naddress = 'localhost:8081'\n", "admin.address"),
        ("[admin]\nadress = '127.0.0.1:8081'\n", "admin.adress"),
        ("[admin\n", "TOML"),
    ] {
        fs::write(file, settings).unwrap();
        let output = run(&["--config", file, "status"]);
        assert_eq!(output.status.code(), Some(78), "{settings}: {output:?}");
        assert!(stderr(&output).contains(told), "{settings}: {output:?}");
    }
    let output = run(&["--config", "/nowhere.toml", "status", "--ready"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let output = run(&["status", "--admin", "https://localhost"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn what_a_demo_or_certs_would_take_the_place_of_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data/demo");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("thesis.txt"), "").unwrap();
    let output = command(&["demo", "--duration", "1s"]).current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("thesis.txt"), "{output:?}");
    assert!(data.join("thesis.txt").exists());

    let certs = folder.path().join("certs");
    let certs = certs.to_str().unwrap();
    assert_eq!(run(&["certs", certs, "--force"]).stderr, b"");
    fs::remove_file(Path::new(certs).join("ca.pem")).unwrap();
    let output = run(&["certs", certs, "--force"]);
    assert!(
        stderr(&output).contains("replaced server.pem, server-key.pem, client.pem, client-key.pem\n"),
        "{output:?}"
    );
}

/// Runs `status` against a port that gives one answer; returns the request too.
fn ask(status: u16, body: &str, args: &[&str]) -> (String, Output) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    let output = run(&[&["status", "--admin", &url], args].concat());
    (server.join().unwrap(), output)
}

/// Runs `check` with settings that are fine but for the certificates, which do not exist.
fn check(folder: &Path, journal: &Path) -> Output {
    let file = folder.join("settings.toml");
    let settings = format!(
        "[tls]\ncertificate = 's.pem'\nprivate_key = 'k.pem'\nclient_ca = ['c.pem']\n\
         allowed_clients = [{{ dns = 'x' }}]\n[journal]\npath = '{}'\n[admin]\ntoken_file = '{token}'\n\
         [sinks.crm]\ntype = 'http'\nurl = 'https://x/'\nbearer_token_file = '{token}'\n\
         tls = {{ certificate = 'c.pem', private_key = 'k.pem' }}\n\
         [sinks.gone]\ntype = 'file'\npath = '{nowhere}'\n[sinks.dir]\ntype = 'file'\npath = '{dir}'\n\
         [sinks.good]\ntype = 'file'\npath = '{good}'\n",
        journal.display(),
        token = folder.join("token").display(),
        nowhere = folder.join("nowhere/events.jsonl").display(),
        dir = folder.join("open").display(),
        good = folder.join("events.jsonl").display(),
    );
    fs::write(&file, settings).unwrap();
    run(&["--config", file.to_str().unwrap(), "check"])
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"));
    command.args(args).env_clear();
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
