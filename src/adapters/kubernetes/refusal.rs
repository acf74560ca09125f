//! What the API server said no to, and what that means to the engine and to people.
//!
//! What must stay true: a refusal about a Secret never repeats the server's words, which may quote it; everybody else
//! gets them, because they are the best there is.

use super::kinds::Resource;
use crate::ports::{PortError, PortErrorKind};
use kube::core::Status;
use std::time::Duration;

/// Longest text of the server that is passed on to people.
const LONGEST: usize = 400;

/// A request that the API server refused, or that never reached it.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// HTTP status; 0 = there was no answer.
    pub status: u16,
    reason: String,
    message: String,
    after: Option<Duration>,
    /// The namespace is being removed.
    terminating: bool,
    verb: &'static str,
    kind: String,
    plural: String,
    group: String,
    name: String,
}

impl Refusal {
    /// A refusal with a text of our own.
    pub fn new(status: u16, message: &str, verb: &'static str, resource: &Resource, name: &str) -> Self {
        Self {
            status,
            reason: String::new(),
            message: message.to_owned(),
            after: None,
            terminating: false,
            verb,
            kind: resource.kind.clone(),
            plural: resource.plural.clone(),
            group: resource.group().to_owned(),
            name: name.to_owned(),
        }
    }

    /// A refusal from what the server sent.
    pub fn of(status: &Status, verb: &'static str, resource: &Resource, name: &str) -> Self {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let terminating = causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating");
        Self {
            reason: status.reason.clone(),
            terminating,
            ..Self::new(status.code, &status.message, verb, resource, name)
        }
    }

    /// A refusal from an answer; a body that is no Kubernetes status comes from a proxy and is not shown to people.
    pub fn read(
        status: u16,
        after: Option<u64>,
        body: &[u8],
        verb: &'static str,
        resource: &Resource,
        name: &str,
    ) -> Self {
        let mut refusal = match serde_json::from_slice::<Status>(body) {
            Ok(said) => Self::of(&said, verb, resource, name),
            Err(_) => Self::new(status, "", verb, resource, name),
        };
        refusal.status = status;
        refusal.after = after.map(Duration::from_secs);
        refusal
    }

    /// What was asked for does not exist.
    pub fn is_gone(&self) -> bool {
        self.status == 404
    }

    /// The version to go on from is too old: list again.
    pub fn is_expired(&self) -> bool {
        self.status == 410
    }

    /// The broker has no right to it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.status, 401 | 403) && matches!(self.meaning(), Meaning::Right | Meaning::LogIn)
    }

    /// Nothing can be made in the namespace any more: it is being removed.
    pub fn is_ending(&self) -> bool {
        self.meaning() == Meaning::Terminating
    }

    /// A rule of the cluster says no to it: the broker's own admission policy, or another.
    pub fn is_against_a_rule(&self) -> bool {
        self.meaning() == Meaning::Admission
    }

    /// The object itself is refused, by the server or by a rule of the cluster.
    pub fn is_refused(&self) -> bool {
        matches!(
            self.meaning(),
            Meaning::Admission | Meaning::Wrong | Meaning::Quota | Meaning::Fixed
        )
    }

    /// The pause after which to send the same request again: what the server named, else `usual`; `None` = not at all.
    ///
    /// Besides throttling: a quota just made is not counted yet; and a server that has just started answers that nobody
    /// has any right until it has read them.
    pub fn again_after(&self, usual: Duration) -> Option<Duration> {
        match (self.status, self.meaning()) {
            (503, _) => self.after,
            (429, _) | (_, Meaning::Uncounted) | (401 | 403, Meaning::Right | Meaning::LogIn) => {
                Some(self.after.unwrap_or(usual))
            }
            _ => None,
        }
    }

    fn meaning(&self) -> Meaning {
        let says = |text: &str| self.message.contains(text);
        match self.status {
            0 | 408 | 429 | 410 => Meaning::Later,
            401 => Meaning::LogIn,
            404 => Meaning::Gone,
            _ if self.terminating || says("because it is being terminated") => Meaning::Terminating,
            _ if says("status unknown for quota") => Meaning::Uncounted,
            _ if says("must support resize") => Meaning::Fixed,
            _ if says("exceeded quota") || says("failed quota") => Meaning::Quota,
            _ if says("failed calling webhook") || says("failed to call webhook") => Meaning::Later,
            _ if says("denied the request") || says("denied request") || says("violates PodSecurity") => {
                Meaning::Admission
            }
            _ if says("failed to create typed patch object") || says("field not declared in schema") => {
                Meaning::Wrong
            }
            403 => Meaning::Right,
            409 => Meaning::Conflict,
            500.. => Meaning::Later,
            _ => Meaning::Wrong,
        }
    }

    /// The object, as people call it.
    fn what(&self) -> String {
        match self.name.as_str() {
            "" => format!("objects of kind {}", self.kind),
            name => format!("the {} {name}", self.kind),
        }
    }

    /// The server's words, without those that only machines need.
    fn words(&self) -> String {
        if self.kind == "Secret" {
            return "its reason is not repeated, because it may quote the secret".to_owned();
        }
        // Of a webhook, and of a policy.
        let marks = ["denied the request: ", "denied request: "];
        let said = marks.into_iter().find_map(|mark| self.message.split_once(mark));
        let words = said.map_or(self.message.as_str(), |(_, words)| words);
        let mut words: String = words.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        if words.is_empty() {
            words = format!("status {}", self.status);
        }
        words.trim_end_matches('.').to_owned()
    }
}

/// What a refusal comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Later,
    LogIn,
    Right,
    Gone,
    Terminating,
    Uncounted,
    Quota,
    Fixed,
    Admission,
    Conflict,
    Wrong,
}

impl From<Refusal> for PortError {
    fn from(refused: Refusal) -> Self {
        let (what, words) = (refused.what(), refused.words());
        let (kind, message) = match refused.meaning() {
            Meaning::Later if refused.status == 0 => (
                PortErrorKind::Transient,
                "The Kubernetes API server cannot be reached; trying again.".to_owned(),
            ),
            Meaning::Later => (
                PortErrorKind::Transient,
                "The Kubernetes API server is busy or starting; trying again.".to_owned(),
            ),
            Meaning::LogIn => (
                PortErrorKind::Denied,
                "The Kubernetes API server does not accept the broker's log-in; the operator has to renew it.".to_owned(),
            ),
            Meaning::Right => {
                let group = match refused.group.as_str() {
                    "" => String::new(),
                    group => format!(".{group}"),
                };
                let verb = match refused.verb {
                    "apply" | "rehearse" | "peek" => "patch",
                    verb => verb,
                };
                (
                    PortErrorKind::Denied,
                    format!(
                        "The broker has no right to {verb} {}{group} in the cluster; the operator has to apply what `chandler rbac` prints.",
                        refused.plural
                    ),
                )
            }
            Meaning::Gone => (PortErrorKind::Gone, format!("There is no {} (any more).", what.trim_start_matches("the "))),
            Meaning::Terminating => (
                PortErrorKind::Transient,
                "Waiting for the earlier namespace of this instance to go.".to_owned(),
            ),
            Meaning::Uncounted => (
                PortErrorKind::Transient,
                "Waiting for the cluster to count the quota of the namespace.".to_owned(),
            ),
            Meaning::Quota => (
                PortErrorKind::Invalid,
                format!("The quota of the namespace does not allow {what}: {words}. Choose a smaller plan or ask the operator for more."),
            ),
            Meaning::Fixed => (
                PortErrorKind::Invalid,
                format!("The StorageClass of {what} does not let it grow. Create a new instance and move the data."),
            ),
            Meaning::Admission => (
                PortErrorKind::Invalid,
                format!("The cluster's rules do not admit {what}: {words}."),
            ),
            Meaning::Conflict => (
                PortErrorKind::Conflict,
                format!("Somebody else is changing {what}; trying again."),
            ),
            Meaning::Wrong => (
                PortErrorKind::Invalid,
                format!("The cluster does not take {what}: {words}. The operator has to mend the catalog."),
            ),
        };
        let message_for_log = if refused.kind == "Secret" {
            String::new()
        } else {
            refused.message.clone()
        };
        PortError::new(kind, message).with_detail(format!(
            "{} {} {}: status {} {} {message_for_log}",
            refused.verb, refused.kind, refused.name, refused.status, refused.reason
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::kinds::Kinds;
    use super::*;
    use serde_json::json;

    fn refused(kind: &str, code: u16, message: &str) -> Refusal {
        let api_version = if kind == "StatefulSet" { "apps/v1" } else { "v1" };
        let resource = Kinds::usual(api_version, kind).unwrap();
        let body = json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
        Refusal::read(code, None, body.to_string().as_bytes(), "apply", &resource, "db")
    }

    #[test]
    fn every_refusal_has_its_kind_and_a_sentence() {
        use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
        for (code, message, kind, sentence) in [
            (429, "too many requests", Transient, "busy"),
            (500, "etcdserver: leader changed", Transient, "busy"),
            (503, "", Transient, "busy"),
            (401, "Unauthorized", Denied, "log-in"),
            (
                403,
                "statefulsets.apps \"db\" is forbidden: User \"x\" cannot patch resource \"statefulsets\" in API group \"apps\" in the namespace \"n\"",
                Denied,
                "no right to patch statefulsets.apps in the cluster; the operator has to apply what `chandler rbac` prints",
            ),
            (404, "not found", Gone, "no StatefulSet db"),
            (409, "the object has been modified", Conflict, "Somebody else"),
            (
                403,
                "pods \"db-0\" is forbidden: exceeded quota: chandler, requested: pods=1, used: pods=3, limited: pods=3",
                Invalid,
                "used: pods=3, limited: pods=3. Choose a smaller plan",
            ),
            (
                403,
                "persistentvolumeclaims \"x\" is forbidden: status unknown for quota: chandler, resources: persistentvolumeclaims",
                Transient,
                "count the quota",
            ),
            (
                403,
                "unable to create new content in namespace osb-x because it is being terminated",
                Transient,
                "earlier namespace",
            ),
            (
                400,
                "admission webhook \"rules.example.com\" denied the request: every image must be signed",
                Invalid,
                "do not admit the StatefulSet db: every image must be signed.",
            ),
            (
                422,
                "ValidatingAdmissionPolicy 'own' with binding 'own' denied request: not the broker's",
                Invalid,
                "do not admit",
            ),
            (
                500,
                "Internal error occurred: failed calling webhook \"x\": connection refused",
                Transient,
                "busy",
            ),
            (
                500,
                "failed to create typed patch object (db; apps/v1, Kind=StatefulSet): .spec.replica: field not declared in schema",
                Invalid,
                "does not take the StatefulSet db",
            ),
            (
                422,
                "StatefulSet.apps \"db\" is invalid: spec.replicas: Invalid value: -1",
                Invalid,
                "spec.replicas: Invalid value: -1",
            ),
        ] {
            let error = PortError::from(refused("StatefulSet", code, message));
            assert_eq!(error.kind, kind, "{message}");
            assert!(error.message.contains(sentence), "{message} → {}", error.message);
            assert!(error.detail.contains(message), "{message} → {}", error.detail);
        }
    }

    #[test]
    fn words_about_a_secret_are_not_repeated() {
        for (code, message) in [
            (
                422,
                "Secret \"db\" is invalid: data[password]: Invalid value: \"hunter2\"",
            ),
            (
                400,
                "admission webhook \"x\" denied the request: hunter2 is too short",
            ),
            (403, "exceeded quota hunter2"),
        ] {
            let error = PortError::from(refused("Secret", code, message));
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn only_what_the_server_did_not_look_at_is_sent_again() {
        let again = |code, message: &str| {
            refused("StatefulSet", code, message)
                .again_after(Duration::ZERO)
                .is_some()
        };
        assert!(again(429, ""));
        assert!(again(403, "x is forbidden: status unknown for quota: q"));
        assert!(again(403, "statefulsets is forbidden: User \"x\" cannot patch"));
        assert!(!again(403, "x is forbidden: exceeded quota: q"));
        assert!(!again(500, "") && !again(503, "") && !again(409, "") && !again(404, "") && !again(422, ""));
        let resource = Kinds::usual("v1", "Pod").unwrap();
        let starting = Refusal::read(503, Some(1), b"starting", "get", &resource, "x");
        assert_eq!(starting.again_after(Duration::ZERO), Some(Duration::from_secs(1)));
    }
}
