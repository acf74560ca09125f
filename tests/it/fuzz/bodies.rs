//! Bodies that are no JSON, JSON that is no request, and requests bent a little; and framings that contradict them.

use super::requests::Case;
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SHORT, SMALL};
use crate::support::chance::Chance;
use serde_json::{Value, json};

pub fn body(chance: &mut Chance, head: &mut Vec<u8>, case: &mut Case) {
    let is_binding = case.path.contains("service_bindings");
    let body = match chance.below(16) {
        0 => garbage(chance),
        1 => json_text(chance, 0),
        2 if case.method != "GET" => Vec::new(),
        _ if matches!(case.method.as_str(), "PUT" | "PATCH" | "POST") => document(chance, is_binding, 4),
        _ => Vec::new(),
    };
    let content_type = match chance.below(14) {
        0 => "",
        1 => chance.pick(&[
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml",
            "/",
            ";;;",
            "application/json, text/plain",
        ]),
        2 => chance.pick(&[
            "application/json; charset=utf-16",
            "application/json;charset=\"utf-8\"",
            "APPLICATION/JSON",
            "application/merge-patch+json",
        ]),
        _ => "application/json",
    };
    if !content_type.is_empty() {
        head.extend_from_slice(format!("Content-Type: {content_type}\r\n").as_bytes());
    }
    let content_length = |n: usize| format!("Content-Length: {n}\r\n\r\n").into_bytes();
    match chance.below(30) {
        // In chunks, whole.
        0..=3 => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let size = chance.pick(&[&1_usize, &7, &64, &4096]);
            let size = (*size).max(body.len() / 200 + 1);
            for chunk in body.chunks(size) {
                head.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                head.extend_from_slice(chunk);
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"0\r\n\r\n");
        }
        // In chunks that are none.
        4 => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let broken: &[&[u8]] = &[
                b"zz\r\n{}\r\n0\r\n\r\n",
                b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
                b"-1\r\n{}\r\n0\r\n\r\n",
                b"2\r\n{}XX0\r\n\r\n",
                b"\r\n\r\n",
                b"2\r\n{}\r\n",
            ];
            head.extend_from_slice(broken[chance.below(broken.len())]);
            (case.not_http, case.ends) = (true, true);
        }
        // Both framings, contradicting or doubtful lengths.
        5 => {
            let framings = [
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
                "Content-Length: -1\r\n\r\n{}",
                "Content-Length: +2\r\n\r\n{}",
                "Content-Length: 99999999999999999999\r\n\r\n{}",
                "Content-Length: abc\r\n\r\n{}",
                "Transfer-Encoding: gzip\r\n\r\n{}",
                "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            ];
            head.extend_from_slice(framings[chance.below(framings.len())].as_bytes());
            (case.not_http, case.ends) = (true, true);
        }
        // Ends too early.
        6 if !body.is_empty() => {
            head.extend_from_slice(&content_length(body.len() + chance.below(40) + 1));
            head.extend_from_slice(&body);
            (case.not_http, case.ends) = (true, true);
        }
        7 => {
            head.extend_from_slice(b"Expect: 100-continue\r\n");
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
        8 => {
            head.extend_from_slice(b"Content-Encoding: gzip\r\n");
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
        _ => {
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
    }
}

/// Bytes that are no JSON, or JSON no sane client sends.
fn garbage(chance: &mut Chance) -> Vec<u8> {
    match chance.below(16) {
        0 => vec![0xff, 0xfe, 0x00],
        1 => b"{\"service_id\":\"\xc3\x28\"}".to_vec(),
        2 => b"\xef\xbb\xbf{}".to_vec(),
        3 => "[".repeat(200_000).into_bytes(),
        4 => "{\"a\":".repeat(50_000).into_bytes(),
        5 => format!("{{\"service_id\":\"{}\"}}", "x".repeat(1 << 20)).into_bytes(),
        6 => format!("{{\"parameters\":{{\"size\":{}}}}}", "9".repeat(5000)).into_bytes(),
        7 => b"{\"service_id\":\"\\ud800\",\"plan_id\":\"\\udfff\\ud800\"}".to_vec(),
        8 => b"{\"service_id\":\"\\u0000\",\"plan_id\":\"a\\u0000b\"}".to_vec(),
        9 => b"{} {}".to_vec(),
        10 => b"// no\n{}".to_vec(),
        11 => b"service_id=1&plan_id=2".to_vec(),
        12 => b"{\"service_id\":NaN,\"plan_id\":Infinity}".to_vec(),
        13 => vec![b' '; 100_000],
        14 => (0..chance.below(300))
            .map(|_| u8::try_from(chance.next() & 0xff).unwrap())
            .collect(),
        _ => b"\"text\"".to_vec(),
    }
}

/// A body that is right, then bent fewer than `bends` times.
pub fn document(chance: &mut Chance, is_binding: bool, bends: usize) -> Vec<u8> {
    let (service, plan) = match chance.below(if bends == 0 { 30 } else { 10 }) {
        0 => (BETA, BETA_SMALL),
        1 => (ALPHA, BARE),
        2 => (ALPHA, ELSEWHERE),
        3 => (ALPHA, SHORT),
        4 => (ALPHA, MEDIUM),
        5 => (ALPHA, BETA_SMALL),
        _ => (ALPHA, SMALL),
    };
    let mut body = if is_binding {
        catalog::bind_body()
    } else {
        catalog::provision_body()
    };
    body["service_id"] = service.into();
    body["plan_id"] = plan.into();
    if bends == 0 {
        return body.to_string().into_bytes();
    }
    for _ in 0..chance.below(bends) {
        let names: &[&str] = &[
            "service_id",
            "plan_id",
            "organization_guid",
            "space_guid",
            "parameters",
            "context",
            "maintenance_info",
            "previous_values",
            "bind_resource",
            "app_guid",
            "predecessor_binding_id",
            "accepts_incomplete",
            "__proto__",
            "",
            "\u{0}",
            "parameters",
            "parameters",
        ];
        let name = chance.pick(names);
        let text = json_text(chance, 0);
        let value = match (name, chance.below(4)) {
            ("parameters", 0) => json!({"size": chance.below(12)}),
            ("parameters", 1) => json!({"role": chance.pick(&["owner", "readonly", "root"])}),
            ("maintenance_info", 0 | 1) => json!({"version": chance.pick(&["1.0.0", "1.1.0", "x", ""])}),
            ("predecessor_binding_id", 0 | 1) => json!(chance.pick(&["a", "b", "one"])),
            ("context", 0 | 1) => {
                json!({"platform": chance.pick(&["cloudfoundry", "kubernetes", "\u{0}", ""]), "x": "\u{0}\u{1f6a2}"})
            }
            ("bind_resource", 0 | 1) => json!({"app_guid": chance.pick(&["app", "", "\u{0}"]), "route": "r"}),
            _ => serde_json::from_slice(&text).unwrap_or(Value::Null),
        };
        body[name] = value;
    }
    if chance.one_in(12) {
        body.as_object_mut().unwrap().remove(chance.pick(&[
            "service_id",
            "plan_id",
            "organization_guid",
            "space_guid",
        ]));
    }
    let mut text = body.to_string().into_bytes();
    match chance.below(24) {
        0 => text.truncate(chance.below(text.len())),
        1 => {
            let at = chance.below(text.len());
            text[at] = u8::try_from(chance.next() & 0xff).unwrap();
        }
        2 => text
            .splice(1..1, b"\"service_id\":1,".iter().copied())
            .for_each(drop),
        _ => {}
    }
    text
}

/// Any JSON, sometimes with what only a careless parser takes.
fn json_text(chance: &mut Chance, depth: usize) -> Vec<u8> {
    match chance.below(if depth > 3 { 9 } else { 12 }) {
        0 => b"null".to_vec(),
        1 => chance.pick(&["true", "false"]).as_bytes().to_vec(),
        2 => chance
            .pick(&[
                "0",
                "-0",
                "1",
                "-1",
                "1e308",
                "1e-999",
                "1e999",
                "18446744073709551616",
                "-9223372036854775809",
                "0.1",
                "3.0",
                "1E2",
            ])
            .as_bytes()
            .to_vec(),
        3 => b"\"\"".to_vec(),
        4 => format!("\"{}\"", chance.pick(&[ALPHA, SMALL, "org", "a", "readonly"])).into_bytes(),
        5 => chance
            .pick(&[
                "\"\\u0000\"",
                "\"\\ud83d\\udea2\"",
                "\"\\ud800\"",
                "\"\\n\\r\\t\\b\\f\"",
                "\"${jndi:x}\"",
                "\"'; DROP TABLE instances; --\"",
                "\"\\u202e\"",
                "\"../../etc/passwd\"",
            ])
            .as_bytes()
            .to_vec(),
        6 => format!("\"{}\"", "w".repeat(chance.below(3000))).into_bytes(),
        7 => format!("{}1{}", "[".repeat(120), "]".repeat(120)).into_bytes(),
        8 => b"{}".to_vec(),
        9 => {
            let items: Vec<_> = (0..chance.below(4))
                .map(|_| String::from_utf8(json_text(chance, depth + 1)).unwrap())
                .collect();
            format!("[{}]", items.join(",")).into_bytes()
        }
        _ => {
            let members: Vec<_> = (0..chance.below(4))
                .map(|_| {
                    let name = chance.pick(&[
                        "size", "colour", "role", "version", "platform", "app_guid", "route", "plan_id", "",
                        "\\u0000", "a",
                    ]);
                    format!(
                        "\"{name}\":{}",
                        String::from_utf8(json_text(chance, depth + 1)).unwrap()
                    )
                })
                .collect();
            format!("{{{}}}", members.join(",")).into_bytes()
        }
    }
}
