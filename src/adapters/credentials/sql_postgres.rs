//! Statements for PostgreSQL 14 and later.
//!
//! All of them may run again at any time. As superuser they work as they stand; an administrator that has
//! only CREATEROLE and CREATEDB leaves out the attributes it may not name, and makes itself a member of the
//! roles it acts for. `GRANT … WITH INHERIT, SET` exists, and is needed, from 16 on.

use super::sql::{Dialect, Facts, Login};
use super::sql_settings::Names;
use super::sql_text::{Ident, quote_found};

pub(super) struct Postgres;

/// First version whose grants carry their own INHERIT and SET.
const GRANT_OPTIONS: i32 = 160_000;

fn membership(group: &Ident, member: &str, facts: Facts) -> String {
    let options = if facts.version >= GRANT_OPTIONS {
        " WITH INHERIT TRUE, SET TRUE"
    } else {
        ""
    };
    format!("GRANT {group} TO {member}{options}")
}

/// Attributes only a superuser may name; nobody else could have set them either.
fn superuser_attributes(facts: Facts) -> &'static str {
    if facts.superuser {
        " NOSUPERUSER NOREPLICATION NOBYPASSRLS"
    } else {
        ""
    }
}

fn create_role(role: &Ident) -> String {
    format!(
        "DO $do$ BEGIN CREATE ROLE {role} NOLOGIN; \
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $do$"
    )
}

impl Dialect for Postgres {
    fn atomic(&self) -> bool {
        true
    }

    fn cut_own(&self) -> Option<&'static str> {
        Some(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE usename = current_user AND pid <> pg_backend_pid()",
        )
    }

    fn session(&self, version: i32) -> Vec<(&'static str, &'static str)> {
        let mut settings = vec![
            // Nothing a tenant made can stand in for a function or operator of the server.
            ("search_path", "pg_catalog"),
            ("client_min_messages", "error"),
            ("statement_timeout", "30000"),
            ("lock_timeout", "3000"),
            // An owner may preset any of these for its database: to take our rights away, …
            ("role", "none"),
            ("default_transaction_read_only", "off"),
            ("default_transaction_isolation", "read committed"),
            ("standard_conforming_strings", "on"),
            // … or to break or end our sessions, …
            ("local_preload_libraries", ""),
            ("exit_on_error", "off"),
            ("idle_session_timeout", "0"),
            ("idle_in_transaction_session_timeout", "10000"),
            // … or to make us forget a revocation in a crash.
            ("synchronous_commit", "on"),
        ];
        if version >= 170_000 {
            settings.push(("transaction_timeout", "0"));
        }
        settings
    }

    fn facts(&self) -> &'static str {
        "SELECT rolsuper AS superuser, current_setting('server_version_num')::int4 AS version \
         FROM pg_roles WHERE rolname = current_user"
    }

    fn lock(&self, key: i64) -> Option<String> {
        Some(format!("SELECT pg_advisory_lock({key})"))
    }

    fn groups(&self, names: &Names, facts: Facts) -> Vec<String> {
        let mut statements = Vec::new();
        for role in [&names.owner, &names.readwrite, &names.readonly] {
            statements.push(create_role(role));
            // Only when somebody changed it: an owner's session could hold the row, and there is nothing to restate.
            statements.push(format!(
                "DO $do$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = {literal} AND (rolcanlogin OR rolsuper \
                 OR rolreplication OR rolbypassrls OR rolcreaterole OR rolcreatedb OR NOT rolinherit)) \
                 THEN ALTER ROLE {role} WITH NOLOGIN INHERIT NOCREATEDB NOCREATEROLE{more}; END IF; END $do$",
                literal = role.literal(),
                more = superuser_attributes(facts),
            ));
        }
        if !facts.superuser {
            statements.push(membership(&names.owner, "CURRENT_USER", facts));
        }
        statements
    }

    fn create_database(&self, names: &Names) -> String {
        // template0 has no sessions that could be in the way, and nothing was ever put into it.
        format!(
            "CREATE DATABASE {} OWNER {} TEMPLATE template0",
            names.database, names.owner
        )
    }

    fn shut(&self, names: &Names, group: &Ident) -> String {
        format!(
            "SELECT count(*) FROM pg_database WHERE datname = {} \
             AND (datconnlimit <> -1 OR NOT has_database_privilege({}, oid, 'CONNECT'))",
            names.database.literal(),
            group.literal()
        )
    }

    fn reopen(&self, names: &Names, facts: Facts) -> Vec<String> {
        let Names { database, owner, .. } = names;
        let mut statements = vec![format!(
            "DO $do$ BEGIN IF EXISTS (SELECT FROM pg_database WHERE datname = {literal} AND datconnlimit <> -1) \
             THEN ALTER DATABASE {database} CONNECTION LIMIT -1; END IF; END $do$",
            literal = database.literal(),
        )];
        if !facts.superuser {
            statements.push(format!("GRANT ALL ON DATABASE {database} TO {owner}"));
        }
        statements
    }

    fn fence(&self, names: &Names, _facts: Facts) -> Vec<String> {
        let Names {
            database,
            owner,
            readwrite,
            readonly,
        } = names;
        let mut statements = vec![
            format!(
                "DO $do$ BEGIN IF EXISTS (SELECT FROM pg_database WHERE datname = {} AND datdba <> {}::regrole) \
                 THEN ALTER DATABASE {database} OWNER TO {owner}; END IF; END $do$",
                database.literal(),
                owner.literal(),
            ),
            format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
            format!("GRANT ALL ON DATABASE {database} TO {owner}"),
            format!("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {readwrite}"),
            format!("GRANT CONNECT ON DATABASE {database} TO {readonly}"),
        ];
        // A mere CREATEROLE administrator cannot: there the operator shuts these two.
        for other in ["postgres", "template1"] {
            statements.push(format!(
                "DO $do$ BEGIN IF EXISTS (SELECT FROM pg_database WHERE datname = '{other}' \
                 AND pg_has_role(datdba, 'USAGE')) THEN REVOKE ALL ON DATABASE {other} FROM PUBLIC; END IF; END $do$"
            ));
        }
        statements
    }

    fn inside(&self, names: &Names, facts: Facts, extensions: &[Ident]) -> Vec<String> {
        let Names {
            owner,
            readwrite,
            readonly,
            ..
        } = names;
        let default = |what: &str, to: &Ident| {
            format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT {what} TO {to}")
        };
        let mut statements = vec![
            default("USAGE ON SCHEMAS", readwrite),
            default("USAGE ON SCHEMAS", readonly),
            default("SELECT, INSERT, UPDATE, DELETE ON TABLES", readwrite),
            default("SELECT ON TABLES", readonly),
            default("USAGE, SELECT, UPDATE ON SEQUENCES", readwrite),
            default("SELECT ON SEQUENCES", readonly),
        ];
        // Before 15 the schema belongs to the superuser and everybody may create in it.
        let take = if facts.version < 150_000 && facts.superuser {
            format!("ALTER SCHEMA public OWNER TO {owner}; REVOKE CREATE ON SCHEMA public FROM PUBLIC; ")
        } else {
            String::new()
        };
        // The tenant may have dropped the schema: it is its own.
        let in_public = |then: &str| {
            format!("DO $do$ BEGIN IF to_regnamespace('public') IS NOT NULL THEN {then}; END IF; END $do$")
        };
        statements.push(in_public(&format!(
            "{take}GRANT USAGE ON SCHEMA public TO {readwrite}, {readonly}"
        )));
        if !extensions.is_empty() {
            // As the owner: a trusted extension needs no more, and then nothing of a tenant's runs with our rights.
            statements.push(format!("SET LOCAL ROLE {owner}"));
            for extension in extensions {
                statements.push(in_public(&format!(
                    "CREATE EXTENSION IF NOT EXISTS {extension} SCHEMA public"
                )));
            }
        }
        statements
    }

    fn login(&self, names: &Names, facts: Facts, login: &Login<'_>) -> Vec<String> {
        let Login {
            user,
            group,
            verifier,
            valid_until,
            connection_limit,
        } = login;
        let mut statements = vec![
            create_role(user),
            format!(
                "ALTER ROLE {user} WITH LOGIN INHERIT NOCREATEDB NOCREATEROLE{more} \
                 CONNECTION LIMIT {connection_limit} PASSWORD {verifier} VALID UNTIL {valid_until}",
                more = superuser_attributes(facts),
                valid_until = valid_until.unwrap_or("'infinity'"),
            ),
            format!("ALTER ROLE {user} RESET ALL"),
            format!("ALTER ROLE {user} IN DATABASE {} RESET ALL", names.database),
            membership(group, &user.to_string(), facts),
        ];
        if *group == &names.owner {
            // So that what the user makes belongs to the owner from the start.
            statements.push(format!(
                "ALTER ROLE {user} IN DATABASE {} SET role TO {}",
                names.database,
                group.literal()
            ));
        }
        statements
    }

    fn acts_as<'a>(&self, names: &'a Names, user: &'a Ident, group: &'a Ident) -> &'a Ident {
        if *group == names.owner { group } else { user }
    }

    fn borrow(&self, user: &Ident, facts: Facts) -> Vec<String> {
        if facts.superuser {
            Vec::new()
        } else {
            vec![membership(user, "CURRENT_USER", facts)]
        }
    }

    fn bar(&self, user: &Ident, groups: &[String]) -> Vec<String> {
        let mut statements = vec![
            "SET LOCAL lock_timeout = '250ms'".to_owned(),
            format!("ALTER ROLE {user} WITH NOLOGIN PASSWORD NULL"),
        ];
        for group in groups {
            statements.push(format!("REVOKE {} FROM {user} CASCADE", quote_found(group)));
        }
        statements
    }

    fn cut(&self, user: &Ident) -> String {
        format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}",
            user.literal()
        )
    }

    fn sessions(&self, user: &Ident) -> String {
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = {}",
            user.literal()
        )
    }

    fn prepared(&self, user: &Ident) -> Option<String> {
        // The user may have prepared it under the owner's name; then the locks it left tell whose it is: on the
        // user's role, on a table of the user's, or on the catalogues that say who may log in. A prepared
        // transaction's locks are those without a process, tied together by the lock on its own number.
        Some(format!(
            "SELECT p.database::text, format('SET ROLE %I', p.owner), format('ROLLBACK PREPARED %L', p.gid) \
             FROM pg_prepared_xacts p, (SELECT oid FROM pg_roles WHERE rolname = {user}) u \
             WHERE p.owner = {user} OR EXISTS (SELECT FROM pg_locks self JOIN pg_locks l USING (virtualtransaction) \
               WHERE self.transactionid = p.transaction AND self.granted AND self.pid IS NULL AND l.pid IS NULL AND ( \
                 (l.locktype = 'object' AND l.classid = 'pg_authid'::regclass AND l.objid = u.oid) \
                 OR (l.locktype = 'relation' AND l.mode <> 'AccessShareLock' AND l.relation IN \
                     ('pg_authid'::regclass, 'pg_auth_members'::regclass, 'pg_db_role_setting'::regclass)) \
                 OR EXISTS (SELECT FROM pg_shdepend s WHERE s.dbid = l.database AND s.classid = 'pg_class'::regclass \
                     AND s.objid = l.relation AND s.refclassid = 'pg_authid'::regclass \
                     AND s.refobjid = u.oid AND s.deptype = 'o')))",
            user = user.literal()
        ))
    }

    fn involved(&self, user: &Ident) -> String {
        format!(
            "SELECT DISTINCT d.datname::text FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid \
             JOIN pg_roles r ON r.oid = s.refobjid WHERE s.refclassid = 'pg_authid'::regclass \
             AND r.rolname = {} AND d.datname <> current_database()",
            user.literal()
        )
    }

    fn move_some(&self, names: &Names, user: &Ident) -> Option<(String, String)> {
        let Names {
            owner,
            readwrite,
            readonly,
            ..
        } = names;
        let relations = format!(
            "FROM pg_class c WHERE c.relowner = {user}::regrole AND c.relpersistence <> 't' \
             AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
             AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
               AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))",
            user = user.literal()
        );
        let schemas = format!(
            "FROM pg_namespace n WHERE n.nspowner = {}::regrole",
            user.literal()
        );
        let blobs = format!(
            "FROM pg_largeobject_metadata b WHERE b.lomowner = {}::regrole",
            user.literal()
        );
        // Schemas go first: the owner must be able to create in them. A serial column's sequence goes with its table.
        let step = format!(
            "DO $do$ DECLARE command text; BEGIN FOR command IN \
             (SELECT format('ALTER SCHEMA %1$I OWNER TO {owner}; GRANT USAGE ON SCHEMA %1$I TO {readwrite}, {readonly}', \
                n.nspname) {schemas} LIMIT 50) \
             UNION ALL \
             (SELECT CASE c.relkind WHEN 'S' THEN format('ALTER SEQUENCE %1$s OWNER TO {owner}; \
                GRANT USAGE, SELECT, UPDATE ON SEQUENCE %1$s TO {readwrite}; \
                GRANT SELECT ON SEQUENCE %1$s TO {readonly}', c.oid::regclass) \
              ELSE format('ALTER TABLE %1$s OWNER TO {owner}; \
                GRANT SELECT, INSERT, UPDATE, DELETE ON %1$s TO {readwrite}; \
                GRANT SELECT ON %1$s TO {readonly}', c.oid::regclass) END || \
              coalesce((SELECT string_agg(format('; GRANT USAGE, SELECT, UPDATE ON SEQUENCE %1$s TO {readwrite}; \
                  GRANT SELECT ON SEQUENCE %1$s TO {readonly}', s.oid::regclass), '') \
                FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
                WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
                AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')), '') \
              {relations} LIMIT 50) \
             UNION ALL \
             (SELECT format('ALTER LARGE OBJECT %s OWNER TO {owner}', b.oid) {blobs} LIMIT 500) \
             LOOP EXECUTE command; END LOOP; END $do$"
        );
        let left = format!(
            "SELECT (SELECT count(*) {schemas}) + (SELECT count(*) {relations}) + (SELECT count(*) {blobs})"
        );
        Some((step, left))
    }

    fn move_rest(&self, names: &Names, user: &Ident) -> Vec<String> {
        vec![
            format!("REASSIGN OWNED BY {user} TO {}", names.owner),
            format!("DROP OWNED BY {user}"),
        ]
    }

    fn drop_user(&self, user: &Ident) -> String {
        format!("DROP ROLE IF EXISTS {user}")
    }

    fn cut_orphans(&self, facts: Facts) -> Option<String> {
        facts.superuser.then(|| {
            "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.usesysid IS NOT NULL \
             AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid)"
                .to_owned()
        })
    }
}
