//! From the sending of an unbind until token, log-in and secret were each seen to be refused, by who had all of them.

use crate::binds::{bind, quantile};
use crate::broker::Broker;
use crate::client::{Connection, request};
use crate::place::{Place, ask_vault, binding, post_form, web};
use crate::report::{Limit, Report, median};
use crate::rows::Wanted;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use std::time::{Duration, Instant};

/// How many.
const UNBINDS: u64 = 20;
/// Between two tries to get in.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest wait until one is refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// An application that fetched its credentials.
pub struct Fetched {
    /// What the vault gave.
    pub data: Value,
    token: String,
    path: String,
}

/// Fetches as an application does: a token of its client, a log-in to the vault with it, the secret.
pub fn fetch(place: &Place, credentials: &Value) -> Result<Fetched> {
    place.servers.runtime.block_on(async {
        let web = web()?;
        let (status, granted) = token(&web, credentials).await?;
        let jwt = granted["access_token"].as_str();
        let jwt = jwt.with_context(|| format!("no token: {status} {granted}"))?;
        let vault = &credentials["vault"];
        let text = |name: &str| vault[name].as_str().with_context(|| format!("no {name}"));
        let log_in = format!("auth/{}/login", text("auth_path")?);
        let body = json!({"role": text("role")?, "jwt": jwt});
        let address = &place.servers.vault;
        let (_, entered) = ask_vault(&web, address, "", ("POST", &log_in), Some(&body)).await?;
        let token = entered["auth"]["client_token"].as_str();
        let token = token.with_context(|| format!("the vault did not let it in: {entered}"))?;
        let path = text("data_path")?.trim_start_matches("v1/");
        let (status, read) = ask_vault(&web, address, token, ("GET", path), None).await?;
        if status != 200 {
            bail!("the secret was answered {status}");
        }
        Ok(Fetched {
            data: read["data"]["data"].clone(),
            token: token.to_owned(),
            path: path.to_owned(),
        })
    })
}

async fn token(web: &reqwest::Client, credentials: &Value) -> Result<(u16, Value)> {
    let keycloak = &credentials["keycloak"];
    let text = |name: &str| keycloak[name].as_str().with_context(|| format!("no {name}"));
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", text("client_id")?),
        ("client_secret", text("client_secret")?),
    ];
    post_form(web, text("token_uri")?, &fields).await
}

/// Measures and reports; binds with numbers from `first` on.
pub fn run(place: &Place, broker: &Broker, wanted: &Wanted, first: u64, report: &mut Report) -> Result<()> {
    let (mut all, mut parts) = (Vec::new(), [const { Vec::new() }; 3]);
    for n in first..first + UNBINDS {
        let credentials = bind(broker, wanted, n)?;
        let fetched = fetch(place, &credentials)?;
        let took = place
            .servers
            .runtime
            .block_on(one(place, broker, wanted, n, &credentials, &fetched))?;
        all.push(took.iter().copied().fold(0.0, f64::max));
        for (part, took) in parts.iter_mut().zip(took) {
            part.push(took);
        }
    }
    report.add(
        "unbind, from its sending until token, log-in and secret were refused",
        format!(
            "95 of 100, of {UNBINDS}; median {:.2} s (token {:.2}, log-in {:.2}, secret {:.2})",
            median(&all),
            median(&parts[0]),
            median(&parts[1]),
            median(&parts[2])
        ),
        quantile(&all, 0.95),
        " s",
        Limit::AtMost(1.0),
    );
    Ok(())
}

/// Seconds until there was no token, no log-in, no secret any more.
async fn one(
    place: &Place,
    broker: &Broker,
    wanted: &Wanted,
    n: u64,
    credentials: &Value,
    fetched: &Fetched,
) -> Result<[f64; 3]> {
    let web = web()?;
    let uri = fetched.data["uri"].as_str().context("a binding's uri")?;
    let options: PgConnectOptions = uri.parse()?;
    let mut session: PgConnection = options.connect().await?;
    let mut platform = Connection::open(broker.process.address).await?;
    let path = format!(
        "{}?service_id={}&plan_id={}",
        binding(n),
        wanted.service_id,
        wanted.plan_id
    );
    let text = request("DELETE", &path, &broker.authorization, "");
    let began = Instant::now();
    let unbound = async {
        let answer = platform.ask(text.as_bytes(), true).await?;
        if answer.status != 200 {
            bail!(
                "unbind: {} {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            );
        }
        Ok(())
    };
    let no_token = until(began, async || match token(&web, credentials).await? {
        (200, _) => Ok(false),
        (400 | 401, _) => Ok(true),
        (status, told) => bail!("a token: {status} {told}"),
    });
    let no_log_in = until(began, async || match options.connect().await {
        Ok(open) => {
            open.close().await?;
            Ok(false)
        }
        Err(sqlx::Error::Database(refused)) if refused.code().is_some_and(|code| code.starts_with("28")) => {
            Ok(true)
        }
        Err(why) => bail!("a log-in: {why}"),
    });
    let address = &place.servers.vault;
    let no_secret = until(began, async || {
        match ask_vault(&web, address, &fetched.token, ("GET", &fetched.path), None).await? {
            (200, _) => Ok(false),
            (403 | 404, _) => Ok(true),
            (status, told) => bail!("a secret: {status} {told}"),
        }
    });
    let ((), token, log_in, secret) = tokio::try_join!(unbound, no_token, no_log_in, no_secret)?;
    if sqlx::query("SELECT 1").execute(&mut session).await.is_ok() {
        bail!("a session of before goes on");
    }
    let destroyed = fetched.path.replacen("/data/", "/metadata/", 1);
    let operator = place.servers.operator();
    let (kept, _) = ask_vault(&web, address, operator, ("GET", &destroyed), None).await?;
    if kept != 404 {
        bail!("the vault still has the secret: {kept}");
    }
    Ok([token, log_in, secret])
}

/// Tries until it is refused; the seconds since `began`.
async fn until(began: Instant, refused: impl AsyncFn() -> Result<bool>) -> Result<f64> {
    while !refused().await? {
        if began.elapsed() > PATIENCE {
            bail!("it is let in still");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(began.elapsed().as_secs_f64())
}
