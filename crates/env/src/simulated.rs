//! A disk in memory that forgets and reorders what was not synced.
