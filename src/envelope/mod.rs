//! Bytes to an [`Envelope`]: one event with its routing members, and the exact bytes it came as. No I/O, no logging.
//!
//! [`Envelope::parse`] scans a body once and is all that stands between a body and the journal. What an event says is
//! read off that path, by those who need it: [`entity`], [`Company`] and [`Facts`] give what its way depends on,
//! [`inspect`] gives what deviates from the documentation. None can fail: an [`Envelope`] is valid JSON, and a field that
//! does not fit its documented type is [`Drift`], not an error. [`Cuts`] takes members out.
//!
//! What ASAPP documents of each feed stands in one place, its [`description`]: [`activity`], [`journey`], [`queue`].

mod activity;
mod cut;
mod description;
mod drift;
mod facts;
mod feed;
mod journey;
mod parse;
mod queue;
mod read;
mod scan;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use cut::Cuts;
pub use drift::{Drift, Kind, Path, inspect};
pub(crate) use facts::{Company, Facts, entity};
pub use feed::Feed;
pub use parse::{Envelope, Rejection};
