//! How SQLite lays out the files of our database.

/// The database, in the journal's folder.
pub(crate) const DATABASE: &str = "journal.db";
/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// What stands before the write-ahead log's first frame.
pub(crate) const LOG_HEADER: usize = 32;
/// What stands before a frame's page.
pub(crate) const FRAME_HEADER: usize = 24;
pub(crate) const FRAME: u64 = (FRAME_HEADER + PAGE) as u64;
