//! What a `binding.yaml` says for `http`: checked whole, every error at once, each with its member.

use super::step::Step;
use crate::adapters::credentials::holes::{self, Stage};
use crate::adapters::credentials::web;
use crate::ports::{PortResult, Target};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The members there are.
const KNOWN: [&str; 9] = [
    "endpoint", "tls", "login", "values", "prepare", "issue", "verify", "revoke", "list",
];

/// How whoever sends a request proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// Name and password in each request.
    Basic,
    /// The password as a token.
    Bearer,
    /// The steps' own headers and bodies do it.
    None,
}

/// The steps for one call.
#[derive(Debug, Default)]
pub(super) struct List {
    pub steps: Vec<Step>,
    /// All names that steps capture.
    pub captured: BTreeSet<String>,
}

/// All of it.
pub(super) struct Settings {
    /// Which endpoint of the instance; none for the one that `binding.yaml` names.
    pub endpoint: Option<String>,
    pub tls: bool,
    pub login: Login,
    pub values: Map<String, Value>,
    pub prepare: List,
    pub issue: List,
    pub verify: List,
    pub revoke: List,
    pub list: List,
}

impl Settings {
    /// Reads settings; every error at once.
    pub fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        holes::unknown(settings, &KNOWN, "", &mut errors);
        errors.extend(web::check_tls(settings));
        let endpoint = match settings.get("endpoint") {
            None => None,
            Some(Value::String(name)) if !name.is_empty() => Some(name.clone()),
            Some(_) => {
                errors.push("endpoint: must be the name of one of the instance's endpoints".to_owned());
                None
            }
        };
        let login = match settings
            .get("login")
            .map(|word| word.as_str().unwrap_or_default())
        {
            None | Some("basic") => Login::Basic,
            Some("bearer") => Login::Bearer,
            Some("none") => Login::None,
            Some(_) => {
                errors.push("login: must be basic, bearer or none".to_owned());
                Login::None
            }
        };
        let values = holes::values(settings, &mut errors);
        let mut read = |stage| list(settings, stage, &values, &mut errors);
        let (prepare, issue, verify) = (read(Stage::Prepare), read(Stage::Issue), read(Stage::Verify));
        let (revoke, list) = (read(Stage::Revoke), read(Stage::List));
        // What is wrong within a step was told already.
        if errors.is_empty() {
            let names = |list: &List, name: &str| list.steps.iter().any(|step| step.mentions(name));
            for (stage, list, needed) in [
                (Stage::Issue, &issue, "user"),
                (Stage::Issue, &issue, "password"),
                (Stage::Revoke, &revoke, "user"),
            ] {
                if !names(list, needed) {
                    errors.push(format!("{}: no step names `{{{needed}}}`", stage.word()));
                }
            }
            if verify.steps.is_empty() {
                errors.push("verify: must have a step that the user takes".to_owned());
            }
            if !list.steps.iter().any(|step| step.users.is_some()) {
                errors.push("list: no step says with `users` where names of users are".to_owned());
            }
        }
        if errors.is_empty() {
            Ok(Self {
                endpoint,
                tls: settings.get("tls") == Some(&Value::Bool(true)),
                login,
                values,
                prepare,
                issue,
                verify,
                revoke,
                list,
            })
        } else {
            Err(errors)
        }
    }

    /// The settings of an instance, which were checked when the catalog was loaded.
    pub fn of(target: &Target) -> PortResult<Self> {
        Self::parse(&target.settings).map_err(|errors| holes::wrong_settings(&errors))
    }
}

/// Reads a list; steps that are wrong are left out of it.
fn list(
    settings: &Map<String, Value>,
    stage: Stage,
    values: &Map<String, Value>,
    errors: &mut Vec<String>,
) -> List {
    let mut captured: Vec<String> = Vec::new();
    let mut steps = Vec::new();
    for (place, item) in holes::entries(settings, stage, errors) {
        let step = Step::parse(place, item, stage, values, &captured, errors);
        // Also of a step that is wrong, so that one mistake is not told for all that follow.
        let names = item.get("capture").and_then(Value::as_object);
        captured.extend(names.into_iter().flat_map(|names| names.keys().cloned()));
        steps.extend(step);
    }
    List {
        steps,
        captured: captured.into_iter().collect(),
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

    fn good() -> Value {
        json!({
            "tls": false, "login": "basic", "endpoint": "admin", "values": {"database": "app"},
            "prepare": [{"method": "PUT", "path": "/{database}", "ok": [201, 412]}],
            "issue": [
                {"method": "GET", "path": "/users/{user}", "ok": [200, 404], "capture": {"rev": "/_rev"}},
                {"method": "PUT", "path": "/users/{user}", "again_on": [409], "unless": "rev",
                 "headers": {"x-token": "{admin_password}"},
                 "body": {"_rev": "{rev}", "password": "{password}", "roles": ["{database}_{role}"]}},
            ],
            "verify": [{"method": "GET", "path": "/session", "expect": {"/name": "{user}"}}],
            "revoke": [{"method": "DELETE", "path": "/users/{user}", "done_on": [404]}],
            "list": [{"method": "GET", "path": "/users?prefix=b_", "users": "/rows/*/id", "prefix": "user:"}],
        })
    }

    #[test]
    fn good_settings_pass() {
        assert_eq!(errors(&good()), Vec::<String>::new());
    }

    #[test]
    fn every_wrong_member_is_told_at_once_with_its_place() {
        let wrong = json!({
            "tls": "yes", "login": "digest", "endpoint": 5, "extra": 1, "values": {"user": "x"},
            "prepare": [
                {"method": "FETCH", "path": "users", "ok": 200, "again_on": [500], "roles": ["owner"]},
                {"path": "/{user}", "method": "PUT", "if": "rev", "extra": 1},
                7,
            ],
            "issue": [
                {"method": "PUT", "path": "/{password}", "headers": {"Host": "x", "host": "y", "x": 1}, "body": ["{nope}", "{"]},
                {"method": "PUT", "path": "/{user:literal}", "capture": {"user": "/a", "ok": "a", "all": "/*/x"}},
                {"method": "PUT", "path": "//evil", "expect": {"x": 1}, "users": "/x"},
            ],
            "verify": {},
            "revoke": [{"method": "DELETE", "path": "/{user}", "as": "user"}, {"method": "GET", "path": "/a b"}],
            "list": [{"method": "GET", "path": "/", "users": 1, "prefix": 2, "as": "root"}],
        });
        let found = errors(&wrong);
        for start in [
            "tls:",
            "login:",
            "endpoint:",
            "extra: unknown",
            "values.user:",
            "prepare[0].method:",
            "prepare[0].path:",
            "prepare[0].ok:",
            "prepare[0].again_on:",
            "prepare[0].roles:",
            "prepare[1].path: `{user}` is not known in `prepare`",
            "prepare[1].if:",
            "prepare[1].extra: unknown",
            "prepare[2]:",
            "issue[0].path: `{password}` must not stand in an address",
            "issue[0].headers.Host:",
            "issue[0].headers.host:",
            "issue[0].headers.x:",
            "issue[0].body: `{nope}`",
            "issue[0].body: a brace",
            "issue[1].path: `{user}` takes no kind",
            "issue[1].capture.user:",
            "issue[1].capture.ok:",
            "issue[1].capture.all:",
            "issue[2].path:",
            "issue[2].expect.x:",
            "issue[2].users:",
            "verify: must be a list",
            "revoke[0].as:",
            "revoke[1].path:",
            "list[0].users:",
            "list[0].prefix:",
            "list[0].as:",
        ] {
            assert!(
                found.iter().any(|e| e.starts_with(start)),
                "{start} is missing in {found:#?}"
            );
        }
    }

    #[test]
    fn lists_that_cannot_do_their_work_are_refused() {
        for (member, said) in [
            ("issue", "issue: no step names `{password}`"),
            ("revoke", "revoke: no step names `{user}`"),
            ("verify", "verify: must have a step"),
            ("list", "list: no step says"),
        ] {
            let mut settings = good();
            settings[member] = json!([]);
            assert!(errors(&settings).iter().any(|e| e.starts_with(said)), "{said}");
        }
    }
}
