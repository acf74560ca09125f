//! Which call a request path means.
//!
//! Instance and binding ids are opaque strings (I-01): `a%2Fb`, `..` or an emoji are fine ids. A
//! framework's matcher decodes, normalises or refuses some of them, so the path is taken raw from
//! the request line, split at `/` and only then decoded, each segment exactly once. Everything
//! here is a plain function of the path.

use percent_encoding::percent_decode_str;

/// Stands for a segment that cannot be decoded; equal to no word a path is made of.
const UNREADABLE: &str = "%";

/// Paths that answer without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    /// `/`
    Home,
    /// `/livez`
    Live,
    /// `/readyz`
    Ready,
    /// `/metrics`
    Metrics,
    /// `/openapi.json`
    OpenApi,
    /// `/docs`, which leads to `/docs/`
    DocsEntry,
    /// `/docs/<file>`
    Docs(String),
}

impl Page {
    /// The word in log lines and metric labels; a fixed set.
    pub(super) fn pattern(&self) -> &'static str {
        match self {
            Self::Home => "/",
            Self::Live => "/livez",
            Self::Ready => "/readyz",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
            Self::DocsEntry | Self::Docs(_) => "/docs/",
        }
    }
}

/// The resources of the OSB API, and of the broker's own beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// The catalog.
    Catalog,
    /// A service instance.
    Instance,
    /// An instance's last operation.
    InstanceOperation,
    /// A service binding.
    Binding,
    /// A binding's last operation.
    BindingOperation,
    /// Of the broker's own API: new credentials for a binding, in place.
    Rotation,
}

impl Resource {
    /// The word in log lines and metric labels; also the path in the OpenAPI document.
    pub(super) const fn pattern(self) -> &'static str {
        match self {
            Self::Catalog => "/v2/catalog",
            Self::Instance => "/v2/service_instances/{instance_id}",
            Self::InstanceOperation => "/v2/service_instances/{instance_id}/last_operation",
            Self::Binding => "/v2/service_instances/{instance_id}/service_bindings/{binding_id}",
            Self::BindingOperation => {
                "/v2/service_instances/{instance_id}/service_bindings/{binding_id}/last_operation"
            }
            Self::Rotation => "/api/v1/bindings/{binding_id}/rotate",
        }
    }

    /// The value of `Allow` in a 405.
    pub(super) const fn allow(self) -> &'static str {
        match self {
            Self::Catalog | Self::InstanceOperation | Self::BindingOperation => "GET, HEAD",
            Self::Instance => "GET, HEAD, PUT, PATCH, DELETE",
            Self::Binding => "GET, HEAD, PUT, DELETE",
            Self::Rotation => "POST",
        }
    }

    /// Whether it belongs to the OSB API, whose requests name the version they speak.
    pub(super) const fn is_osb(self) -> bool {
        !matches!(self, Self::Rotation)
    }
}

/// A resource with the ids that name it; ids it does not have are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Which resource.
    pub resource: Resource,
    /// The platform's instance id.
    pub instance_id: String,
    /// The platform's binding id.
    pub binding_id: String,
}

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// Something everybody may see.
    Page(Page),
    /// A resource of the API.
    Api(Target),
    /// A resource of the API whose id cannot be one; the text says why.
    ApiBadId(Resource, String),
    /// Below `/v2`, but nothing there. Asks for credentials all the same.
    ApiUnknown,
    /// Nothing there.
    Unknown,
}

impl Route {
    /// Reads a raw (still encoded) path.
    pub(super) fn parse(path: &str) -> Self {
        let Some(path) = path.strip_prefix('/') else {
            return Self::Unknown;
        };
        let raw: Vec<&str> = path.split('/').collect();
        let segments: Vec<Result<String, String>> = raw.iter().map(|s| decode(s)).collect();
        let words: Vec<&str> = segments
            .iter()
            .map(|s| s.as_deref().unwrap_or(UNREADABLE))
            .collect();

        match words.as_slice() {
            ["v2", rest @ ..] => {
                let (resource, ids): (_, &[(&str, usize)]) = match rest {
                    ["catalog"] => (Resource::Catalog, &[]),
                    ["service_instances", _] => (Resource::Instance, &[("instance", 2)]),
                    ["service_instances", _, "last_operation"] => {
                        (Resource::InstanceOperation, &[("instance", 2)])
                    }
                    ["service_instances", _, "service_bindings", _] => {
                        (Resource::Binding, &[("instance", 2), ("binding", 4)])
                    }
                    ["service_instances", _, "service_bindings", _, "last_operation"] => {
                        (Resource::BindingOperation, &[("instance", 2), ("binding", 4)])
                    }
                    _ => return Self::ApiUnknown,
                };
                let mut found = [String::new(), String::new()];
                for (slot, (what, at)) in found.iter_mut().zip(ids) {
                    match id(what, &segments[*at]) {
                        Ok(id) => *slot = id,
                        Err(why) => return Self::ApiBadId(resource, why),
                    }
                }
                let [instance_id, binding_id] = found;
                Self::Api(Target {
                    resource,
                    instance_id,
                    binding_id,
                })
            }
            ["api", "v1", "bindings", _, "rotate"] => match id("binding", &segments[3]) {
                Ok(binding_id) => Self::Api(Target {
                    resource: Resource::Rotation,
                    instance_id: String::new(),
                    binding_id,
                }),
                Err(why) => Self::ApiBadId(Resource::Rotation, why),
            },
            [""] => Self::Page(Page::Home),
            ["livez"] => Self::Page(Page::Live),
            ["readyz"] => Self::Page(Page::Ready),
            ["metrics"] => Self::Page(Page::Metrics),
            ["openapi.json"] => Self::Page(Page::OpenApi),
            ["docs"] => Self::Page(Page::DocsEntry),
            ["docs", file] => Self::Page(Page::Docs((*file).to_owned())),
            _ => Self::Unknown,
        }
    }

    /// Whether it is below the OSB API.
    pub(super) fn is_osb(&self) -> bool {
        match self {
            Self::Api(target) => target.resource.is_osb(),
            Self::ApiBadId(resource, _) => resource.is_osb(),
            Self::Page(_) | Self::ApiUnknown | Self::Unknown => true,
        }
    }

    /// The word in log lines and metric labels; a fixed set, whatever clients send.
    pub(super) fn pattern(&self) -> &'static str {
        match self {
            Self::Page(page) => page.pattern(),
            Self::Api(target) => target.resource.pattern(),
            Self::ApiBadId(resource, _) if !resource.is_osb() => resource.pattern(),
            Self::ApiBadId(..) | Self::ApiUnknown => "/v2/*",
            Self::Unknown => "*",
        }
    }
}

/// Decodes one segment once. Errors: why it cannot be decoded.
fn decode(segment: &str) -> Result<String, String> {
    let bytes = segment.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let is_escape = || {
            bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
        };
        // Left as it is, "%zz" and "%25zz" would be one id.
        if *byte == b'%' && !is_escape() {
            return Err("holds a `%` that starts no percent-encoded byte".into());
        }
    }
    match percent_decode_str(segment).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err("is not valid UTF-8 after percent-decoding".into()),
    }
}

/// An id that can be one: not empty, and without the NUL that separates the parts of derived names.
fn id(what: &str, segment: &Result<String, String>) -> Result<String, String> {
    let why = match segment {
        Ok(id) if id.is_empty() => "is empty",
        Ok(id) if id.contains('\0') => "holds a NUL character",
        Ok(id) => return Ok(id.clone()),
        Err(why) => why,
    };
    Err(format!(
        "The {what} id in the path {why}; send a non-empty, percent-encoded id."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str) -> Route {
        Route::Api(Target {
            resource: Resource::Instance,
            instance_id: id.into(),
            binding_id: String::new(),
        })
    }

    #[test]
    fn i01_ids_are_decoded_once_and_taken_as_they_are() {
        let long = "x".repeat(8192);
        for (encoded, id) in [
            ("nonexistent-instance", "nonexistent-instance"),
            ("a%2Fb", "a/b"),
            ("a%252Fb", "a%2Fb"),
            ("..", ".."),
            (".", "."),
            ("%2e%2E", ".."),
            ("%F0%9F%9A%A2", "🚢"),
            ("🚢", "🚢"),
            ("a+b", "a+b"),
            ("a%20b", "a b"),
            ("%0A%1b", "\n\u{1b}"),
            ("last_operation", "last_operation"),
            ("A", "A"),
            (long.as_str(), long.as_str()),
        ] {
            assert_eq!(
                Route::parse(&format!("/v2/service_instances/{encoded}")),
                instance(id),
                "{encoded}"
            );
        }
    }

    #[test]
    fn every_resource_is_found() {
        for (path, resource, iid, bid) in [
            ("/v2/catalog", Resource::Catalog, "", ""),
            ("/v2/c%61talog", Resource::Catalog, "", ""),
            ("/v2/service_instances/i", Resource::Instance, "i", ""),
            (
                "/v2/service_instances/i/last_operation",
                Resource::InstanceOperation,
                "i",
                "",
            ),
            (
                "/v2/service_instances/i/service_bindings/b",
                Resource::Binding,
                "i",
                "b",
            ),
            (
                "/v2/service_instances/../service_bindings/%2F",
                Resource::Binding,
                "..",
                "/",
            ),
            (
                "/v2/service_instances/i/service_bindings/b/last_operation",
                Resource::BindingOperation,
                "i",
                "b",
            ),
            ("/api/v1/bindings/a%2Fb/rotate", Resource::Rotation, "", "a/b"),
        ] {
            let expected = Route::Api(Target {
                resource,
                instance_id: iid.into(),
                binding_id: bid.into(),
            });
            assert_eq!(Route::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn ids_that_cannot_be_ids_are_told_apart_from_unknown_paths() {
        for path in [
            "/v2/service_instances/",
            "/v2/service_instances//last_operation",
            "/v2/service_instances/%00",
            "/v2/service_instances/a%00b",
            "/v2/service_instances/%FF",
            "/v2/service_instances/%ED%A0%80",
            "/v2/service_instances/%zz",
            "/v2/service_instances/a%",
            "/v2/service_instances/a%2",
            "/v2/service_instances/i/service_bindings/",
            "/v2/service_instances/i/service_bindings/%00/last_operation",
            "/api/v1/bindings//rotate",
            "/api/v1/bindings/%FF/rotate",
        ] {
            assert!(matches!(Route::parse(path), Route::ApiBadId(..)), "{path}");
        }
        for path in [
            "/v2",
            "/v2/",
            "/v2/catalog/",
            "/v2/Catalog",
            "/v2/service_instances",
            "/v2/service_instances/i/",
            "/v2/service_instances/a/b",
            "/v2/service_instances//",
            "/v2/%FF",
            "/%76%32/x",
        ] {
            assert_eq!(Route::parse(path), Route::ApiUnknown, "{path}");
        }
        for path in [
            "",
            "*",
            "/v3/catalog",
            "//v2/catalog",
            "/v2%2Fcatalog",
            "/livez/",
            "/api",
            "/api/v1/bindings/b",
            "/api/v2/bindings/b/rotate",
            "/docs/a/b",
            "/%FF",
        ] {
            assert_eq!(Route::parse(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn pages_are_found() {
        for (path, page) in [
            ("/", Page::Home),
            ("/livez", Page::Live),
            ("/readyz", Page::Ready),
            ("/metrics", Page::Metrics),
            ("/openapi.json", Page::OpenApi),
            ("/docs", Page::DocsEntry),
            ("/docs/", Page::Docs(String::new())),
            ("/docs/swagger-ui.css", Page::Docs("swagger-ui.css".into())),
            (
                "/docs/..%2F..%2Fetc%2Fpasswd",
                Page::Docs("../../etc/passwd".into()),
            ),
        ] {
            assert_eq!(Route::parse(path), Route::Page(page), "{path}");
        }
    }
}
