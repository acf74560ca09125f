//! One running process: listeners, runner, sweep, reloads; and how it ends.

use super::{
    Assembled, Role, assemble, catalog, install_tls_provider, keycloak as keycloaks, platforms,
    vault as vaults,
};
use crate::config::{Config, DeletedLastOperation, Tls};
use crate::engine::{Engine, Reconciler, Runner, Sweeper};
use crate::http::{self, DeletedAnswer, MissingVersion};
use crate::telemetry;
use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer};
use anyhow::{Context, anyhow};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often bindings and stopped instances are looked after.
const OFTEN: Duration = Duration::from_secs(2);
/// How often the world outside is compared with the rows.
const SELDOM: Duration = Duration::from_mins(1);
/// How often bindings are compared with the clients, secrets and users that are there.
const RECONCILE_MINUTES: u32 = 60;

/// Runs the broker until SIGTERM or SIGINT, or until it cannot go on.
///
/// `announce` is told the address the API listens on once it does (none for a worker).
pub async fn serve(
    config: Config,
    role: Role,
    announce: impl FnOnce(Option<SocketAddr>),
) -> anyhow::Result<()> {
    install_tls_provider();
    // Whatever this process and the servers it starts write is for their own user only.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let stop = CancellationToken::new();
    let Assembled {
        engine,
        provisioner,
        vault,
        keycloak,
        ..
    } = assemble(&config, role).await?;
    let state = Arc::new(http::State::new(
        engine.clone(),
        http_settings(&config),
        platforms::watched(&config, stop.clone())?,
        Arc::new(telemetry::render),
    ));
    let mut tasks = JoinSet::new();
    let mut listeners = Vec::new();
    let mut address = None;
    if role.serves() {
        let (bound, handle) = listen_main(&config, &state, &mut tasks)?;
        address = Some(bound);
        listeners.push(handle);
    }
    // A worker has no API to hang its probes on: it uses the main address when no other is given.
    let admin = config
        .http
        .admin_listen
        .or((!role.serves()).then_some(config.http.listen));
    if let Some(admin) = admin {
        listeners.push(listen_admin(admin, &state, &mut tasks)?);
    }
    let drain = Duration::from_secs(config.http.shutdown_seconds);
    let mut work = JoinSet::new();
    if role.works() {
        work.spawn(Runner::new(engine.clone()).run(stop.clone(), drain));
        work.spawn(Sweeper::new(engine.clone()).run(stop.clone(), OFTEN, SELDOM));
        if let Some(vault) = vault {
            engine.hold_back("vault", Some("The vault has not been looked at yet.".to_owned()));
            work.spawn(vaults::watch(vault, engine.clone(), stop.clone()));
        }
        if let Some(keycloak) = keycloak {
            work.spawn(keycloaks::watch(keycloak, engine.clone(), stop.clone()));
        }
        let minutes = u64::from(config.bindings.reconcile_minutes.unwrap_or(RECONCILE_MINUTES));
        if minutes > 0 {
            let every = Duration::from_secs(60 * minutes);
            work.spawn(Reconciler::new(engine.clone()).run(stop.clone(), every));
        }
    }
    work.spawn(catalog::watch(
        config.catalog.clone(),
        engine.clone(),
        stop.clone(),
    ));
    work.spawn(provisioner.follow(engine.clone(), stop.clone()));
    work.spawn(gauges(engine.clone(), stop.clone()));
    announce(address);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(server) = tasks.join_next() => Err(anyhow!("a listener ended by itself: {server:?}")),
    };
    info!("stopping: no new requests, running steps reach their next record");
    engine.drain();
    stop.cancel();
    let finish = async {
        let closing = listeners.iter().map(|handle| handle.stop(true));
        futures::future::join_all(closing).await;
        while work.join_next().await.is_some() {}
    };
    if tokio::time::timeout(drain + Duration::from_secs(5), finish)
        .await
        .is_err()
    {
        error!("not everything ended in time; leases run out by themselves");
    }
    engine.store().close().await;
    info!("stopped");
    ended
}

fn http_settings(config: &Config) -> http::Settings {
    let osb = &config.osb;
    http::Settings {
        missing_version: if osb.missing_version_status == 400 {
            MissingVersion::BadRequest
        } else {
            MissingVersion::default()
        },
        min_minor: osb.min_minor(),
        require_guids: osb.require_guids,
        deleted_answer: match osb.deleted_last_operation {
            DeletedLastOperation::Succeeded => DeletedAnswer::Succeeded,
            DeletedLastOperation::Gone => DeletedAnswer::Gone,
        },
        strict_versions: osb.strict_versions,
        max_body: config.http.max_body_bytes,
        failed_logins_per_minute: config.http.failed_logins_per_minute,
        metrics_on_main: config.http.admin_listen.is_none(),
    }
}

type Servers = JoinSet<std::io::Result<()>>;

fn listen_main(
    config: &Config,
    state: &Arc<http::State>,
    tasks: &mut Servers,
) -> anyhow::Result<(SocketAddr, ServerHandle)> {
    let shared = state.clone();
    let mut server = HttpServer::new(move || App::new().configure(|c| http::configure(c, shared.clone())));
    if config.http.workers > 0 {
        server = server.workers(config.http.workers);
    }
    let settings = http::server_settings();
    server = server
        .disable_signals()
        .client_request_timeout(settings.head_timeout)
        .client_disconnect_timeout(settings.disconnect_timeout)
        .keep_alive(settings.keep_alive)
        .max_connections(settings.max_connections)
        .shutdown_timeout(config.http.shutdown_seconds);
    let listen = config.http.listen;
    let busy = || format!("http.listen: {listen} cannot be listened on; is another broker running?");
    server = match &config.http.tls {
        Some(tls) => server.bind_rustls_0_23(listen, tls_config(tls)?),
        None => server.bind(listen),
    }
    .with_context(busy)?;
    let bound = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    let handle = server.handle();
    tasks.spawn(server);
    Ok((bound, handle))
}

fn listen_admin(
    listen: SocketAddr,
    state: &Arc<http::State>,
    tasks: &mut Servers,
) -> anyhow::Result<ServerHandle> {
    let shared = state.clone();
    let server = HttpServer::new(move || App::new().configure(|c| http::configure_admin(c, shared.clone())))
        .workers(1)
        .disable_signals()
        .bind(listen)
        .with_context(|| format!("http.admin_listen: {listen} cannot be listened on"))?
        .run();
    let handle = server.handle();
    tasks.spawn(server);
    Ok(handle)
}

fn tls_config(tls: &Tls) -> anyhow::Result<rustls::ServerConfig> {
    let certificates = CertificateDer::pem_file_iter(&tls.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| anyhow!("http.tls.cert_file {}: {e}", tls.cert_file.display()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file)
        .map_err(|e| anyhow!("http.tls.key_file {}: {e}", tls.key_file.display()))?;
    rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("http.tls: certificate and key do not fit each other")
}

/// Keeps the gauges that no event can: how many operations are open.
async fn gauges(engine: Arc<Engine>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Ok((open, _)) = engine.store().open_operations().await {
            telemetry::operations_open(u64::try_from(open).unwrap_or_default());
        }
        telemetry::upkeep();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = stop.cancelled() => {}
        }
    }
}
