//! The promises of [`crate::Catalog`] as a test suite: every engine's tests call it.
