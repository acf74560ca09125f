//! One log event and one measurement per request, with labels from fixed sets only.
//!
//! Never a body, never a credential; ids only escaped and cut, because they may hold anything.

use super::headers;
use super::route::{Resource, Route};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, http::header::HeaderMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

/// Status recorded when the client went away before there was an answer.
const CLIENT_CLOSED: u16 = 499;

/// Longest part of an id that is shown, in characters.
const SHOWN: usize = 64;

/// A request being served; what is known of it is written when it ends, whichever way.
pub(super) struct Exchange {
    started: Instant,
    method: &'static str,
    route: &'static str,
    quiet: bool,
    ids: Option<(String, String)>,
    /// Set once the caller is known.
    pub platform: Option<Arc<str>>,
    /// The platform's request identity, if it may be logged.
    pub request_id: Option<String>,
    ended: bool,
}

impl Exchange {
    /// Starts the watch.
    pub(super) fn begin(request: &HttpRequest, route: &Route) -> Self {
        let polled = |resource| {
            matches!(
                resource,
                Resource::Catalog | Resource::InstanceOperation | Resource::BindingOperation
            )
        };
        let (quiet, ids) = match route {
            Route::Api(target) => (
                polled(target.resource),
                Some((target.instance_id.clone(), target.binding_id.clone())),
            ),
            Route::Page(_) => (true, None),
            _ => (false, None),
        };
        Self {
            started: Instant::now(),
            method: method_label(request.method()),
            route: route.pattern(),
            quiet,
            ids,
            platform: None,
            request_id: request_identity(request.headers()),
            ended: false,
        }
    }

    /// The route's pattern.
    pub(super) fn route(&self) -> &'static str {
        self.route
    }

    /// Writes the event and the measurement.
    pub(super) fn end(mut self, status: StatusCode) {
        self.write(status.as_u16());
        self.ended = true;
    }

    fn write(&self, status: u16) {
        let elapsed = self.started.elapsed();
        let class = match status {
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        metrics::counter!("chandler_http_requests_total", "method" => self.method, "route" => self.route, "status" => class)
            .increment(1);
        metrics::histogram!("chandler_http_request_seconds", "method" => self.method, "route" => self.route)
            .record(elapsed.as_secs_f64());

        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "chandler::http",
                    method = self.method,
                    route = self.route,
                    status,
                    ms = elapsed.as_secs_f64() * 1000.0,
                    platform = self.platform.as_deref(),
                    request_id = self.request_id.as_deref(),
                    instance_id = self.ids.as_ref().filter(|(id, _)| !id.is_empty()).map(|(id, _)| tracing::field::display(Shown(id))),
                    binding_id = self.ids.as_ref().filter(|(_, id)| !id.is_empty()).map(|(_, id)| tracing::field::display(Shown(id))),
                    "request"
                )
            };
        }
        if self.quiet && status < 400 {
            event!(debug);
        } else {
            event!(info);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            self.write(CLIENT_CLOSED);
        }
    }
}

fn request_identity(headers: &HeaderMap) -> Option<String> {
    headers::loggable_request_identity(headers)
}

/// The method as a label; made-up methods share one.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Untrusted text for one line of a log: control and non-ASCII characters escaped, cut when long.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars().take(SHOWN) {
            match c {
                ' '..='~' => f.write_char(c)?,
                c => write!(f, "{}", c.escape_default())?,
            }
        }
        if self.0.chars().nth(SHOWN).is_some() {
            f.write_str("...")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_forge_log_lines() {
        assert_eq!(Shown("plain id/..").to_string(), "plain id/..");
        assert_eq!(
            Shown("a\nb\u{1b}[2J\u{202e}").to_string(),
            "a\\nb\\u{1b}[2J\\u{202e}"
        );
        assert_eq!(
            Shown(&"x".repeat(8192)).to_string(),
            format!("{}...", "x".repeat(64))
        );
    }

    #[test]
    fn methods_are_a_fixed_set() {
        assert_eq!(method_label(&Method::GET), "GET");
        assert_eq!(
            method_label(&Method::from_bytes(b"BREW").unwrap_or_default()),
            "other"
        );
    }
}
