//! Bytes on disk: Larder's own layouts and foreign disk formats.

pub mod mirror_log;
pub mod presence;
