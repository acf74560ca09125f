//! The `settings` of a `binding.yaml` whose mechanism is `nats`: the limits of the instance's account.
//!
//! In an account JWT 0 means "none at all" and -1 "no limit". Authors write what they mean: a limit
//! that is left out is -1, and 0 is refused wherever it would shut everybody out.

use serde_json::{Map, Value, json};

/// The largest message an application may send unless `max_payload` says otherwise, in bytes.
const DEFAULT_PAYLOAD: i64 = 1_048_576;

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// Connections of all bindings together.
    pub max_connections: i64,
    /// Subscriptions of all bindings together.
    pub max_subscriptions: i64,
    /// Bytes of one message.
    pub max_payload: i64,
    /// `None` = the account may not use JetStream.
    pub jetstream: Option<JetStream>,
    /// Servers with a resolver of their own; each answers for itself.
    pub servers: usize,
    /// Whether `readonly` bindings may call the reading part of the JetStream API.
    pub readonly_jetstream: bool,
}

/// What the account may store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the names of the settings")]
pub(super) struct JetStream {
    /// Bytes in memory; 0 = no memory streams.
    pub max_memory: i64,
    /// Bytes on disk; 0 = no file streams.
    pub max_file: i64,
    /// Streams.
    pub max_streams: i64,
    /// Consumers.
    pub max_consumers: i64,
}

const MEMBERS: [&str; 6] = [
    "max_connections",
    "max_subscriptions",
    "max_payload",
    "jetstream",
    "servers",
    "readonly_jetstream",
];
const JETSTREAM_MEMBERS: [&str; 4] = ["max_memory", "max_file", "max_streams", "max_consumers"];

impl Settings {
    /// Reads settings; every error at once. A leaf that still holds a `${…}` is passed over: its value is checked when it is known.
    pub fn parse(settings: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        unknown(settings, &MEMBERS, "", &mut errors);
        let parsed = Self {
            max_connections: limit(settings, "", "max_connections", 1, -1, &mut errors),
            max_subscriptions: limit(settings, "", "max_subscriptions", 1, -1, &mut errors),
            max_payload: limit(settings, "", "max_payload", 1, DEFAULT_PAYLOAD, &mut errors),
            jetstream: jetstream(settings.get("jetstream"), &mut errors),
            servers: servers(settings.get("servers"), &mut errors),
            readonly_jetstream: flag(
                settings.get("readonly_jetstream"),
                "readonly_jetstream",
                &mut errors,
            ),
        };
        if errors.is_empty() {
            Ok(parsed)
        } else {
            Err(errors)
        }
    }

    /// The `limits` of the account JWT.
    ///
    /// No leaf nodes, no bearer tokens (a JWT alone must never be enough to log in), no imports or exports:
    /// the account is an island.
    pub fn limits(&self) -> Value {
        let mut limits = json!({
            "subs": self.max_subscriptions,
            "data": -1,
            "payload": self.max_payload,
            "imports": 0,
            "exports": 0,
            "conn": self.max_connections,
            "leaf": 0,
            "disallow_bearer": true,
        });
        if let Some(js) = &self.jetstream {
            limits["mem_storage"] = js.max_memory.into();
            limits["disk_storage"] = js.max_file.into();
            limits["streams"] = js.max_streams.into();
            limits["consumer"] = js.max_consumers.into();
        }
        limits
    }
}

fn unknown(map: &Map<String, Value>, known: &[&str], prefix: &str, errors: &mut Vec<String>) {
    for member in map.keys().filter(|m| !known.contains(&m.as_str())) {
        errors.push(format!(
            "{prefix}{member}: unknown; settings of nats are {}",
            known.join(", ")
        ));
    }
}

fn is_open(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.contains("${"))
}

fn limit(
    map: &Map<String, Value>,
    prefix: &str,
    member: &str,
    least: i64,
    absent: i64,
    errors: &mut Vec<String>,
) -> i64 {
    let Some(value) = map.get(member).filter(|v| !is_open(v)) else {
        return absent;
    };
    // The server keeps connections, subscriptions and payload in 32 bits: larger values would wrap to something else.
    let most = if prefix.is_empty() {
        i64::from(i32::MAX)
    } else {
        i64::MAX
    };
    match value.as_i64() {
        Some(n) if n == -1 || (least..=most).contains(&n) => n,
        _ => {
            errors.push(format!(
                "{prefix}{member}: must be -1 (no limit) or a whole number from {least} to {most}"
            ));
            absent
        }
    }
}

fn flag(value: Option<&Value>, member: &str, errors: &mut Vec<String>) -> bool {
    match value.filter(|v| !is_open(v)) {
        None => false,
        Some(Value::Bool(on)) => *on,
        Some(_) => {
            errors.push(format!("{member}: must be true or false"));
            false
        }
    }
}

fn servers(value: Option<&Value>, errors: &mut Vec<String>) -> usize {
    match value.filter(|v| !is_open(v)) {
        None => 1,
        Some(value) => {
            let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
            n.filter(|n| (1..=15).contains(n)).unwrap_or_else(|| {
                errors.push("servers: must be a whole number from 1 to 15".into());
                1
            })
        }
    }
}

fn jetstream(value: Option<&Value>, errors: &mut Vec<String>) -> Option<JetStream> {
    let map = match value.filter(|v| !is_open(v)) {
        None | Some(Value::Bool(false)) => return None,
        Some(Value::Bool(true)) => &Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => {
            errors.push("jetstream: must be true, false, or an object of limits".into());
            return None;
        }
    };
    unknown(map, &JETSTREAM_MEMBERS, "jetstream.", errors);
    let parsed = JetStream {
        max_memory: limit(map, "jetstream.", "max_memory", 0, -1, errors),
        max_file: limit(map, "jetstream.", "max_file", 0, -1, errors),
        max_streams: limit(map, "jetstream.", "max_streams", 1, -1, errors),
        max_consumers: limit(map, "jetstream.", "max_consumers", 1, -1, errors),
    };
    if parsed.max_memory == 0 && parsed.max_file == 0 {
        errors.push(
            "jetstream: max_memory and max_file are both 0, which leaves nothing; write `jetstream: false`"
                .into(),
        );
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn parse(value: &Value) -> Result<Settings, Vec<String>> {
        Settings::parse(value.as_object().unwrap())
    }

    #[test]
    fn what_is_left_out_is_unlimited_and_without_jetstream() {
        let settings = parse(&json!({})).unwrap();
        assert_eq!(settings.jetstream, None);
        assert_eq!(settings.servers, 1);
        let limits = settings.limits();
        assert_eq!(limits["conn"], -1);
        assert_eq!(limits["payload"], 1_048_576);
        assert_eq!(limits["leaf"], 0);
        assert_eq!(limits["disallow_bearer"], true);
        assert!(limits.get("disk_storage").is_none());
    }

    #[test]
    fn limits_reach_the_account() {
        let limits = parse(&json!({
            "max_connections": 10, "max_subscriptions": 20, "max_payload": 30, "servers": 3,
            "jetstream": {"max_memory": 0, "max_file": 1_099_511_627_776_i64, "max_streams": 4, "max_consumers": 5},
        }))
        .unwrap()
        .limits();
        for (member, value) in [
            ("conn", 10_i64),
            ("subs", 20),
            ("payload", 30),
            ("mem_storage", 0),
            ("disk_storage", 1_099_511_627_776),
            ("streams", 4),
            ("consumer", 5),
        ] {
            assert_eq!(limits[member], value, "{member}");
        }
        assert_eq!(
            parse(&json!({"jetstream": true})).unwrap().limits()["mem_storage"],
            -1
        );
    }

    #[test]
    fn every_error_at_once() {
        let errors = parse(&json!({
            "max_connections": 0, "max_subscriptions": "many", "max_payload": 3_000_000_000_i64, "servers": 0,
            "readonly_jetstream": 1, "typo": 1,
            "jetstream": {"max_streams": 0, "max_consumers": -2, "typo": 1, "max_memory": 0, "max_file": 0},
        }))
        .unwrap_err();
        for start in [
            "max_connections:",
            "max_subscriptions:",
            "max_payload:",
            "servers:",
            "readonly_jetstream:",
            "typo:",
            "jetstream.max_streams:",
            "jetstream.max_consumers:",
            "jetstream.typo:",
            "jetstream:",
        ] {
            assert!(
                errors.iter().any(|e| e.starts_with(start)),
                "{start} in {errors:?}"
            );
        }
        assert_eq!(errors.len(), 10, "{errors:?}");
        assert!(parse(&json!({"jetstream": "yes"})).is_err());
    }

    #[test]
    fn what_is_not_filled_in_yet_is_passed_over() {
        parse(&json!({"max_connections": "${plan.connections}", "jetstream": {"max_file": "${plan.disk}"}}))
            .unwrap();
        parse(&json!({"jetstream": "${plan.jetstream}", "servers": "${plan.servers}"})).unwrap();
    }
}
