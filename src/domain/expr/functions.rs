//! What catalog authors may call, and the way between JSON and CEL values.
//!
//! No function reads a file, the environment or a clock. Their errors never repeat an argument.
#![expect(clippy::needless_pass_by_value, reason = "CEL hands arguments over by value")]

use base64::Engine as _;
use cel::objects::{Key, Map as CelMap};
use cel::{Context, ExecutionError, Value as Cel};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

const OWN: [&str; 8] = [
    "sha256", "pbkdf2", "b64", "join", "dns_name", "quantity", "mib", "json",
];
/// Most rounds of `pbkdf2`: a catalog is rendered often, and what is hashed is a long random text.
const MAX_ROUNDS: i64 = 1_000;

type Result<T> = std::result::Result<T, ExecutionError>;

/// Whether this is one of ours, whose messages hold no value.
pub(super) fn is_own(function: &str) -> bool {
    OWN.contains(&function)
}

/// Adds the functions of the catalog language.
pub(super) fn register(context: &mut Context<'_, '_>) {
    let added = [
        context.add_function("sha256", sha256),
        context.add_function("pbkdf2", pbkdf2),
        context.add_function("b64", b64),
        context.add_function("join", join),
        context.add_function("dns_name", dns_name),
        context.add_function("quantity", quantity),
        context.add_function("mib", mib),
        context.add_function("json", json),
    ];
    debug_assert!(
        added.iter().all(std::result::Result::is_ok),
        "a function of that name is in CEL's own library"
    );
}

fn fail<T>(function: &str, message: &str) -> Result<T> {
    Err(ExecutionError::function_error(function, message))
}

/// `sha256(text)`: lower-case hex.
fn sha256(text: Cel) -> Result<Cel> {
    let Cel::String(text) = text else {
        return fail("sha256", "takes a text");
    };
    Ok(data_encoding::HEXLOWER
        .encode(&Sha256::digest(text.as_bytes()))
        .into())
}

/// `pbkdf2(text, salt, rounds)`: PBKDF2 with HMAC-SHA-256, 32 bytes, lower-case hex.
///
/// For servers that take a password only as such a hash, the same on every member.
fn pbkdf2(text: Cel, salt: Cel, rounds: Cel) -> Result<Cel> {
    let (Cel::String(text), Cel::String(salt), Cel::Int(rounds)) = (text, salt, rounds) else {
        return fail("pbkdf2", "takes a text, a salt and a number of rounds");
    };
    if !(1..=MAX_ROUNDS).contains(&rounds) {
        return fail("pbkdf2", "takes 1 to 1000 rounds");
    }
    Ok(data_encoding::HEXLOWER
        .encode(&derived(text.as_bytes(), salt.as_bytes(), rounds))
        .into())
}

/// The first block of PBKDF2 (RFC 8018), which is as long as the hash.
fn derived(text: &[u8], salt: &[u8], rounds: i64) -> [u8; 32] {
    let mut first = salt.to_vec();
    first.extend(1u32.to_be_bytes());
    let mut last = hmac(text, &first);
    let mut all = last;
    for _ in 1..rounds {
        last = hmac(text, &last);
        for (sum, byte) in all.iter_mut().zip(last) {
            *sum ^= byte;
        }
    }
    all
}

/// HMAC-SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut padded = [0u8; BLOCK];
    if key.len() > BLOCK {
        padded[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let mixed = |with: u8| padded.map(|byte| byte ^ with);
    let inner = Sha256::new()
        .chain_update(mixed(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(mixed(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

/// `b64(text)`: standard alphabet, padded.
fn b64(text: Cel) -> Result<Cel> {
    let Cel::String(text) = text else {
        return fail("b64", "takes a text");
    };
    Ok(base64::engine::general_purpose::STANDARD
        .encode(text.as_bytes())
        .into())
}

/// `join(list, separator)`: texts, numbers and booleans as one text.
fn join(list: Cel, separator: Cel) -> Result<Cel> {
    let (Cel::List(list), Cel::String(separator)) = (list, separator) else {
        return fail("join", "takes a list and a separator");
    };
    let mut parts = Vec::with_capacity(list.len());
    for item in list.iter() {
        parts.push(match item {
            Cel::String(text) => text.to_string(),
            Cel::Int(number) => number.to_string(),
            Cel::UInt(number) => number.to_string(),
            Cel::Bool(value) => value.to_string(),
            _ => return fail("join", "takes a list of texts, whole numbers or booleans"),
        });
    }
    Ok(parts.join(separator.as_str()).into())
}

/// `dns_name(text)`: a DNS label, `a-z0-9-`, at most 63 characters.
fn dns_name(text: Cel) -> Result<Cel> {
    let Cel::String(text) = text else {
        return fail("dns_name", "takes a text");
    };
    let mut name = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(63);
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        return fail("dns_name", "the text holds no letter or digit");
    }
    Ok(name.into())
}

/// `quantity("1.5Gi")`: bytes, as Kubernetes counts them; a fraction of a byte is rounded up.
fn quantity(text: Cel) -> Result<Cel> {
    let Cel::String(text) = text else {
        return fail("quantity", "takes a text such as \"512Mi\"");
    };
    match parse_quantity(&text) {
        Some(bytes) => Ok(Cel::Int(bytes)),
        None => fail(
            "quantity",
            "is not an amount such as \"512Mi\", \"1.5Gi\" or \"10G\"",
        ),
    }
}

/// Bytes of a quantity such as `512Mi`; `None` when it is none or does not fit.
pub fn parse_quantity(text: &str) -> Option<i64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor: u128 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || (number.contains('.') && fraction.is_empty())
        || whole.len() > 18
        || fraction.len() > 9
    {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let scaled = (whole.parse::<u128>().ok()? * scale + fraction).checked_mul(factor)?;
    i64::try_from(scaled.div_ceil(scale)).ok()
}

/// `mib(bytes)`: whole mebibytes, rounded down.
fn mib(bytes: Cel) -> Result<Cel> {
    match bytes {
        Cel::Int(bytes) if bytes >= 0 => Ok(Cel::Int(bytes >> 20)),
        _ => fail("mib", "takes a number of bytes"),
    }
}

/// `json(value)`: JSON text; a text becomes a quoted one with control characters escaped.
fn json(value: Cel) -> Result<Cel> {
    match to_json(&value) {
        Ok(value) => Ok(value.to_string().into()),
        Err(message) => fail("json", message),
    }
}

/// Whether a character inside a text could end the line, statement or file it stands in.
pub(super) fn breaks_text(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// JSON as CEL sees it. Whole numbers become signed: CEL refuses to mix signed and unsigned.
pub(super) fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cel::Int(number),
            (None, Some(number)) => Cel::UInt(number),
            (None, None) => Cel::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(members) => Cel::Map(CelMap {
            map: Arc::new(
                members
                    .iter()
                    .map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)))
                    .collect::<HashMap<_, _>>(),
            ),
        }),
    }
}

/// A result as JSON. Errors: what JSON has no form for.
pub(super) fn to_json(value: &Cel) -> std::result::Result<Value, &'static str> {
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(value) => Value::Bool(*value),
        Cel::Int(number) => Value::Number((*number).into()),
        Cel::UInt(number) => Value::Number((*number).into()),
        Cel::Float(number) => Value::Number(Number::from_f64(*number).ok_or("the number is not finite")?),
        Cel::String(text) => Value::String(text.to_string()),
        Cel::List(items) => Value::Array(items.iter().map(to_json).collect::<std::result::Result<_, _>>()?),
        Cel::Map(map) => {
            let mut members = Map::new();
            for (key, value) in map.map.iter() {
                let Key::String(key) = key else {
                    return Err("a map has a key that is not a text");
                };
                members.insert(key.to_string(), to_json(value)?);
            }
            Value::Object(members)
        }
        _ => return Err("the result is not a text, number, boolean, list or map"),
    })
}
