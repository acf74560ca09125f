//! Asks a broker the way a platform does: `helm test` runs it inside the cluster, where there is no other program.
//!
//! What must stay true: the password goes only to a server whose certificate was checked, and into no message.

use crate::app;
use crate::config::read_secret;
use anyhow::{Context, anyhow, bail};
use clap::Args;
use reqwest::{Client, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long one request may take.
const ONE_REQUEST: Duration = Duration::from_secs(10);
/// Between two looks whether the broker is ready.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// The broker's address, such as `https://broker.example.com`.
    #[arg(long)]
    url: String,
    /// Connect to this `host:port` instead; the certificate must still be that of `--url`.
    #[arg(long)]
    connect_to: Option<String>,
    /// PEM file with the certificate of the authority to trust, instead of those this machine trusts.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// User name of a platform; without it the broker must refuse to show its catalog.
    #[arg(long, requires = "password_file")]
    username: Option<String>,
    /// File with its password.
    #[arg(long, requires = "username")]
    password_file: Option<PathBuf>,
    /// Seconds to wait for the broker to be found and ready.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// Prints what the broker answers; an error when it is not ready in time or shows no catalog.
pub(super) async fn run(args: ProbeArgs) -> anyhow::Result<()> {
    let login = match (&args.username, &args.password_file) {
        (Some(name), Some(file)) => Some((
            name.clone(),
            read_secret(file).map_err(|why| anyhow!(why))?.content,
        )),
        _ => None,
    };
    let url = args.url.trim_end_matches('/');
    let until = Instant::now() + Duration::from_secs(args.wait);
    // In a pod that has just begun neither the name service nor the way to the broker need be there yet.
    let addresses = match &args.connect_to {
        Some(place) => Some(patiently(until, || found(place)).await?),
        None => None,
    };
    let client = client(url, &args, addresses)?;
    patiently(until, || ready(&client, url))
        .await
        .with_context(|| format!("{url} was not ready within {} s", args.wait))?;
    println!("{url} is ready.");
    let answer = patiently(until, || asked(&client, url, login.as_ref())).await?;
    println!("{}", catalog(url, login.is_some(), answer)?);
    Ok(())
}

/// Tries until it succeeds or the time is over; then with the last error.
async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(
    until: Instant,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    loop {
        match attempt().await {
            Err(_) if Instant::now() < until => sleep(PAUSE).await,
            ended => return ended,
        }
    }
}

async fn found(place: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let addresses = tokio::net::lookup_host(place).await;
    Ok(addresses
        .with_context(|| format!("--connect-to {place} has no address"))?
        .collect())
}

fn client(url: &str, args: &ProbeArgs, addresses: Option<Vec<SocketAddr>>) -> anyhow::Result<Client> {
    app::install_tls_provider();
    let mut builder = Client::builder().timeout(ONE_REQUEST).no_proxy();
    if let Some(file) = &args.ca_file {
        let pem = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("{} holds no certificate in PEM form", file.display()))?;
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(addresses) = addresses {
        let host = reqwest::Url::parse(url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
            .ok_or_else(|| anyhow!("--url {url} is not an address such as https://broker.example.com"))?;
        builder = builder.resolve_to_addrs(&host, &addresses);
    }
    builder.build().context("no connection can be prepared")
}

async fn ready(client: &Client, url: &str) -> anyhow::Result<()> {
    let answer = client.get(format!("{url}/readyz")).send().await?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let why = described(&answer.bytes().await.unwrap_or_default());
    bail!("it answered {status}: {why}")
}

/// What is answered to the catalog's request; an error when a later one may be answered better.
async fn asked(
    client: &Client,
    url: &str,
    login: Option<&(String, SecretString)>,
) -> anyhow::Result<(StatusCode, Vec<u8>)> {
    let mut request = client
        .get(format!("{url}/v2/catalog"))
        .header("X-Broker-API-Version", "2.17");
    if let Some((name, password)) = login {
        request = request.basic_auth(name, Some(password.expose_secret()));
    }
    let answer = request.send().await.context("the catalog cannot be asked for")?;
    let status = answer.status();
    let body = answer.bytes().await.context("the catalog broke off")?;
    if status.is_server_error() {
        bail!("{url} answered {status} to the catalog: {}", described(&body));
    }
    Ok((status, body.to_vec()))
}

/// In words what is on offer; `known` is whether the request had a log-in.
fn catalog(url: &str, known: bool, (status, body): (StatusCode, Vec<u8>)) -> anyhow::Result<String> {
    match (known, status) {
        (true, StatusCode::OK) => {}
        (false, StatusCode::UNAUTHORIZED) => {
            return Ok("Without a log-in it shows nothing, as it should.".into());
        }
        (false, StatusCode::OK) => bail!("{url} shows its catalog to everybody: this is not chandler"),
        _ => bail!("{url} answered {status} to the catalog: {}", described(&body)),
    }
    let catalog: Value = serde_json::from_slice(&body).context("the catalog is not JSON")?;
    let services = catalog["services"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if services.is_empty() {
        bail!("{url} has nothing on offer; the broker's log says why");
    }
    let names: Vec<_> = services
        .iter()
        .filter_map(|service| service["name"].as_str())
        .collect();
    Ok(format!("On offer: {}.", names.join(", ")))
}

/// The broker's own words for what is wrong.
fn described(body: &[u8]) -> String {
    serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|body| body["description"].as_str().map(str::to_owned))
        .unwrap_or_else(|| "without a description".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers every request with what `answer` says for its first line and headers; ends with the test.
    async fn broker(answer: fn(&str) -> (u16, &'static str)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                let (status, body) = answer(&String::from_utf8_lossy(&buffer[..length]));
                let text = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        format!("http://{address}")
    }

    fn args(url: &str) -> ProbeArgs {
        ProbeArgs {
            url: url.into(),
            connect_to: None,
            ca_file: None,
            username: None,
            password_file: None,
            wait: 0,
        }
    }

    fn with_password(url: &str, dir: &tempfile::TempDir) -> ProbeArgs {
        let file = dir.path().join("password");
        std::fs::write(&file, "correct horse\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        ProbeArgs {
            username: Some("cf".into()),
            password_file: Some(file),
            ..args(url)
        }
    }

    fn strict(request: &str) -> (u16, &'static str) {
        if request.starts_with("GET /readyz ") {
            (200, r#"{"status":"ready"}"#)
        } else if request.to_lowercase().contains("x-broker-api-version: 2.17")
            && request.contains("Basic Y2Y6Y29ycmVjdCBob3JzZQ==")
        {
            (200, r#"{"services":[{"name":"redis"}]}"#)
        } else {
            (401, r#"{"description":"who are you?"}"#)
        }
    }

    #[tokio::test]
    async fn a_broker_that_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let url = broker(strict).await;
        run(with_password(&url, &dir)).await.unwrap();
        run(args(&url)).await.unwrap();
        let elsewhere = ProbeArgs {
            connect_to: Some(url.trim_start_matches("http://").into()),
            ..args(&url.replace("127.0.0.1", "broker.invalid"))
        };
        run(elsewhere).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let draining = broker(|_| (503, r#"{"description":"it is draining"}"#)).await;
        let empty = broker(|_| (200, r#"{"services":[]}"#)).await;
        let locked = broker(|request| {
            if request.starts_with("GET /readyz ") {
                (200, "{}")
            } else {
                (401, r#"{"description":"wrong password"}"#)
            }
        })
        .await;
        for (args, said) in [
            (args(&draining), "it is draining"),
            (args(&empty), "to everybody"),
            (with_password(&empty, &dir), "nothing on offer"),
            (with_password(&locked, &dir), "wrong password"),
            (args("http://127.0.0.1:1"), "was not ready within 0 s"),
        ] {
            let error = format!("{:#}", run(args).await.unwrap_err());
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("correct horse"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_takes_its_time_is_waited_for() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let slow = broker(|_| match ASKED.fetch_add(1, Ordering::Relaxed) {
            0 | 2 => (503, r#"{"description":"it is starting"}"#),
            1 => (200, "{}"),
            _ => (401, "{}"),
        })
        .await;
        let patient = ProbeArgs {
            wait: 30,
            ..args(&slow)
        };
        run(patient).await.unwrap();
        assert_eq!(ASKED.load(Ordering::Relaxed), 4);
        let nowhere = ProbeArgs {
            connect_to: Some("broker.invalid:443".into()),
            ..args(&slow)
        };
        let error = format!("{:#}", run(nowhere).await.unwrap_err());
        assert!(error.contains("broker.invalid:443 has no address"), "{error}");
    }
}
