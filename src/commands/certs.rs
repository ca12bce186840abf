//! `certs`: throw-away certificates that follow ASAPP's profile.

use std::path::PathBuf;

use super::output::{Failure, print, tell};
use crate::tls::profile::{self, Options};

/// Make throw-away certificates that follow ASAPP's profile: a CA, a server and a client
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver certs data/certs --name localhost --client-cn asapp")]
pub struct Args {
    /// The folder for ca.pem, server.pem, server-key.pem, client.pem and client-key.pem
    pub dir: PathBuf,
    /// A DNS name or IP address of the server; may be repeated
    #[arg(long, value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    pub name: Vec<String>,
    /// The common name in the client certificate's subject
    #[arg(long, value_name = "CN", default_value = "asapp-demo-client")]
    pub client_cn: String,
    /// How long they are valid; ASAPP's profile wants less than three years
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=1094))]
    pub days: u32,
    /// The kind of every key
    #[arg(long, value_enum, default_value_t = KeyType::Ecdsa)]
    pub key_type: KeyType,
    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,
}

const FILES: [&str; 5] = ["ca.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem"];

/// The kind of every key made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyType {
    /// P-256
    Ecdsa,
    /// 3072 bits
    Rsa,
}

/// Makes the files, and names them.
///
/// # Errors
/// When a file is there already, or cannot be written.
pub fn run(args: Args) -> Result<(), Failure> {
    let key_type = match args.key_type {
        KeyType::Ecdsa => profile::KeyType::Ecdsa,
        KeyType::Rsa => profile::KeyType::Rsa,
    };
    let options = Options { names: args.name, client_cn: args.client_cn, days: args.days, key_type };
    let is_there = |name: &&str| args.dir.join(name).symlink_metadata().is_ok();
    let replaced = FILES.iter().copied().filter(is_there).collect::<Vec<_>>().join(", ");
    let written = profile::make(&options).and_then(|pki| pki.write(&args.dir, args.force));
    written.map_err(|error| Failure::from_error(&error))?;
    let dir = args.dir.display();
    if !replaced.is_empty() {
        tell(&format!("{dir}: replaced {replaced}\n"));
    }
    print(&format!("{dir}: {}\n", FILES.join(", ")))
}
