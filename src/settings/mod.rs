//! The mechanism of settings: layers merged into one table, and typed reads of it.
//!
//! It knows no section. Each section is read where its type is, through a [`Section`]; [`config`](crate::config) puts the
//! sections together.

mod layers;
mod origin;
mod problem;
mod reader;
mod units;

pub use layers::PREFIX;
pub(crate) use layers::{environment, is_of_whole_file, merge};
pub(crate) use origin::Origin;
pub use problem::{Problem, Problems, Warning};
pub(crate) use reader::{NamedFile, Reader, Section, Use, keys};
pub(crate) use units::{DAY, HOUR, INSTANT, KIB, MIB, MINUTE, SECOND, YEAR, is_this_host, network, sha256};
