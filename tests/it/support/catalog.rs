//! The catalog the tests use: every kind of plan the rules speak of, on the fake world's mechanism.

use chandler::domain::catalog::Sources;
use serde_json::{Value, json};

pub const ALPHA: &str = "0a0a0a0a-0000-4000-8000-000000000001";
pub const SMALL: &str = "0a0a0a0a-0000-4000-8000-000000000011";
pub const MEDIUM: &str = "0a0a0a0a-0000-4000-8000-000000000012";
/// Bindings of this plan live ten minutes.
pub const SHORT: &str = "0a0a0a0a-0000-4000-8000-000000000013";
/// Not bindable, not updateable.
pub const BARE: &str = "0a0a0a0a-0000-4000-8000-000000000014";
/// In the catalog's files, not offered here.
pub const ELSEWHERE: &str = "0a0a0a0a-0000-4000-8000-000000000015";
/// An offering whose bindings need an application.
pub const BETA: &str = "0b0b0b0b-0000-4000-8000-000000000002";
pub const BETA_SMALL: &str = "0b0b0b0b-0000-4000-8000-000000000021";

const OFFERING: &str = "id: {id}
name: {name}
description: A service of the fake world
tags: [fake]
metadata:
  displayName: Fake
  longDescription: Fake.
  providerDisplayName: chandler
  documentationUrl: https://example.test/docs
  supportUrl: https://example.test/support
runs_on: [local]
binding_rotatable: true
maximum_polling_duration: 600
maintenance_info:
  version: 1.0.0
  description: First.
values:
  memory: 64Mi
";

const PROCESS: &str = "binaries:
  server: [\"true\"]
install: nothing
ports: [client]
files:
  - path: conf
    content: |
      size ${params.size}
      memory ${plan.memory}
      password ${admin.password}
command: [\"${bin.server}\", \"${dirs.root}/conf\"]
ready:
  tcp: client
";

const BINDING: &str = "mechanism: sql
settings: {}
endpoint: client
default_role: readwrite
roles: [owner, readwrite, readonly]
credentials:
  type: fake
  provider: chandler
  host: ${endpoint.host}
  port: ${endpoint.port}
  username: ${user.username}
  password: ${user.password}
  role: ${role}
  nothing: ${null}
endpoints:
  - host: ${endpoint.host}
    ports: [\"${string(endpoint.port)}\"]
    protocol: tcp
";

fn schema(properties: &str) -> String {
    format!(
        "{{\"$schema\": \"http://json-schema.org/draft-04/schema#\", \"type\": \"object\", \"additionalProperties\": false, \"properties\": {properties}}}"
    )
}

fn plan(id: &str, name: &str, more: &str) -> String {
    format!(
        "id: {id}\nname: {name}\ndescription: The plan {name}\nmetadata:\n  displayName: {name}\n  bullets: [\"One\"]\n{more}"
    )
}

/// The sources of the test catalog.
pub fn sources() -> Sources {
    let mut all = Sources::new();
    let mut add = |path: &str, text: String| {
        all.insert(path.to_owned(), text);
    };
    for (name, id) in [("alpha", ALPHA), ("beta", BETA)] {
        let mut offering = OFFERING.replace("{id}", id).replace("{name}", name);
        if name == "alpha" {
            offering.push_str("updates:\n  small: [medium, short]\n");
        }
        add(&format!("catalog/{name}/offering.yaml"), offering);
        add(&format!("catalog/{name}/process.yaml"), PROCESS.into());
        let binding = if name == "beta" {
            format!("{BINDING}requires_app: true\n")
        } else {
            BINDING.into()
        };
        add(&format!("catalog/{name}/binding.yaml"), binding);
        add(
            &format!("catalog/{name}/create.schema.json"),
            schema(
                r#"{"size": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3}, "colour": {"type": "string", "enum": ["red", "blue"]}}"#,
            ),
        );
        add(
            &format!("catalog/{name}/update.schema.json"),
            schema(r#"{"size": {"type": "integer", "minimum": 1, "maximum": 9}}"#),
        );
        add(
            &format!("catalog/{name}/bind.schema.json"),
            schema(
                r#"{"role": {"type": "string", "enum": ["owner", "readwrite", "readonly"], "default": "readwrite"}}"#,
            ),
        );
        add(
            &format!("catalog/{name}/icon.svg"),
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 8 8\"><circle cx=\"4\" cy=\"4\" r=\"3\"/></svg>".into(),
        );
    }
    add("plans/alpha/small.yaml", plan(SMALL, "small", ""));
    add(
        "plans/alpha/medium.yaml",
        plan(
            MEDIUM,
            "medium",
            "values:\n  memory: 128Mi\nmaintenance_info:\n  version: 1.1.0\n  description: Newer.\n",
        ),
    );
    add(
        "plans/alpha/short.yaml",
        plan(
            SHORT,
            "short",
            "binding_lifetime:\n  ttl: 600\n  renew_before: 120\n",
        ),
    );
    add(
        "plans/alpha/bare.yaml",
        plan(BARE, "bare", "bindable: false\nbinding_rotatable: false\n"),
    );
    add(
        "plans/alpha/elsewhere.yaml",
        plan(ELSEWHERE, "elsewhere", "runs_on: [kubernetes]\n"),
    );
    add(
        "plans/beta/small.yaml",
        plan(BETA_SMALL, "small", "binding_rotatable: false\n"),
    );
    all
}

/// A PUT instance body for `alpha/small`.
pub fn provision_body() -> Value {
    json!({"service_id": ALPHA, "plan_id": SMALL, "organization_guid": "org", "space_guid": "space"})
}

/// A PUT binding body for `alpha/small`.
pub fn bind_body() -> Value {
    json!({"service_id": ALPHA, "plan_id": SMALL})
}

/// The query members a delete needs.
pub fn ids() -> String {
    format!("service_id={ALPHA}&plan_id={SMALL}")
}
