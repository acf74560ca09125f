//! The OSB API over HTTP: from bytes to the engine's words and back.
//!
//! One function, `dispatch`, takes every request through the steps of osb-rules §16 in their
//! order: body size, credentials, version, route and method, shape; what follows is the engine's.
//! The path is read by `route` and not by the framework's matcher, because ids are opaque
//! (`%2F` and `..` are fine ids) and because an unknown path must ask for credentials too.
//! Every answer is a JSON object and carries the request identity back, whatever happens.

mod answers;
pub mod auth;
mod bindings;
mod body;
mod catalog;
mod error;
mod headers;
mod instances;
mod limit;
mod log;
pub mod openapi;
mod pages;
mod password;
mod rotation;
mod route;
pub mod schema;
#[cfg(test)]
mod tests;

use crate::domain::error::Error;
use crate::domain::request::Caller;
use crate::engine::Engine;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use answers::View;
use error::Refusal;
use futures::FutureExt as _;
use limit::FailureLimit;
use log::Exchange;
use pages::Listener;
use route::{Resource, Route};
use serde_json::Value;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

/// The status of the answer to a request without a version (H-01).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MissingVersion {
    /// 412, which every checker expects.
    #[default]
    PreconditionFailed,
    /// 400, which the specification says.
    BadRequest,
}

/// What last_operation says of a delete that succeeded (Z-01).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeletedAnswer {
    /// 200 `succeeded`.
    #[default]
    Succeeded,
    /// 410.
    Gone,
}

/// The choices the OSB rules leave to the operator, and bounds on what clients may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// H-01.
    pub missing_version: MissingVersion,
    /// The oldest minor version of 2.x that is served (H-02).
    pub min_minor: u32,
    /// P-07: whether provision needs organization_guid and space_guid even when the context names the platform.
    pub require_guids: bool,
    /// Z-01.
    pub deleted_answer: DeletedAnswer,
    /// Z-03(b): whether members newer than the announced version are left out.
    pub strict_versions: bool,
    /// Largest request body, in bytes; larger ones get 413.
    pub max_body: usize,
    /// Wrong passwords a minute and client address before 429; 0 = no bound.
    pub failed_logins_per_minute: u32,
    /// Whether `/metrics` is also served beside the API, not only on the admin port.
    pub metrics_on_main: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            missing_version: MissingVersion::default(),
            min_minor: 13,
            require_guids: false,
            deleted_answer: DeletedAnswer::default(),
            strict_versions: false,
            max_body: 256 * 1024,
            failed_logins_per_minute: 20,
            metrics_on_main: true,
        }
    }
}

impl Settings {
    fn deleted_is_gone(&self) -> bool {
        self.deleted_answer == DeletedAnswer::Gone
    }
}

/// How the server that carries this application is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerSettings {
    /// `HttpServer::client_request_timeout`: a request's head must arrive within it, so that slow senders hold nothing.
    pub head_timeout: Duration,
    /// `HttpServer::client_disconnect_timeout`: how long a closing connection may linger.
    pub disconnect_timeout: Duration,
    /// `HttpServer::keep_alive`: longer than the 60 s at which Cloud Foundry polls.
    pub keep_alive: Duration,
    /// `HttpServer::shutdown_timeout`, in seconds: how long running requests may finish after SIGTERM.
    pub shutdown_timeout: u64,
    /// `HttpServer::max_connections`, per worker.
    pub max_connections: usize,
}

/// The set-up that fits this application. A request's body has 15 s to arrive, which `http` sees to itself.
pub fn server_settings() -> ServerSettings {
    ServerSettings {
        head_timeout: Duration::from_secs(10),
        disconnect_timeout: Duration::from_secs(5),
        keep_alive: Duration::from_secs(75),
        shutdown_timeout: 30,
        max_connections: 10_000,
    }
}

/// The text of `/metrics`.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// Everything requests share.
pub struct State {
    engine: Arc<Engine>,
    settings: Settings,
    platforms: Arc<auth::Platforms>,
    metrics: MetricsText,
    catalog: catalog::Pages,
    failures: FailureLimit,
}

impl State {
    /// The broker behind the API, who may use it, and how; `metrics` writes the text of `/metrics`.
    pub fn new(
        engine: Arc<Engine>,
        settings: Settings,
        platforms: Arc<auth::Platforms>,
        metrics: MetricsText,
    ) -> Self {
        Self {
            failures: FailureLimit::new(settings.failed_logins_per_minute),
            engine,
            settings,
            platforms,
            metrics,
            catalog: catalog::Pages::default(),
        }
    }
}

/// Serves the API with its probes and pages.
///
/// It answers every path no other service of the application answers.
pub fn configure(config: &mut ServiceConfig, state: Arc<State>) {
    config.app_data(web::Data::from(state)).default_service(web::to(
        |request: HttpRequest, payload: web::Payload, state: web::Data<State>| {
            dispatch(request, payload, state, Listener::Main)
        },
    ));
}

/// Serves probes and metrics only, for a port of their own.
pub fn configure_admin(config: &mut ServiceConfig, state: Arc<State>) {
    config.app_data(web::Data::from(state)).default_service(web::to(
        |request: HttpRequest, payload: web::Payload, state: web::Data<State>| {
            dispatch(request, payload, state, Listener::Admin)
        },
    ));
}

/// One request, from its head to its logged answer.
async fn dispatch(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
    listener: Listener,
) -> HttpResponse {
    let route = Route::parse(request.uri().path());
    let mut exchange = Exchange::begin(&request, &route);
    let mut view = View::NEWEST;
    let serving = serve(
        &request,
        payload,
        &state,
        listener,
        route,
        &mut exchange,
        &mut view,
    );
    let outcome = guarded(serving).await;
    let mut response = outcome.unwrap_or_else(|refusal| {
        refusal.log(exchange.route(), exchange.request_id.as_deref());
        refusal.response(view)
    });
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    // H-08: unchanged, and on every answer.
    if let Some(identity) = request.headers().get(headers::REQUEST_IDENTITY) {
        headers.insert(
            HeaderName::from_static(headers::REQUEST_IDENTITY),
            identity.clone(),
        );
    }
    exchange.end(response.status());
    response
}

/// Turns a panic into an answer, so that one broken request does not take its connection along.
async fn guarded(
    serving: impl Future<Output = Result<HttpResponse, Refusal>>,
) -> Result<HttpResponse, Refusal> {
    AssertUnwindSafe(serving)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| {
            let what = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(broken(&what.unwrap_or_default()).into())
        })
}

/// 500 for what should never happen; unlike `Error::internal` it cannot promise that nothing was changed.
fn broken(what: &str) -> Error {
    let mut error = Error::internal(format!("a task panicked: {what}"));
    error.description =
        "The broker met an internal error and cannot tell how far this request got; send it again, or ask for the last operation.".into();
    error
}

/// Runs work that must not stop half-way when the client goes away.
async fn detached<T: 'static>(work: impl Future<Output = Result<T, Error>> + 'static) -> Result<T, Error> {
    match actix_web::rt::spawn(work).await {
        Ok(outcome) => outcome,
        Err(failure) => Err(broken(&failure.to_string())),
    }
}

/// The steps of osb-rules §16 that come before the engine.
async fn serve(
    request: &HttpRequest,
    payload: web::Payload,
    state: &web::Data<State>,
    listener: Listener,
    route: Route,
    exchange: &mut Exchange,
    view: &mut View,
) -> Result<HttpResponse, Refusal> {
    match &route {
        Route::Page(page) => return pages::serve(page, request.method(), state, listener).await,
        Route::Unknown => return Err(Refusal::no_such_path()),
        _ if listener == Listener::Admin => return Err(Refusal::no_such_path()),
        _ => {}
    }
    let body = body::read(request, payload, state.settings.max_body).await?;

    let address = request.peer_addr().map(|peer| peer.ip());
    let authorization = request.headers().get(header::AUTHORIZATION);
    let platform = state
        .platforms
        .authenticate(authorization, &state.failures, address)
        .await?;
    exchange.platform = Some(Arc::clone(&platform));

    // The broker's own API has its version in the path.
    if route.is_osb() {
        *view = View {
            minor: headers::version(request.headers(), &state.settings)?,
            strict: state.settings.strict_versions,
        };
    }

    let target = match route {
        Route::Api(target) => target,
        Route::ApiBadId(_, why) => return Err(Error::bad_request(why).into()),
        _ => return Err(Refusal::no_such_path()),
    };
    let handler = handler(target.resource, request.method())?;

    let call = Call {
        state: state.clone(),
        caller: Caller {
            platform: platform.as_ref().to_owned(),
            originating: headers::originating_identity(request.headers())?,
            request_id: exchange.request_id.clone(),
        },
        view: *view,
        input: Input {
            request: request.clone(),
            query: body::Query::parse(request.query_string()),
            body,
            instance_id: target.instance_id,
            binding_id: target.binding_id,
        },
    };
    run(handler, call).await
}

/// The ten calls of the OSB API, and the broker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handler {
    Catalog,
    Provision,
    FetchInstance,
    Update,
    Deprovision,
    LastInstanceOperation,
    Bind,
    FetchBinding,
    Unbind,
    LastBindingOperation,
    Rotate,
}

/// The call a method means on a resource. Errors: 405.
fn handler(resource: Resource, method: &Method) -> Result<Handler, Refusal> {
    // The server drops the body of an answer to HEAD; the rest is as for GET.
    let method = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    Ok(match (resource, method) {
        (Resource::Catalog, &Method::GET) => Handler::Catalog,
        (Resource::Instance, &Method::PUT) => Handler::Provision,
        (Resource::Instance, &Method::GET) => Handler::FetchInstance,
        (Resource::Instance, &Method::PATCH) => Handler::Update,
        (Resource::Instance, &Method::DELETE) => Handler::Deprovision,
        (Resource::InstanceOperation, &Method::GET) => Handler::LastInstanceOperation,
        (Resource::Binding, &Method::PUT) => Handler::Bind,
        (Resource::Binding, &Method::GET) => Handler::FetchBinding,
        (Resource::Binding, &Method::DELETE) => Handler::Unbind,
        (Resource::BindingOperation, &Method::GET) => Handler::LastBindingOperation,
        (Resource::Rotation, &Method::POST) => Handler::Rotate,
        _ => return Err(Refusal::method_not_allowed(resource.allow())),
    })
}

async fn run(handler: Handler, call: Call) -> Result<HttpResponse, Refusal> {
    let outcome = match handler {
        Handler::Catalog => Ok(catalog::get(&call)),
        Handler::Provision => instances::provision(call).await,
        Handler::FetchInstance => instances::fetch(call).await,
        Handler::Update => instances::update(call).await,
        Handler::Deprovision => instances::deprovision(call).await,
        Handler::LastInstanceOperation => instances::last_operation(call).await,
        Handler::Bind => bindings::bind(call).await,
        Handler::FetchBinding => bindings::fetch(call).await,
        Handler::Unbind => bindings::unbind(call).await,
        Handler::LastBindingOperation => bindings::last_operation(call).await,
        Handler::Rotate => rotation::rotate(call).await,
    };
    let (usable, repeatable) = match handler {
        Handler::Update => (true, true),
        Handler::Deprovision => (true, false),
        _ => (false, false),
    };
    outcome.map_err(|refusal| refusal.keeping_flags(usable, repeatable))
}

/// What a request holds beside who sent it.
struct Input {
    request: HttpRequest,
    query: body::Query,
    body: Bytes,
    instance_id: String,
    binding_id: String,
}

/// A request that passed every check before its shape.
struct Call {
    state: web::Data<State>,
    caller: Caller,
    view: View,
    input: Input,
}

impl Call {
    /// H-07: the header's platform word and the context's should agree; when not, that is the platform's fault.
    fn compare_platform_words(&self, context: Option<&Value>) {
        let in_context = context.and_then(|context| context["platform"].as_str());
        let in_header = self.caller.originating.as_ref().map(|(word, _)| word.as_str());
        if in_context.is_some() && in_header.is_some() && in_context != in_header {
            tracing::debug!(
                target: "chandler::http",
                platform = self.caller.platform,
                ?in_context,
                ?in_header,
                "originating identity and context name different platforms"
            );
        }
    }
}
