//! What `binding.yaml` tells the `sql` mechanism: which server, which database, how to connect.
//!
//! All names that end up in statements pass [`Ident`] here, before anything is said to a server.

use super::sql::Dialect;
use super::sql_cockroach::CockroachDb;
use super::sql_postgres::Postgres;
use super::sql_text::Ident;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, Target};
use serde_json::{Map, Value};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Sessions one binding may hold unless the settings say otherwise; a cap keeps slots free for the administrator.
const DEFAULT_CONNECTION_LIMIT: u16 = 20;

/// The roles of one database: groups nobody can log in as.
pub(super) struct Names {
    /// The tenant's database.
    pub database: Ident,
    /// Owns the database and all in it.
    pub owner: Ident,
    /// Reads and changes rows of what the owner made.
    pub readwrite: Ident,
    /// Reads rows of what the owner made.
    pub readonly: Ident,
}

impl Names {
    /// Derives them from the database's name.
    pub(super) fn of(database: &str) -> PortResult<Self> {
        Ok(Self {
            database: Ident::parse(database)?,
            owner: Ident::parse(&format!("{database}_owner"))?,
            readwrite: Ident::parse(&format!("{database}_readwrite"))?,
            readonly: Ident::parse(&format!("{database}_readonly"))?,
        })
    }

    /// The role whose member a binding becomes.
    pub(super) fn group(&self, role: &str) -> PortResult<&Ident> {
        match role {
            "owner" => Ok(&self.owner),
            "readwrite" => Ok(&self.readwrite),
            "readonly" => Ok(&self.readonly),
            _ => Err(PortError::invalid(format!(
                "There is no role {role:?}: use owner, readwrite or readonly."
            ))),
        }
    }
}

/// Extensions a plan may ask for: all are "trusted", so installing them gives a tenant nothing it could not do itself.
const EXTENSIONS: &[&str] = &[
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "seg",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
    "vector",
];

/// What `binding.yaml` says about the server.
pub(super) struct Settings {
    pub dialect: &'static dyn Dialect,
    pub names: Names,
    pub extensions: Vec<Ident>,
    /// Sessions one binding may hold.
    pub connection_limit: u16,
    tls: Tls,
}

/// How connections are secured: the settings `sslmode` and `sslrootcert`.
pub(super) struct Tls {
    pub mode: PgSslMode,
    /// Path of a PEM file.
    pub root: Option<String>,
}

impl Tls {
    /// Reads the two settings; none when one is wrong.
    pub fn parse(settings: &Map<String, Value>, errors: &mut Vec<String>) -> Option<Self> {
        let text = |key: &str| settings.get(key).map(|v| v.as_str().unwrap_or_default());
        let mode = match text("sslmode").unwrap_or("disable") {
            "disable" => Some(PgSslMode::Disable),
            "require" => Some(PgSslMode::Require),
            "verify-ca" => Some(PgSslMode::VerifyCa),
            "verify-full" => Some(PgSslMode::VerifyFull),
            _ => None,
        };
        if mode.is_none() {
            errors.push("sslmode: must be disable, require, verify-ca or verify-full".to_owned());
        }
        let root = text("sslrootcert").map(str::to_owned);
        if root.as_deref() == Some("") {
            errors.push("sslrootcert: must be the path of a PEM file".to_owned());
        }
        mode.map(|mode| Self { mode, root })
    }

    /// How to connect to a PostgreSQL `database` as `login`; what is stated here wins over `PG*` variables of the environment.
    pub fn postgres(&self, target: &Target, login: &Secret, database: &str) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&target.endpoint.host)
            .port(target.endpoint.port)
            .username(login.text("username"))
            .password(login.text("password"))
            .database(database)
            .application_name("chandler")
            .ssl_mode(self.mode)
            .disable_statement_logging();
        match &self.root {
            Some(path) => options.ssl_root_cert(path),
            None => options,
        }
    }
}

impl Settings {
    /// Reads settings; every error at once.
    pub(super) fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let known = [
            "dialect",
            "database",
            "extensions",
            "connection_limit",
            "sslmode",
            "sslrootcert",
        ];
        for key in settings.keys().filter(|k| !known.contains(&k.as_str())) {
            errors.push(format!("{key}: unknown; known are {}", known.join(", ")));
        }
        let text = |key: &str| settings.get(key).map(|v| v.as_str().unwrap_or_default());

        let dialect: &'static dyn Dialect = match text("dialect") {
            Some("cockroachdb") => &CockroachDb,
            other => {
                if other != Some("postgres") {
                    errors.push("dialect: must be \"postgres\" or \"cockroachdb\"".to_owned());
                }
                &Postgres
            }
        };

        let database = text("database").unwrap_or_default();
        let reserved = ["postgres", "template0", "template1", "system", "defaultdb"].contains(&database);
        let names = (!reserved && !database.contains('-'))
            .then(|| Names::of(database).ok())
            .flatten();
        if names.is_none() {
            // 63 characters are a name's limit, and `_readwrite` must fit behind.
            let rule = "must match ^[a-z_][a-z0-9_]{0,52}$ and not be one of the server's own";
            errors.push(format!("database: {rule}"));
        }

        let mut extensions = Vec::new();
        let listed = match settings.get("extensions") {
            None => &[][..],
            Some(Value::Array(items)) => items.as_slice(),
            Some(_) => {
                errors.push("extensions: must be a list".to_owned());
                &[][..]
            }
        };
        for item in listed {
            let name = item.as_str().filter(|name| EXTENSIONS.contains(name));
            match name.and_then(|name| Ident::parse(name).ok()) {
                Some(name) => extensions.push(name),
                None => errors.push(format!(
                    "extensions: {item} is not one of {}",
                    EXTENSIONS.join(", ")
                )),
            }
        }

        let connection_limit = match settings.get("connection_limit") {
            None => Some(DEFAULT_CONNECTION_LIMIT),
            Some(limit) => limit
                .as_u64()
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| *n > 0),
        };
        if connection_limit.is_none() {
            errors.push("connection_limit: must be a number from 1 to 65535".to_owned());
        }

        let tls = Tls::parse(settings, &mut errors);
        match (names, connection_limit, tls) {
            (Some(names), Some(connection_limit), Some(tls)) if errors.is_empty() => Ok(Self {
                dialect,
                names,
                extensions,
                connection_limit,
                tls,
            }),
            _ => Err(errors),
        }
    }

    /// The settings of an instance, which were checked when the catalog was loaded.
    pub(super) fn of(target: &Target) -> PortResult<Self> {
        Self::parse(&target.settings).map_err(|errors| {
            PortError::invalid("The settings of this service's bindings are wrong; tell its operator.")
                .with_detail(errors.join("; "))
        })
    }

    /// How to connect to `database` as `login`.
    pub(super) fn connect_options(
        &self,
        target: &Target,
        login: &Secret,
        database: &str,
    ) -> PgConnectOptions {
        self.tls.postgres(target, login, database)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn errors(settings: &Value) -> Vec<String> {
        Settings::parse(settings.as_object().unwrap())
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn good_settings_pass() {
        for dialect in ["postgres", "cockroachdb"] {
            assert_eq!(
                errors(&json!({"dialect": dialect, "database": "app"})),
                Vec::<String>::new()
            );
        }
        let all = json!({
            "dialect": "postgres", "database": "a".repeat(53), "extensions": ["uuid-ossp", "pg_trgm"],
            "connection_limit": 5, "sslmode": "verify-full", "sslrootcert": "/etc/ca.pem",
        });
        assert_eq!(errors(&all), Vec::<String>::new());
    }

    #[test]
    fn every_wrong_setting_is_reported_at_once() {
        let wrong = json!({
            "dialect": "mysql", "database": "app; DROP", "extensions": ["pg_trgm", "plpython3u", 7],
            "connection_limit": 0, "sslmode": "prefer", "sslrootcert": "", "host": "x",
        });
        let found = errors(&wrong);
        for key in [
            "dialect",
            "database",
            "connection_limit",
            "sslmode",
            "sslrootcert",
            "host",
        ] {
            assert!(
                found.iter().any(|e| e.starts_with(key)),
                "{key} is missing in {found:?}"
            );
        }
        assert_eq!(found.iter().filter(|e| e.starts_with("extensions")).count(), 2);
    }

    #[test]
    fn database_names_are_checked() {
        let long = "a".repeat(54);
        for bad in [
            "",
            "1a",
            "A",
            "a-b",
            "a\"b",
            "postgres",
            "template1",
            "defaultdb",
            &long,
        ] {
            let found = errors(&json!({"dialect": "postgres", "database": bad}));
            assert_eq!(found.len(), 1, "{bad:?}: {found:?}");
        }
    }
}
