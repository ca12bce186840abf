//! `[admin]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::address::address;
use super::defaults::merged;
use crate::settings::{PREFIX, Problem, Problems, Reader, Section, environment, is_of_whole_file};

/// `[admin]`: the operators' port.
#[derive(Debug, Clone)]
pub struct Admin {
    pub address: SocketAddr,
    pub token_file: Option<PathBuf>,
}

impl Admin {
    /// For a client of the admin port: this section alone, of the same layers as [`Config::load`]. Whatever else is wrong
    /// or missing in the settings is no matter of the client's, nor whether a port like this may be opened.
    ///
    /// # Errors
    /// Files that cannot be read, and every [`Problem`] of this section.
    pub fn load(files: &[PathBuf]) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let env = environment(&mut problems);
        Self::read(files, env, problems)
    }

    fn read(files: &[PathBuf], env: Vec<(String, String)>, mut problems: Vec<Problem>) -> Result<Self, Problems> {
        let merged = merged(files, env.into_iter(), &mut problems);
        let mut reader = Reader::new(problems);
        let admin = admin(reader.root(&merged).section("admin"));
        let variables = format!("{PREFIX}ADMIN__");
        let concerns = |problem: &Problem| {
            let key = &*problem.key;
            let is_own = key == "admin" || (key.starts_with("admin.") && !key.contains(", "));
            is_own || is_of_whole_file(key) || key.to_ascii_uppercase().starts_with(&variables)
        };
        let problems: Vec<Problem> = reader.problems.into_iter().filter(concerns).collect();
        if problems.is_empty() { Ok(admin) } else { Err(Problems(problems)) }
    }
}

pub(super) fn admin(mut s: Section<'_, '_>) -> Admin {
    let admin = Admin { address: address(&mut s), token_file: s.file("token_file") };
    s.contradiction(
        &["address", "token_file"],
        !admin.address.ip().is_loopback() && admin.token_file.is_none(),
        "would let anyone in from outside this host",
        "name a file with a token, or listen on 127.0.0.1",
    );
    s.finish();
    admin
}
