//! The command line, as a shell sees it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

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
    ] {
        let mut args: Vec<&str> = vec![command, "--help"];
        args.retain(|arg| !arg.is_empty());
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let text = stdout(&output);
        assert!(text.contains("Example: asapp-receiver"), "{command}: {text}");
    }
    assert_eq!(stdout(&run(&["--version"])).trim(), concat!("asapp-receiver ", env!("CARGO_PKG_VERSION")));
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
    fs::write(&token, "s3cret").unwrap();
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
        text.contains("sqlite") && text.contains("delivering") && text.contains("sink stdout: broken[2Jpipe"),
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

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["status", "--ready", "--admin", &format!("http://{free}")]);
    assert_eq!(output.status.code(), Some(1));
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
