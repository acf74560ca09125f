//! Splits a text leaf into literal text and `${…}` expressions, and bounds an expression before it is parsed.
//!
//! The end of an expression is the brace that closes it: braces inside CEL's string literals and
//! nested maps do not count.

use super::{MAX_EXPRESSION, MAX_NESTING, MAX_OPERATORS, MAX_SELECTS};

/// A part of a leaf.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it stands, `$${` already turned into `${`.
    Literal(String),
    /// What stands between `${` and its `}`.
    Expr(String),
}

/// Splits a leaf. Errors: an expression that is not closed or is empty.
pub(super) fn split(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(escaped) = before.strip_suffix('$') {
            literal.push_str(escaped);
            literal.push_str("${");
            rest = after;
            continue;
        }
        literal.push_str(before);
        let length = end(after).ok_or("a `${` is not closed by a `}`; write `$${` for a literal `${`")?;
        let source = &after[..length];
        if source.trim().is_empty() {
            return Err("`${}` holds no expression".into());
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
        }
        parts.push(Part::Expr(source.to_owned()));
        rest = &after[length + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() || parts.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

/// Offset of the `}` that closes the expression at the start of `text`.
fn end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, c) in code(text) {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Characters of CEL source outside string literals, with their offsets.
fn code(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut chars = text.char_indices();
    let mut raw = false;
    std::iter::from_fn(move || {
        loop {
            let (at, c) = chars.next()?;
            if c != '"' && c != '\'' {
                raw = matches!(c, 'r' | 'R') || (raw && matches!(c, 'b' | 'B'));
                return Some((at, c));
            }
            let one = &text[at..=at];
            let quote = if text[at..].starts_with(&one.repeat(3)) {
                one.repeat(3)
            } else {
                one.to_owned()
            };
            let mut inner = at + quote.len();
            loop {
                let tail = text.get(inner..)?;
                if tail.starts_with(&quote) {
                    inner += quote.len();
                    break;
                }
                let c = tail.chars().next()?;
                inner += c.len_utf8();
                if c == '\\' && !raw {
                    inner += text.get(inner..)?.chars().next()?.len_utf8();
                }
            }
            chars = text.char_indices();
            while chars.clone().next().is_some_and(|(i, _)| i < inner) {
                chars.next();
            }
            raw = false;
        }
    })
}

/// Bounds an expression before the parser, which recurses, sees it.
pub(super) fn check(source: &str) -> Result<(), String> {
    if source.chars().count() > MAX_EXPRESSION {
        return Err(format!(
            "an expression is longer than {MAX_EXPRESSION} characters"
        ));
    }
    let (mut depth, mut operators, mut selects) = (0usize, 0usize, 0usize);
    for (_, c) in code(source) {
        match c {
            '(' | '[' | '{' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(format!(
                        "an expression is nested deeper than {MAX_NESTING} levels"
                    ));
                }
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '!' | '-' | '+' | '*' | '/' | '%' | '?' | '&' | '|' | '<' | '>' | '=' => operators += 1,
            '.' => selects += 1,
            _ => {}
        }
    }
    if operators > MAX_OPERATORS {
        return Err(format!("an expression holds more than {MAX_OPERATORS} operators"));
    }
    if selects > MAX_SELECTS {
        return Err(format!("an expression holds more than {MAX_SELECTS} dots"));
    }
    Ok(())
}
