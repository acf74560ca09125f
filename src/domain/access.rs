//! Which platform may see what.
