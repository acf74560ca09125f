//! `chandler bootstrap keycloak`: the realm of the bindings' clients and the broker's own client in it.
//!
//! What must stay true: the operator's password or token comes from a file or the environment, never from an argument; the
//! broker's secret or key is made here when its file is not there yet, and is printed nowhere; who runs this is told that
//! the broker becomes that realm's administrator.

use super::bootstrap::planned;
use super::{doctor, exit};
use crate::adapters::keycloak::{BrokerProof, Done, Key, Look, Operator, Plan, ReadSecret, Setup};
use crate::app::{self, SystemClock};
use crate::config::{self, Config, read_secret};
use crate::ports::{Clock, PortError};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the operator's proof may stand instead of in a file.
const PASSWORD: &str = "KEYCLOAK_ADMIN_PASSWORD";
const TOKEN: &str = "KEYCLOAK_ADMIN_TOKEN";

#[derive(Debug, Args)]
pub(super) struct KeycloakArgs {
    /// Configuration file of a `chandler serve`, with the section `keycloak`. The file with the broker's secret or key need not be there yet: with --apply it is made.
    #[arg(long)]
    config: PathBuf,
    /// Do it instead of printing it, as an operator: the variable KEYCLOAK_ADMIN_PASSWORD or KEYCLOAK_ADMIN_TOKEN, or one of the files.
    #[arg(long)]
    apply: bool,
    /// The operator's name.
    #[arg(long, default_value = "admin")]
    username: String,
    /// File with the operator's password, mode 0600.
    #[arg(long, requires = "apply", conflicts_with = "token_file")]
    password_file: Option<PathBuf>,
    /// File with an access token of the operator, mode 0600.
    #[arg(long, requires = "apply")]
    token_file: Option<PathBuf>,
    /// Realm the operator logs in to.
    #[arg(long, default_value = "master")]
    operator_realm: String,
    /// Issuer of the service accounts' tokens of a Kubernetes cluster, for `keycloak.kubernetes_provider`, as Keycloak reaches it.
    #[arg(long)]
    kubernetes_issuer: Option<String>,
}

pub(super) async fn run(args: KeycloakArgs) -> anyhow::Result<()> {
    app::install_tls_provider();
    let config = planned(&args.config)?;
    let Some(section) = &config.keycloak else {
        bail!("The configuration names no Keycloak: give its section `keycloak` first.");
    };
    let proof = if args.apply {
        made_proof(section)?
    } else {
        shown_proof(section)?
    };
    let plan = Plan {
        realm: section.realm.clone(),
        client_id: section.client_id.clone(),
        proof,
        kubernetes: cluster(section, args.kubernetes_issuer.as_deref())?,
        min_version: section.min_version.clone(),
        refuse_older: section.refuse_older,
    };
    if !args.apply {
        print!("{}", reviewed(section, &plan)?);
        return Ok(());
    }
    let settings = app::keycloak_settings(section)?;
    let setup = Setup::new(
        &section.url,
        settings.ca_pem.as_deref(),
        Duration::from_secs(section.request_seconds),
        &args.operator_realm,
        operator(&args)?,
    )
    .map_err(|why| told(&why))?;
    setup
        .apply(&plan, |done| match done {
            Done::Had(what) => println!("  as it was  {what}"),
            Done::Changed(what) => println!("  changed    {what}"),
            Done::Warning(what) => println!("  WARNING    {what}"),
        })
        .await
        .map_err(|why| told(&why))?;
    println!("\n{}", plain_words(&plan));
    proven(&config).await
}

fn told(why: &PortError) -> anyhow::Error {
    if why.detail == why.message {
        anyhow!("{}", why.message)
    } else {
        anyhow!("{} ({})", why.message, why.detail)
    }
}

/// What everybody who decides about this must know.
fn plain_words(plan: &Plan) -> String {
    format!(
        "The broker's client {} is as good as an administrator of the realm {}: who may make clients there may give them\n\
         every role of the realm, and can read every client's secret. It has no right in any other realm. Let nothing else\n\
         live in this one, and give nobody else `manage-clients` in it.",
        plan.client_id, plan.realm
    )
}

/// The steps, to be read before they are done.
fn reviewed(section: &config::Keycloak, plan: &Plan) -> anyhow::Result<String> {
    let mut text = format!(
        "# What the broker needs in Keycloak at {}, on a server that has nothing of it yet.\n\
         # `--apply` does it, or what is missing of it. By hand: kcadm.sh or the console.\n\n",
        section.url
    );
    for (number, step) in plan.steps().iter().enumerate() {
        let body = serde_json::to_string_pretty(&step.body)?;
        writeln!(
            text,
            "# {}. {}\n{} {}\n{body}\n",
            number + 1,
            step.title,
            step.method,
            step.path
        )?;
    }
    for line in plain_words(plan).lines() {
        writeln!(text, "# {line}")?;
    }
    text.push_str(
        "#\n# Not needed, but useful to people: with the server's option\n\
         #   --spi-client--jpa--searchable-attributes=osb.managed,osb.tenant,osb.instance\n\
         # the console finds the clients of a platform (q=osb.tenant:NAME) or of an instance.\n",
    );
    Ok(text)
}

/// The cluster whose service accounts may log in.
fn cluster(section: &config::Keycloak, issuer: Option<&str>) -> anyhow::Result<Option<(String, String)>> {
    match (&section.kubernetes_provider, issuer) {
        (None, None) => Ok(None),
        (Some(alias), Some(issuer)) => Ok(Some((alias.clone(), issuer.to_owned()))),
        (Some(alias), None) => {
            eprintln!(
                "note: the identity provider {alias} is left as it is; --kubernetes-issuer sets it up as well."
            );
            Ok(None)
        }
        (None, Some(_)) => bail!("--kubernetes-issuer needs an alias in `keycloak.kubernetes_provider`."),
    }
}

fn operator(args: &KeycloakArgs) -> anyhow::Result<Operator> {
    let file = |file: &Path| -> ReadSecret {
        let file = file.to_owned();
        Arc::new(move || read_secret(&file).map(|read| read.content))
    };
    let variable = |name: &'static str| {
        let value = config::variable(name).filter(|value| !value.is_empty());
        value.map(|value| -> ReadSecret {
            let value = SecretString::from(value);
            Arc::new(move || Ok(value.clone()))
        })
    };
    let person = |password| Operator::Person {
        username: args.username.clone(),
        password,
    };
    if let Some(token) = &args.token_file {
        return Ok(Operator::Token(file(token)));
    }
    if let Some(password) = &args.password_file {
        return Ok(person(file(password)));
    }
    if let Some(token) = variable(TOKEN) {
        return Ok(Operator::Token(token));
    }
    match variable(PASSWORD) {
        Some(password) => Ok(person(password)),
        None => bail!(
            "Give the operator's password in the variable {PASSWORD} or with --password-file, or a token in {TOKEN} or with --token-file."
        ),
    }
}

/// What is printed in the place of the broker's secret or key.
fn shown_proof(section: &config::Keycloak) -> anyhow::Result<BrokerProof> {
    Ok(match (&section.client_secret_file, &section.private_key_file) {
        (Some(file), None) => BrokerProof::Secret(format!("<content of {}>", file.display()).into()),
        (None, Some(file)) if file.exists() => BrokerProof::Keys(public_half(file)?),
        (None, Some(file)) => BrokerProof::Keys(json!(format!("<public half of {}>", file.display()))),
        _ => bail!("keycloak: give one of `client_secret_file` and `private_key_file`."),
    })
}

/// The broker's secret or key, made when its file is not there.
fn made_proof(section: &config::Keycloak) -> anyhow::Result<BrokerProof> {
    match (&section.client_secret_file, &section.private_key_file) {
        (Some(file), None) => {
            make_once(file, || {
                let mut random = zeroize::Zeroizing::new([0; 32]);
                aws_lc_rs::rand::fill(random.as_mut())
                    .map_err(|_| anyhow!("the system gives no random numbers"))?;
                Ok(data_encoding::BASE64URL_NOPAD.encode(random.as_ref()))
            })?;
            let secret = read_secret(file).map_err(|why| anyhow!(why))?.content;
            if secret.expose_secret().len() < 32 {
                bail!(
                    "{} holds fewer than 32 characters: remove it, and a good one is made.",
                    file.display()
                );
            }
            Ok(BrokerProof::Secret(secret))
        }
        (None, Some(file)) => {
            make_once(file, || Key::generate().map_err(|why| told(&why)))?;
            Ok(BrokerProof::Keys(public_half(file)?))
        }
        _ => bail!("keycloak: give one of `client_secret_file` and `private_key_file`."),
    }
}

/// Writes what `make` makes to `file`, mode 0600, unless there is such a file.
fn make_once(file: &Path, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    if file.exists() {
        return Ok(());
    }
    let text = zeroize::Zeroizing::new(make()?);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    let mut new = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("{} cannot be made", file.display()))?;
    new.write_all(text.as_bytes())
        .and_then(|()| new.sync_all())
        .with_context(|| format!("{} cannot be written", file.display()))?;
    println!(
        "  changed    {}: made, for the broker alone to read",
        file.display()
    );
    Ok(())
}

fn public_half(file: &Path) -> anyhow::Result<serde_json::Value> {
    let path = file.to_owned();
    let read: ReadSecret = Arc::new(move || read_secret(&path).map(|read| read.content));
    let key = Key::read(&read).map_err(|why| told(&why))?;
    key.key_set().map_err(|why| told(&why))
}

/// Looks at the result as the broker does.
async fn proven(config: &Config) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let Some(keycloak) = app::keycloak(config, &clock)? else {
        return Ok(());
    };
    if doctor::told("As the broker sees it", &keycloak.check(Look::Whole).await) {
        Ok(())
    } else {
        exit(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn section(dir: &Path, key: bool) -> config::Keycloak {
        let file = Some(dir.join("deep/broker"));
        config::Keycloak {
            url: "https://id.example.com".into(),
            client_secret_file: file.clone().filter(|_| !key),
            private_key_file: file.filter(|_| key),
            ..config::Keycloak::default()
        }
    }

    #[test]
    fn secret_and_key_are_made_once_and_for_one_reader() {
        for key in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let section = section(dir.path(), key);
            made_proof(&section).unwrap();
            let file = dir.path().join("deep/broker");
            let first = std::fs::read_to_string(&file).unwrap();
            assert_eq!(
                std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600
            );
            let proof = made_proof(&section).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), first);
            match proof {
                BrokerProof::Secret(secret) => assert_eq!(secret.expose_secret(), first),
                BrokerProof::Keys(keys) => assert_eq!(keys["keys"][0]["kty"], "EC"),
            }
        }
    }

    #[test]
    fn what_is_printed_holds_no_secret_and_says_what_it_means() {
        for key in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let section = section(dir.path(), key);
            made_proof(&section).unwrap();
            let kept = std::fs::read_to_string(dir.path().join("deep/broker")).unwrap();
            let plan = Plan {
                realm: section.realm.clone(),
                client_id: section.client_id.clone(),
                proof: shown_proof(&section).unwrap(),
                kubernetes: None,
                min_version: "26.6".into(),
                refuse_older: false,
            };
            let text = reviewed(&section, &plan).unwrap();
            assert!(
                kept.lines().all(|line| line.len() < 20 || !text.contains(line)),
                "{text}"
            );
            assert!(text.contains("as good as an administrator of the realm osb-bindings"));
            assert!(text.contains("searchable-attributes=osb.managed"));
            assert!(text.contains("POST /admin/realms/osb-bindings/clients\n"));
        }
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path(), false);
        make_once(&dir.path().join("deep/broker"), || Ok("secret".into())).unwrap();
        assert!(
            made_proof(&section)
                .err()
                .unwrap()
                .to_string()
                .contains("fewer than 32")
        );
    }
}
