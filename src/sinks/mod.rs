//! Where events go. A sink knows its client library and nothing of journals.
//!
//! A new kind of sink is a file or folder here and a line in the list below. Its file holds all that is its own: the
//! settings ([`Kind::read`]), what `check` reports, the plan of its lane, the expiry of its certificates, opening
//! ([`Open`]) and delivering ([`Sink`]). The keys stand with their defaults in `config/default.toml`.

mod compress;
mod file;
mod http;
mod kind;
mod lines;
mod own;
mod plan;
mod sink;
mod stdout;

use std::io;

pub use compress::Compress;
pub use file::{Settings as FileSettings, Sync};
pub use http::{Batch, Settings as HttpSettings, Tls as HttpTls};
pub(crate) use kind::{Checked, Kind, Open, Opened, Opening};
pub use own::{Clash, OwnFiles};
pub use plan::Ordering;
pub(crate) use plan::Plan;
pub use sink::{Blame, Failure, FailureKind, Sink};

use crate::settings::Section;
use crate::shape::Format;

/// Reads the keys of one kind.
type Read = fn(&mut Section<'_, '_>, Format) -> SinkKind;

macro_rules! kinds {
    ($($name:literal => $kind:ident($settings:ty),)+) => {
        /// `type` of a sink with the keys of that type.
        #[derive(Debug, Clone)]
        pub enum SinkKind {
            $($kind(Box<$settings>),)+
        }

        impl SinkKind {
            /// Every `type`, with the reader of its keys.
            pub(crate) const ALL: &[(&str, Read)] =
                &[$(($name, |s, format| Self::$kind(Box::new(<$settings>::read(s, format)))),)+];

            /// As the settings say it.
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $name,)+
                }
            }

            /// What the kind says of itself.
            pub(crate) fn settings(&self) -> &dyn Kind {
                match self {
                    $(Self::$kind(settings) => &**settings,)+
                }
            }

            /// Makes the sinks, as many as there may be deliveries at a time, and gives them to `opened`.
            ///
            /// # Errors
            /// The sink cannot even be made.
            pub(crate) fn open(&self, opening: Opening<'_>, opened: impl Opened) -> io::Result<()> {
                match self {
                    $(Self::$kind(settings) => opened.take(settings.open(opening)?),)+
                }
                Ok(())
            }
        }
    };
}

// The one list of kinds.
kinds! {
    "stdout" => Stdout(stdout::Settings),
    "file" => File(file::Settings),
    "http" => Http(http::Settings),
}

impl Default for SinkKind {
    fn default() -> Self {
        Self::Stdout(Box::default())
    }
}
