//! `chandler bootstrap`: what an operator of the servers around the broker has to set up there, printed to be reviewed, or
//! done with his own token.
//!
//! What must stay true: a token comes from a file or the environment, never from an argument, which every process of the
//! machine can read; what is done is what is printed; and it may be repeated.

use super::{bootstrap_keycloak, rbac};
use crate::adapters::vault::Change;
use crate::app::{self, VaultSetupOptions};
use crate::config::{self, Config};
use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum BootstrapCommand {
    /// Stores, log-ins, roles and policies in Vault or OpenBao.
    Vault(VaultArgs),
    /// The realm of bindings' clients in Keycloak, and the broker's own client.
    Keycloak(bootstrap_keycloak::KeycloakArgs),
}

#[derive(Debug, Args)]
pub(super) struct VaultArgs {
    /// Configuration file of a `chandler serve`, with the sections `vault` and `keycloak`. Files with secrets need not be there yet.
    #[arg(long)]
    config: PathBuf,
    /// Do it instead of printing it, with an operator's token: the variable VAULT_TOKEN, or --token-file.
    #[arg(long)]
    apply: bool,
    /// File with the operator's token.
    #[arg(long, requires = "apply")]
    token_file: Option<PathBuf>,
    /// The service account the broker runs as, for its log-in by Kubernetes; without it, `chandler` in the configured
    /// `broker_namespace`.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service_account: Option<String>,
    /// Audience of that account's token; without it `vault` when `vault.login.token_file` is set, else any.
    #[arg(long)]
    audience: Option<String>,
    /// Address of the cluster's API, as the vault reaches it.
    #[arg(long, default_value = "https://kubernetes.default.svc")]
    cluster: String,
    /// PEM file with the cluster's certificate authority, for a vault that runs outside of it.
    #[arg(long)]
    cluster_ca_file: Option<PathBuf>,
    /// Network the broker may log in from by AppRole, such as 10.1.2.0/24; may be repeated.
    #[arg(long)]
    cidr: Vec<String>,
}

pub(super) async fn run(command: BootstrapCommand) -> anyhow::Result<()> {
    match command {
        BootstrapCommand::Vault(args) => vault(args).await,
        BootstrapCommand::Keycloak(args) => bootstrap_keycloak::run(args).await,
    }
}

async fn vault(args: VaultArgs) -> anyhow::Result<()> {
    app::install_tls_provider();
    let config = planned(&args.config)?;
    let account = args
        .service_account
        .unwrap_or_else(|| format!("{}/chandler", config.provisioner.kubernetes.broker_namespace));
    let (namespace, name) = rbac::split(&account)?;
    let setup = app::vault_setup(
        &config,
        VaultSetupOptions {
            service_account: (namespace.to_owned(), name.to_owned()),
            audience: args.audience,
            cluster: args.cluster,
            cluster_ca_file: args.cluster_ca_file,
            cidrs: args.cidr,
        },
    )?;
    if !args.apply {
        print!("{}", setup.script());
        return Ok(());
    }
    let token = operators_token("VAULT_TOKEN", args.token_file.as_deref())?;
    let mut tell = |step: &crate::adapters::vault::Step, change: Change| {
        let word = match change {
            Change::Made => "made",
            Change::Changed => "changed",
            Change::Nothing => "as it was",
        };
        println!("  {word:<10} {}", step.title);
    };
    setup
        .apply(&token, &mut tell)
        .await
        .map_err(|why| anyhow!("{} ({})", why.message, why.detail))?;
    println!("\nThe vault is set up. `chandler doctor --config FILE` looks at it as the broker does.");
    print!("{}", setup.hint());
    Ok(())
}

/// The configuration, where files with secrets may be missing: they come of what is set up here.
pub(super) fn planned(file: &Path) -> anyhow::Result<Config> {
    let loaded = config::load(Some(file), config::environment());
    let (later, now): (Vec<_>, Vec<_>) = loaded
        .problems
        .into_iter()
        .partition(|problem| problem.path.ends_with("_file") || problem.path.starts_with("secrets."));
    if !now.is_empty() {
        return Err(config::Problems(now).into());
    }
    for problem in later {
        eprintln!("for later: {problem}");
    }
    Ok(loaded.config)
}

/// An operator's token: from the file, else from the variable.
pub(super) fn operators_token(variable: &str, file: Option<&Path>) -> anyhow::Result<SecretString> {
    if let Some(file) = file {
        return config::read_secret(file)
            .map(|read| read.content)
            .map_err(|why| anyhow!(why));
    }
    match config::variable(variable) {
        Some(token) if !token.is_empty() => Ok(SecretString::from(token)),
        _ => bail!(
            "Give the operator's token in the variable {variable}, or in a file of mode 0600 with --token-file."
        ),
    }
}
