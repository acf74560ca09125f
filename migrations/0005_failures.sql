-- Failures in a row of an operation's present step, apart from how often it was looked at (`tries`): a server that fails
-- once after a long wait is asked again soon.
ALTER TABLE operations ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;
