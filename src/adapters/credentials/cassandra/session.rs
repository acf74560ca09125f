//! A short-lived CQL session with the one endpoint a mechanism is given.
//!
//! What must stay true here:
//! - only that endpoint is spoken to: the driver would look for the other nodes by the addresses they tell each other,
//!   which this process may not reach, and statements that change users are to come from one place anyway;
//! - every call bounds its own time;
//! - no statement gets into an error: it may hold a password's hash. The server quotes statements, so its text is cut.

use crate::ports::{PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session as Driver;
use scylla::client::session_builder::SessionBuilder;
use scylla::cluster::metadata::Peer;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError,
    MetadataError, NewSessionError, RequestAttemptError, TranslationError,
};
use scylla::frame::types::Consistency;
use scylla::policies::address_translator::{AddressTranslator, UntranslatedPeer};
use scylla::policies::host_filter::HostFilter;
use scylla::policies::retry::FallthroughRetryPolicy;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::lookup_host;
use uuid::Uuid;

const CONNECT_TIME: Duration = Duration::from_secs(5);
const LOGIN_TIME: Duration = Duration::from_secs(15);
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// How often, and how long apart, the nodes are asked whether they agree on the schema.
const AGREEMENT_TRIES: usize = 40;
const AGREEMENT_PAUSE: Duration = Duration::from_millis(250);

/// Makes the driver connect once, to the endpoint, whatever nodes it hears of.
struct OneNode {
    endpoint: SocketAddr,
    /// The node that stands for all, by the id it has in its cluster.
    chosen: OnceLock<Uuid>,
}

impl HostFilter for OneNode {
    fn accept(&self, peer: &Peer) -> bool {
        *self.chosen.get_or_init(|| peer.host_id) == peer.host_id
    }
}

#[async_trait]
impl AddressTranslator for OneNode {
    async fn translate_address(&self, _: &UntranslatedPeer) -> Result<SocketAddr, TranslationError> {
        Ok(self.endpoint)
    }
}

/// A session that ends with this value.
pub(super) struct Session(Driver);

impl Session {
    /// Logs in. A refused log-in is `Denied`.
    pub async fn open(target: &Target, username: &str, password: &str) -> PortResult<Self> {
        let endpoint = &target.endpoint;
        let endpoint = lookup_host((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|e| PortError::transient("The server's name is not known yet.").with_detail(e))?
            .next()
            .ok_or_else(|| PortError::transient("The server's name stands for no address yet."))?;
        let one_node = Arc::new(OneNode {
            endpoint,
            chosen: OnceLock::new(),
        });
        let profile = ExecutionProfile::builder()
            .request_timeout(Some(ANSWER_TIME))
            .consistency(Consistency::LocalQuorum)
            .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
            .build();
        let builder = SessionBuilder::new()
            .known_node_addr(endpoint)
            .host_filter(one_node.clone())
            .address_translator(one_node)
            .user(username, password)
            .pool_size(PoolSize::PerHost(NonZeroUsize::MIN))
            .connection_timeout(CONNECT_TIME)
            .metadata_request_serverside_timeout(ANSWER_TIME)
            .metadata_request_clientside_timeout(ANSWER_TIME)
            .fetch_schema_metadata(false)
            .fetch_full_schema_metadata(false)
            // Asks the other nodes themselves; `agreed` asks this one about them.
            .auto_await_schema_agreement(false)
            .default_execution_profile_handle(profile.into_handle());
        match tokio::time::timeout(LOGIN_TIME, Box::pin(builder.build())).await {
            Ok(Ok(driver)) => Ok(Self(driver)),
            Ok(Err(error)) => Err(explain_login(&error)),
            Err(_) => Err(PortError::transient("The server took too long to answer.")),
        }
    }

    /// Runs a statement that returns no rows.
    pub async fn run(&self, statement: &str) -> PortResult<()> {
        let done = self.0.query_unpaged(statement, ()).await;
        done.map(drop).map_err(|e| explain(&e))
    }

    /// Like [`run`](Self::run); being told that it is so already (a text with `already` in it) is success.
    pub async fn run_unless(&self, already: &str, statement: &str) -> PortResult<()> {
        match self.0.query_unpaged(statement, ()).await {
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, text)))
                if text.contains(already) =>
            {
                Ok(())
            }
            done => done.map(drop).map_err(|e| explain(&e)),
        }
    }

    /// All rows of a query.
    pub async fn rows<R>(&self, query: &str) -> PortResult<Vec<R>>
    where
        R: for<'frame> DeserializeRow<'frame, 'frame>,
    {
        let answer = self.0.query_unpaged(query, ()).await.map_err(|e| explain(&e))?;
        let unreadable = |detail: String| {
            PortError::invalid("The server's answer is not understood; tell its operator.")
                .with_detail(detail)
        };
        let answer = answer.into_rows_result().map_err(|e| unreadable(e.to_string()))?;
        let rows = answer.rows::<R>().map_err(|e| unreadable(e.to_string()))?;
        rows.collect::<Result<_, _>>()
            .map_err(|e| unreadable(e.to_string()))
    }

    /// Waits, for some seconds, until all nodes know the schema as this one does.
    pub async fn agreed(&self) -> PortResult<()> {
        for _ in 0..AGREEMENT_TRIES {
            let mut versions: Vec<(Option<Uuid>,)> = self
                .rows("SELECT schema_version FROM system.local WHERE key = 'local'")
                .await?;
            versions.extend(
                self.rows::<(Option<Uuid>,)>("SELECT schema_version FROM system.peers")
                    .await?,
            );
            if versions.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(());
            }
            tokio::time::sleep(AGREEMENT_PAUSE).await;
        }
        Err(PortError::transient(
            "The nodes do not agree on the schema yet; one of them may be down.",
        ))
    }
}

fn explain_login(error: &NewSessionError) -> PortError {
    let refused = match error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
            last_connection_error: ConnectionError::ConnectionSetupRequestError(setup),
        })) => match &setup.error {
            ConnectionSetupRequestErrorKind::DbError(kind, _) => Some(kind),
            _ => None,
        },
        _ => None,
    };
    match refused {
        Some(kind) => explain_answer(kind, "at log-in"),
        None => PortError::transient("The server does not answer.").with_detail(cut(&error.to_string())),
    }
}

fn explain(error: &ExecutionError) -> PortError {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(kind, text)) => {
            explain_answer(kind, text)
        }
        ExecutionError::RequestTimeout(_) => PortError::transient("The server took too long to answer."),
        other => PortError::transient("The server does not answer.").with_detail(cut(&other.to_string())),
    }
}

fn explain_answer(kind: &DbError, text: &str) -> PortError {
    let (sort, message) = match kind {
        DbError::AuthenticationError => (PortErrorKind::Denied, "The server refuses the log-in."),
        DbError::Unauthorized => (PortErrorKind::Denied, "The server does not allow this."),
        DbError::SyntaxError | DbError::Invalid | DbError::ConfigError | DbError::AlreadyExists { .. } => (
            PortErrorKind::Invalid,
            "The server does not understand what it was asked; tell its operator.",
        ),
        DbError::Unavailable { .. } => (
            PortErrorKind::Transient,
            "Too few nodes are up to change users at the moment.",
        ),
        _ => (
            PortErrorKind::Transient,
            "The server cannot do this at the moment.",
        ),
    };
    // A syntax error shows the statement.
    let text = if matches!(kind, DbError::SyntaxError) {
        ""
    } else {
        text
    };
    let name = format!("{kind:?}");
    let name = name.split([' ', '{']).next().unwrap_or_default();
    PortError::new(sort, message).with_detail(format!("{name}: {}", cut(text)))
}

/// Up to the first hash.
fn cut(text: &str) -> &str {
    text.split("$2").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted() {
        use PortErrorKind::{Denied, Invalid, Transient};
        for (kind, sort) in [
            (DbError::AuthenticationError, Denied),
            (DbError::Unauthorized, Denied),
            (DbError::Invalid, Invalid),
            (DbError::SyntaxError, Invalid),
            (DbError::Overloaded, Transient),
            (DbError::ServerError, Transient),
            (DbError::IsBootstrapping, Transient),
        ] {
            assert_eq!(explain_answer(&kind, "x").kind, sort, "{kind:?}");
        }
    }

    #[test]
    fn no_hash_and_no_statement_gets_into_an_error() {
        let error = explain_answer(&DbError::Invalid, "bad hash $2a$04$secret");
        assert_eq!(error.detail, "Invalid: bad hash ");
        let error = explain_answer(&DbError::SyntaxError, "line 1:9 ... PASSWORD = 'secret'");
        assert!(!error.detail.contains("secret"));
        assert!(!error.message.contains("secret"));
    }
}
