-- A deleted instance whose volumes are kept: until when. See docs/operations.md, "Bringing a deleted instance back".
ALTER TABLE instances ADD COLUMN retained_until BIGINT;

CREATE INDEX instances_retained ON instances (retained_until) WHERE retained_until IS NOT NULL;
