//! Containers: images built by podman from this repository's Dockerfile, and containers of them.
//!
//! Podman keeps everything in a folder of its own here. Containers have a network of their own, with nothing but
//! loopback, so that they use the ports that users see.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::pki::PKI;
use super::receiver::{Lines, log_line};
use super::wire::Answer;

/// Podman's own containers.conf: no daemon, no systemd, no network, and limits that any machine has.
const SETTINGS: &str = r#"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=4096:4096"]
"#;

/// Images and volumes. Dropped, they are gone.
pub(crate) struct Podman {
    folder: TempDir,
}

/// A running container. Dropped, it is killed.
pub(crate) struct Container<'a> {
    podman: &'a Podman,
    child: Child,
    name: String,
    pub(crate) stdout: Lines,
    pub(crate) log: Lines,
}

impl Podman {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("containers.conf"), SETTINGS).unwrap();
        for part in ["tmp", "images", "run"] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `podman …`, as root.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let part = |name: &str| self.folder.path().join(name);
        let mut command = as_root("env");
        // Build caches go into the temporary folder too.
        for (name, file) in [("CONTAINERS_CONF", "containers.conf"), ("TMPDIR", "tmp"), ("HOME", "tmp")] {
            command.arg(format!("{name}={}", part(file).display()));
        }
        command.args(["podman", "--root"]).arg(part("images")).arg("--runroot").arg(part("run")).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// What `podman …` printed; it has to work out.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "podman {arguments:?}: {}", told(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// An image of one layer: what lies in this folder, owned by root.
    #[track_caller]
    pub(crate) fn import(&self, root: &Path, image: &str) {
        let archive = self.folder.path().join("tmp/image.tar");
        let mut tar = as_root("tar");
        tar.args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg("-C").arg(root).arg(".");
        assert!(tar.status().unwrap().success());
        self.run(&["import", "--quiet", archive.to_str().unwrap(), image]);
    }

    /// Builds the repository's Dockerfile with these images in place of those that registries have.
    #[track_caller]
    pub(crate) fn build(&self, build_image: &str, runtime_image: &str, image: &str) {
        self.run(&[
            "build",
            // What the health check is kept in.
            "--format=docker",
            "--isolation=chroot",
            "--network=host",
            "--pull=never",
            "--layers=false",
            &format!("--build-arg=BUILD_IMAGE={build_image}"),
            &format!("--build-arg=RUNTIME_IMAGE={runtime_image}"),
            &format!("--tag={image}"),
            env!("CARGO_MANIFEST_DIR"),
        ]);
    }

    /// `podman run` with more of its arguments, the image and the image's arguments; back at once.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Container<'_> {
        let mut command = self.command(&["run", "--pull=never", "--network=none", "--name", name]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, log) = (Lines::read(child.stdout.take().unwrap()), Lines::read(child.stderr.take().unwrap()));
        Container { podman: self, child, name: name.to_owned(), stdout, log }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--all", "--force", "--time=0"]).output();
        // Podman mounts it onto itself.
        let _ = as_root("umount").arg(self.folder.path().join("images/overlay")).output();
        let _ = as_root("rm").arg("-rf").arg(self.folder.path()).output();
    }
}

impl Container<'_> {
    /// Waits for the log line that says it listens.
    #[track_caller]
    pub(crate) fn wait_listening(&self) -> Value {
        self.log.wait("the line `listening`", |line| log_line(line).filter(|line| line["message"] == "listening"))
    }

    /// The health check of its image.
    pub(crate) fn is_healthy(&self) -> bool {
        self.podman.command(&["healthcheck", "run", &self.name]).output().unwrap().status.success()
    }

    /// A line of its first process's `/proc/…/status`, as seen from outside.
    #[track_caller]
    pub(crate) fn process(&self, word: &str) -> Vec<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(':'));
        line.unwrap().split_whitespace().map(ToOwned::to_owned).collect()
    }

    /// curl in the container's network, as the good client, with a body.
    #[track_caller]
    pub(crate) fn post(&self, body: &str) -> Answer {
        let mut command = as_root("nsenter");
        command.args(["--net", "--target", &self.pid(), "curl", "--silent", "--show-error", "--include"]);
        command.args(["--max-time", "20", "--noproxy", "*", "--cacert"]).arg(&PKI.ca.certificate);
        command.arg("--cert").arg(&PKI.client.chain).arg("--key").arg(&PKI.client.key);
        command.args(["--data-binary", body, "https://localhost:8443/events"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let answer = Answer::parse(&output.stdout);
        answer.unwrap_or_else(|| panic!("curl: {}", told(&output))).0
    }

    /// `podman stop`: the image's stop signal, and SIGKILL 30 seconds later.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.podman.run(&["stop", "--time=30", &self.name]);
        self.child.wait().unwrap()
    }

    fn pid(&self) -> String {
        self.podman.run(&["inspect", "--format={{.State.Pid}}", &self.name])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.podman.command(&["rm", "--force", "--time=0", &self.name]).output();
        let _ = self.child.wait();
    }
}

/// Copies a program and the libraries that it is linked with to where they lie, below another root.
#[track_caller]
pub(crate) fn copy_program(program: &Path, root: &Path) {
    copy(program, root);
    for library in libraries(program) {
        copy(&library, root);
    }
}

/// The libraries that a program is linked with, its loader among them.
#[track_caller]
pub(crate) fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    assert!(output.status.success(), "ldd {}: {}", program.display(), told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Copies a file to where it lies, below another root.
#[track_caller]
pub(crate) fn copy(file: &Path, root: &Path) {
    let to = root.join(file.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(file, to).unwrap();
}

/// A program as root: containers, and networks of their own, need it.
pub(crate) fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", program]);
    command
}

fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    format!("{}\n{}", output.status, String::from_utf8_lossy(&text))
}
