//! What the broker and its bindings may do in the vault: the rules as a table, from which the policies are written and by
//! which `chandler doctor` asks whether they are in force.
//!
//! What must stay true: the broker cannot read a binding's secret, write a policy, a role or a mount; a binding reads what
//! lies under its own client's name and nothing else. A rule with `list` is one level deep: one over all levels with a `*`
//! would take the place of the others.

use super::VaultSettings;
use std::fmt::Write as _;

/// Name of the broker's policy: `osb-broker`, or as the store of bindings' secrets is called. Two brokers with stores of
/// their own can share a vault.
pub(super) fn broker_name(settings: &VaultSettings) -> String {
    format!("{}-broker", settings.kv_mount.replace('/', "-"))
}

/// Name of the policy that all bindings share.
pub(super) fn binding_name(settings: &VaultSettings) -> String {
    format!("{}-binding", settings.kv_mount.replace('/', "-"))
}

/// A client's name that nobody has: doctor asks about it.
const NOBODY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaa";

/// One rule of the broker's policy.
pub(super) struct Rule {
    /// The path as it stands in the policy.
    pub path: String,
    /// A path that the rule is about, to ask about.
    pub sample: String,
    /// All that is needed there.
    pub capabilities: &'static [&'static str],
    /// What for.
    pub reason: &'static str,
}

/// A path the broker must not get at.
pub(super) struct Ban {
    pub path: String,
    /// What somebody could do who has the broker's token.
    pub danger: &'static str,
}

fn rule(path: String, sample: String, capabilities: &'static [&'static str], reason: &'static str) -> Rule {
    Rule {
        path,
        sample,
        capabilities,
        reason,
    }
}

/// The rules of the broker's policy.
pub(super) fn rules(settings: &VaultSettings) -> Vec<Rule> {
    let kv = &settings.kv_mount;
    let place = format!("nobody/{NOBODY}/osb-b-{NOBODY}");
    let same = |path: &str| (path.to_owned(), path.to_owned());
    let exact = |path: &str, capabilities, reason| {
        let (path, sample) = same(path);
        rule(path, sample, capabilities, reason)
    };
    let mut rules = vec![
        rule(
            format!("{kv}/data/+/+/osb-b-*"),
            format!("{kv}/data/{place}"),
            &["create", "update"],
            "writes bindings' secrets, and cannot read them back",
        ),
        rule(
            format!("{kv}/metadata/+/+/osb-b-*"),
            format!("{kv}/metadata/{place}"),
            &["create", "update", "read", "delete"],
            "sets how long they live, sees which version is there, destroys them",
        ),
        exact(
            &format!("{kv}/metadata/"),
            &["list"],
            "finds what belongs to no binding any more: platforms,",
        ),
        rule(
            format!("{kv}/metadata/+/"),
            format!("{kv}/metadata/nobody/"),
            &["list"],
            "their instances,",
        ),
        rule(
            format!("{kv}/metadata/+/+/"),
            format!("{kv}/metadata/nobody/{NOBODY}/"),
            &["list"],
            "their bindings",
        ),
        exact(
            &format!("{kv}/config"),
            &["read"],
            "sees that the store is set up as it must be",
        ),
    ];
    if settings.instance_secrets {
        let internal = &settings.internal_mount;
        rules.extend([
            rule(
                format!("{internal}/data/*"),
                format!("{internal}/data/{NOBODY}/admin"),
                &["create", "update", "read"],
                "keeps the credentials by which it administers instances",
            ),
            rule(
                format!("{internal}/metadata/*"),
                format!("{internal}/metadata/{NOBODY}/admin"),
                &["read", "delete", "list"],
                "destroys them with their instance",
            ),
            exact(
                &format!("{internal}/config"),
                &["read"],
                "sees that the store is set up as it must be",
            ),
        ]);
    }
    rules.extend([
        exact(
            "sys/auth",
            &["read"],
            "knows the accessor of the applications' log-in",
        ),
        exact(
            "identity/lookup/entity",
            &["update"],
            "finds who logged in as a binding that has ended,",
        ),
        rule(
            "identity/entity/id/*".to_owned(),
            format!("identity/entity/id/{NOBODY}"),
            &["delete"],
            "and ends the tokens that were given out for it",
        ),
        exact(
            "auth/token/lookup-self",
            &["read"],
            "tells a token that has ended from one that may not",
        ),
        exact("auth/token/renew-self", &["update"], "renews its token"),
        exact("sys/capabilities-self", &["update"], "checks these very rules"),
    ]);
    rules
}

/// What the broker must not be able to do, each with what it would mean.
pub(super) fn bans(settings: &VaultSettings) -> Vec<Ban> {
    let (kv, jwt) = (&settings.kv_mount, &settings.jwt_mount);
    let ban = |path: String, danger| Ban { path, danger };
    vec![
        ban(
            format!("sys/policies/acl/{}", binding_name(settings)),
            "change what bindings may read",
        ),
        ban(
            format!("sys/policies/acl/{}", broker_name(settings)),
            "give itself any right",
        ),
        ban(
            format!("auth/{jwt}/role/{}", settings.jwt_role),
            "let anybody log in as a binding",
        ),
        ban(
            format!("auth/{jwt}/config"),
            "make its own key one that signs bindings' tokens",
        ),
        ban("identity/entity-alias".to_owned(), "make itself any binding"),
        ban("identity/entity".to_owned(), "give policies to anybody"),
        ban("auth/token/create".to_owned(), "make tokens that outlive it"),
        ban(
            format!("sys/mounts/{kv}"),
            "remove the store with all that is in it",
        ),
        ban(
            format!("{kv}/data/nobody/{NOBODY}/other"),
            "write what is no binding's",
        ),
    ]
}

/// The broker's policy.
pub(super) fn broker(settings: &VaultSettings) -> String {
    let mut text =
        String::from("# What the broker may do. It writes bindings' secrets and cannot read them.\n");
    for rule in rules(settings) {
        let _ = write!(
            text,
            "\n# {}\npath \"{}\" {{\n  capabilities = [",
            rule.reason, rule.path
        );
        for (index, capability) in rule.capabilities.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}\"{capability}\"");
        }
        text.push_str("]\n}\n");
    }
    text
}

/// The policy all bindings share. `accessor` is that of the applications' log-in.
///
/// The name of the alias is the client's, which Keycloak vouches for. A rule that cannot be filled in does not apply.
pub(super) fn binding(settings: &VaultSettings, accessor: &str) -> String {
    let kv = &settings.kv_mount;
    let mut text = String::from("# What a binding may do: read what lies under its own client's name.\n");
    for half in ["data", "metadata"] {
        let _ = write!(
            text,
            "\npath \"{kv}/{half}/+/+/{{{{identity.entity.aliases.{accessor}.name}}}}\" {{\n  capabilities = [\"read\"]\n}}\n"
        );
    }
    text
}
