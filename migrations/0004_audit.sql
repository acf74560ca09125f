-- The audit trail: append-only, each row tied to the one before it by its hash. See docs/adr/0019-audit-chain.md.
CREATE TABLE audit_events (
    seq         BIGINT NOT NULL PRIMARY KEY, -- 1, 2, 3, … without a gap
    at          BIGINT NOT NULL,
    action      TEXT   NOT NULL,
    outcome     TEXT   NOT NULL,
    cause       TEXT   NOT NULL,
    platform    TEXT   NOT NULL,
    origin      TEXT,
    request_id  TEXT,
    instance    TEXT   NOT NULL, -- iid
    binding     TEXT   NOT NULL, -- bid; empty: all of the instance
    instance_id TEXT   NOT NULL,
    binding_id  TEXT   NOT NULL,
    operation   TEXT,
    predecessor TEXT,
    previous    TEXT   NOT NULL,
    hash        TEXT   NOT NULL
);

CREATE INDEX audit_accepted ON audit_events (operation) WHERE outcome = 'accepted';

-- One row: where the chain ends. Whoever appends locks it, as the last thing of his transaction.
CREATE TABLE audit_head (
    id   BIGINT NOT NULL PRIMARY KEY,
    seq  BIGINT NOT NULL,
    hash TEXT   NOT NULL
);

INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');
