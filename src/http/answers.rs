//! How answers are written: status, headers and exact JSON, as the announced version may see them.
//!
//! Plain functions from what the engine said to a response, so that each rule is a table test.

use super::schema::{
    BindingBody, BindingMetadataBody, EmptyBody, EndpointBody, ErrorBody, InstanceBody, InstanceChangedBody,
    InstanceMetadataBody, LastOperationBody, OperationBody, RunningVersionBody, StateWord,
};
use crate::domain::instance::Millis;
use crate::domain::operation::OperationState;
use crate::domain::request::{BindingView, InstanceView, LastOperation, Outcome};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

/// The first minor version that knows `endpoints`, `maintenance_info` and some catalog members.
pub(super) const SINCE_ENDPOINTS: u32 = 15;
/// The first minor version that knows `metadata`, `expires_at`, `instance_usable`, `update_repeatable`.
pub(super) const SINCE_METADATA: u32 = 16;
/// The first minor version that knows `renew_before` and `binding_rotatable`.
pub(super) const SINCE_ROTATION: u32 = 17;

/// What a caller may be shown: the minor version it announced, and whether that binds us (Z-03b).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// The announced minor version.
    pub minor: u32,
    /// Whether members newer than `minor` are left out.
    pub strict: bool,
}

impl View {
    /// Everything may be shown; used before the version is known.
    pub(super) const NEWEST: Self = Self {
        minor: u32::MAX,
        strict: false,
    };

    /// Whether members that came with minor version `since` are shown.
    pub(super) fn has(self, since: u32) -> bool {
        !self.strict || self.minor >= since
    }
}

/// A response with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(body) {
        Ok(bytes) => HttpResponse::build(status)
            .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .body(bytes),
        // Cannot happen for maps with string keys; if it does, the caller still gets an object.
        Err(_) => HttpResponse::InternalServerError()
            .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .body(r#"{"error":"InternalError","description":"The answer could not be written."}"#),
    }
}

fn instance_metadata(instance: &InstanceView, view: View) -> Option<InstanceMetadataBody<'_>> {
    (view.has(SINCE_METADATA) && !instance.labels.is_empty()).then_some(InstanceMetadataBody {
        labels: &instance.labels,
    })
}

/// Answers PUT and PATCH of an instance; only PUT may say 201 (S-01).
pub(super) fn instance_changed(outcome: &Outcome<InstanceView>, view: View, is_put: bool) -> HttpResponse {
    let (status, operation, instance) = match outcome {
        Outcome::Created(instance) if is_put => (StatusCode::CREATED, None, instance),
        Outcome::Created(instance) | Outcome::Done(instance) => (StatusCode::OK, None, instance),
        Outcome::Accepted { operation, body } => (StatusCode::ACCEPTED, Some(operation.as_str()), body),
    };
    json(
        status,
        &InstanceChangedBody {
            operation,
            dashboard_url: instance.dashboard_url.as_deref(),
            metadata: instance_metadata(instance, view),
        },
    )
}

/// Answers GET of an instance.
pub(super) fn instance_fetched(instance: &InstanceView, view: View) -> HttpResponse {
    json(
        StatusCode::OK,
        &InstanceBody {
            service_id: &instance.service_id,
            plan_id: &instance.plan_id,
            dashboard_url: instance.dashboard_url.as_deref(),
            parameters: (!instance.parameters.is_empty()).then_some(&instance.parameters),
            maintenance_info: instance
                .maintenance_version
                .as_deref()
                .filter(|_| view.has(SINCE_ENDPOINTS))
                .map(|version| RunningVersionBody { version }),
            metadata: instance_metadata(instance, view),
        },
    )
}

/// Answers both DELETEs.
pub(super) fn deleted(outcome: Outcome<()>) -> HttpResponse {
    match outcome {
        Outcome::Created(()) | Outcome::Done(()) => json(StatusCode::OK, &EmptyBody {}),
        Outcome::Accepted { operation, .. } => json(StatusCode::ACCEPTED, &OperationBody { operation }),
    }
}

/// Answers PUT of a binding; a 202 tells the operation and nothing else (B-02).
pub(super) fn bound(outcome: &Outcome<BindingView>, view: View) -> HttpResponse {
    match outcome {
        Outcome::Created(binding) => binding_body(StatusCode::CREATED, binding, view, false),
        Outcome::Done(binding) => binding_body(StatusCode::OK, binding, view, false),
        Outcome::Accepted { operation, .. } => json(
            StatusCode::ACCEPTED,
            &OperationBody {
                operation: operation.clone(),
            },
        ),
    }
}

/// Answers GET of a binding.
pub(super) fn binding_fetched(binding: &BindingView, view: View) -> HttpResponse {
    binding_body(StatusCode::OK, binding, view, true)
}

fn binding_body(status: StatusCode, binding: &BindingView, view: View, fetched: bool) -> HttpResponse {
    let credentials = binding.credentials.expose();
    // Z-03(a): a common Go client below 2.15 cannot read `ports` as text, so `endpoints` always
    // depends on the announced version.
    let endpoints = (view.minor >= SINCE_ENDPOINTS && !binding.endpoints.is_empty()).then(|| {
        binding
            .endpoints
            .iter()
            .map(|endpoint| EndpointBody {
                host: &endpoint.host,
                ports: &endpoint.ports,
                protocol: &endpoint.protocol,
            })
            .collect()
    });
    let metadata = BindingMetadataBody {
        expires_at: binding.expires_at.and_then(timestamp),
        renew_before: binding
            .renew_before
            .filter(|_| view.has(SINCE_ROTATION))
            .and_then(timestamp),
    };
    let has_metadata = metadata.expires_at.is_some() || metadata.renew_before.is_some();
    let mut response = json(
        status,
        &BindingBody {
            credentials: (!credentials.is_empty()).then_some(credentials),
            endpoints,
            parameters: (fetched && !binding.parameters.is_empty()).then_some(&binding.parameters),
            metadata: (has_metadata && view.has(SINCE_METADATA)).then_some(metadata),
        },
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Answers last_operation; `of_instance` tells K-01's narrower binding form from L-01's.
pub(super) fn last_operation(
    operation: &LastOperation,
    view: View,
    of_instance: bool,
    deleted_is_gone: bool,
) -> HttpResponse {
    if operation.deleted && operation.state == OperationState::Succeeded && deleted_is_gone {
        return json(
            StatusCode::GONE,
            &ErrorBody {
                error: "Gone".into(),
                description: "The delete operation succeeded; nothing is left.".into(),
                instance_usable: None,
                update_repeatable: None,
            },
        );
    }
    let state = match operation.state {
        OperationState::Open => StateWord::InProgress,
        OperationState::Succeeded => StateWord::Succeeded,
        OperationState::Failed | OperationState::Superseded => StateWord::Failed,
    };
    let flags = of_instance && operation.state == OperationState::Failed && view.has(SINCE_METADATA);
    let mut response = json(
        StatusCode::OK,
        &LastOperationBody {
            state,
            description: Some(operation.description.as_str()).filter(|text| !text.is_empty()),
            instance_usable: operation.instance_usable.filter(|_| flags),
            update_repeatable: operation.update_repeatable.filter(|_| flags),
        },
    );
    if operation.state == OperationState::Open {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(operation.retry_after));
    }
    response
}

/// `yyyy-mm-ddThh:mm:ss.sZ` (B-17); `None` for moments outside the years such a text can name.
///
/// Tenths are cut, not rounded, so `renew_before` never passes `expires_at` by formatting.
pub(super) fn timestamp(at: Millis) -> Option<String> {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).ok()?;
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:1]Z");
    moment.format(format).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::header_of;
    use super::*;
    use crate::domain::request::EndpointView;
    use crate::domain::secret::Secret;
    use actix_web::body::MessageBody;
    use serde_json::{Value, json};

    fn read(response: HttpResponse) -> (u16, Value) {
        let status = response.status().as_u16();
        assert_eq!(header_of(&response, &header::CONTENT_TYPE), "application/json");
        let bytes = response.into_body().try_into_bytes().unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    fn old(minor: u32) -> View {
        View { minor, strict: true }
    }

    fn object(value: Value) -> serde_json::Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    fn instance() -> InstanceView {
        InstanceView {
            service_id: "s".into(),
            plan_id: "p".into(),
            parameters: object(json!({"a": 1})),
            dashboard_url: Some("https://d".into()),
            maintenance_version: Some("1.2.3".into()),
            labels: object(json!({"k": "v"})),
        }
    }

    fn binding() -> BindingView {
        BindingView {
            credentials: Secret::from_pairs([("password", "pw")]),
            endpoints: vec![EndpointView {
                host: "h".into(),
                ports: vec!["5432".into()],
                protocol: "tcp".into(),
            }],
            parameters: object(json!({"role": "readonly"})),
            expires_at: Some(1_700_000_000_190),
            renew_before: Some(1_700_000_000_010),
        }
    }

    #[test]
    fn p01_p02_p04_provision_answers() {
        let full = json!({"dashboard_url": "https://d", "metadata": {"labels": {"k": "v"}}});
        let now = View {
            minor: 17,
            strict: false,
        };
        assert_eq!(
            read(instance_changed(&Outcome::Created(instance()), now, true)),
            (201, full.clone())
        );
        assert_eq!(
            read(instance_changed(&Outcome::Done(instance()), now, true)),
            (200, full)
        );
        let accepted = Outcome::Accepted {
            operation: "op".into(),
            body: instance(),
        };
        let (status, body) = read(instance_changed(&accepted, now, true));
        assert_eq!((status, &body["operation"]), (202, &json!("op")));
        assert_eq!(body["dashboard_url"], json!("https://d"), "P-03");
        let bare = Outcome::Created(InstanceView::default());
        assert_eq!(
            read(instance_changed(&bare, now, true)),
            (201, json!({})),
            "Z-02: omitted, not null"
        );
    }

    #[test]
    fn s01_patch_never_says_201() {
        let (status, _) = read(instance_changed(
            &Outcome::Created(instance()),
            View::NEWEST,
            false,
        ));
        assert_eq!(status, 200);
    }

    #[test]
    fn g01_fetch_tells_what_is_known() {
        assert_eq!(
            read(instance_fetched(&instance(), View::NEWEST)).1,
            json!({"service_id": "s", "plan_id": "p", "dashboard_url": "https://d", "parameters": {"a": 1},
                   "maintenance_info": {"version": "1.2.3"}, "metadata": {"labels": {"k": "v"}}})
        );
        let bare = InstanceView {
            service_id: "s".into(),
            plan_id: "p".into(),
            ..InstanceView::default()
        };
        assert_eq!(
            read(instance_fetched(&bare, View::NEWEST)).1,
            json!({"service_id": "s", "plan_id": "p"})
        );
    }

    #[test]
    fn d01_d02_deletes() {
        assert_eq!(read(deleted(Outcome::Done(()))), (200, json!({})));
        let accepted = Outcome::Accepted {
            operation: "op".into(),
            body: (),
        };
        assert_eq!(read(deleted(accepted)), (202, json!({"operation": "op"})));
    }

    #[test]
    fn b01_b02_f01_binding_answers() {
        let view = View {
            minor: 17,
            strict: false,
        };
        let whole = json!({"credentials": {"password": "pw"},
            "endpoints": [{"host": "h", "ports": ["5432"], "protocol": "tcp"}],
            "metadata": {"expires_at": "2023-11-14T22:13:20.1Z", "renew_before": "2023-11-14T22:13:20.0Z"}});
        assert_eq!(
            read(bound(&Outcome::Created(binding()), view)),
            (201, whole.clone())
        );
        assert_eq!(read(bound(&Outcome::Done(binding()), view)), (200, whole.clone()));
        let accepted = Outcome::Accepted {
            operation: "op".into(),
            body: binding(),
        };
        assert_eq!(read(bound(&accepted, view)), (202, json!({"operation": "op"})));
        let mut fetched = whole;
        fetched["parameters"] = json!({"role": "readonly"});
        assert_eq!(read(binding_fetched(&binding(), view)), (200, fetched));
        assert_eq!(
            read(bound(&Outcome::Created(BindingView::default()), view)).1,
            json!({})
        );
        for response in [
            bound(&Outcome::Created(binding()), view),
            binding_fetched(&binding(), view),
        ] {
            assert_eq!(header_of(&response, &header::CACHE_CONTROL), "no-store");
        }
    }

    #[test]
    fn z03a_endpoints_only_from_2_15() {
        let lenient = |minor| View { minor, strict: false };
        let has = |minor| {
            read(binding_fetched(&binding(), lenient(minor)))
                .1
                .get("endpoints")
                .is_some()
        };
        assert!(!has(13) && !has(14) && has(15) && has(17));
        assert!(
            read(binding_fetched(&binding(), lenient(13)))
                .1
                .get("metadata")
                .is_some()
        );
    }

    #[test]
    fn z03b_strict_versions_leave_out_newer_members() {
        let fetched = |minor| read(binding_fetched(&binding(), old(minor))).1;
        assert_eq!(fetched(15).get("metadata"), None);
        assert_eq!(
            fetched(16)["metadata"],
            json!({"expires_at": "2023-11-14T22:13:20.1Z"})
        );
        assert!(fetched(17)["metadata"].get("renew_before").is_some());
        let instance_at = |minor| read(instance_fetched(&instance(), old(minor))).1;
        assert_eq!(instance_at(14).get("maintenance_info"), None);
        assert!(instance_at(15).get("maintenance_info").is_some());
        assert_eq!(instance_at(15).get("metadata"), None);
        assert!(instance_at(16).get("metadata").is_some());
    }

    fn operation(state: OperationState) -> LastOperation {
        LastOperation {
            state,
            description: "half way".into(),
            instance_usable: Some(false),
            update_repeatable: Some(true),
            deleted: false,
            retry_after: 7,
        }
    }

    #[test]
    fn l01_l04_states_and_retry_after() {
        for (state, word) in [
            (OperationState::Open, "in progress"),
            (OperationState::Succeeded, "succeeded"),
            (OperationState::Superseded, "failed"),
        ] {
            let response = last_operation(&operation(state), View::NEWEST, true, false);
            let retry = response.headers().get(header::RETRY_AFTER).cloned();
            assert_eq!(retry.is_some_and(|v| v == "7"), state == OperationState::Open);
            assert_eq!(
                read(response),
                (200, json!({"state": word, "description": "half way"})),
                "E-04"
            );
        }
        let mut quiet = operation(OperationState::Open);
        quiet.description.clear();
        assert_eq!(
            read(last_operation(&quiet, View::NEWEST, true, false)).1,
            json!({"state": "in progress"})
        );
    }

    #[test]
    fn l09_k01_flags_only_for_failed_instance_operations() {
        let failed = operation(OperationState::Failed);
        let body = read(last_operation(&failed, View::NEWEST, true, false)).1;
        assert_eq!(
            body,
            json!({"state": "failed", "description": "half way", "instance_usable": false, "update_repeatable": true})
        );
        let plain = json!({"state": "failed", "description": "half way"});
        assert_eq!(read(last_operation(&failed, View::NEWEST, false, false)).1, plain);
        assert_eq!(
            read(last_operation(&failed, old(15), true, false)).1,
            plain,
            "Z-03(b)"
        );
    }

    #[test]
    fn z01_finished_delete_is_200_or_410_by_setting() {
        let mut done = operation(OperationState::Succeeded);
        done.deleted = true;
        assert_eq!(read(last_operation(&done, View::NEWEST, true, false)).0, 200);
        let (status, body) = read(last_operation(&done, View::NEWEST, true, true));
        assert_eq!((status, &body["error"]), (410, &json!("Gone")));
        done.deleted = false;
        assert_eq!(
            read(last_operation(&done, View::NEWEST, true, true)).0,
            200,
            "L-05: never for create"
        );
    }

    #[test]
    fn b17_timestamps() {
        assert_eq!(timestamp(0).unwrap(), "1970-01-01T00:00:00.0Z");
        assert_eq!(timestamp(1_700_000_000_999).unwrap(), "2023-11-14T22:13:20.9Z");
        assert_eq!(timestamp(-1).unwrap(), "1969-12-31T23:59:59.9Z");
        assert_eq!(timestamp(i64::MAX), None);
    }
}
