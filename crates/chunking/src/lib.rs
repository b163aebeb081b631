//! Blocks to chunks: what is new, what is a duplicate, and where it goes.
