//! How SQLite lays out the files of our database.

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// What stands before the write-ahead log's first frame.
pub(super) const LOG_HEADER: usize = 32;
/// What stands before a frame's page.
pub(super) const FRAME_HEADER: usize = 24;
pub(super) const FRAME: u64 = (FRAME_HEADER + PAGE) as u64;
