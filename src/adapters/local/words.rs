//! The line of a server's log that tells a person why it ended.
//!
//! Servers print the offending line of their configuration, secrets included, and what they print
//! reaches the platform's user and the log. So anything that stands in a file or environment
//! value we wrote and looks like a secret is masked wherever it occurs, and the text is short and
//! free of control characters.

use crate::domain::manifest::ProcessSpec;
use std::path::Path;

/// Longest text taken from a log, in characters.
const LONGEST: usize = 400;

/// The last lines that matter of `log`, on one line: from the last complaint on, at most four; else the last line.
pub(super) fn last_words(log: &str, spec: &ProcessSpec, home: &Path) -> String {
    let secrets = secrets(spec);
    let lines: Vec<String> = log
        .lines()
        .map(|line| clean(line, &secrets, home))
        .filter(|line| line.chars().any(char::is_alphanumeric))
        .collect();
    let complaint = lines.iter().rposition(|line| {
        let line = line.to_ascii_lowercase();
        ["fatal", "panic", "error", "[err]"]
            .iter()
            .any(|word| line.contains(word))
    });
    let from = complaint.unwrap_or(lines.len().saturating_sub(1));
    let text: Vec<&str> = lines.iter().skip(from).take(4).map(String::as_str).collect();
    text.join(" | ").chars().take(LONGEST).collect()
}

fn clean(line: &str, secrets: &[&str], home: &Path) -> String {
    let mut text: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(2000)
        .collect();
    if let Some(home) = home.to_str() {
        text = text.replace(home, "…");
    }
    for secret in secrets {
        text = text.replace(secret, "***");
    }
    text.trim().to_owned()
}

/// Words of files and environment that look made rather than spoken, and pieces of such words, longest first:
/// eight characters or more, a digit or a capital among them, and not an address.
fn secrets(spec: &ProcessSpec) -> Vec<&str> {
    let mut found: Vec<&str> = spec
        .files
        .iter()
        .map(|file| file.content.as_str())
        .chain(spec.env.values().map(String::as_str))
        .flat_map(|text| text.split(|c: char| c.is_whitespace() || "\"'`=:;,<>#@()[]{}|&".contains(c)))
        .flat_map(|word| {
            [word]
                .into_iter()
                .chain(word.split(['/', '.', '$', '-', '_', '+']))
        })
        .filter(|word| {
            word.chars().count() >= 8
                && word.chars().any(|c| c.is_ascii_digit() || c.is_uppercase())
                && !word.chars().all(|c| c.is_ascii_digit() || c == '.')
        })
        .collect();
    found.sort_by_key(|word| std::cmp::Reverse(word.len()));
    found.dedup();
    found
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
        spec.env
            .insert("SEED".into(), "SUAK7 127.0.0.1 Xy9z-Abcdefgh1".into());
        let words = last_words("bad seedXy9z-Abcdefgh1. or Abcdefgh1\n", &spec, Path::new("/x"));
        assert_eq!(words, "bad seed***. or ***");
        let words = last_words(
            "cannot bind 127.0.0.1:80 by /a/Xy9z-Abcdefgh1!\n",
            &spec,
            Path::new("/x"),
        );
        assert_eq!(words, "cannot bind 127.0.0.1:80 by /a/***!");
        let spec = &spec;
        assert_eq!(last_words("", spec, Path::new("/x")), "");
        assert!(
            last_words(&"é".repeat(5000), spec, Path::new("/x"))
                .chars()
                .count()
                <= LONGEST
        );
    }
}
