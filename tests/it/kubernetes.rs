//! The Kubernetes manifests that are shipped: whether Kubernetes takes them, and whether they agree with each other, with
//! the image and with the receiver. There is no cluster here; that a pod like this works is tested as a container.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use asapp_receiver::config::Config;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::pki::{CLIENT_NAME, PKI, write_private};
use crate::harness::programs::verifier;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes");
const OPERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus-operator");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
/// The oldest that is worth bothering about, and the newest that the validator knows.
const VERSIONS: &str = "1.30,1.37";
const HOME: &str = "/etc/asapp-receiver";

/// The documents of each file.
type Manifests = BTreeMap<String, Vec<Value>>;

/// Those that are shipped, once the validator has found nothing wrong with them.
static MANIFESTS: LazyLock<Manifests> = LazyLock::new(|| validate(Path::new(FOLDER)).unwrap());

fn validate(folder: &Path) -> Result<Manifests, String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let output = verifier("manifests.py").arg(VERSIONS).args(files).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// The one resource of this kind and name.
#[track_caller]
fn resource(kind: &str, name: &str) -> Value {
    let of_kind = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let found: Vec<&Value> = MANIFESTS.values().flatten().filter(|document| of_kind(document)).collect();
    let [one] = found[..] else { panic!("{kind} {name}: {}", found.len()) };
    one.clone()
}

fn pod() -> Value {
    resource("StatefulSet", "asapp-receiver")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    pod()["containers"][0].clone()
}

/// The settings that the pod is started with.
fn config() -> Config {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("production.toml");
    let settings = resource("ConfigMap", "asapp-receiver-settings");
    fs::write(&file, settings["data"]["production.toml"].as_str().unwrap()).unwrap();
    Config::from_sources(&[file], std::iter::empty()).unwrap().0
}

#[test]
fn kubernetes_takes_the_manifests_and_the_kustomization_names_them_all() {
    let kustomization = &MANIFESTS["kustomization.yaml"][0];
    let mut named: Vec<&str> = texts(&kustomization["resources"]);
    // An example is for reading.
    named.extend(["kustomization.yaml", "secrets.example.yaml"]);
    named.sort_unstable();
    assert_eq!(named, MANIFESTS.keys().map(String::as_str).collect::<Vec<_>>());
    for document in MANIFESTS.values().flatten().filter(|document| document["kind"] != "Kustomization") {
        let (kind, metadata) = (&document["kind"], &document["metadata"]);
        let namespace = if kind == "Namespace" { &metadata["name"] } else { &metadata["namespace"] };
        assert_eq!(namespace, &kustomization["namespace"], "{kind}");
    }
    assert_eq!(kustomization["images"][0]["name"], container()["image"]);
    assert_eq!(kustomization["images"][0]["newTag"], env!("CARGO_PKG_VERSION"));

    // The judge is awake: a field misspelt, and a value of another type.
    for (right, wrong) in [("readOnlyRootFilesystem", "readonlyRootFilesystem"), ("replicas: 2", "replicas: two")] {
        let folder = TempDir::new().unwrap();
        let text = fs::read_to_string(Path::new(FOLDER).join("statefulset.yaml")).unwrap();
        assert!(text.contains(right));
        fs::write(folder.path().join("statefulset.yaml"), text.replace(right, wrong)).unwrap();
        assert!(validate(folder.path()).unwrap_err().contains("StatefulSet"), "{wrong}");
    }
}

#[test]
fn ports_and_probes_are_those_of_the_settings() {
    let (config, container) = (config(), container());
    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].as_u64().unwrap()
    };
    assert_eq!(port("events"), u64::from(config.listen.address.port()));
    assert_eq!(port("admin"), u64::from(config.admin.address.port()));
    assert!(config.listen.address.ip().is_unspecified() && config.admin.address.ip().is_unspecified());
    assert!(DOCKERFILE.contains(&format!("EXPOSE {} {}\n", port("events"), port("admin"))));
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin", "{probe}");
        assert_eq!(container[probe]["httpGet"]["path"], path);
    }

    let service = &resource("Service", "asapp-receiver")["spec"];
    assert_eq!((&service["type"], &service["externalTrafficPolicy"]), (&"LoadBalancer".into(), &"Local".into()));
    assert_eq!(service["ports"].as_array().unwrap().len(), 1, "operators do not come that way");
    assert_eq!(service["ports"][0]["targetPort"], "events");
    let pods = resource("StatefulSet", "asapp-receiver")["spec"]["serviceName"].clone();
    let headless = &resource("Service", pods.as_str().unwrap())["spec"];
    assert_eq!((&headless["clusterIP"], &headless["ports"][0]["targetPort"]), (&"None".into(), &"admin".into()));

    let policy = &resource("NetworkPolicy", "asapp-receiver")["spec"];
    let rule = |port: &str| {
        let rules = policy["ingress"].as_array().unwrap();
        rules.iter().find(|rule| rule["ports"][0]["port"] == port).unwrap().clone()
    };
    assert!(rule("events")["from"].is_null());
    assert_eq!(rule("admin")["from"].as_array().unwrap().len(), 1);
    let labels = resource("StatefulSet", "asapp-receiver")["spec"]["template"]["metadata"]["labels"].clone();
    for selector in [
        &service["selector"],
        &headless["selector"],
        &policy["podSelector"]["matchLabels"],
        &resource("PodDisruptionBudget", "asapp-receiver")["spec"]["selector"]["matchLabels"],
        &resource("StatefulSet", "asapp-receiver")["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, &labels);
    }
}

#[test]
fn times_and_room_are_those_of_the_settings() {
    let (config, pod) = (config(), pod());
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(grace >= config.listen.drain_timeout + Duration::from_secs(5), "{grace:?}");
    // Not ready has to be seen before the port closes.
    let probe = &container()["readinessProbe"];
    let seen = probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
    assert!(config.listen.pre_drain > Duration::from_secs(seen));

    let claim = resource("StatefulSet", "asapp-receiver")["spec"]["volumeClaimTemplates"][0].clone();
    let storage = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap().to_owned();
    let bytes = storage.strip_suffix("Gi").unwrap().parse::<u64>().unwrap() << 30;
    assert!(bytes >= config.disk_bytes(), "{storage}");
    let mount = mounts().into_iter().find(|(volume, _)| claim["metadata"]["name"] == volume.as_str()).unwrap().1;
    assert_eq!(config.journal.path.parent(), Some(&*mount));
    assert!(DOCKERFILE.contains(&format!("VOLUME {}\n", mount.display())));
}

#[test]
fn the_pod_has_no_privileges_and_is_the_images_user() {
    let (pod, container) = (pod(), container());
    let (of_pod, of_container) = (&pod["securityContext"], &container["securityContext"]);
    let user = of_pod["runAsUser"].as_u64().unwrap();
    assert!(DOCKERFILE.contains(&format!("USER {user}:{}\n", of_pod["runAsGroup"])));
    assert_eq!(of_pod["fsGroup"], of_pod["runAsGroup"]);
    assert_eq!(of_pod["runAsNonRoot"], true);
    assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(of_container["allowPrivilegeEscalation"], false);
    assert_eq!(of_container["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&of_container["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(pod["automountServiceAccountToken"], false);
    // What the image's entry point is given.
    let arguments = texts(&container["args"]);
    assert_eq!((arguments[0], arguments[2]), ("--config", "serve"));
    assert!(DOCKERFILE.contains("ENTRYPOINT [\"/usr/local/bin/asapp-receiver\"]\n"));
}

/// What is shipped for the Prometheus Operator finds the pods, gets in, and calls them what the alerts call them.
#[test]
fn the_prometheus_operator_reads_what_the_alerts_are_about() {
    let found = validate(Path::new(OPERATOR)).unwrap();
    let kustomization = &found["kustomization.yaml"][0];
    let mut named = texts(&kustomization["resources"]);
    named.push("kustomization.yaml");
    named.sort_unstable();
    assert_eq!(named, found.keys().map(String::as_str).collect::<Vec<_>>());
    let own = &MANIFESTS["kustomization.yaml"][0]["namespace"];
    assert_eq!(&kustomization["namespace"], own);
    for document in found.iter().filter(|(file, _)| *file != "kustomization.yaml").flat_map(|(_, all)| all) {
        assert_eq!(&document["metadata"]["namespace"], own);
    }

    let monitor = &found["monitor.yaml"][0];
    let labels = resource("StatefulSet", "asapp-receiver")["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], labels);
    let job = labels[monitor["spec"]["jobLabel"].as_str().unwrap()].as_str().unwrap();
    let alerts = include_str!("../../deploy/prometheus/alerts.yml");
    let jobs: Vec<&str> = alerts.split("job=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(!jobs.is_empty() && jobs.iter().all(|named| *named == job), "{jobs:?} are not {job}");
    assert!(alerts.contains(&format!("job_name: {job}\n")), "the example of a scrape");

    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let ports = container()["ports"].clone();
    let port = ports.as_array().unwrap().iter().find(|port| port["name"] == endpoint["port"]).unwrap();
    assert_eq!(port["containerPort"], config().admin.address.port());
    assert_eq!(endpoint["path"], "/metrics");
    // The same secret as the receiver reads its token from.
    let credentials = &endpoint["authorization"]["credentials"];
    let token_file = config().admin.token_file.unwrap();
    let (volume, _) = mounts().into_iter().find(|(_, path)| Some(&**path) == token_file.parent()).unwrap();
    let volumes = pod()["volumes"].clone();
    let volume = volumes.as_array().unwrap().iter().find(|found| found["name"] == volume.as_str()).unwrap();
    assert_eq!(credentials["name"], volume["secret"]["secretName"]);
    assert_eq!(credentials["key"], token_file.file_name().unwrap().to_str().unwrap());
    for told in [include_str!("../../docs/deploy.md"), include_str!("../../deploy/kubernetes/secrets.example.yaml")] {
        let command = told.lines().find(|line| line.contains("openssl rand")).unwrap();
        assert!(command.contains("tr -d '\\n'"), "Prometheus would send the line feed: {command}");
    }

    // The judge is awake.
    let text = fs::read_to_string(Path::new(OPERATOR).join("monitor.yaml")).unwrap();
    for (right, wrong) in [("jobLabel", "joblabel"), ("interval: 30s", "interval: often"), ("- port:", "- portName:")] {
        let folder = TempDir::new().unwrap();
        assert!(text.contains(right));
        fs::write(folder.path().join("monitor.yaml"), text.replace(right, wrong)).unwrap();
        assert!(validate(folder.path()).unwrap_err().contains("PodMonitor"), "{wrong}");
    }
}

/// A balancer that forgets a connection before the receiver does drops requests of clients that still hold it.
#[test]
fn pages_and_files_agree_on_who_is_patient() {
    let page = include_str!("../../docs/load-balancers.md");
    let (config, _) = shipped("production.toml");
    let idle = config.listen.idle_timeout;
    assert!(page.contains(&format!("`listen.idle_timeout` ({}s)", idle.as_secs())));
    for line in page
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("timeout client") || line.starts_with("timeout server"))
    {
        let patience = humantime::parse_duration(line.rsplit(' ').next().unwrap()).unwrap();
        assert!(patience > idle, "{line}");
    }
    let runbook = include_str!("../../docs/runbook.md");
    assert!(runbook.contains("the balancer's has to be longer than `listen.idle_timeout`"));
    // Whoever stops a container, or asks after its health, waits longer than the receiver takes.
    for told in [include_str!("../../docs/deploy.md"), include_str!("../../README.md")] {
        let (_, seconds) = told.split_once("--stop-timeout ").unwrap();
        let seconds: u64 = seconds.split_whitespace().next().unwrap().parse().unwrap();
        assert!(Duration::from_secs(seconds) > config.listen.drain_timeout + Duration::from_secs(5));
    }
    let check = DOCKERFILE.split("HEALTHCHECK ").nth(1).unwrap();
    let timeout = check.split("--timeout=").nth(1).unwrap().split(' ').next().unwrap();
    assert!(humantime::parse_duration(timeout).unwrap() > Duration::from_secs(5), "`status --ready` takes up to 5 s");
    // It asks by the settings that the image starts with.
    let (_, command) = DOCKERFILE.rsplit_once("\nCMD ").unwrap();
    let arguments: Vec<String> = serde_json::from_str(command.trim()).unwrap();
    let asked = check.split("CMD ").nth(1).unwrap().lines().next().unwrap();
    let asked: Vec<String> = serde_json::from_str(asked).unwrap();
    assert_eq!((&arguments[..2], arguments[2].as_str()), (&asked[1..3], "serve"));
    assert_eq!(asked[3..], ["status", "--ready"]);
}

fn shipped(name: &str) -> (Config, Vec<asapp_receiver::config::Warning>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    Config::from_sources(&[file], std::iter::empty()).unwrap()
}

/// `check` in a folder like the pod's: each volume where it is mounted, with what the manifests say is in it.
#[test]
fn check_finds_everything_where_the_pod_has_it() {
    let folder = TempDir::new().unwrap();
    let at = |path: &Path| folder.path().join(path.strip_prefix("/").unwrap());
    let volumes = pod()["volumes"].as_array().unwrap().clone();
    for (name, path) in mounts() {
        fs::create_dir_all(at(&path)).unwrap();
        let Some(volume) = volumes.iter().find(|volume| volume["name"] == name) else { continue };
        let (holder, key) = match (&volume["configMap"]["name"], &volume["secret"]["secretName"]) {
            (Value::String(name), _) => (resource("ConfigMap", name), "data"),
            (_, Value::String(name)) => (resource("Secret", name), "stringData"),
            _ => panic!("{volume}"),
        };
        for (file, text) in holder[key].as_object().unwrap() {
            let text = match file.as_str() {
                "tls.crt" => fs::read_to_string(&PKI.server.chain).unwrap(),
                "tls.key" => fs::read_to_string(&PKI.server.key).unwrap(),
                "ca.pem" => fs::read_to_string(&PKI.ca.certificate).unwrap(),
                "token" => "0123456789abcdef0123456789abcdef\n".to_owned(),
                _ => {
                    let text = text.as_str().unwrap();
                    let ours = text.replace("REPLACE-with-the-identifier-agreed-with-ASAPP", CLIENT_NAME);
                    assert_ne!(ours, text);
                    let root = folder.path().display();
                    ours.replace(HOME, &format!("{root}{HOME}")).replace("/var/lib", &format!("{root}/var/lib"))
                }
            };
            write_private(&at(&path).join(file), &text);
        }
    }
    let settings = at(Path::new(texts(&container()["args"])[1]));
    let output = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"))
        .arg("--config")
        .arg(settings)
        .arg("check")
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("error"), "{said}");
}

/// Each volume's name, and where the container has it.
fn mounts() -> Vec<(String, PathBuf)> {
    let mounts = container()["volumeMounts"].as_array().unwrap().clone();
    let text = |mount: &Value, key: &str| mount[key].as_str().unwrap().to_owned();
    mounts.iter().map(|mount| (text(mount, "name"), text(mount, "mountPath").into())).collect()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}
