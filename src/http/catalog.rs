//! GET /v2/catalog: one body and one ETag per served catalog, written once and then only sent.

use super::answers::View;
use super::{Call, Settings};
use crate::engine::Served;
use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::web::Bytes;
use arc_swap::ArcSwapOption;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::Arc;

/// Members newer than 2.13, by the minor version that brought them (Z-03b).
const OFFERING_MEMBERS: &[(&str, u32)] = &[
    ("instances_retrievable", 14),
    ("bindings_retrievable", 14),
    ("allow_context_updates", 15),
];
const PLAN_MEMBERS: &[(&str, u32)] = &[
    ("maintenance_info", 15),
    ("maximum_polling_duration", 15),
    ("plan_updateable", 15),
    ("binding_rotatable", 17),
];
/// The newest minor version that changed the catalog; above it all callers see the same.
const NEWEST: u32 = 17;
/// The oldest minor version that is told apart.
const OLDEST: u32 = 13;

/// The bytes of one catalog.
#[derive(Clone)]
struct Page {
    body: Bytes,
    etag: HeaderValue,
}

impl Page {
    fn new(body: &Value) -> Self {
        let body = Bytes::from(body.to_string());
        let mut etag = String::from("\"");
        for byte in &Sha256::digest(&body)[..16] {
            // Writing to a String cannot fail.
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        Self {
            body,
            etag: HeaderValue::from_str(&etag).unwrap_or_else(|_| HeaderValue::from_static("\"\"")),
        }
    }

    /// H-09: whether the caller has these very bytes already.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let etag = self.etag.to_str().unwrap_or_default();
        headers
            .get_all(header::IF_NONE_MATCH)
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    }
}

/// A served catalog with its pages.
struct Rendered {
    /// Held, so that its address cannot come to mean another catalog.
    of: Arc<Served>,
    whole: Page,
    /// For strict versions: one page for each minor from [`OLDEST`] up to just below [`NEWEST`].
    older: Vec<Page>,
}

impl Rendered {
    fn new(of: Arc<Served>, strict: bool) -> Self {
        let whole = Page::new(&of.body);
        let older = if strict {
            (OLDEST..NEWEST)
                .map(|minor| Page::new(&trimmed(&of.body, minor)))
                .collect()
        } else {
            Vec::new()
        };
        Self { of, whole, older }
    }

    fn page(&self, view: View) -> &Page {
        let at = usize::try_from(view.minor.max(OLDEST) - OLDEST).unwrap_or(usize::MAX);
        self.older.get(at).unwrap_or(&self.whole)
    }
}

/// The catalog without members that came after `minor`.
fn trimmed(body: &Value, minor: u32) -> Value {
    let trim = |object: &mut Map<String, Value>, members: &[(&str, u32)]| {
        for (member, since) in members {
            if *since > minor {
                object.remove(*member);
            }
        }
    };
    let mut body = body.clone();
    for offering in body["services"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        trim(offering, OFFERING_MEMBERS);
        let plans = offering.get_mut("plans").and_then(Value::as_array_mut);
        for plan in plans.into_iter().flatten().filter_map(Value::as_object_mut) {
            trim(plan, PLAN_MEMBERS);
        }
    }
    body
}

/// The pages of the catalog in use.
#[derive(Default)]
pub(super) struct Pages(ArcSwapOption<Rendered>);

impl Pages {
    /// Answers with the catalog, rendering it when it is another one than last time.
    fn answer(
        &self,
        served: Arc<Served>,
        settings: &Settings,
        view: View,
        headers: &HeaderMap,
    ) -> HttpResponse {
        let present = self.0.load();
        let rendered = match present.as_ref() {
            Some(rendered) if Arc::ptr_eq(&rendered.of, &served) => Arc::clone(rendered),
            _ => {
                let rendered = Arc::new(Rendered::new(served, settings.strict_versions));
                self.0.store(Some(Arc::clone(&rendered)));
                rendered
            }
        };
        let page = rendered.page(view);
        let mut response = if page.is_known(headers) {
            HttpResponse::NotModified()
        } else {
            HttpResponse::Ok()
        };
        response.insert_header((header::ETAG, page.etag.clone()));
        if page.is_known(headers) {
            return response.finish();
        }
        response
            .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .body(page.body.clone())
    }
}

/// List the offerings and their plans.
#[utoipa::path(
    get,
    path = "/v2/catalog",
    operation_id = "catalog.get",
    tag = "Catalog",
    params(("If-None-Match" = Option<String>, Header, description = "An ETag of an earlier answer", nullable = false)),
    responses(
        (status = 200, description = "The catalog", body = super::schema::CatalogBody, content_type = "application/json",
            headers(("ETag" = String, description = "Changes whenever a byte of the catalog does"))),
        (status = 304, description = "The caller has this catalog already"),
    )
)]
pub(super) fn get(call: &Call) -> HttpResponse {
    let state = &call.state;
    state.catalog.answer(
        state.engine.served(),
        &state.settings,
        call.view,
        call.input.request.headers(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::header_of;
    use super::*;
    use crate::domain::catalog::Catalog;
    use actix_web::body::MessageBody;
    use actix_web::http::StatusCode;
    use serde_json::json;

    fn served(name: &str) -> Arc<Served> {
        Arc::new(Served {
            catalog: Catalog::default(),
            offered: std::collections::HashSet::new(),
            body: json!({"services": [{"id": "s", "name": name, "description": "d", "bindable": true,
                "instances_retrievable": true, "bindings_retrievable": true, "allow_context_updates": true,
                "plan_updateable": true, "metadata": {"displayName": "D"},
                "plans": [{"id": "p", "name": "p", "description": "d", "plan_updateable": true, "metadata": {},
                    "maintenance_info": {"version": "1.0.0"}, "maximum_polling_duration": 600, "binding_rotatable": true}]}]}),
        })
    }

    fn fetch(pages: &Pages, served: &Arc<Served>, view: View, known: &str) -> (StatusCode, String, Value) {
        let settings = Settings {
            strict_versions: view.strict,
            ..Settings::default()
        };
        let mut headers = HeaderMap::new();
        if !known.is_empty() {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(known).unwrap());
        }
        let response = pages.answer(Arc::clone(served), &settings, view, &headers);
        let etag = header_of(&response, &header::ETAG).to_owned();
        let status = response.status();
        let bytes = response.into_body().try_into_bytes().unwrap();
        (status, etag, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[test]
    fn h09_etag_spares_the_body_until_a_byte_changes() {
        let (pages, one, two) = (Pages::default(), served("one"), served("two"));
        let (status, etag, body) = fetch(&pages, &one, View::NEWEST, "");
        assert_eq!((status, &body), (StatusCode::OK, &one.body));
        for known in [
            etag.clone(),
            format!("W/{etag}"),
            format!("\"other\", {etag}"),
            "*".into(),
        ] {
            let (status, again, body) = fetch(&pages, &one, View::NEWEST, &known);
            assert_eq!(
                (status, again, body),
                (StatusCode::NOT_MODIFIED, etag.clone(), Value::Null)
            );
        }
        assert_eq!(fetch(&pages, &one, View::NEWEST, "\"other\"").0, StatusCode::OK);
        let (status, other, body) = fetch(&pages, &two, View::NEWEST, &etag);
        assert_eq!((status, &body), (StatusCode::OK, &two.body));
        assert_ne!(other, etag);
    }

    #[test]
    fn the_body_is_written_once() {
        let (pages, one) = (Pages::default(), served("one"));
        fetch(&pages, &one, View::NEWEST, "");
        let first = pages.0.load_full().unwrap();
        fetch(
            &pages,
            &one,
            View {
                minor: 13,
                strict: false,
            },
            "",
        );
        assert!(Arc::ptr_eq(&first, &pages.0.load_full().unwrap()));
    }

    #[test]
    fn z03b_strict_catalogs_hold_only_what_the_version_knows() {
        let (pages, one) = (Pages::default(), served("one"));
        let at = |minor| fetch(&pages, &one, View { minor, strict: true }, "").2["services"][0].clone();
        for (minor, offering, plan) in [
            (
                13,
                "bindable description id metadata name plan_updateable plans",
                "description id metadata name",
            ),
            (
                14,
                "bindable bindings_retrievable description id instances_retrievable metadata name plan_updateable plans",
                "description id metadata name",
            ),
            (
                15,
                "allow_context_updates bindable bindings_retrievable description id instances_retrievable metadata name plan_updateable plans",
                "description id maintenance_info maximum_polling_duration metadata name plan_updateable",
            ),
        ] {
            let keys = |value: &Value| {
                value
                    .as_object()
                    .unwrap()
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let found = at(minor);
            assert_eq!(keys(&found), offering, "2.{minor}");
            assert_eq!(keys(&found["plans"][0]), plan, "2.{minor}");
        }
        assert_eq!(at(16)["plans"][0].get("binding_rotatable"), None);
        for minor in [17, 18, 99] {
            assert_eq!(at(minor), one.body["services"][0]);
        }
        let lenient = fetch(
            &Pages::default(),
            &one,
            View {
                minor: 13,
                strict: false,
            },
            "",
        )
        .2;
        assert_eq!(lenient, one.body);
    }
}
