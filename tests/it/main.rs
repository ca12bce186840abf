//! Tests through the door.

mod commands;
mod config;
