-- The tables of the catalog, format 3. Explained in docs/formats/catalog.md.
-- What this file makes is compared with a checked-in copy: change it together with the format number.

CREATE TABLE realm (
    id INTEGER PRIMARY KEY,
    prefix TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE image (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last_version INTEGER NOT NULL
) STRICT;

CREATE TABLE version (
    image INTEGER NOT NULL REFERENCES image (id),
    number INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    length INTEGER NOT NULL,
    data_len INTEGER NOT NULL,
    content BLOB NOT NULL,
    layout BLOB NOT NULL,
    parent_image TEXT,
    parent_number INTEGER,
    origin TEXT NOT NULL,
    created INTEGER NOT NULL,
    record BLOB,
    revision INTEGER NOT NULL,
    attach_count INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (image, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX version_revision ON version (revision);

CREATE INDEX version_content ON version (content);

CREATE TABLE hold (
    holder TEXT PRIMARY KEY,
    image TEXT NOT NULL,
    number INTEGER NOT NULL,
    content BLOB NOT NULL,
    layout BLOB NOT NULL,
    revision INTEGER NOT NULL,
    expires INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE boot_set (
    content BLOB NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    boots INTEGER NOT NULL,
    PRIMARY KEY (content, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE document (
    content BLOB NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (content, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE revision (
    last INTEGER NOT NULL
) STRICT;

INSERT INTO revision (last) VALUES (0);

CREATE TABLE tag (
    image INTEGER NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (image, name),
    FOREIGN KEY (image, number) REFERENCES version (image, number) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE label (
    image INTEGER NOT NULL REFERENCES image (id),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (image, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    purpose INTEGER NOT NULL,
    expires INTEGER NOT NULL
) STRICT;

CREATE TABLE pack (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name BLOB NOT NULL UNIQUE,
    realm INTEGER NOT NULL REFERENCES realm (id),
    lease INTEGER,
    condemned INTEGER,
    stored_len INTEGER NOT NULL,
    data_len INTEGER NOT NULL,
    data_stored_len INTEGER NOT NULL,
    entry_count INTEGER NOT NULL,
    hook_count INTEGER NOT NULL
) STRICT;

CREATE INDEX pack_lease ON pack (lease) WHERE lease IS NOT NULL;

CREATE TABLE entry (
    realm INTEGER NOT NULL,
    digest BLOB NOT NULL,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    stored_len INTEGER NOT NULL,
    plain_len INTEGER NOT NULL,
    encoding INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    PRIMARY KEY (realm, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE hook (
    realm INTEGER NOT NULL,
    hook BLOB NOT NULL,
    pack INTEGER NOT NULL,
    PRIMARY KEY (realm, hook, pack)
) STRICT, WITHOUT ROWID;
