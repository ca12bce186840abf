//! The container that users run: the repository's own Dockerfile, built and started for real.
//!
//! No image comes from a registry. Of the two that the Dockerfile builds on, the runtime's is the C library and nothing
//! else, as in distroless. The build's has, in the everyday test, a stand-in for cargo that puts out the program under
//! test, once it has seen that everything cargo would read is in the image; all other steps are the Dockerfile's. The
//! test that compiles runs on demand: `cargo test --test it -- --ignored the_dockerfile_compiles`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::container::{Podman, as_root, copy, copy_program, libraries};
use crate::harness::event::new_event;
use crate::harness::pki::{CLIENT_NAME, PKI};
use crate::harness::wait_for;

const PROGRAM: &str = env!("CARGO_BIN_EXE_asapp-receiver");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const IMAGE: &str = "localhost/asapp-receiver";

/// It is given, in /inputs, what cargo reads.
const CARGO: &str = r#"#!/bin/sh
set -e
[ "$*" = "build --profile dist --locked --bin asapp-receiver --features full" ]
while read -r file; do
  [ -e "$file" ] || { echo "cargo would miss $file" >&2; exit 1; }
done < /inputs
mkdir -p target/dist
cp /asapp-receiver target/dist/
"#;

#[test]
fn the_image_runs_read_only_without_privileges_and_ends_cleanly() {
    let podman = Podman::new();
    podman.import(&build_root(&podman), "localhost/build");
    podman.import(&runtime_root(&podman), "localhost/runtime");
    podman.build("localhost/build", "localhost/runtime", IMAGE);
    assert_stripped(&podman);
    let settings = settings(&podman);
    // As the README says, and with less still. `U` gives the files to the container's user.
    let settings = format!("--volume={}:/etc/asapp-receiver:ro,U", settings.display());
    let arguments = [
        "--read-only",
        "--read-only-tmpfs=false",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--volume=journal:/var/lib/asapp-receiver",
        &settings,
        IMAGE,
    ];

    let container = podman.start("first", &arguments);
    let listening = container.wait_listening();
    assert_eq!((&listening["events"], &listening["admin"]), (&"0.0.0.0:8443".into(), &"127.0.0.1:8081".into()));
    assert_eq!(container.process("Uid"), ["10001"; 4]);
    assert_eq!(container.process("Gid"), ["10001"; 4]);
    assert_eq!(container.process("CapEff"), ["0000000000000000"]);
    assert_eq!(container.process("CapBnd"), ["0000000000000000"]);
    assert_eq!(container.process("NoNewPrivs"), ["1"]);
    assert_eq!(container.process("NSpid")[1..], ["1"], "it is the first process");
    wait_for("it to be healthy", || container.is_healthy().then_some(()));

    let (id, event) = new_event();
    container.post(&event).assert_durable("stored", &id);
    assert_eq!(container.stdout.wait(&id, |line| line.contains(&id).then(|| line.to_owned())), event);
    let log = container.log.clone();
    assert_eq!(container.stop().code(), Some(0), "{:#?}", log.to_end());
    let log = log.to_end();
    assert!(log.iter().any(|line| line.contains("drained")), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("not durable")), "the journal is on a volume: {log:#?}");

    // The journal outlives the container. The health check goes where the port has been moved, by either way.
    let moved = [&["--env=ASAPP_RECEIVER__ADMIN__ADDRESS=127.0.0.1:9091"][..], &arguments].concat();
    let container = podman.start("second", &moved);
    assert_eq!(container.wait_listening()["admin"], "127.0.0.1:9091");
    container.post(&event).assert_durable("duplicate", &id);
    wait_for("it to be healthy", || container.is_healthy().then_some(()));
    assert_eq!(container.stop().code(), Some(0));
    let file = podman.folder().join("etc/production.toml");
    let settings = fs::read_to_string(&file).unwrap();
    let moved = settings.replace("address = \"127.0.0.1:8081\"", "address = \"127.0.0.1:9092\"");
    assert_ne!(moved, settings);
    fs::write(&file, moved).unwrap();
    let container = podman.start("third", &arguments);
    assert_eq!(container.wait_listening()["admin"], "127.0.0.1:9092");
    wait_for("it to be healthy", || container.is_healthy().then_some(()));
}

/// The lines of the source are in a file of their own, which the image does not have, and the binary names it.
#[track_caller]
fn assert_stripped(podman: &Podman) {
    let container = podman.run(&["create", "--network=none", IMAGE]);
    let binary = podman.folder().join("binary");
    podman.run(&["cp", &format!("{container}:/usr/local/bin/asapp-receiver"), binary.to_str().unwrap()]);
    podman.run(&["rm", &container]);
    let sections = Command::new("readelf").args(["--sections", "--wide"]).arg(&binary).output().unwrap();
    let sections = String::from_utf8(sections.stdout).unwrap();
    assert!(sections.contains(".gnu_debuglink") && !sections.contains(".debug_line"), "{sections}");
}

/// Compiles a release, as users do, on Debian's own base and the toolchain that is installed here; it takes minutes, and
/// needs mmdebstrap and the registries of Debian and of crates.
#[test]
#[ignore = "compiles a release: run it by hand after a change of the Dockerfile's build stage"]
fn the_dockerfile_compiles() {
    let podman = Podman::new();
    let toolchain = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap().stdout;
    let toolchain = String::from_utf8(toolchain).unwrap();
    let archive = podman.folder().join("debian.tar");
    let hooks = [
        // Whoever's certificates this machine goes by.
        "--customize-hook=copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs",
        &format!("--customize-hook=copy-in {} /opt", toolchain.trim()),
        "--customize-hook=mv \"$1\"/opt/* \"$1\"/opt/rust",
    ];
    let mut debian = as_root("mmdebstrap");
    debian.args(["--variant=minbase", "--mode=root", "--include=ca-certificates"]).args(hooks);
    assert!(debian.arg("trixie").arg(&archive).status().unwrap().success());
    let path = "--change=ENV PATH=/opt/rust/bin:/usr/sbin:/usr/bin";
    podman.run(&["import", "--quiet", path, archive.to_str().unwrap(), "localhost/rust"]);
    podman.build("localhost/rust", "localhost/rust", IMAGE);
    let version = podman.run(&["run", "--rm", "--network=none", IMAGE, "--version"]);
    assert!(version.starts_with(concat!("asapp-receiver ", env!("CARGO_PKG_VERSION"), "\n")), "{version}");
    assert!(version.contains("features: nats, otlp\n"), "{version}");
}

#[test]
fn everything_is_built_with_the_rust_that_the_manifest_names() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let contains = |file: &str, line: &str| {
        let text = fs::read_to_string(Path::new(REPOSITORY).join(file)).unwrap();
        assert!(text.lines().any(|found| found == line), "{file}: no line {line}");
    };
    contains("Dockerfile", &format!("ARG BUILD_IMAGE=docker.io/library/rust:{version}-slim-trixie"));
    for workflow in ["ci", "release"] {
        contains(&format!(".github/workflows/{workflow}.yml"), &format!("  RUSTUP_TOOLCHAIN: \"{version}\""));
    }
}

/// What stands in for the Rust image: a shell, the few programs that the build's steps call, and cargo.
fn build_root(podman: &Podman) -> PathBuf {
    let root = podman.folder().join("build");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    for program in ["sh", "cp", "install", "mkdir", "rm", "objcopy"] {
        copy_program(&Path::new("/usr/bin").join(program), &root);
    }
    write_program(&root.join("usr/bin/cargo"), CARGO);
    write_program(&root.join("usr/bin/apt-get"), "#!/bin/sh\n");
    fs::copy(PROGRAM, root.join("asapp-receiver")).unwrap();
    fs::write(root.join("inputs"), inputs().join("\n") + "\n").unwrap();
    root
}

/// The libraries that distroless/cc has, and nothing else.
fn runtime_root(podman: &Podman) -> PathBuf {
    let root = podman.folder().join("runtime");
    for library in libraries(Path::new(PROGRAM)) {
        copy(&library, &root);
    }
    root
}

/// /etc/asapp-receiver: the shipped settings, with the one line that everybody has to change.
fn settings(podman: &Podman) -> PathBuf {
    let folder = podman.folder().join("etc");
    let tls = folder.join("tls");
    fs::create_dir_all(&tls).unwrap();
    let shipped = fs::read_to_string(Path::new(REPOSITORY).join("config/production.toml")).unwrap();
    let ours = shipped.replace("REPLACE-with-the-identifier-agreed-with-ASAPP", CLIENT_NAME);
    assert_ne!(ours, shipped);
    fs::write(folder.join("production.toml"), ours).unwrap();
    fs::copy(&PKI.server.chain, tls.join("server.pem")).unwrap();
    fs::copy(&PKI.server.key, tls.join("server-key.pem")).unwrap();
    fs::copy(&PKI.ca.certificate, tls.join("client-ca.pem")).unwrap();
    folder
}

/// The files of this repository that cargo reads to build the program: what rustc noted when it compiled the library,
/// and what the manifest names.
fn inputs() -> Vec<String> {
    let noted = fs::read_dir(Path::new(PROGRAM).with_file_name("deps")).unwrap().map(|entry| entry.unwrap().path());
    let noted = noted.filter(|path| path.extension().is_some_and(|extension| extension == "d"));
    let of_library = noted.filter_map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        // Not when it compiled the library's own tests, which read more.
        let (_, inputs) = text.lines().find_map(|line| line.split_once(".rlib: "))?;
        inputs.starts_with("src/lib.rs").then(|| (path.metadata().unwrap().modified().unwrap(), inputs.to_owned()))
    });
    let (_, newest) = of_library.max().unwrap();
    let manifest = fs::read_to_string(Path::new(REPOSITORY).join("Cargo.toml")).unwrap();
    let targets = manifest.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
    let others = [".cargo/config.toml", "Cargo.lock", "src/main.rs"].into_iter();
    newest.split(' ').chain(targets).chain(others).map(ToOwned::to_owned).collect()
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
