//! Talking to the server: bounded logins, and requests that every resolver answers for itself.
//!
//! A connection lives for one port call. It never comes back by itself after it was cut, so nothing
//! is left trying in the background, and no call outlives its own time-outs.

use crate::domain::instance::Endpoint;
use crate::ports::{PortError, PortErrorKind, PortResult};
use async_nats::{AuthError, Client, ConnectErrorKind, ConnectOptions, PublishErrorKind, StatusCode};
use futures::StreamExt;
use nkeys::KeyPair;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a login may take, name resolution included.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(3);
/// How long to wait for the other servers once one has answered.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// Who logs in; decides what a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The broker's own user in the system account.
    System,
    /// A user of the application account.
    User,
}

/// Logs in with a JWT and the seed of the key it names; the server has answered a PING when this returns.
///
/// Errors: `Denied` when the server refuses the JWT, `Transient` for whatever may pass by itself.
pub(super) async fn login(
    endpoint: &Endpoint,
    who: Who,
    jwt: &str,
    seed: &str,
    inbox: &str,
) -> PortResult<Client> {
    let key = KeyPair::from_seed(seed)
        .map(Arc::new)
        .map_err(|_| PortError::invalid("The stored key of a NATS user cannot be read."))?;
    let host = if endpoint.host.contains(':') {
        format!("[{}]", endpoint.host)
    } else {
        endpoint.host.clone()
    };
    let options = ConnectOptions::with_jwt(jwt.to_owned(), move |nonce| {
        let key = Arc::clone(&key);
        async move {
            key.sign(&nonce)
                .map_err(|_| AuthError::new("the key cannot sign"))
        }
    })
    .name("chandler")
    .connection_timeout(CONNECT)
    .request_timeout(Some(REQUEST))
    .custom_inbox_prefix(inbox)
    .ignore_discovered_servers()
    // One attempt and no more; 0 would mean without end.
    .max_reconnects(1)
    .event_callback(|_| async {});
    match timeout(
        CONNECT,
        options.connect(format!("nats://{host}:{}", endpoint.port)),
    )
    .await
    {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(refusal(who, &error)),
        Err(_) => Err(PortError::transient("The NATS server did not answer in time.")),
    }
}

fn refusal(who: Who, error: &async_nats::ConnectError) -> PortError {
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    let detail = format!("{}: {source}", error.kind());
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => match who {
            Who::System => PortError::denied(
                "The NATS server refuses the broker's own login: it runs with another operator or system account.",
            ),
            Who::User => {
                PortError::denied("The NATS server refuses the binding's login: it is revoked, expired or not known.")
            }
        },
        ConnectErrorKind::Authentication | ConnectErrorKind::ServerParse => {
            PortError::invalid("The login to the NATS server could not be put together.")
        }
        _ if source.contains("maximum") => {
            PortError::transient("The NATS server has no connection left for this instance; close some or take a larger plan.")
        }
        _ => PortError::transient("The NATS server cannot be reached."),
    }
    .with_detail(detail)
}

/// Sends a request that each of `expect` servers answers; returns the answers that came within the time.
///
/// Errors: `Transient` when not even one did or nobody listens, `Invalid` when the payload is larger than the server takes.
pub(super) async fn ask(
    client: &Client,
    subject: String,
    payload: String,
    expect: usize,
) -> PortResult<Vec<Vec<u8>>> {
    let unsent = |error: &dyn std::fmt::Display| {
        PortError::transient("The request to the NATS server could not be sent.").with_detail(error)
    };
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.map_err(|e| unsent(&e))?;
    client
        .publish_with_reply(subject, inbox, payload.into())
        .await
        .map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => PortError::invalid(
                "The list of revoked bindings is larger than the NATS server takes; raise its max_payload.",
            ),
            _ => unsent(&error),
        })?;
    let mut until = Instant::now() + REQUEST;
    let mut answers: Vec<Vec<u8>> = Vec::with_capacity(expect);
    while answers.len() < expect {
        match timeout_at(until, replies.next()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                return Err(
                    PortError::transient("The NATS server does not manage accounts (yet).").with_detail(
                        "no responders: the resolver is not of type full, or the server is still starting",
                    ),
                );
            }
            Ok(Some(message)) => {
                answers.push(message.payload.to_vec());
                until = until.min(Instant::now() + STRAGGLERS);
            }
            // Cut, or the time is over.
            Ok(None) | Err(_) => break,
        }
    }
    if answers.is_empty() {
        return Err(PortError::new(
            PortErrorKind::Transient,
            "The NATS server did not answer in time.",
        ));
    }
    Ok(answers)
}
