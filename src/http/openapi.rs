//! The OpenAPI document of the broker, generated from the handlers and the types they speak.
//!
//! What all calls share (credentials, OSB headers, the answers given before a handler runs) is
//! added here, once.

use super::{Settings, bindings, catalog, headers, instances, rotation, schema};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "chandler",
        description = "Open Service Broker API v2.17: a catalog of data services, their instances, and bindings with credentials of their own.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "Catalog", description = "What can be had"),
        (name = "Service instances", description = "Create, read, change and delete instances"),
        (name = "Service bindings", description = "Create, read and delete bindings; rotate credentials")
    ),
    paths(
        catalog::get,
        instances::provision,
        instances::fetch,
        instances::update,
        instances::deprovision,
        instances::last_operation,
        bindings::bind,
        bindings::fetch,
        bindings::unbind,
        bindings::last_operation,
        rotation::rotate
    ),
    components(schemas(schema::ErrorBody, schema::BindResourceBody)),
    modifiers(&Shared)
)]
struct Document;

/// The document as served and as committed.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The document as text: pretty, in stable order, with a trailing newline.
pub fn document_json() -> String {
    // A document made of strings and numbers always serialises.
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The header that says which version a request of the OSB API speaks.
const VERSION: &str = "X-Broker-API-Version";

/// Adds what every call has in common.
struct Shared;

/// Answers every call may give before or beside its own: status, meaning.
const COMMON: &[(&str, &str)] = &[
    ("400", "The request is malformed or asks for what cannot be"),
    ("401", "Credentials are missing or wrong"),
    ("405", "The path does not serve this method"),
    ("412", "X-Broker-API-Version is missing or not served"),
    ("413", "The body is too large"),
    ("429", "Too many failed log-ins from this address"),
    ("500", "The broker failed"),
    ("503", "The broker cannot serve now"),
];

impl Modify for Shared {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let basic = SecurityScheme::Http(Http::new(HttpAuthScheme::Basic));
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("basic", basic);
        for (path, item) in &mut openapi.paths.paths {
            for operation in operations(item) {
                share(operation, path.starts_with("/v2/"));
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
        &mut item.post,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}

/// `osb`: it belongs to the OSB API, whose requests name the version they speak.
fn share(operation: &mut Operation, osb: bool) {
    operation.security = Some(vec![SecurityRequirement::new("basic", Vec::<String>::new())]);
    operation.parameters.get_or_insert_default().extend(
        osb_headers()
            .into_iter()
            .filter(|header| osb || header.name != VERSION)
            .map(RefOr::T),
    );
    for (status, meaning) in COMMON {
        if !osb && *status == "412" {
            continue;
        }
        operation
            .responses
            .responses
            .entry((*status).to_owned())
            .or_insert_with(|| RefOr::T(refusal(status, meaning)));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let echoed = HeaderBuilder::new()
                .schema(Some(text()))
                .description(Some("As in the request; absent when it was absent there"))
                .build();
            response
                .headers
                .insert("X-Broker-API-Request-Identity".into(), RefOr::T(echoed));
        }
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String))
}

fn osb_headers() -> [Parameter; 3] {
    let header = |name: &str, required, description: &str, schema: ObjectBuilder| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(required)
            .description(Some(description))
            .schema(Some(schema))
            .build()
    };
    // Named one by one, so that people can choose and checkers need not guess; the newest first, because the page
    // for trying the API chooses the first.
    let oldest = Settings::default().min_minor;
    let versions = (oldest..=headers::NEWEST_MINOR)
        .rev()
        .map(|minor| format!("2.{minor}"));
    [
        header(
            VERSION,
            Required::True,
            "The version the platform speaks; later minor versions are served as well",
            text()
                .enum_values(Some(versions))
                .examples([format!("2.{}", headers::NEWEST_MINOR)]),
        ),
        header(
            "X-Broker-API-Originating-Identity",
            Required::False,
            "A platform word, a space, and a JSON object in base64: on whose behalf the platform asks",
            text().examples([
                "cloudfoundry eyJ1c2VyX2lkIjoiNjgzZWE3NDgtMzA5Mi00ZmY0LWI2NTYtMzljYWNjNGQ1MzYwIn0=",
            ]),
        ),
        header(
            "X-Broker-API-Request-Identity",
            Required::False,
            "Comes back unchanged with the answer",
            text().examples(["e26cee84-6b38-4456-b34e-d1a9f002c956"]),
        ),
    ]
}

fn refusal(status: &str, meaning: &str) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ErrorBody")))
        .build();
    let mut response = ResponseBuilder::new()
        .description(meaning)
        .content("application/json", content);
    let mut header = |name: &str, kind, description: &str| {
        let schema = ObjectBuilder::new().schema_type(SchemaType::new(kind));
        let header = HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(description))
            .build();
        response = std::mem::take(&mut response).header(name, header);
    };
    match status {
        "401" => header("WWW-Authenticate", Type::String, "Basic"),
        "405" => header("Allow", Type::String, "The methods there are"),
        "429" | "503" => header("Retry-After", Type::Integer, "Seconds"),
        _ => {}
    }
    response.build()
}
