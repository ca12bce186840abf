//! What this build is: its version and commit, and which of the parts that are cargo features are in it.

use std::sync::LazyLock;

/// The commit it was built from, where whoever built it said so.
const COMMIT: Option<&str> = option_env!("ASAPP_RECEIVER_COMMIT");

/// A part of the program that is a cargo feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// The engine `nats`.
    Nats,
    /// Traces.
    Otlp,
    /// TLS 1.2 at the event port.
    Tls12,
}

impl Feature {
    pub const ALL: [Self; 3] = [Self::Nats, Self::Otlp, Self::Tls12];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Otlp => "otlp",
            Self::Tls12 => "tls12",
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub fn is_in(self) -> bool {
        match self {
            Self::Nats => cfg!(feature = "nats"),
            Self::Otlp => cfg!(feature = "otlp"),
            Self::Tls12 => cfg!(feature = "tls12"),
        }
    }

    /// How to come by a build that has it.
    #[must_use]
    pub fn remedy(self) -> String {
        let name = self.name();
        let image = if self == Self::Tls12 { "" } else { "; the container image has it" };
        format!("build it with the feature {name}: cargo build --release --features {name}{image}")
    }
}

/// The features of this build, separated by commas.
#[must_use]
pub fn features() -> String {
    let has: Vec<&str> = Feature::ALL.into_iter().filter(|feature| feature.is_in()).map(Feature::name).collect();
    if has.is_empty() { "none".to_owned() } else { has.join(", ") }
}

/// Version, commit, features and SQLite's version, for `--version`.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{}\ncommit: {}\nfeatures: {}\nSQLite: {}",
            env!("CARGO_PKG_VERSION"),
            COMMIT.unwrap_or("unknown"),
            features(),
            rusqlite::version()
        )
    });
    &VERSION
}
