//! Bytes on disk: Larder's own layouts and foreign disk formats.

pub mod foreign;
