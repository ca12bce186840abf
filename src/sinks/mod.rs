//! Where events go. A sink knows its client library and nothing of journals.
//!
//! A new sink is one file here, with a type that implements [`Sink`]; a variant of
//! [`config::SinkKind`](crate::config::SinkKind) with its settings; and the arm in [`dispatch`](crate::dispatch) that
//! starts a lane with it.

mod file;
mod http;
mod lines;
mod sink;
mod stdout;

pub use file::{FileSink, LONGEST_SUFFIX, is_rotated_from};
pub use http::{Http, Unusable, connect};
pub use sink::{Blame, Failure, FailureKind, Sink};
pub use stdout::Stdout;
