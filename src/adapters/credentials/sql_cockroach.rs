//! Statements for CockroachDB 22.2 and later.
//!
//! Written from its documentation and checked here as text only: there is no server in the tests, so run
//! the contract kit against a real one before offering it. What differs from PostgreSQL: no default role for
//! a user, hence default privileges for all roles so that bindings see each other's tables; no DO blocks that
//! could be relied on; schema changes are jobs, so statements do not share a transaction; no advisory locks,
//! so a clash of two workers shows as 40001 and is the engine's to repeat.

use super::sql::{Dialect, Facts, Login};
use super::sql_settings::Names;
use super::sql_text::{Ident, quote_found};

pub(super) struct CockroachDb;

impl Dialect for CockroachDb {
    fn atomic(&self) -> bool {
        false
    }

    fn cut_own(&self) -> Option<&'static str> {
        None
    }

    fn session(&self, _version: i32) -> Vec<(&'static str, &'static str)> {
        vec![
            ("search_path", "pg_catalog"),
            ("statement_timeout", "30000"),
            ("lock_timeout", "3000"),
            ("idle_in_transaction_session_timeout", "10000"),
            ("default_transaction_read_only", "off"),
        ]
    }

    fn facts(&self) -> &'static str {
        "SELECT true AS superuser, 0::INT4 AS version"
    }

    fn lock(&self, _key: i64) -> Option<String> {
        None
    }

    fn groups(&self, names: &Names, _facts: Facts) -> Vec<String> {
        [&names.owner, &names.readwrite, &names.readonly]
            .map(|role| format!("CREATE ROLE IF NOT EXISTS {role} WITH NOLOGIN"))
            .to_vec()
    }

    fn create_database(&self, names: &Names) -> String {
        format!("CREATE DATABASE IF NOT EXISTS {}", names.database)
    }

    fn shut(&self, names: &Names, group: &Ident) -> String {
        format!(
            "SELECT count(*) FROM pg_database WHERE datname = {} AND NOT has_database_privilege({}, oid, 'CONNECT')",
            names.database.literal(),
            group.literal()
        )
    }

    fn reopen(&self, _names: &Names, _facts: Facts) -> Vec<String> {
        // There is nothing an owner could shut the administrator out with.
        Vec::new()
    }

    fn fence(&self, names: &Names, _facts: Facts) -> Vec<String> {
        let Names {
            database,
            owner,
            readwrite,
            readonly,
        } = names;
        vec![
            format!("ALTER DATABASE {database} OWNER TO {owner}"),
            format!("REVOKE CONNECT ON DATABASE {database} FROM public"),
            "REVOKE CONNECT ON DATABASE postgres FROM public".to_owned(),
            "REVOKE CONNECT ON DATABASE defaultdb FROM public".to_owned(),
            format!("GRANT ALL ON DATABASE {database} TO {owner}"),
            format!("GRANT CONNECT ON DATABASE {database} TO {readwrite}, {readonly}"),
        ]
    }

    fn inside(&self, names: &Names, _facts: Facts, _extensions: &[Ident]) -> Vec<String> {
        let Names {
            database,
            owner,
            readwrite,
            readonly,
        } = names;
        let default =
            |what: &str, to: &Ident| format!("ALTER DEFAULT PRIVILEGES FOR ALL ROLES GRANT {what} TO {to}");
        let mut statements: Vec<_> = ["TABLES", "SEQUENCES", "SCHEMAS", "TYPES", "FUNCTIONS"]
            .iter()
            .map(|kind| default(&format!("ALL ON {kind}"), owner))
            .collect();
        statements.extend([
            default("USAGE ON SCHEMAS", readwrite),
            default("USAGE ON SCHEMAS", readonly),
            default("SELECT, INSERT, UPDATE, DELETE ON TABLES", readwrite),
            default("SELECT ON TABLES", readonly),
            default("USAGE, SELECT, UPDATE ON SEQUENCES", readwrite),
            default("SELECT ON SEQUENCES", readonly),
            format!("REVOKE CREATE ON SCHEMA {database}.public FROM public"),
            format!("GRANT ALL ON SCHEMA {database}.public TO {owner}"),
            format!("GRANT USAGE ON SCHEMA {database}.public TO {readwrite}, {readonly}"),
        ]);
        statements
    }

    fn login(&self, names: &Names, _facts: Facts, login: &Login<'_>) -> Vec<String> {
        let Login {
            user,
            group,
            verifier,
            valid_until,
            // CockroachDB has no limit for one user.
            connection_limit: _,
        } = login;
        vec![
            format!("CREATE USER IF NOT EXISTS {user}"),
            format!(
                "ALTER USER {user} WITH LOGIN NOCREATEROLE NOCREATEDB NOCREATELOGIN \
                 PASSWORD {verifier} VALID UNTIL {}",
                valid_until.unwrap_or("NULL"),
            ),
            format!("ALTER ROLE {user} RESET ALL"),
            format!("ALTER ROLE {user} IN DATABASE {} RESET ALL", names.database),
            format!("GRANT {group} TO {user}"),
        ]
    }

    fn acts_as<'a>(&self, _names: &'a Names, user: &'a Ident, _group: &'a Ident) -> &'a Ident {
        user
    }

    fn borrow(&self, _user: &Ident, _facts: Facts) -> Vec<String> {
        Vec::new()
    }

    fn bar(&self, user: &Ident, groups: &[String]) -> Vec<String> {
        let mut statements = vec![format!("ALTER USER {user} WITH NOLOGIN")];
        for group in groups {
            statements.push(format!("REVOKE {} FROM {user}", quote_found(group)));
        }
        statements
    }

    fn cut(&self, user: &Ident) -> String {
        format!(
            "CANCEL SESSIONS IF EXISTS (SELECT session_id FROM [SHOW CLUSTER SESSIONS] WHERE user_name = {})",
            user.literal()
        )
    }

    fn sessions(&self, user: &Ident) -> String {
        format!(
            "SELECT count(*) FROM [SHOW CLUSTER SESSIONS] WHERE user_name = {} AND status <> 'CLOSED'",
            user.literal()
        )
    }

    fn prepared(&self, _user: &Ident) -> Option<String> {
        None
    }

    fn involved(&self, _user: &Ident) -> String {
        // Dependencies are not listed across databases, so each is looked at.
        "SELECT datname::TEXT FROM pg_database WHERE datname NOT IN ('system', current_database())".to_owned()
    }

    fn move_some(&self, _names: &Names, _user: &Ident) -> Option<(String, String)> {
        None
    }

    fn move_rest(&self, names: &Names, user: &Ident) -> Vec<String> {
        vec![
            format!("REASSIGN OWNED BY {user} TO {}", names.owner),
            format!("DROP OWNED BY {user}"),
        ]
    }

    fn drop_user(&self, user: &Ident) -> String {
        format!("DROP USER IF EXISTS {user}")
    }

    fn cut_orphans(&self, _facts: Facts) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::adapters::credentials::sql_text::Verifier;
    use crate::domain::names::{backend_user, bid};

    const FACTS: Facts = Facts {
        superuser: true,
        version: 0,
    };

    #[test]
    fn the_statements_are_those_of_its_documentation() {
        let names = Names::of("app").unwrap();
        let handle = backend_user(&bid("p", "i", "b"));
        let user = Ident::user(&handle).unwrap();
        let verifier = Verifier::new("Secret0").unwrap();
        let login = Login {
            user: &user,
            group: &names.readonly,
            verifier: &verifier,
            valid_until: None,
            connection_limit: 20,
        };
        let login = CockroachDb.login(&names, FACTS, &login);
        let table = [
            (
                CockroachDb.groups(&names, FACTS)[0].clone(),
                "CREATE ROLE IF NOT EXISTS \"app_owner\" WITH NOLOGIN".to_owned(),
            ),
            (
                CockroachDb.create_database(&names),
                "CREATE DATABASE IF NOT EXISTS \"app\"".to_owned(),
            ),
            (
                CockroachDb.inside(&names, FACTS, &[])[0].clone(),
                "ALTER DEFAULT PRIVILEGES FOR ALL ROLES GRANT ALL ON TABLES TO \"app_owner\"".to_owned(),
            ),
            (
                login[0].clone(),
                format!("CREATE USER IF NOT EXISTS \"{handle}\""),
            ),
            (
                login[1].clone(),
                format!(
                    "ALTER USER \"{handle}\" WITH LOGIN NOCREATEROLE NOCREATEDB NOCREATELOGIN \
                     PASSWORD {verifier} VALID UNTIL NULL"
                ),
            ),
            (
                login[4].clone(),
                format!("GRANT \"app_readonly\" TO \"{handle}\""),
            ),
            (
                CockroachDb.bar(&user, &["odd\"role".to_owned()]).join(";"),
                format!("ALTER USER \"{handle}\" WITH NOLOGIN;REVOKE \"odd\"\"role\" FROM \"{handle}\""),
            ),
            (
                CockroachDb.cut(&user),
                format!(
                    "CANCEL SESSIONS IF EXISTS (SELECT session_id FROM [SHOW CLUSTER SESSIONS] \
                     WHERE user_name = '{handle}')"
                ),
            ),
            (
                CockroachDb.move_rest(&names, &user).join(";"),
                format!("REASSIGN OWNED BY \"{handle}\" TO \"app_owner\";DROP OWNED BY \"{handle}\""),
            ),
            (
                CockroachDb.drop_user(&user),
                format!("DROP USER IF EXISTS \"{handle}\""),
            ),
        ];
        for (statement, expected) in table {
            assert_eq!(statement, expected);
        }
        assert!(!login.join(";").contains("Secret0"));
    }

    #[test]
    fn nothing_only_postgres_knows_is_said() {
        let names = Names::of("app").unwrap();
        let user = Ident::user(&backend_user(&bid("p", "i", "b"))).unwrap();
        let mut all = CockroachDb.groups(&names, FACTS);
        all.extend(CockroachDb.fence(&names, FACTS));
        all.extend(CockroachDb.inside(&names, FACTS, &[]));
        all.extend(CockroachDb.bar(&user, &[]));
        for statement in all {
            for word in [
                "DO $",
                "SET role",
                "CONNECTION LIMIT",
                "NOSUPERUSER",
                "SET LOCAL",
                "CASCADE",
            ] {
                assert!(!statement.contains(word), "{statement}");
            }
        }
    }
}
