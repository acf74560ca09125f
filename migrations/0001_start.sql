-- One text for SQLite and PostgreSQL: only TEXT and BIGINT, times in milliseconds since the epoch,
-- booleans as 0 and 1, JSON as text. See docs/adr/0003-one-sql-text.md.

CREATE TABLE instances (
    iid                 TEXT   NOT NULL PRIMARY KEY,
    platform            TEXT   NOT NULL,
    instance_id         TEXT   NOT NULL, -- a JSON string: platform ids may hold what a TEXT column may not
    attributes          TEXT   NOT NULL,
    state               TEXT   NOT NULL,
    usable              BIGINT NOT NULL,
    context             TEXT,
    maintenance_version TEXT,
    dashboard_url       TEXT,
    facts               TEXT   NOT NULL,
    endpoints           TEXT   NOT NULL,
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL
);

CREATE INDEX instances_ready ON instances (iid) WHERE state = 'ready';
CREATE INDEX instances_gone ON instances (updated_at) WHERE state = 'gone';

CREATE TABLE bindings (
    bid          TEXT   NOT NULL PRIMARY KEY,
    iid          TEXT   NOT NULL,
    platform     TEXT   NOT NULL,
    binding_id   TEXT   NOT NULL, -- a JSON string
    attributes   TEXT   NOT NULL,
    requested    TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    handle       TEXT   NOT NULL,
    residue      BIGINT NOT NULL,
    expires_at   BIGINT,
    renew_before BIGINT,
    revoked_at   BIGINT,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL
);

CREATE INDEX bindings_of_instance ON bindings (iid);
CREATE INDEX bindings_expiring ON bindings (expires_at) WHERE state = 'ready';
CREATE INDEX bindings_residue ON bindings (updated_at) WHERE residue = 1;
CREATE INDEX bindings_gone ON bindings (updated_at) WHERE state = 'gone';

CREATE TABLE operations (
    id                TEXT   NOT NULL PRIMARY KEY,
    seq               BIGINT NOT NULL, -- order among the operations of one subject
    subject           TEXT   NOT NULL, -- bid for binding operations, else iid
    kind              TEXT   NOT NULL,
    iid               TEXT   NOT NULL,
    bid               TEXT,
    offering          TEXT   NOT NULL,
    target            TEXT,
    state             TEXT   NOT NULL,
    step              TEXT   NOT NULL,
    failing           TEXT,
    attempt           BIGINT NOT NULL,
    tries             BIGINT NOT NULL,
    due_at            BIGINT NOT NULL,
    deadline_at       BIGINT NOT NULL,
    owner             TEXT,
    lease_until       BIGINT NOT NULL, -- by the database's clock
    description       TEXT   NOT NULL,
    instance_usable   BIGINT,
    update_repeatable BIGINT,
    request_id        TEXT,
    created_at        BIGINT NOT NULL,
    finished_at       BIGINT
);

-- What makes two racing requests one winner and one loser, on every replica.
CREATE UNIQUE INDEX operations_one_open ON operations (subject) WHERE state = 'open';
CREATE INDEX operations_of_subject ON operations (subject, seq);
CREATE INDEX operations_finished ON operations (finished_at);
CREATE INDEX operations_due ON operations (due_at) WHERE state = 'open';
CREATE INDEX operations_open_of_instance ON operations (iid) WHERE state = 'open';

CREATE TABLE operation_events (
    operation TEXT   NOT NULL,
    seq       BIGINT NOT NULL,
    at        BIGINT NOT NULL,
    step      TEXT   NOT NULL,
    outcome   TEXT   NOT NULL,
    message   TEXT   NOT NULL,
    PRIMARY KEY (operation, seq)
);

CREATE TABLE secrets (
    name       TEXT   NOT NULL PRIMARY KEY,
    iid        TEXT   NOT NULL,
    sealed     TEXT   NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE INDEX secrets_of_instance ON secrets (iid);

-- Which catalog ids were ever served, so that a changed id is noticed before a platform does.
CREATE TABLE catalog_ids (
    id   TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL
);
