//! A store of the kind KV version 2, as far as the broker uses one: no key is ever read or written half.

use super::fault;
use super::http::{Request, segment};
use super::login::bytes;
use super::session::Session;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortErrorKind, PortResult};
use serde::Serialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

/// Names of a place in the store, the outermost first.
pub(super) type Path<'a> = &'a [&'a str];

/// What became of a write with a check.
pub(super) enum Written {
    /// It is there.
    Done,
    /// It was refused: most often because the version is not the one that was checked for.
    Refused(PortError),
}

/// The body of a write, which borrows the secret instead of copying it.
#[derive(Serialize)]
struct Write<'a> {
    options: Options,
    data: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Options {
    cas: u32,
}

/// One store.
pub(super) struct Kv<'a> {
    pub session: &'a Session,
    pub mount: &'a str,
}

impl Kv<'_> {
    /// Path below `/v1/` of one of the store's two halves, `data` and `metadata`.
    pub fn path(&self, half: &str, names: Path<'_>) -> PortResult<String> {
        let mut path = format!("{}/{half}", self.mount);
        for name in names {
            path.push('/');
            path.push_str(&segment(name)?);
        }
        Ok(path)
    }

    /// Writes the version after `cas`; 0 = there must be none yet.
    pub async fn write(&self, names: Path<'_>, cas: u32, data: &Secret) -> PortResult<Written> {
        let path = self.path("data", names)?;
        let write = Write {
            options: Options { cas },
            data: data.expose(),
        };
        let body = serde_json::to_vec(&write).map(Zeroizing::new);
        let body = body.map_err(|_| PortError::invalid("This secret cannot be written to the vault."))?;
        let request = Request::post(&path, &body);
        let answer = self.session.call(request).await?;
        match answer.status {
            400 => Ok(Written::Refused(
                fault::refusal(&self.session.http, &request, &answer).await,
            )),
            404 => Err(fault::refusal(&self.session.http, &request, &answer).await),
            _ => Ok(Written::Done),
        }
    }

    /// The newest version of a secret; none when there is none, or it was deleted.
    pub async fn read(&self, names: Path<'_>) -> PortResult<Option<Secret>> {
        let path = self.path("data", names)?;
        let request = Request::get(&path);
        let mut answer = self.session.call(request).await?;
        // A version that was deleted is 404 with its metadata.
        if answer.is_absent() {
            return Ok(None);
        }
        if !answer.is_success() {
            return Err(fault::refusal(&self.session.http, &request, &answer).await);
        }
        match answer.body["data"]["data"].take() {
            Value::Object(members) => Ok(Some(Secret::new(members))),
            _ => Ok(None),
        }
    }

    /// The number of the newest version, 0 when only metadata is there; none when nothing is.
    pub async fn version(&self, names: Path<'_>) -> PortResult<Option<u32>> {
        let path = self.path("metadata", names)?;
        let request = Request::get(&path);
        let answer = self.session.call(request).await?;
        if answer.is_absent() {
            return Ok(None);
        }
        let version = fault::number(answer.data("current_version")).and_then(|v| u32::try_from(v).ok());
        match version {
            Some(version) if answer.is_success() => Ok(Some(version)),
            _ => Err(fault::refusal(&self.session.http, &request, &answer).await),
        }
    }

    /// Sets what stands beside a secret in clear, and how long versions that are written from now on live.
    pub async fn describe(
        &self,
        names: Path<'_>,
        notes: Map<String, Value>,
        delete_version_after: &str,
    ) -> PortResult<()> {
        let path = self.path("metadata", names)?;
        let body = bytes(json!({"custom_metadata": notes, "delete_version_after": delete_version_after}))?;
        self.done(Request::post(&path, &body)).await
    }

    /// Destroys a secret with all its versions; an absent one is success.
    pub async fn erase(&self, names: Path<'_>) -> PortResult<()> {
        let path = self.path("metadata", names)?;
        self.done(Request::delete(&path)).await
    }

    /// Folders directly below, sorted.
    pub async fn folders(&self, names: Path<'_>) -> PortResult<Vec<String>> {
        let mut found = self.list(names).await?;
        // The order of names is another one with the `/` at their end.
        found.retain_mut(|name| name.pop() == Some('/'));
        found.sort_unstable();
        Ok(found)
    }

    /// Secrets directly below.
    pub async fn leaves(&self, names: Path<'_>) -> PortResult<Vec<String>> {
        let mut found = self.list(names).await?;
        found.retain(|name| !name.ends_with('/'));
        Ok(found)
    }

    /// What lies directly below; folders end with `/`.
    async fn list(&self, names: Path<'_>) -> PortResult<Vec<String>> {
        let path = format!("{}/?list=true", self.path("metadata", names)?);
        let request = Request::get(&path);
        let answer = self.session.call(request).await?;
        // Nothing below is 404.
        if answer.is_absent() {
            return Ok(Vec::new());
        }
        let keys = answer.data("keys").as_array();
        let Some(keys) = keys.filter(|_| answer.is_success()) else {
            return Err(fault::refusal(&self.session.http, &request, &answer).await);
        };
        Ok(keys
            .iter()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .collect())
    }

    async fn done(&self, request: Request<'_>) -> PortResult<()> {
        let answer = self.session.call(request).await?;
        if answer.is_success() || answer.is_absent() && request.method == "DELETE" {
            Ok(())
        } else {
            Err(fault::refusal(&self.session.http, &request, &answer).await)
        }
    }
}

/// Somebody else wrote another version.
pub(super) fn conflict(detail: String) -> PortError {
    PortError::new(
        PortErrorKind::Conflict,
        "The vault holds another version of this secret than expected.",
    )
    .with_detail(detail)
}
