//! Why an instance is not getting ready, as one sentence a developer can act on.
//!
//! What must stay true:
//! - terminal only what waiting cannot mend: a name that does not exist, a refusal, the same crash again and again; what
//!   a busy cluster or a slow registry mends by itself only moves the progress text;
//! - what an event tells counts only while nothing newer says that it passed.

use super::{images, shape, words};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How long what may pass by itself is given, in milliseconds: starting nodes announce themselves well before.
const PATIENCE: i64 = 2 * 60_000;
/// How long an unexplained image pull error, or a node on its way, is given.
const LONG_PATIENCE: i64 = 10 * 60_000;
/// Restarts after which a container that stops at once is given up: two to three minutes.
const MOST_RESTARTS: i64 = 5;
/// What an event tells is current for so long; who failed tries again with growing pauses. In milliseconds.
const CURRENT: i64 = 3 * 60_000;
/// A container that ran for longer did not fail to start; in milliseconds.
const RAN_WELL: i64 = 10 * 60_000;
/// How long a pod may run without becoming ready before its probe's words are shown, in milliseconds.
const QUIET: i64 = 60_000;

/// Why an instance is not getting ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One sentence a developer can act on.
    pub sentence: String,
    /// Whether waiting is of no use.
    pub terminal: bool,
}

/// What keeps an instance from getting ready, if the cluster says so: the worst first.
///
/// `events` are those of the instance's namespace, of either events API, normal ones and warnings: that a node is on its
/// way is no warning. In a shared namespace only those about its objects.
pub(super) fn trouble(pods: &[&Value], claims: &[&Value], events: &[Value], now_ms: i64) -> Option<Trouble> {
    let mut told: Vec<Told<'_>> = events.iter().map(Told::of).collect();
    told.sort_by_key(|told| std::cmp::Reverse(told.last));
    let mut pods: Vec<&Value> = pods.iter().copied().filter(|pod| !is_going(pod)).collect();
    pods.sort_by_key(|pod| shape::name(pod));
    let scene = Scene {
        pods,
        told,
        now: now_ms,
    };
    let mut found = scene.jobs();
    for pod in &scene.pods {
        found.extend(scene.pod(pod));
    }
    found.extend(scene.refused());
    found.extend(claims.iter().filter_map(|claim| scene.claim(claim)));
    let worst = found.iter().position(|trouble| trouble.terminal).unwrap_or(0);
    (worst < found.len()).then(|| found.swap_remove(worst))
}

/// An event, of either API.
struct Told<'a> {
    kind: &'a str,
    name: &'a str,
    uid: &'a str,
    reason: &'a str,
    message: &'a str,
    first: i64,
    last: i64,
}

impl<'a> Told<'a> {
    fn of(event: &'a Value) -> Self {
        let either = |one: &str, other: &str| match shape::text(event, one) {
            "" => shape::text(event, other),
            text => text,
        };
        let newest = [
            "/series/lastObservedTime",
            "/lastTimestamp",
            "/deprecatedLastTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ];
        let oldest = [
            "/firstTimestamp",
            "/deprecatedFirstTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ];
        let time = |paths: &[&str]| {
            paths
                .iter()
                .find_map(|path| millis(event, path))
                .unwrap_or_default()
        };
        Self {
            kind: either("/involvedObject/kind", "/regarding/kind"),
            name: either("/involvedObject/name", "/regarding/name"),
            uid: either("/involvedObject/uid", "/regarding/uid"),
            reason: shape::text(event, "/reason"),
            message: either("/message", "/note"),
            first: time(&oldest),
            last: time(&newest),
        }
    }
}

fn millis(value: &Value, path: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(shape::text(value, path), &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn lasting(sentence: impl Into<String>) -> Trouble {
    Trouble {
        sentence: sentence.into(),
        terminal: true,
    }
}

fn passing(sentence: impl Into<String>) -> Trouble {
    Trouble {
        sentence: sentence.into(),
        terminal: false,
    }
}

/// ": text", or nothing.
fn because(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// Name and uid of the owner of this kind.
fn owner<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    shape::list(object, "/metadata/ownerReferences")
        .iter()
        .find(|owner| shape::text(owner, "/kind") == kind)
        .map(|owner| (shape::text(owner, "/name"), shape::text(owner, "/uid")))
}

struct Scene<'a> {
    pods: Vec<&'a Value>,
    /// Newest first.
    told: Vec<Told<'a>>,
    now: i64,
}

impl Scene<'_> {
    /// Events about an object, newest first, without those about an earlier one of the same name.
    fn about(&self, kind: &str, object: &Value) -> impl Iterator<Item = &Told<'_>> {
        let name = shape::name(object);
        let made = millis(object, "/metadata/creationTimestamp").unwrap_or_default();
        self.told
            .iter()
            .filter(move |told| told.kind == kind && told.name == name && told.last >= made)
    }

    /// Jobs that were given up, as far as their pods are still there to tell why.
    fn jobs(&self) -> Vec<Trouble> {
        let mut found = Vec::new();
        for told in self.told.iter().filter(|told| told.kind == "Job") {
            let how = match told.reason {
                "BackoffLimitExceeded" => "failed every time it was tried",
                "DeadlineExceeded" => "took too long",
                _ => continue,
            };
            let mut tries = self
                .pods
                .iter()
                .filter(|pod| owner(pod, "Job").is_some_and(|owner| owner == (told.name, told.uid)));
            let said = tries.find_map(|pod| ended(pod));
            found.extend(said.map(|said| {
                lasting(format!(
                    "The job {} {how}{}. Tell the platform's operators.",
                    told.name,
                    because(&said)
                ))
            }));
        }
        found
    }

    fn pod(&self, pod: &Value) -> Vec<Trouble> {
        let name = shape::name(pod);
        let phase = shape::text(pod, "/status/phase");
        if phase == "Succeeded" {
            return Vec::new();
        }
        if phase == "Failed" {
            return vec![Self::failed(pod)];
        }
        let mut found: Vec<Trouble> = containers(pod)
            .filter_map(|container| self.container(pod, container))
            .collect();
        found.extend(self.unplaced(pod));
        if phase == "Pending" {
            let mount = self
                .about("Pod", pod)
                .find(|told| matches!(told.reason, "FailedMount" | "FailedAttachVolume"));
            found.extend(mount.map(|told| {
                passing(format!(
                    "Pod {name} waits for a volume{}.",
                    because(&words::clean(told.message))
                ))
            }));
        } else {
            found.extend(self.unready(pod));
        }
        found
    }

    /// A pod that ended; who made it makes another.
    fn failed(pod: &Value) -> Trouble {
        let said = match words::clean(shape::text(pod, "/status/message")) {
            message if message.is_empty() => ended(pod).unwrap_or_default(),
            message => message,
        };
        let what = owner(pod, "Job").map_or_else(
            || format!("Pod {}", shape::name(pod)),
            |(job, _)| format!("A try of the job {job}"),
        );
        passing(format!("{what} failed{}.", because(&said)))
    }

    fn container(&self, pod: &Value, container: &Value) -> Option<Trouble> {
        let (pod_name, name) = (shape::name(pod), shape::text(container, "/name"));
        let reason = shape::text(container, "/state/waiting/reason");
        let message = shape::text(container, "/state/waiting/message");
        match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => {
                return Some(self.image(pod, container, reason));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                let sentence = format!(
                    "Container {name} of pod {pod_name} cannot be started{}. Tell the platform's operators.",
                    because(&words::clean(message))
                );
                return Some(Trouble {
                    sentence,
                    terminal: self.age(pod) >= PATIENCE,
                });
            }
            _ => {}
        }
        let restarts = shape::number(container, "/restartCount").unwrap_or_default();
        let ready = container.pointer("/ready") == Some(&Value::Bool(true));
        let last = container.pointer("/lastState/terminated")?;
        // An init container that ended well is "not ready" for ever.
        if restarts == 0
            || ready
            || shape::number(container, "/state/terminated/exitCode") == Some(0)
            || shape::number(last, "/exitCode") == Some(0) && reason.is_empty()
        {
            return None;
        }
        let ran = match (millis(last, "/startedAt"), millis(last, "/finishedAt")) {
            (Some(start), Some(end)) => end - start,
            _ => 0,
        };
        let terminal = reason == "CrashLoopBackOff" && restarts >= MOST_RESTARTS && ran < RAN_WELL;
        let advice = if shape::text(last, "/reason") == "OOMKilled" {
            "Choose a plan with more memory"
        } else {
            "Check the parameters, else tell the platform's operators"
        };
        Some(Trouble {
            sentence: format!(
                "Container {name} of pod {pod_name} keeps stopping ({restarts} restarts){}. {advice}.",
                because(&ending(last))
            ),
            terminal,
        })
    }

    fn image(&self, pod: &Value, container: &Value, reason: &str) -> Trouble {
        let pod_name = shape::name(pod);
        // What is shown names the image as the plan does; the status may have it otherwise, or not at all.
        let named = ["/spec/containers", "/spec/initContainers"]
            .into_iter()
            .flat_map(|path| shape::list(pod, path))
            .find(|spec| shape::text(spec, "/name") == shape::text(container, "/name"))
            .map_or_else(
                || shape::text(container, "/image"),
                |spec| shape::text(spec, "/image"),
            );
        let image = readable(named);
        let said = shape::text(container, "/state/waiting/message");
        let more = self
            .about("Pod", pod)
            .find(|told| told.reason == "Failed" && told.message.contains("pull"))
            .map_or("", |told| told.message);
        // The name itself may hold any of the words below.
        let all = format!("{said} {more}").replace(named, "").to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| all.contains(word));
        let (why, definite) = if reason == "InvalidImageName" {
            ("that is not the name of an image", true)
        } else if reason == "ErrImageNeverPull" {
            ("it is not on the node and may not be pulled", true)
        } else if says(&[
            "no such host",
            "dial tcp",
            "timeout",
            "deadline exceeded",
            "connection re",
            "x509",
            "tls",
        ]) {
            ("its registry cannot be reached", false)
        } else if says(&["toomanyrequests", "too many requests", "rate limit"]) {
            ("its registry allows no more pulls for now", false)
        } else if says(&["not found", "manifest unknown", "does not exist"]) {
            ("its registry does not have it", true)
        } else if says(&[
            "unauthorized",
            "denied",
            "authentication required",
            "401",
            "403",
            "no basic auth",
        ]) {
            ("its registry refuses access", true)
        } else {
            ("", false)
        };
        // The back-off says that it was tried and tried again.
        let again = reason != "ErrImagePull";
        let why = if why.is_empty() {
            words::clean(said)
        } else {
            why.to_owned()
        };
        Trouble {
            sentence: format!(
                "Pod {pod_name} cannot get the image {image}{}. Tell the platform's operators.",
                because(&why)
            ),
            terminal: again && (definite || self.age(pod) >= LONG_PATIENCE),
        }
    }

    fn age(&self, object: &Value) -> i64 {
        millis(object, "/metadata/creationTimestamp").map_or(0, |made| self.now - made)
    }

    /// A pod that no node takes.
    fn unplaced(&self, pod: &Value) -> Option<Trouble> {
        let name = shape::name(pod);
        let condition = shape::list(pod, "/status/conditions")
            .iter()
            .find(|condition| shape::text(condition, "/type") == "PodScheduled")?;
        if shape::text(condition, "/status") != "False"
            || shape::text(condition, "/reason") != "Unschedulable"
        {
            return None;
        }
        let message = shape::text(condition, "/message");
        if message.contains("unbound immediate PersistentVolumeClaims") {
            return Some(passing(format!("Pod {name} waits for its volumes.")));
        }
        let since = millis(condition, "/lastTransitionTime").unwrap_or(self.now);
        let node_comes = self
            .about("Pod", pod)
            .any(|told| matches!(told.reason, "TriggeredScaleUp" | "Nominated"));
        if node_comes && self.now - since < LONG_PATIENCE {
            return Some(passing(format!("Pod {name} waits for a new node.")));
        }
        // What follows is about moving others away.
        let end = [" preemption:", " no new claims to deallocate"]
            .iter()
            .filter_map(|mark| message.find(mark))
            .min();
        let why = &message[..end.unwrap_or(message.len())];
        let advice = if message.contains("Insufficient") {
            "Choose a smaller plan, or ask the platform's operators for room"
        } else {
            "Tell the platform's operators"
        };
        Some(Trouble {
            sentence: format!(
                "No node takes pod {name}{}. {advice}.",
                because(&words::clean(why))
            ),
            terminal: self.now - since >= PATIENCE,
        })
    }

    /// A pod that runs and does not become ready, in its probe's words.
    fn unready(&self, pod: &Value) -> Option<Trouble> {
        let condition = shape::list(pod, "/status/conditions")
            .iter()
            .find(|condition| shape::text(condition, "/type") == "Ready")?;
        let since = millis(condition, "/lastTransitionTime")?;
        if shape::text(condition, "/status") == "True" || self.now - since < QUIET {
            return None;
        }
        let name = shape::name(pod);
        let told = self.about("Pod", pod).find(|told| told.reason == "Unhealthy")?;
        Some(passing(format!(
            "Pod {name} runs but is not ready{}.",
            because(&words::clean(told.message))
        )))
    }

    /// Pods and volumes that the cluster does not even let be made.
    fn refused(&self) -> Vec<Trouble> {
        let mut found = Vec::new();
        for told in &self.told {
            if told.reason != "FailedCreate" || self.was_made_since(told) {
                continue;
            }
            let of = format!("{} {}", told.kind, told.name);
            let text = told.message;
            let current = self.now - told.last < CURRENT;
            let long = current && self.now - told.first >= PATIENCE;
            let after = |mark: &str| {
                text.split_once(mark)
                    .map(|(_, rest)| words::clean(rest))
                    .unwrap_or_default()
            };
            found.push(if text.contains("exceeded quota") {
                let amounts = after("exceeded quota:");
                // The quota's own name means nothing to anybody.
                let amounts = amounts.split_once(", ").map_or(amounts.as_str(), |(_, rest)| rest);
                Trouble {
                    sentence: format!(
                        "The pods of {of} do not fit into the namespace's quota{}. Tell the platform's operators.",
                        because(amounts)
                    ),
                    terminal: long,
                }
            } else if text.contains("violates PodSecurity") {
                Trouble {
                    sentence: format!(
                        "The cluster's Pod Security refuses the pods of {of}{}. Tell the platform's operators.",
                        because(&after("violates PodSecurity"))
                    ),
                    terminal: current,
                }
            } else if let Some(mark) = ["denied the request", "denied request"].into_iter().find(|m| text.contains(m)) {
                Trouble {
                    sentence: format!(
                        "A policy of the cluster refuses what {of} makes{}. Tell the platform's operators.",
                        because(after(mark).trim_start_matches([':', ' ']))
                    ),
                    terminal: current,
                }
            } else if text.contains("failed calling webhook") {
                passing(format!(
                    "A webhook of the cluster does not answer, so nothing of {of} can be made{}.",
                    because(&after("failed calling webhook"))
                ))
            } else {
                let why = after("is forbidden:");
                let why = if why.is_empty() { words::clean(text) } else { why };
                passing(format!("{of} cannot be made complete{}.", because(&why)))
            });
        }
        found
    }

    /// Whether a pod of the object came after it was told that none could.
    fn was_made_since(&self, told: &Told<'_>) -> bool {
        self.pods.iter().any(|pod| {
            owner(pod, told.kind).is_some_and(|(name, _)| name == told.name)
                && millis(pod, "/metadata/creationTimestamp")
                    // The API server's times are whole seconds, an event's may not be.
                    .is_some_and(|made| made + 999 >= told.last)
        })
    }

    fn claim(&self, claim: &Value) -> Option<Trouble> {
        let name = shape::name(claim);
        let newest = self.about("PersistentVolumeClaim", claim).next();
        let said = |told: &Told<'_>| because(&words::clean(told.message));
        match shape::text(claim, "/status/phase") {
            "Lost" => Some(lasting(format!(
                "The volume {name} has lost its storage. Tell the platform's operators."
            ))),
            "Bound" => newest
                .filter(|told| told.reason == "VolumeResizeFailed")
                .map(|told| passing(format!("The volume {name} cannot be enlarged{}.", said(told)))),
            _ if is_going(claim) => None,
            _ => {
                let told =
                    newest.filter(|told| matches!(told.reason, "ProvisioningFailed" | "FailedBinding"))?;
                let since = told.first.max(self.now - self.age(claim));
                let no_class = told.message.contains("storageclass") && told.message.contains("not found");
                Some(Trouble {
                    sentence: format!(
                        "The volume {name} cannot be made{}. Tell the platform's operators.",
                        said(told)
                    ),
                    terminal: no_class || self.now - since >= PATIENCE,
                })
            }
        }
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/status/initContainerStatuses", "/status/containerStatuses"]
        .into_iter()
        .flat_map(|path| shape::list(pod, path))
}

/// How a container of a pod ended that should not have.
fn ended(pod: &Value) -> Option<String> {
    containers(pod).find_map(|container| {
        let terminated = ["/state/terminated", "/lastState/terminated"]
            .into_iter()
            .find_map(|path| container.pointer(path))?;
        if shape::number(terminated, "/exitCode") == Some(0) {
            return None;
        }
        Some(ending(terminated))
    })
}

/// How a container ended, such as `exit code 1, FATAL: no space left`.
fn ending(terminated: &Value) -> String {
    if shape::text(terminated, "/reason") == "OOMKilled" {
        return "it used more memory than it may".into();
    }
    let code = shape::number(terminated, "/exitCode").unwrap_or_default();
    match words::last_words(shape::text(terminated, "/message")) {
        said if said.is_empty() => format!("exit code {code}"),
        said => format!("exit code {code}, {said}"),
    }
}

/// An image without the digest, which nobody can read; the name alone where there is no tag.
fn readable(image: &str) -> String {
    let (name, rest) = images::split(image);
    let tag = rest.split('@').next().unwrap_or_default();
    words::clean(&format!("{name}{tag}"))
}

#[cfg(test)]
mod tests;
