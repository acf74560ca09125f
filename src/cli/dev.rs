//! `chandler dev`: the broker with nothing to set up, on this machine only.

use super::start_logging;
use crate::adapters::sealed::Keys;
use crate::app::{self, Role};
use crate::config::{self, Config, Dev, Hidden, LogFormat, dev_password};
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    #[command(subcommand)]
    command: Option<DevCommand>,
    /// Port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where everything is kept; made when missing.
    #[arg(long, default_value = ".chandler", global = true)]
    data_dir: PathBuf,
    /// More directories that each hold `catalog/` and `plans/`, read again when they change.
    #[arg(long)]
    catalog_dir: Vec<PathBuf>,
    /// User that instances run as when the broker runs as root.
    #[arg(long)]
    run_as: Option<String>,
    /// Log as JSON.
    #[arg(long)]
    json: bool,
    /// Log filter, such as `debug` or `chandler::engine=debug`.
    #[arg(long)]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Stop every instance's processes and keep their data; `chandler dev` starts them again.
    Stop,
}

/// The configuration of a data directory, made ready to use, and whether its password is new.
pub(super) fn config(
    data_dir: &Path,
    port: u16,
    catalog_dirs: Vec<PathBuf>,
    run_as: Option<String>,
) -> anyhow::Result<(Config, Option<Hidden>)> {
    // Services run as other users: they must be able to pass through, and to see nothing.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data_dir)
        .with_context(|| format!("the data directory {} cannot be made", data_dir.display()))?;
    let given = config::variable("CHANDLER_DEV_PASSWORD");
    let from_environment = given.as_ref().is_some_and(|g| !g.is_empty());
    let (password, _) = dev_password(data_dir, given).map_err(|why| anyhow!(why))?;
    let key = data_dir.join("seal.key");
    if !key.exists() {
        Keys::create_file(&key).or_else(|why| if key.exists() { Ok(()) } else { Err(anyhow!(why)) })?;
    }
    let config = Config::dev(&Dev {
        data_dir: data_dir.to_owned(),
        port,
        catalog_dirs,
        password: password.clone(),
        run_as,
    })?;
    Ok((config, (!from_environment).then_some(password)))
}

pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    if let Some(DevCommand::Stop) = args.command {
        return stop(&args.data_dir).await;
    }
    let mut catalog_dirs = Vec::new();
    for dir in &args.catalog_dir {
        catalog_dirs.push(std::path::absolute(dir)?);
    }
    let (mut config, password) = config(&args.data_dir, args.port, catalog_dirs, args.run_as.clone())?;
    if args.json {
        config.log.format = LogFormat::Json;
    }
    if let Some(level) = &args.log {
        config.log.level.clone_from(level);
    }
    let _alone = lock(&args.data_dir)?;
    start_logging(&config)?;
    free_leases(&config).await?;
    let data_dir = args.data_dir.clone();
    app::serve(config, Role::All, move |address| {
        if let Some(address) = address {
            welcome(address, &data_dir, password.as_ref());
        }
    })
    .await
}

/// Two brokers on one data directory would fight over its instances.
fn lock(data_dir: &Path) -> anyhow::Result<nix::fcntl::Flock<File>> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow!(
            "Another chandler runs on the data directory {}. Stop it, or choose another with --data-dir.",
            data_dir.display()
        )
    })
}

/// The lock says that nobody else works here, so what a killed broker held is free now, not when its lease runs out.
async fn free_leases(config: &Config) -> anyhow::Result<()> {
    let store = app::open_store(config).await?;
    let freed = store.expire_leases().await.map_err(|e| anyhow!("{e}"));
    store.close().await;
    freed
}

fn welcome(address: SocketAddr, data_dir: &Path, password: Option<&Hidden>) {
    let stored = data_dir.join("dev-password");
    let shown = password.map_or("the one in CHANDLER_DEV_PASSWORD", Hidden::expose);
    println!(
        "chandler {} is ready on http://{address}\n\n  user      dev\n  password  {shown}{}\n\n  catalog   curl -s -u dev:PASSWORD -H 'X-Broker-API-Version: 2.17' http://{address}/v2/catalog\n  API       http://{address}/docs/\n  data      {}\n\nInstances keep running when the broker stops; `chandler dev stop` stops them too. Ctrl-C stops the broker.",
        env!("CARGO_PKG_VERSION"),
        if password.is_some() {
            format!("   (kept in {})", stored.display())
        } else {
            String::new()
        },
        data_dir.display(),
    );
}

async fn stop(data_dir: &Path) -> anyhow::Result<()> {
    if !data_dir.is_dir() {
        bail!("There is no data directory {}.", data_dir.display());
    }
    let _alone =
        lock(data_dir).context("A broker that runs would start its instances again; stop it first")?;
    let (config, _) = config(data_dir, 0, Vec::new(), None)?;
    let stopped = app::local_provisioner(&config)?
        .stop_all()
        .await
        .map_err(|e| anyhow!(e.message))?;
    println!("Stopped {stopped} instance(s); their data is kept.");
    Ok(())
}
