//! Tests through the door.

mod config;
