//! How what a sink writes is compressed.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    None,
    Gzip,
    /// Files only.
    Zstd,
}
