//! `check`: would `serve` start with these settings, and go on well? A line per finding, each with the remedy; never opens
//! a listener, and changes nothing.

#[cfg(feature = "nats")]
mod cluster;
mod folders;
mod host;
mod sinks;

use std::path::PathBuf;
use std::time::Duration;

use super::output::{Failure, print};
use crate::about;
use crate::admin::Gate;
use crate::config::{self, AllowedClients, Config};
use crate::findings::{Finding, Verdict, example_host, secret};
use crate::tls::{self, Portrait, ServerTls, Vouched};

/// What Kubernetes gives a container to end by itself, less a little for its own steps.
const USUAL_GRACE: Duration = Duration::from_secs(28);

/// Check settings, certificates, folders, sinks and this machine, without opening a listener
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line begins with ok, warning or error, and a key of the settings. Run it as the user and on the machine that serve
runs as and on. With the engine nats, the cluster is looked at. Exit code 78 if the receiver would not start, 1 if a
target or the cluster could not be reached.

Example: asapp-receiver --config /etc/asapp-receiver/production.toml check --connect")]
pub struct Args {
    /// Also connect to the target of each HTTP sink, with TLS where it is https, and send nothing
    #[arg(long)]
    connect: bool,
}

/// Prints what was found.
///
/// # Errors
/// When something found would keep the receiver from starting, or a target or the cluster could not be reached.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let findings = match Config::load(files) {
        Ok((config, warnings)) => {
            let mut findings = of_settings(&config, warnings);
            #[cfg(feature = "nats")]
            findings.extend(cluster::look(&config).await);
            if args.connect {
                findings.extend(sinks::connect(&config).await);
            }
            findings
        }
        Err(problems) => problems.0.into_iter().map(Finding::from).collect(),
    };
    let lines: Vec<String> = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(&lines.concat())?;
    let is_any = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
    if is_any(Verdict::Error) {
        return Err(Failure::configuration(""));
    }
    if is_any(Verdict::Failed) { Err(Failure::failed("")) } else { Ok(()) }
}

fn of_settings(config: &Config, warnings: Vec<config::Warning>) -> Vec<Finding> {
    let mut findings = vec![
        Finding::good("settings", "complete and without contradictions"),
        Finding::good(
            "build",
            format!("version {}, with the features: {}", env!("CARGO_PKG_VERSION"), about::features()),
        ),
    ];
    findings.extend(warnings.into_iter().map(|warning| {
        let text = format!("{} ({})", warning.what, warning.source);
        Finding { verdict: Verdict::Warning, key: warning.key, text }
    }));
    findings.extend(of_tls(&config.tls));
    findings.extend(own_certificate(config));
    findings.extend(clients(&config.tls));
    findings.extend(drain(&config.listen));
    findings.extend(host::look(config));
    findings.extend(folders::look(config));
    findings.extend(admin_token(&config.admin));
    findings.extend(sinks::look(config));
    findings
}

fn of_tls(settings: &config::Tls) -> Vec<Finding> {
    let found = ServerTls::load(settings).map_or_else(|findings| findings, |tls| tls.findings());
    let finding = |found: tls::Finding| {
        let verdict = match found.severity {
            tls::Severity::Info => Verdict::Good,
            tls::Severity::Warning => Verdict::Warning,
            tls::Severity::Error => Verdict::Error,
        };
        Finding { verdict, key: "tls".to_owned(), text: found.to_string() }
    };
    found.into_iter().map(finding).collect()
}

/// What a client would find out about the certificate. What cannot be read was told already.
fn own_certificate(config: &Config) -> Vec<Finding> {
    const KEY: &str = "tls.certificate";
    let Some(portrait) = Portrait::read(&config.tls.certificate) else { return Vec::new() };
    let issuer = portrait.issuer();
    let mut findings = vec![Finding::good(KEY, format!("its key is {}", portrait.key()))];
    findings.push(match portrait.vouched() {
        Vouched::Publicly => {
            Finding::good(KEY, format!("is vouched for by `{issuer}` and a CA that this system trusts"))
        }
        Vouched::NotPublicly => Finding::warning(
            KEY,
            format!(
                "no CA that this system trusts vouches for it: if `{issuer}` is a public CA, append the intermediate \
                 certificates, else ASAPP has to be told to trust it"
            ),
        ),
        Vouched::Unknown => {
            Finding::good(KEY, "this system has no CAs (package ca-certificates) to judge its chain by")
        }
    });
    for endpoint in &config.endpoints {
        let Some(url) = &endpoint.public_url else { continue };
        let key = format!("endpoints.{}.public_url", endpoint.name);
        let Some(uri) = url.parse::<hyper::Uri>().ok().filter(|uri| uri.host().is_some()) else {
            findings.push(Finding::warning(key, "is no address that can be read: write it as https://HOST/PATH"));
            continue;
        };
        let host = uri.host().unwrap_or_default();
        findings.extend(example_host(&key, host));
        findings.push(if portrait.names(host) {
            Finding::good(&key, format!("tls.certificate is for {host}"))
        } else {
            let remedy = "have a certificate issued for it, or correct the address";
            Finding::warning(
                &key,
                format!("tls.certificate does not name {host}, so ASAPP would not connect: {remedy}"),
            )
        });
        if uri.path() != endpoint.path {
            let (path, own) = (uri.path(), &endpoint.path);
            let text =
                format!("its path {path} is not {own}: right only if a proxy in front changes it, else correct one");
            findings.push(Finding::warning(key, text));
        }
    }
    findings
}

fn clients(tls: &config::Tls) -> Vec<Finding> {
    const KEY: &str = "tls.allowed_clients";
    let mut findings = Vec::new();
    // The settings have warned of `allow_any_client`.
    if let AllowedClients::Listed(clients) = &tls.clients {
        findings.push(Finding::good(KEY, format!("{} listed", clients.len())));
    }
    if tls.client_crl.is_empty() {
        let text = "empty: a client certificate that its CA revokes stays good here until it ends";
        findings.push(Finding::good("tls.client_crl", text));
    }
    findings
}

/// Who can read the token, and whether it is one. Where none is needed, none is looked for.
fn admin_token(admin: &config::Admin) -> Vec<Finding> {
    const KEY: &str = "admin.token_file";
    let Some(path) = admin.token_file.as_deref() else { return Vec::new() };
    let readable = secret(KEY, path);
    if readable.verdict == Verdict::Error {
        return vec![readable];
    }
    let unusable = Gate::read(admin).err().map(|error| Finding::error(KEY, error.to_string()));
    vec![unusable.unwrap_or(readable)]
}

fn drain(listen: &config::Listen) -> Vec<Finding> {
    let (drain, pre_drain) = (listen.drain_timeout, listen.pre_drain);
    let shown = humantime::format_duration(drain);
    let mut findings = vec![if drain > USUAL_GRACE {
        let text = format!(
            "{shown} is longer than Kubernetes waits before it kills (30s): set terminationGracePeriodSeconds, or \
             systemd's TimeoutStopSec, above it"
        );
        Finding::warning("listen.drain_timeout", text)
    } else {
        Finding::good("listen.drain_timeout", format!("{shown}, within the 30s that Kubernetes waits before it kills"))
    }];
    if pre_drain.is_zero() {
        let text = "0s: load balancers still send requests for a while after a replica is not ready any more; \
                    make it longer than they take to notice";
        findings.push(Finding::warning("listen.pre_drain", text));
    }
    findings
}
