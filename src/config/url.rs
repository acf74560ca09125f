//! The store's address: what it means, and the password put into it at the last moment.

use super::files::read_secret;
use super::sections::Store;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use std::net::IpAddr;
use std::path::PathBuf;

/// A parsed `store.url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A SQLite file.
    Sqlite {
        /// The absolute path of the database file.
        path: PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// Host name or address; empty for a Unix socket.
        host: String,
        /// Whether it is on this machine.
        is_local: bool,
        /// Whether `sslmode` makes encryption certain.
        encrypted: bool,
        /// Where in the URL the user name ends, when it has one: the password goes there.
        user_end: Option<usize>,
    },
}

impl StoreUrl {
    /// Parses a store URL; an error says what is wrong and never repeats the URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.is_empty() {
            return Err(
                "must be given: `sqlite:///absolute/path.db` or `postgres://user@host:5432/database`"
                    .to_owned(),
            );
        }
        match url.split_once("://") {
            Some(("sqlite", path)) if path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#']) => Ok(Self::Sqlite { path: path.into() }),
            Some(("sqlite", _)) => Err("must name an absolute path with three slashes and nothing after it, such as `sqlite:///var/lib/chandler/chandler.db`".to_owned()),
            Some(("postgres" | "postgresql", _)) => Self::parse_postgres(url),
            _ => Err("must start with `sqlite://` or `postgres://`".to_owned()),
        }
    }

    fn parse_postgres(url: &str) -> Result<Self, String> {
        let start = url.find("://").map_or(0, |at| at + 3);
        let authority_end = url[start..]
            .find(['/', '?', '#'])
            .map_or(url.len(), |at| start + at);
        let authority = &url[start..authority_end];
        let user_end = authority.rfind('@').map(|at| start + at);
        let query: Vec<(String, String)> = url[authority_end..]
            .split_once('?')
            .map(|(_, query)| {
                query
                    .split('&')
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                    .map(|(key, value)| (decode(key), decode(value)))
                    .collect()
            })
            .unwrap_or_default();
        let find = |key: &str| {
            query
                .iter()
                .rev()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.as_str())
        };
        if user_end.is_some_and(|end| url[start..end].contains(':')) || find("password").is_some() {
            return Err("must not hold a password; put it into a file of mode 0600 and name that file in `store.password_file`".to_owned());
        }
        let user = user_end.map_or(find("user").unwrap_or_default(), |end| &url[start..end]);
        if user.is_empty() {
            return Err(
                "must name the database user, such as `postgres://chandler@host:5432/chandler`".to_owned(),
            );
        }
        let database = url[authority_end..]
            .split('?')
            .next()
            .unwrap_or_default()
            .trim_start_matches('/');
        if database.is_empty() {
            return Err(
                "must name the database, such as `postgres://chandler@host:5432/chandler`".to_owned(),
            );
        }
        let host_and_port = &url[user_end.map_or(start, |end| end + 1)..authority_end];
        let host = find("hostaddr")
            .or_else(|| find("host"))
            .unwrap_or_else(|| without_port(host_and_port));
        let host = decode(host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_local = host.is_empty()
            || host.starts_with('/')
            || host == "localhost"
            || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let encrypted = matches!(find("sslmode"), Some("require" | "verify-ca" | "verify-full"));
        Ok(Self::Postgres {
            host,
            is_local,
            encrypted,
            user_end,
        })
    }
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.rsplit_once(':').map_or(host, |(host, _)| host)
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Store {
    /// The URL to connect with, the password from `password_file` in it: keep it out of logs and errors.
    pub fn connection_url(&self) -> Result<SecretString, String> {
        let parsed = StoreUrl::parse(&self.url).map_err(|reason| format!("store.url: {reason}"))?;
        let (Some(file), StoreUrl::Postgres { user_end, .. }) = (&self.password_file, parsed) else {
            return Ok(self.url.clone().into());
        };
        let password = read_secret(file)
            .map_err(|reason| format!("store.password_file: {reason}"))?
            .content;
        let encoded = utf8_percent_encode(password.expose_secret(), NON_ALPHANUMERIC);
        Ok(match user_end {
            Some(end) => format!("{}:{encoded}{}", &self.url[..end], &self.url[end..]),
            None if self.url.contains('?') => format!("{}&password={encoded}", self.url),
            None => format!("{}?password={encoded}", self.url),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres(url: &str) -> Option<(String, bool, bool)> {
        match StoreUrl::parse(url) {
            Ok(StoreUrl::Postgres {
                host,
                is_local,
                encrypted,
                ..
            }) => Some((host, is_local, encrypted)),
            _ => None,
        }
    }

    #[test]
    fn postgres_urls() {
        for (url, host, local, encrypted) in [
            ("postgres://u@db.example:5432/d", "db.example", false, false),
            (
                "postgres://u@db.example/d?sslmode=verify-full",
                "db.example",
                false,
                true,
            ),
            ("postgresql://u@db/d?sslmode=prefer", "db", false, false),
            ("postgres://u@127.0.0.1:5433/d", "127.0.0.1", true, false),
            ("postgres://u@[::1]:5433/d", "[::1]", true, false),
            ("postgres://u@localhost/d", "localhost", true, false),
            (
                "postgres:///d?host=/var/run/postgresql&user=u",
                "/var/run/postgresql",
                true,
                false,
            ),
            (
                "postgres://u@localhost/d?host=db.example",
                "db.example",
                false,
                false,
            ),
            (
                "postgres://u@127.0.0.1.example/d",
                "127.0.0.1.example",
                false,
                false,
            ),
        ] {
            assert_eq!(postgres(url), Some((host.to_owned(), local, encrypted)), "{url}");
        }
    }

    #[test]
    fn refused_urls_are_not_repeated() {
        for url in [
            "postgres://u:hunter2@db/d",
            "postgres://u@db/d?password=hunter2",
            "postgres://u@db/d?pass%77ord=hunter2",
            "sqlite://hunter2/relative.db",
            "sqlite:///a.db?mode=hunter2",
            "mysql://hunter2",
            "postgres://db/hunter2",
            "postgres://u@hunter2",
            "hunter2",
            "",
        ] {
            let reason = StoreUrl::parse(url).expect_err(url);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
        assert_eq!(
            StoreUrl::parse("sqlite:///a/b.db"),
            Ok(StoreUrl::Sqlite {
                path: "/a/b.db".into()
            })
        );
    }
}
