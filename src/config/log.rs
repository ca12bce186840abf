//! `[log]`.

use crate::settings::Section;

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

pub(super) fn log(mut s: Section<'_, '_>) -> Log {
    use tracing::Level;
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let log =
        Log { format: s.choice("format", &formats, LogFormat::Json), level: s.choice("level", &levels, Level::INFO) };
    s.finish();
    log
}
