//! The command line: what a person can ask of the program, each answer meant to be read.

mod audit;
mod bootstrap;
mod bootstrap_keycloak;
mod catalog;
mod credentials;
mod dev;
mod doctor;
mod fetch;
mod operators;
mod probe;
mod rbac;
mod reconcile;

use crate::app::{self, Role};
use crate::config::{self, Config};
use crate::telemetry::{self, Format};
use anyhow::{Context, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A service broker (Open Service Broker API 2.17) for teams who run their own platform.
#[derive(Debug, Parser)]
#[command(name = "chandler", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run on this machine with nothing to set up: real servers, on 127.0.0.1 only.
    Dev(dev::DevArgs),
    /// Run with a configuration file.
    Serve {
        /// YAML, TOML or JSON file.
        #[arg(long)]
        config: PathBuf,
        /// Which part of the broker this process is.
        #[arg(long, value_enum, default_value_t = RoleArg::All)]
        role: RoleArg,
    },
    /// Look at a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at a catalog, before a broker does.
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// The broker's own database.
    #[command(subcommand)]
    Db(DbCommand),
    /// Sealed secrets.
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Platforms and their log-ins.
    #[command(subcommand)]
    Platforms(PlatformsCommand),
    /// What the broker is doing and did.
    #[command(subcommand)]
    Operations(operators::OperationsCommand),
    /// Service instances.
    #[command(subcommand)]
    Instances(operators::InstancesCommand),
    /// Credentials of instances' administrators, by whom the broker logs in.
    #[command(subcommand)]
    Credentials(credentials::CredentialsCommand),
    /// Who bound, read, rotated and unbound what, as a file; and whether nobody changed it.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Compare bindings with the clients, secrets and users that are there; changes nothing unless told to.
    Reconcile(reconcile::ReconcileArgs),
    /// Look at this machine or cluster and at the servers around: what can be provisioned, what is missing, what to do.
    Doctor(Where),
    /// Print, or make, what the broker needs in the servers around it.
    #[command(subcommand)]
    Bootstrap(bootstrap::BootstrapCommand),
    /// For applications: fetch a binding's credentials from Vault, as the binding's client at Keycloak.
    Fetch(Box<fetch::FetchArgs>),
    /// Ask a running broker, as a platform would, whether it is ready and what it offers.
    Probe(probe::ProbeArgs),
    /// Print the rights the broker needs in a Kubernetes cluster, and the policy that bounds them.
    Rbac(rbac::RbacArgs),
    /// Write the files that are generated from the code: API document, configuration reference, catalogue table, the
    /// chart's rights.
    #[command(hide = true)]
    Generate {
        /// The repository, or another directory to compare with it.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Answer platforms only.
    Http,
    /// Run operations only.
    Worker,
    /// Both.
    All,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Http => Self::Http,
            RoleArg::Worker => Self::Worker,
            RoleArg::All => Self::All,
        }
    }
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell everything that is wrong with a configuration, at once.
    Check {
        /// The file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show every setting in effect; secrets as `<set>`.
    Show {
        /// The file.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// Bring the database's schema to this version. Starting the broker does it too.
    Migrate(Where),
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// Seal everything with the primary key again; safe while the broker runs, and to repeat.
    Rekey(Where),
    /// Make a key file, mode 0600.
    NewKey {
        /// Where to.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum PlatformsCommand {
    /// Read a password from standard input and print its argon2id hash, for `password_hash`.
    HashPassword,
}

/// Which broker a command is about.
#[derive(Debug, Clone, Args)]
struct Where {
    /// Configuration file of a `chandler serve`.
    #[arg(long, conflicts_with = "data_dir")]
    config: Option<PathBuf>,
    /// Data directory of a `chandler dev`.
    #[arg(long, default_value = ".chandler")]
    data_dir: PathBuf,
}

impl Where {
    fn config(&self) -> anyhow::Result<Config> {
        match &self.config {
            Some(file) => load_config(file),
            None => {
                if !self.data_dir.is_dir() {
                    bail!(
                        "There is no data directory {}. Name the one of your `chandler dev` with --data-dir, or a configuration with --config.",
                        self.data_dir.display()
                    );
                }
                dev::config(&self.data_dir, 0, Vec::new(), None).map(|(config, _)| config)
            }
        }
    }
}

fn load_config(file: &std::path::Path) -> anyhow::Result<Config> {
    let (config, warnings) = config::load(Some(file), config::environment()).into_config()?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(config)
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let format = match config.log.format {
        config::LogFormat::Json => Format::Json,
        config::LogFormat::Text => Format::Text,
    };
    telemetry::init(format, &config.log.level).map_err(|why| anyhow!(why))?;
    telemetry::metrics();
    Ok(())
}

/// Whatever this process has in memory stays there: no core file and no crash handler gets it, whichever limits it was
/// started with, and nobody but root may look into it. The servers it starts are not concerned.
fn keep_memory_to_itself() {
    #[cfg(target_os = "linux")]
    if let Err(why) = nix::sys::prctl::set_dumpable(false) {
        eprintln!(
            "warning: a core dump of this process would hold secrets, and cannot be switched off: {why}"
        );
    }
}

/// Parses the command line and does what it says.
pub async fn run() -> anyhow::Result<()> {
    keep_memory_to_itself();
    match Cli::parse().command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve { config, role } => {
            let config = load_config(&config)?;
            start_logging(&config)?;
            app::serve(config, role.into(), |address| {
                tracing::info!(address = address.map(|a| a.to_string()), "chandler is ready");
            })
            .await
        }
        Command::Config(ConfigCommand::Check { config }) => {
            let loaded = config::load(Some(&config), config::environment());
            print!("{}", loaded.check_report());
            if loaded.problems.is_empty() {
                Ok(())
            } else {
                exit(1)
            }
        }
        Command::Config(ConfigCommand::Show { config }) => {
            print!("{}", config::load(Some(&config), config::environment()).show());
            Ok(())
        }
        Command::Catalog(command) => catalog::run(command),
        Command::Db(DbCommand::Migrate(place)) => {
            let store = app::open_store(&place.config()?).await?;
            store.close().await;
            println!("The database's schema is of this version.");
            Ok(())
        }
        Command::Secrets(SecretsCommand::Rekey(place)) => operators::rekey(&place.config()?).await,
        Command::Secrets(SecretsCommand::NewKey { file }) => {
            crate::adapters::sealed::Keys::create_file(&file).map_err(|why| anyhow!(why))?;
            println!(
                "{} holds a new key. Keep a copy where the database's backups are not.",
                file.display()
            );
            Ok(())
        }
        Command::Platforms(PlatformsCommand::HashPassword) => hash_password(),
        Command::Operations(command) => operators::operations(command).await,
        Command::Instances(command) => operators::instances(command).await,
        Command::Credentials(command) => credentials::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Reconcile(args) => reconcile::run(args).await,
        Command::Doctor(place) => doctor::run(&place).await,
        Command::Bootstrap(command) => bootstrap::run(command).await,
        Command::Fetch(args) => Box::pin(fetch::run(*args)).await,
        Command::Probe(args) => probe::run(args).await,
        Command::Rbac(args) => rbac::run(&args),
        Command::Generate { dir } => generate(&dir),
    }
}

/// Ends with this exit code after the report was printed.
fn exit(code: u8) -> anyhow::Result<()> {
    Err(Quiet(code).into())
}

/// An ending whose reason was already told.
#[derive(Debug)]
pub struct Quiet(pub u8);

impl std::fmt::Display for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}

impl std::error::Error for Quiet {}

fn hash_password() -> anyhow::Result<()> {
    let mut password = String::new();
    std::io::stdin()
        .read_line(&mut password)
        .context("the password cannot be read from standard input")?;
    let password = password.trim_end_matches(['\n', '\r']);
    if password.len() < 12 {
        bail!("The password has {} characters; use at least 12.", password.len());
    }
    let hash = crate::http::auth::hash_password(password).map_err(|why| anyhow!(why))?;
    println!("{hash}");
    Ok(())
}

fn generate(dir: &std::path::Path) -> anyhow::Result<()> {
    let clock: std::sync::Arc<dyn crate::ports::Clock> = std::sync::Arc::new(app::SystemClock);
    let catalog = app::catalog::load(&config::Catalog::default(), &app::mechanisms(&clock))?;
    let documents = [
        ("openapi/chandler.json", crate::http::openapi::document_json()),
        ("docs/config.schema.json", config::config_schema_json()),
        ("docs/configuration.md", config::config_reference()),
        ("docs/catalog.md", operators::catalog_table(&catalog)),
    ];
    for (name, text) in documents.into_iter().chain(rbac::for_chart(&catalog)) {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
