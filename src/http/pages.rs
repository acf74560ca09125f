//! What answers without credentials: probes, metrics, the API's description and its Swagger UI.

use super::State;
use super::answers::{self, View};
use super::error::Refusal;
use super::openapi;
use super::route::Page;
use crate::domain::error::Error;
use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Bytes;
use serde_json::json;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use utoipa_swagger_ui::Config;

/// Nothing is loaded from anywhere, nothing runs: for pages that are text.
const CSP_TEXT: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What Swagger UI needs and no more: its own files, images it carries inline, requests to this
/// broker. It styles itself with inline style elements; scripts come only from files.
const CSP_DOCS: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HOME: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<meta name=\"color-scheme\" content=\"light dark\"><title>chandler</title></head>\n\
<body><h1>chandler</h1>\n<p>An Open Service Broker (API v2.17): it provisions data services and hands out credentials.</p>\n\
<ul><li><a href=\"/docs/\">Try the API</a></li><li><a href=\"/openapi.json\">OpenAPI document</a></li>\n\
<li><a href=\"/readyz\">Ready?</a></li></ul>\n\
<p>Platforms use <code>/v2/catalog</code> and the other OSB paths, with HTTP basic authentication.</p>\n</body></html>\n";

static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(openapi::document_json()));

static SWAGGER: LazyLock<Arc<Config<'static>>> =
    LazyLock::new(|| Arc::new(Config::new(["/openapi.json"]).validator_url("none")));

/// Which pages a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// The one platforms talk to.
    Main,
    /// The one for probes and metrics only.
    Admin,
}

/// Answers a page.
pub(super) async fn serve(
    page: &Page,
    method: &Method,
    state: &State,
    listener: Listener,
) -> Result<HttpResponse, Refusal> {
    let probe = matches!(page, Page::Live | Page::Ready | Page::Metrics);
    let elsewhere = match listener {
        Listener::Admin => !probe,
        Listener::Main => *page == Page::Metrics && !state.settings.metrics_on_main,
    };
    if elsewhere {
        return Err(Refusal::no_such_path());
    }
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Refusal::method_not_allowed("GET, HEAD"));
    }
    match page {
        Page::Live => Ok(fresh(answers::json(StatusCode::OK, &json!({"status": "alive"})))),
        Page::Ready => match state.engine.ready().await {
            Ok(()) => Ok(fresh(answers::json(StatusCode::OK, &json!({"status": "ready"})))),
            Err(why) => Ok(fresh(
                Refusal::from(Error::unavailable(why)).response(View::NEWEST),
            )),
        },
        Page::Metrics => Ok(fresh(text(
            "text/plain; version=0.0.4; charset=utf-8",
            CSP_TEXT,
            (state.metrics)(),
        ))),
        Page::Home => Ok(text("text/html; charset=utf-8", CSP_TEXT, HOME)),
        Page::OpenApi => Ok(text("application/json", CSP_TEXT, OPENAPI.clone())),
        Page::DocsEntry => Ok(HttpResponse::PermanentRedirect()
            .insert_header((header::LOCATION, "/docs/"))
            .finish()),
        Page::Docs(file) => docs(file),
    }
}

fn docs(file: &str) -> Result<HttpResponse, Refusal> {
    match utoipa_swagger_ui::serve(file, Arc::clone(&SWAGGER)) {
        Ok(Some(found)) => {
            let bytes = match found.bytes {
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => Bytes::from(bytes),
            };
            Ok(text(&found.content_type, CSP_DOCS, bytes))
        }
        Ok(None) => Err(Refusal::no_such_path()),
        Err(e) => Err(Error::internal(format!("Swagger UI: {e}")).into()),
    }
}

fn text(
    content_type: &str,
    csp: &'static str,
    body: impl actix_web::body::MessageBody + 'static,
) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        .insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(csp)))
        .insert_header((header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")))
        .insert_header((
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ))
        .body(body)
}

/// Marks an answer as true only now.
fn fresh(mut response: HttpResponse) -> HttpResponse {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
