//! One host's lazy, writable view of one version.
