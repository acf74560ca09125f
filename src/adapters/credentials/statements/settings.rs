//! What a `binding.yaml` says for `statements`: checked whole, every error at once, each with its member.

use super::text::{Dialect, Sql};
use crate::adapters::credentials::holes::{self, Known, Stage};
use crate::adapters::credentials::sql_settings::Tls;
use crate::ports::{PortResult, Target};
use serde_json::{Map, Value};

/// The members there are.
const KNOWN: [&str; 12] = [
    "dialect",
    "database",
    "maintenance_database",
    "sslmode",
    "sslrootcert",
    "values",
    "prepare",
    "issue",
    "verify",
    "revoke",
    "list",
    "rotate_admin",
];

/// The members of an entry of a list.
const MEMBERS: [&str; 7] = ["sql", "inside", "roles", "unless", "for_each", "until", "ignore"];

/// One step of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Such as `issue[2]`, for the log.
    pub path: String,
    pub sql: Option<Sql>,
    /// In `database` instead of `maintenance_database`.
    pub inside: bool,
    /// Only for these roles; empty for all.
    pub roles: Vec<String>,
    /// Left out when this query answers a row.
    pub unless: Option<Sql>,
    /// Done for each row of this query, whose first column is `{each}`.
    pub for_each: Option<Sql>,
    /// Repeated until this query answers a row.
    pub until: Option<Sql>,
    /// Codes of refusals that are success.
    pub ignore: Vec<String>,
}

/// All of it.
pub(super) struct Settings {
    pub dialect: Dialect,
    /// Where applications log in.
    pub database: String,
    /// Where statements run that do not say `inside`.
    pub maintenance: Option<String>,
    pub tls: Tls,
    pub values: Map<String, Value>,
    pub prepare: Vec<Entry>,
    pub issue: Vec<Entry>,
    pub verify: Vec<Entry>,
    pub revoke: Vec<Entry>,
    /// A query whose first column are users' names.
    pub list: Sql,
    /// Empty where the administrator's credentials cannot be exchanged.
    pub rotate_admin: Vec<Entry>,
}

impl Settings {
    /// Reads settings; every error at once.
    pub fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        holes::unknown(settings, &KNOWN, "", &mut errors);
        let dialect = match settings.get("dialect").and_then(Value::as_str) {
            Some("mysql") => Dialect::MySql,
            Some("postgres") => Dialect::Postgres,
            _ => {
                errors.push("dialect: must be \"postgres\" or \"mysql\"".to_owned());
                Dialect::Postgres
            }
        };
        let database = name(settings, "database", &mut errors);
        if database.is_none() && !settings.contains_key("database") {
            errors.push("database: must be given: where applications log in".to_owned());
        }
        let maintenance = match (name(settings, "maintenance_database", &mut errors), dialect) {
            (None, Dialect::Postgres) => Some("postgres".to_owned()),
            (given, _) => given,
        };
        let tls = Tls::parse(settings, &mut errors);
        let values = holes::values(settings, &mut errors);
        let mut read = |stage| list(settings, stage, dialect, &values, &mut errors);
        let prepare = read(Stage::Prepare);
        let issue = read(Stage::Issue);
        let verify = read(Stage::Verify);
        let revoke = read(Stage::Revoke);
        let rotate_admin = read(Stage::RotateAdmin);
        for (stage, entries, needed) in [
            (Stage::Issue, &issue, &["user"][..]),
            (Stage::Issue, &issue, &["password", "verifier"]),
            (Stage::Revoke, &revoke, &["user"]),
            (Stage::RotateAdmin, &rotate_admin, &["password", "verifier"]),
        ] {
            if stage == Stage::RotateAdmin && !settings.contains_key(stage.word()) {
                continue;
            }
            let mentions = |entry: &Entry| {
                let texts = [&entry.sql, &entry.for_each, &entry.until];
                let mut texts = texts.into_iter().flatten();
                texts.any(|sql| needed.iter().any(|name| sql.mentions(name)))
            };
            // What is wrong within an entry was told already.
            let whole = settings.get(stage.word()).and_then(Value::as_array);
            if whole.is_none_or(|list| list.len() == entries.len()) && !entries.iter().any(mentions) {
                let needed: Vec<_> = needed.iter().map(|name| format!("`{{{name}:…}}`")).collect();
                errors.push(format!(
                    "{}: no statement names {}",
                    stage.word(),
                    needed.join(" or ")
                ));
            }
        }
        let known = Known {
            stage: Stage::List,
            values: &values,
            more: &[],
        };
        let list = match settings.get("list") {
            Some(Value::String(text)) => sql(text, dialect, &known, "list", &mut errors),
            _ => {
                errors.push("list: must be a query whose first column are names of users".to_owned());
                None
            }
        };
        match (database, tls, list) {
            (Some(database), Some(tls), Some(list)) if errors.is_empty() => Ok(Self {
                dialect,
                database,
                maintenance,
                tls,
                values,
                prepare,
                issue,
                verify,
                revoke,
                list,
                rotate_admin,
            }),
            _ => Err(errors),
        }
    }

    /// The settings of an instance, which were checked when the catalog was loaded.
    pub fn of(target: &Target) -> PortResult<Self> {
        Self::parse(&target.settings).map_err(|errors| holes::wrong_settings(&errors))
    }
}

/// The name of a database to log in to.
fn name(settings: &Map<String, Value>, member: &str, errors: &mut Vec<String>) -> Option<String> {
    let name = settings.get(member)?.as_str().unwrap_or_default();
    if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
        errors.push(format!("{member}: must be the name of a database"));
        return None;
    }
    Some(name.to_owned())
}

fn sql(text: &str, dialect: Dialect, known: &Known<'_>, path: &str, errors: &mut Vec<String>) -> Option<Sql> {
    Sql::parse(text, dialect, known)
        .map_err(|wrong| errors.extend(wrong.into_iter().map(|error| format!("{path}: {error}"))))
        .ok()
}

/// Reads a list; entries that are wrong are left out of it.
fn list(
    settings: &Map<String, Value>,
    stage: Stage,
    dialect: Dialect,
    values: &Map<String, Value>,
    errors: &mut Vec<String>,
) -> Vec<Entry> {
    let entries = holes::entries(settings, stage, errors);
    let read = entries
        .into_iter()
        .filter_map(|(path, item)| entry(path, item, stage, dialect, values, errors));
    read.collect()
}

fn entry(
    path: String,
    item: &Value,
    stage: Stage,
    dialect: Dialect,
    values: &Map<String, Value>,
    errors: &mut Vec<String>,
) -> Option<Entry> {
    let before = errors.len();
    let short;
    let members = match item {
        Value::String(_) => {
            short = Map::from_iter([("sql".to_owned(), item.clone())]);
            &short
        }
        Value::Object(members) => members,
        _ => {
            errors.push(format!("{path}: must be a statement or a map with `sql`"));
            return None;
        }
    };
    holes::unknown(members, &MEMBERS, &path, errors);
    let mut more = Vec::new();
    let has_password = matches!(stage, Stage::Issue | Stage::Verify | Stage::RotateAdmin);
    if dialect == Dialect::Postgres && has_password {
        more.push("verifier");
    }
    // The query that gives `{each}` cannot use it.
    let mut read = |member: &str, more: &[&str]| {
        let known = Known { stage, values, more };
        match members.get(member) {
            None => None,
            Some(Value::String(text)) => sql(text, dialect, &known, &format!("{path}.{member}"), errors),
            Some(_) => {
                errors.push(format!("{path}.{member}: must be the text of a statement"));
                None
            }
        }
    };
    let unless = read("unless", &more);
    let for_each = read("for_each", &more);
    let until = read("until", &more);
    if members.contains_key("for_each") {
        more.push("each");
    }
    let statement = read("sql", &more);
    if !members.contains_key("sql") && (!members.contains_key("until") || members.contains_key("for_each")) {
        errors.push(format!("{path}: needs `sql`"));
    }
    let inside = match members.get("inside") {
        None => false,
        Some(Value::Bool(inside)) => *inside,
        Some(_) => {
            errors.push(format!("{path}.inside: must be true or false"));
            false
        }
    };
    if inside && stage == Stage::Verify {
        errors.push(format!("{path}.inside: all of `verify` runs there, as the user"));
    }
    let roles = holes::roles(members, stage, &path, errors);
    let ignore = ignore(members, &path, errors);
    (errors.len() == before).then_some(Entry {
        sql: statement,
        inside,
        roles,
        unless,
        for_each,
        until,
        ignore,
        path,
    })
}

fn ignore(members: &Map<String, Value>, path: &str, errors: &mut Vec<String>) -> Vec<String> {
    let Some(given) = members.get("ignore") else {
        return Vec::new();
    };
    let codes: Vec<String> = given
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(holes::as_text)
        .filter(|code| (3..=5).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric()))
        .collect();
    if codes.is_empty() || given.as_array().is_none_or(|list| list.len() != codes.len()) {
        errors.push(format!(
            "{path}.ignore: must be a list of codes such as \"42710\" (SQLSTATE) or 1396 (MySQL's number)"
        ));
    }
    codes
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

    fn good() -> Value {
        json!({
            "dialect": "postgres", "database": "app", "values": {"database": "app"},
            "prepare": [{"sql": "CREATE DATABASE {database:identifier}", "ignore": ["42P04"]}],
            "issue": [
                {"sql": "CREATE ROLE {user:identifier}", "unless": "SELECT 1 WHERE {user:literal} = 'x'"},
                {"sql": "ALTER ROLE {user:identifier} PASSWORD {verifier:literal}", "roles": ["owner"]},
            ],
            "verify": [{"until": "SELECT {role:literal}"}],
            "revoke": [{"sql": "KILL {each:number}", "for_each": "SELECT {user:literal}", "inside": true}],
            "list": "SELECT rolname FROM pg_roles",
            "rotate_admin": ["ALTER ROLE {user:identifier} PASSWORD {verifier:literal}"],
        })
    }

    #[test]
    fn how_the_administrator_rotates_need_not_be_said_but_must_be_right() {
        let mut settings = good();
        settings.as_object_mut().unwrap().remove("rotate_admin");
        assert_eq!(errors(&settings), Vec::<String>::new());
        for (list, said) in [
            (json!([]), "no statement names"),
            (json!(["SELECT {user:literal}"]), "no statement names"),
            (
                json!(["SELECT {password:literal} , {role:literal}"]),
                "not known in `rotate_admin`",
            ),
        ] {
            settings["rotate_admin"] = list;
            let found = errors(&settings);
            assert!(found.len() == 1 && found[0].contains(said), "{found:?}");
        }
    }

    #[test]
    fn good_settings_pass() {
        assert_eq!(errors(&good()), Vec::<String>::new());
        let mut settings = good();
        settings["dialect"] = json!("mysql");
        settings["issue"] = json!(["CREATE USER {user:literal} IDENTIFIED BY {password:literal}"]);
        settings["rotate_admin"] = json!(["ALTER USER {user:literal} IDENTIFIED BY {password:literal}"]);
        settings["prepare"] = json!([]);
        settings["sslmode"] = json!("verify-full");
        assert_eq!(errors(&settings), Vec::<String>::new());
        let read = Settings::parse(settings.as_object().unwrap()).unwrap();
        assert_eq!((read.maintenance, read.prepare.len()), (None, 0));
        let read = Settings::parse(good().as_object().unwrap()).unwrap();
        assert_eq!(read.maintenance.as_deref(), Some("postgres"));
    }

    #[test]
    fn every_wrong_member_is_told_at_once_with_its_place() {
        let wrong = json!({
            "dialect": "oracle", "database": "", "maintenance_database": 5, "sslmode": "prefer", "extra": 1,
            "values": {"password": "x", "list": []},
            "prepare": ["DROP ROLE {user:identifier}", 7, {"sql": 1}, {"roles": ["owner"], "sql": "x"}],
            "issue": [{"sql": "CREATE ROLE '{user:identifier}'", "ignore": "42P04", "inside": "yes", "when": "x"}],
            "verify": [{"sql": "SELECT 1", "inside": true, "roles": ["reader"]}, {"for_each": "SELECT 1"}],
            "revoke": {"sql": "x"},
        });
        let found = errors(&wrong);
        for start in [
            "dialect:",
            "database:",
            "maintenance_database:",
            "sslmode:",
            "extra: unknown",
            "values.password:",
            "values.list:",
            "prepare[0].sql: `{user}` is not known in `prepare`",
            "prepare[1]:",
            "prepare[2].sql:",
            "prepare[3].roles:",
            "issue[0].sql:",
            "issue[0].ignore:",
            "issue[0].inside:",
            "issue[0].when: unknown",
            "verify[0].inside:",
            "verify[0].roles:",
            "verify[1]: needs `sql`",
            "revoke: must be a list",
            "list:",
        ] {
            assert!(
                found.iter().any(|e| e.starts_with(start)),
                "{start} is missing in {found:#?}"
            );
        }
    }

    #[test]
    fn lists_that_cannot_do_their_work_are_refused() {
        for (member, value, said) in [
            ("issue", json!([]), "issue: no statement names `{user:…}`"),
            (
                "issue",
                json!(["CREATE ROLE {user:identifier}"]),
                "issue: no statement names `{password:…}`",
            ),
            (
                "revoke",
                json!(["SELECT 1"]),
                "revoke: no statement names `{user:…}`",
            ),
            (
                "list",
                json!("SELECT {user:literal}"),
                "list: `{user}` is not known",
            ),
            (
                "revoke",
                json!([{"sql": "DROP ROLE {user:identifier} {each:literal}"}]),
                "revoke[0].sql: `{each}`",
            ),
        ] {
            let mut settings = good();
            settings[member] = value;
            let found = errors(&settings);
            assert!(found.iter().any(|e| e.starts_with(said)), "{said}: {found:?}");
        }
        let mut settings = good();
        settings["dialect"] = json!("mysql");
        let found = errors(&settings);
        assert!(
            found.iter().any(|e| e.contains("`{verifier}`")),
            "no verifiers in MySQL: {found:?}"
        );
    }
}
