//! Keycloak's administration, asked with a token that is renewed once when it is not taken any more.

use super::http::{Answer, Body, Http, encoded};
use super::token::{LogIn, Token, Tokens};
use crate::ports::{PortError, PortErrorKind, PortResult};
use secrecy::ExposeSecret;
use serde_json::Value;

/// One log-in's way to the administration.
pub(super) struct Admin {
    http: Http,
    tokens: Tokens,
}

impl Admin {
    /// Asks at `http`, logged in at `realm`.
    pub fn new(http: Http, realm: &str, log_in: LogIn) -> Self {
        let tokens = Tokens::new(realm, log_in);
        Self { http, tokens }
    }

    /// For what is asked without a log-in.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The present token; a log-in that is refused is [`PortErrorKind::Denied`] here alone.
    pub async fn token(&self) -> PortResult<Token> {
        self.tokens.get(&self.http, None).await
    }

    /// Logs in again before the next call: rights that came later are in a new token only.
    pub async fn renew(&self) -> PortResult<()> {
        let old = self.token().await?;
        self.tokens.get(&self.http, Some(old.number)).await.map(drop)
    }

    /// One call to `path` with its query, which starts with `/admin/`; any status is an answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> PortResult<Answer> {
        let body = body.map_or(Body::Nothing, Body::Json);
        let token = self.tokens.get(&self.http, None).await.map_err(waiting)?;
        let answer = self.send(method, path, body, &token).await?;
        if answer.status != 401 {
            return Ok(answer);
        }
        // Ended early: the server lost its keys, or its clock was set.
        let refused = Some(token.number);
        let token = self.tokens.get(&self.http, refused).await.map_err(waiting)?;
        self.send(method, path, body, &token).await
    }

    async fn send(&self, method: &str, path: &str, body: Body<'_>, token: &Token) -> PortResult<Answer> {
        self.http
            .send(method, path, Some(token.text.expose_secret()), body)
            .await
    }
}

/// The broker's own log-in is an operator's to mend, without a restart: until then operations wait, none of them is wrong.
fn waiting(mut error: PortError) -> PortError {
    if error.kind == PortErrorKind::Denied {
        error.kind = PortErrorKind::Transient;
    }
    error
}

/// The path of a realm in the administration.
pub(super) fn realm_path(realm: &str) -> String {
    format!("/admin/realms/{}", encoded(realm))
}
