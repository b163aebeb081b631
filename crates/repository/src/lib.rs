//! The verbs: import, export, commit, clone, remove, collect.
