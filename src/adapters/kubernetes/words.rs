//! What a cluster says, made fit for people: one line, short, without its internal noise and without anything secret.
//!
//! A container's last words may be a piece of its log, so whatever could be a password, token or key is cut out even
//! though no service is meant to print one.

/// Longest text of the cluster inside a sentence, in characters.
pub(super) const LONGEST: usize = 240;
/// A run of letters and digits at least this long is no word.
const LONGEST_WORD: usize = 30;
const CUT: &str = "…";
/// A member of this name is followed by something secret.
const SECRET_NAMES: [&str; 8] = [
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "credential",
    "apikey",
    "api_key",
];
/// A line that says this says more than the lines after it.
const TELLING: [&str; 8] = [
    "fatal",
    "panic",
    "error",
    "exception",
    "denied",
    "cannot",
    "could not",
    "failed",
];

/// One clean line of at most [`LONGEST`] characters, without a full stop.
pub(super) fn clean(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut hide_next = false;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if std::mem::take(&mut hide_next) {
            words.push(CUT.into());
            continue;
        }
        hide_next = announces_secret(word);
        words.push(without_secret(word));
    }
    let line = words.join(" ");
    let line = line.trim_end_matches(['.', ',', ';', ':', ' ']);
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST - 1).chain(CUT.chars()).collect()
}

/// A text as a sentence: a capital letter first, a full stop last.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    let stop = if text.ends_with(['.', '!', '?', '…']) {
        ""
    } else {
        "."
    };
    format!("{}{}{stop}", first.unwrap_or_default(), letters.as_str())
}

/// The line of a container's last words that says most.
pub(super) fn last_words(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let telling = lines().rfind(|line| {
        let line = line.to_lowercase();
        TELLING.iter().any(|word| line.contains(word))
    });
    clean(telling.or_else(|| lines().next_back()).unwrap_or_default())
}

/// `password:` with the value as the next word.
fn announces_secret(word: &str) -> bool {
    let lower = word.to_lowercase();
    lower.ends_with([':', '=']) && SECRET_NAMES.iter().any(|name| lower.contains(name))
}

fn without_secret(word: &str) -> String {
    if word.starts_with("eyJ") || word.contains("\"eyJ") {
        return CUT.into();
    }
    let lower = word.to_lowercase();
    if let Some(at) = word.find(['=', ':'])
        && at + 1 < word.len()
        && !word[at..].starts_with("://")
        && SECRET_NAMES
            .iter()
            .any(|name| lower[..at.min(lower.len())].contains(name))
    {
        return format!("{}{CUT}", &word[..=at]);
    }
    let word = without_log_in(word);
    without_long_runs(&word)
}

/// `scheme://user:password@host` without user and password.
fn without_log_in(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let end = rest.find('/').unwrap_or(rest.len());
    // A password may hold an `@` or a `/` itself: cut up to the last one that can be meant.
    match rest
        .rfind('@')
        .filter(|at| *at < end || rest[..*at].contains(':'))
    {
        Some(at) => format!("{scheme}://{CUT}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

fn without_long_runs(word: &str) -> String {
    let is_run = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_');
    let mut clean = String::new();
    let mut run = String::new();
    for c in word.chars().chain([' ']) {
        if is_run(c) {
            run.push(c);
            continue;
        }
        if run.len() >= LONGEST_WORD {
            clean.push_str(CUT);
        } else {
            clean.push_str(&run);
        }
        run.clear();
        clean.push(c);
    }
    clean.pop();
    clean
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn secrets_do_not_get_through() {
        for (text, shown) in [
            ("cannot use password=hunter2 now.", "cannot use password=… now"),
            ("Password: hunter2 is wrong", "Password: … is wrong"),
            (
                "--requirepass hunter2x PGPASSWORD=hunter2",
                "--requirepass hunter2x PGPASSWORD=…",
            ),
            ("postgres://u:hunter2@db:5432/x", "postgres://…@db:5432/x"),
            ("nats://hunter2@nats:4222", "nats://…@nats:4222"),
            ("http://u:hun/ter2@db/x", "http://…@db/x"),
            (
                "seed SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4",
                "seed …",
            ),
            ("jwt eyJ0eXAiOiJK-V1QiLCJh.bGci-Oi", "jwt …"),
            ("{\"token\":\"abc\"}", "{\"token\":…"),
            ("x@sha256:0123456789012345678901234567890123456789", "x@sha256:…"),
        ] {
            assert_eq!(clean(text), shown);
        }
    }

    #[test]
    fn ordinary_words_do() {
        for text in [
            "secret \"pg-admin\" not found",
            "http://db:8080/health a@b.example",
            "pod redis-abcdefghijklmnopqrstuvwxyz-sentinel-0 in /var/lib/postgresql/18/main",
            "couldn't find key password in Secret osb-x/pg",
        ] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn texts_are_one_bounded_line() {
        assert_eq!(clean("a\n  b\u{1b}[0m\tc. "), "a b [0m c");
        let long = clean(&"ä ".repeat(1_000));
        assert_eq!(long.chars().count(), LONGEST);
        assert!(long.ends_with('…'));
        assert_eq!(clean(""), "");
    }

    #[test]
    fn sentences_begin_and_end_as_such() {
        assert_eq!(sentence("2 of 3 pods ready"), "2 of 3 pods ready.");
        assert_eq!(sentence("it broke."), "It broke.");
    }

    #[test]
    fn the_line_that_tells_is_kept() {
        assert_eq!(
            last_words("starting\nFATAL: data directory has wrong owner\nHINT: chown\n\n"),
            "FATAL: data directory has wrong owner"
        );
        assert_eq!(last_words("one\ntwo\n"), "two");
        assert_eq!(last_words(" \n"), "");
    }
}
