//! Amounts as Kubernetes writes them (`250m`, `1.5Gi`), in thousandths of a unit so that sums are exact.

use serde_json::Value;

const MEBI: i128 = 1 << 20;

/// Thousandths of the unit; `None` when it is no amount. Fractions below that are rounded up.
pub(super) fn milli(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse(text.trim()),
        Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

fn parse(text: &str) -> Option<i128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // Numerator and denominator of a thousand times the unit.
    let (times, over): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (10i128.pow(12), 1),
        "T" => (10i128.pow(15), 1),
        "P" => (10i128.pow(18), 1),
        "E" => (10i128.pow(21), 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.pow(exponent.unsigned_abs().min(18));
            match exponent {
                0..=18 => (1_000 * power, 1),
                -9..=-1 => (1_000, power),
                _ => return None,
            }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let part = |digits: &str| -> Option<i128> {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse().ok()
        }
    };
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = part(whole)?.checked_mul(scale)? + part(fraction)?;
    let over = scale * over;
    let total = scaled.checked_mul(times)?;
    Some((total + over - 1) / over)
}

/// Processors as text, such as `1250m`.
pub(super) fn cpu(milli: i128) -> String {
    if milli % 1_000 == 0 {
        (milli / 1_000).to_string()
    } else {
        format!("{milli}m")
    }
}

/// Bytes as text, rounded up to whole mebibytes.
pub(super) fn bytes(milli: i128) -> String {
    let mebi = (milli + 1_000 * MEBI - 1) / (1_000 * MEBI);
    if mebi > 0 && mebi % 1_024 == 0 {
        format!("{}Gi", mebi / 1_024)
    } else {
        format!("{mebi}Mi")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (value, milli) in [
            (json!("250m"), 250),
            (json!("0.25"), 250),
            (json!(2), 2_000),
            (json!(0.5), 500),
            (json!("1e3"), 1_000_000),
            (json!("5e-1"), 500),
            (json!("100n"), 1),
            (json!("1500u"), 2),
            (json!("1Ki"), 1_024_000),
            (json!("1.5Gi"), 1_000 * 3 * (1 << 29)),
            (json!("10G"), 10_000_000_000_000),
            (json!("1E"), 10i128.pow(21)),
            (json!(".5"), 500),
        ] {
            assert_eq!(super::milli(&value), Some(milli), "{value}");
        }
        for wrong in [
            json!(""),
            json!("Gi"),
            json!("1 Gi"),
            json!("-1"),
            json!("1e"),
            json!("1e99"),
            json!("1.2.3"),
            json!("1GiB"),
            json!(null),
            json!("99999999999999999999"),
        ] {
            assert_eq!(super::milli(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn amounts_are_written_short_and_never_less() {
        assert_eq!((cpu(1_250), cpu(3_000)), ("1250m".to_owned(), "3".to_owned()));
        let gibi = 1_000 << 30;
        assert_eq!(
            (bytes(gibi), bytes(gibi + 1), bytes(0)),
            ("1Gi".to_owned(), "1025Mi".to_owned(), "0Mi".to_owned())
        );
        for text in ["1Gi", "1.1Gi", "3G", "7"] {
            let amount = milli(&json!(text)).unwrap();
            assert!(milli(&json!(bytes(amount))).unwrap() >= amount, "{text}");
        }
    }
}
