//! The line of a server's log that tells a person why it ended.
//!
//! Servers print the offending line of their configuration, secrets included, and what they print
//! reaches the platform's user and the log. So anything that stands in a file or environment
//! value we wrote and looks like a secret is masked, and the text is short and free of control characters.

use crate::domain::manifest::ProcessSpec;
use std::path::Path;

/// Longest text taken from a log, in characters.
const LONGEST: usize = 400;

/// The last lines that matter of `log`, on one line: from the last complaint on, at most four; else the last line.
pub(super) fn last_words(log: &str, spec: &ProcessSpec, home: &Path) -> String {
    let lines: Vec<String> = log
        .lines()
        .map(|line| clean(line, spec, home))
        .filter(|line| line.chars().any(char::is_alphanumeric))
        .collect();
    let complaint = lines.iter().rposition(|line| {
        let line = line.to_ascii_lowercase();
        ["fatal", "panic", "error", "[err]"].iter().any(|word| line.contains(word))
    });
    let from = complaint.unwrap_or(lines.len().saturating_sub(1));
    let text: Vec<&str> = lines.iter().skip(from).take(4).map(String::as_str).collect();
    text.join(" | ").chars().take(LONGEST).collect()
}

fn clean(line: &str, spec: &ProcessSpec, home: &Path) -> String {
    let plain: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(2000)
        .collect();
    let plain = match home.to_str() {
        Some(home) => plain.replace(home, "…"),
        None => plain,
    };
    let mut out = String::new();
    let mut word = String::new();
    for c in plain.chars().chain([' ']) {
        if c.is_alphanumeric() || matches!(c, '-' | '_' | '+' | '/' | '.' | '$') {
            word.push(c);
            continue;
        }
        if is_secret(&word, spec) {
            out.push_str("***");
        } else {
            out.push_str(&word);
        }
        word.clear();
        out.push(c);
    }
    out.trim().to_owned()
}

/// Whether a word, or a piece of it, stands in something we wrote and looks made rather than spoken: eight
/// characters or more, a digit or a capital among them, and not an address.
fn is_secret(word: &str, spec: &ProcessSpec) -> bool {
    let looks_made = |piece: &str| {
        piece.chars().count() >= 8
            && piece.chars().any(|c| c.is_ascii_digit() || c.is_uppercase())
            && !piece.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    let stands = |piece: &str| {
        spec.files
            .iter()
            .map(|file| &file.content)
            .chain(spec.env.values())
            .any(|text| text.contains(piece))
    };
    [word]
        .into_iter()
        .chain(word.split(['/', '.', '$', '-', '_', '+']))
        .any(|piece| looks_made(piece) && stands(piece))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::manifest::FileSpec;

    fn spec() -> ProcessSpec {
        ProcessSpec {
            files: vec![FileSpec {
                path: "a.conf".into(),
                content: "maxmemory-policy noeviction\nrequirepass \"hunter2hunter2\"\n".into(),
                ..FileSpec::default()
            }],
            ..ProcessSpec::default()
        }
    }

    #[test]
    fn the_complaint_and_what_follows_without_secrets() {
        let log = "starting\n\n*** FATAL CONFIG FILE ERROR (Redis 7) ***\nReading the configuration file, at line 2\n\
                   >>> 'requirepass \"hunter2hunter2\" \x1b[31m'\nBad directive in /data/i/a.conf\nmore\n";
        let words = last_words(log, &spec(), Path::new("/data/i"));
        assert!(words.starts_with("*** FATAL CONFIG"), "{words}");
        assert!(words.contains("requirepass \"***\""), "{words}");
        assert!(words.ends_with("Bad directive in …/a.conf"), "{words}");
        assert!(!words.contains('\x1b') && !words.contains("hunter2"), "{words}");
    }

    #[test]
    fn the_last_line_when_nothing_complains() {
        let words = last_words("one\ntwo maxmemory-policy\n---\n", &spec(), Path::new("/x"));
        assert_eq!(words, "two maxmemory-policy");
        let mut spec = spec();
        spec.env.insert("SEED".into(), "SUAK7 127.0.0.1 Xy9z-Abcdefgh1".into());
        let words = last_words("bad seed Xy9z-Abcdefgh1.\n", &spec, Path::new("/x"));
        assert_eq!(words, "bad seed ***");
        let words = last_words("cannot bind 127.0.0.1:80 by /a/Xy9z-Abcdefgh1!\n", &spec, Path::new("/x"));
        assert_eq!(words, "cannot bind 127.0.0.1:80 by ***!");
        let spec = &spec;
        assert_eq!(last_words("", spec, Path::new("/x")), "");
        assert!(last_words(&"é".repeat(5000), spec, Path::new("/x")).chars().count() <= LONGEST);
    }
}
