-- How bindings are handed over, and rotation in place. See docs/adr/0018-rotation-and-a-vault-one-only-writes.md.
ALTER TABLE bindings ADD COLUMN delivery TEXT NOT NULL DEFAULT 'inline';
-- Which generation of its credentials applications are to use; the vault's version is one more.
ALTER TABLE bindings ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;
-- How often it was to get another user, by rotation or by reuse of its id: with 0, `handle` is the only one there can be.
ALTER TABLE bindings ADD COLUMN rotations BIGINT NOT NULL DEFAULT 0;
ALTER TABLE bindings ADD COLUMN service_account TEXT;
ALTER TABLE bindings ADD COLUMN secret_namespace TEXT;
-- When the sweep has to look once more at the vault and the identity provider.
ALTER TABLE bindings ADD COLUMN look_again_at BIGINT;

-- One service account is one binding's identity; cleared when the binding has ended.
CREATE UNIQUE INDEX bindings_service_account ON bindings (service_account) WHERE service_account IS NOT NULL;
CREATE INDEX bindings_look_again ON bindings (look_again_at) WHERE look_again_at IS NOT NULL;
-- A rotation in place names the binding alone.
CREATE INDEX bindings_of_platform ON bindings (platform, binding_id);

-- Users of a binding beside its present one (`bindings.handle`): the one being rotated in, former ones, revoked ones.
CREATE TABLE binding_users (
    bid        TEXT   NOT NULL,
    handle     TEXT   NOT NULL,
    iid        TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    state      TEXT   NOT NULL, -- next, former, revoked
    shown      BIGINT NOT NULL, -- 1 from when on applications may have read it
    due_at     BIGINT,          -- former: when it is taken away; next: since when somebody has to finish the rotation
    revoked_at BIGINT,
    PRIMARY KEY (bid, handle)
);

CREATE INDEX binding_users_due ON binding_users (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX binding_users_revoked ON binding_users (iid) WHERE revoked_at IS NOT NULL;
