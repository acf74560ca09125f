//! What an operator asks of the rows: operations, instances, keys, and what this machine can run.

use super::{Where, exit};
use crate::app::{self, Role, SystemClock};
use crate::config::Config;
use crate::domain::catalog::Catalog;
use crate::domain::instance::{InstanceState, Millis};
use crate::domain::operation::{Operation, OperationState};
use crate::engine::{CANCELLED, Sweeper};
use crate::ports::Clock;
use anyhow::{anyhow, bail};
use clap::Subcommand;
use std::fmt::Write as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, Subcommand)]
pub(super) enum OperationsCommand {
    /// Open operations first, then the newest.
    List {
        #[command(flatten)]
        place: Where,
        /// Only open ones.
        #[arg(long)]
        open: bool,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        most: u32,
    },
    /// One operation with its history.
    Show {
        #[command(flatten)]
        place: Where,
        /// Its token.
        id: String,
    },
    /// Try an open operation's step again now, whatever pause it is in.
    Retry {
        #[command(flatten)]
        place: Where,
        /// Its token.
        id: String,
    },
    /// End an open operation as failed; what it made of a binding is undone.
    Cancel {
        #[command(flatten)]
        place: Where,
        /// Its token.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum InstancesCommand {
    /// Every instance with its state.
    List {
        #[command(flatten)]
        place: Where,
        /// Also deleted ones that are still remembered.
        #[arg(long)]
        all: bool,
    },
    /// Bring a deleted instance back whose volumes are kept. Its old bindings stay revoked.
    Undelete {
        #[command(flatten)]
        place: Where,
        /// The broker's name for it, as `instances list --all` shows it.
        instance: String,
    },
    /// Let the kept volumes of a deleted instance go now instead of at their time.
    Purge {
        #[command(flatten)]
        place: Where,
        /// The broker's name for it, as `instances list --all` shows it.
        instance: String,
    },
    /// What exists here and no row of the database knows: left of a lost or restored database.
    Unknown {
        #[command(flatten)]
        place: Where,
        /// Erase it, data and all.
        #[arg(long)]
        remove: bool,
    },
}

pub(super) async fn operations(command: OperationsCommand) -> anyhow::Result<()> {
    match command {
        OperationsCommand::List { place, open, most } => {
            let store = app::open_store(&place.config()?).await?;
            let state = open.then_some(OperationState::Open);
            let rows = store
                .operations_list(state, i64::from(most))
                .await
                .map_err(|e| anyhow!("{e}"))?;
            println!(
                "{:<26}  {:<11}  {:<10}  {:<14}  {:<26}  {:<20}  WHAT",
                "OPERATION", "KIND", "STATE", "OFFERING", "INSTANCE", "ACCEPTED"
            );
            for row in rows {
                let o = row.operation;
                println!(
                    "{:<26}  {:<11}  {:<10}  {:<14}  {:<26}  {:<20}  {}",
                    o.id,
                    o.kind.as_str(),
                    o.state.as_str(),
                    o.offering,
                    o.iid,
                    at(o.created_at),
                    o.description
                );
            }
            Ok(())
        }
        OperationsCommand::Show { place, id } => {
            let store = app::open_store(&place.config()?).await?;
            let Some((row, events)) = store.operation(&id).await.map_err(|e| anyhow!("{e}"))? else {
                bail!("There is no operation {id}.");
            };
            print!("{}", shown(&row.operation, row.owner.as_deref()));
            for event in events {
                println!(
                    "  {}  {:<9}  {:<10}  {}",
                    at(event.at),
                    event.step,
                    event.outcome,
                    event.message
                );
            }
            Ok(())
        }
        OperationsCommand::Retry { place, id } => {
            let store = app::open_store(&place.config()?).await?;
            let done = store.operation_retry(&id, SystemClock.now()).await;
            told(done.map_err(|e| anyhow!("{e}"))?, &id, "is tried again now")
        }
        OperationsCommand::Cancel { place, id } => {
            let store = app::open_store(&place.config()?).await?;
            let why = format!("{CANCELLED}.");
            let done = store.operation_cancel(&id, &why, SystemClock.now()).await;
            told(
                done.map_err(|e| anyhow!("{e}"))?,
                &id,
                "ends as failed at its next step",
            )
        }
    }
}

fn told(done: bool, id: &str, what: &str) -> anyhow::Result<()> {
    if done {
        println!("The operation {id} {what}.");
        Ok(())
    } else {
        println!("The operation {id} is not open (any more), or is already being undone.");
        exit(1)
    }
}

fn shown(o: &Operation, owner: Option<&str>) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "operation  {}  {} of {}", o.id, o.kind, o.offering);
    let _ = writeln!(text, "instance   {}", o.iid);
    if let Some(bid) = &o.bid {
        let _ = writeln!(text, "binding    {bid}");
    }
    let _ = writeln!(text, "state      {}: {}", o.state.as_str(), o.description);
    if o.state == OperationState::Open {
        let _ = writeln!(
            text,
            "step       {} (attempt {}, tries {}, failures {}), due {}, deadline {}",
            o.step,
            o.attempt,
            o.tries,
            o.failures,
            at(o.due_at),
            at(o.deadline_at)
        );
    }
    if let Some(owner) = owner {
        let _ = writeln!(text, "worker     {owner}");
    }
    if let Some(id) = &o.request_id {
        let _ = writeln!(text, "request    {id}");
    }
    let _ = writeln!(text, "accepted   {}", at(o.created_at));
    if let Some(end) = o.finished_at {
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let took = (end - o.created_at) as f64 / 1000.0;
        let _ = writeln!(text, "ended      {} after {took:.3} s", at(end));
    }
    text
}

/// A time as people read it, UTC.
fn at(millis: Millis) -> String {
    let seconds = millis.div_euclid(1000);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| millis.to_string())
}

pub(super) async fn instances(command: InstancesCommand) -> anyhow::Result<()> {
    let (place, all) = match command {
        InstancesCommand::List { place, all } => (place, all),
        InstancesCommand::Unknown { place, remove } => return unknown(&place.config()?, remove).await,
        InstancesCommand::Undelete { place, instance } => {
            let engine = app::assemble(&place.config()?, Role::Http).await?.engine;
            let operation = engine.undelete(&instance).await?;
            println!("Coming back. `chandler operations show {operation}` tells how far it is.");
            return Ok(());
        }
        InstancesCommand::Purge { place, instance } => {
            let engine = app::assemble(&place.config()?, Role::Http).await?.engine;
            engine.let_go(&instance).await?;
            println!("The broker removes it with its next sweep.");
            return Ok(());
        }
    };
    let config = place.config()?;
    let store = app::open_store(&config).await?;
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    let catalog = app::catalog::load(&config.catalog, &app::mechanisms(&clock)).unwrap_or_default();
    println!(
        "{:<26}  {:<18}  {:<22}  {:<12}  {:<8}  PLATFORM'S ID",
        "INSTANCE", "STATE", "SERVICE", "PLATFORM", "BINDINGS"
    );
    let mut after = String::new();
    loop {
        let page = store
            .instances_page(&after, None, 500)
            .await
            .map_err(|e| anyhow!("{e}"))?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.iid);
        for i in page.iter().filter(|i| all || i.state != InstanceState::Gone) {
            let bindings = store
                .instance(&i.iid)
                .await
                .map_err(|e| anyhow!("{e}"))?
                .map_or(0, |n| n.bindings);
            let service = catalog
                .plan(&i.attributes.service_id, &i.attributes.plan_id)
                .map_or_else(
                    || i.attributes.plan_id.clone(),
                    |(o, p)| format!("{}/{}", o.name, p.name),
                );
            let usable = if i.usable || i.state != InstanceState::Ready {
                ""
            } else {
                " (unusable)"
            };
            let kept = i
                .retained_until
                .map_or_else(String::new, |until| format!(" (kept until {})", at(until)));
            println!(
                "{:<26}  {:<18}  {:<22}  {:<12}  {:<8}  {}",
                i.iid,
                format!("{}{usable}{kept}", i.state),
                service,
                i.platform,
                bindings,
                i.instance_id.escape_debug()
            );
        }
    }
}

async fn unknown(config: &Config, remove: bool) -> anyhow::Result<()> {
    let engine = app::assemble(config, Role::Http).await?.engine;
    let sweeper = Sweeper::new(engine);
    let mut unknown = sweeper.unknown().await?;
    if unknown.is_empty() {
        println!("Everything that exists here is known.");
        return Ok(());
    }
    if !remove {
        for iid in &unknown {
            println!("{iid}");
        }
        println!("{} unknown. `--remove` erases them, data and all.", unknown.len());
        return exit(1);
    }
    let count = unknown.len();
    for _ in 0..200 {
        for iid in &unknown {
            sweeper.remove(iid).await;
        }
        unknown = sweeper.unknown().await?;
        if unknown.is_empty() {
            println!("Removed {count}.");
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    bail!("These do not go: {}", unknown.join(", "));
}

pub(super) async fn rekey(config: &Config) -> anyhow::Result<()> {
    let store = app::open_store(config).await?;
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    let rows = app::SqlRows::new(store, clock);
    let sealed = crate::adapters::sealed::SealedStore::new(app::seal_keys(config)?, rows);
    let done = sealed
        .rekey()
        .await
        .map_err(|e| anyhow!("{} ({})", e.message, e.detail))?;
    println!(
        "{} sealed anew, {} were sealed with the primary key already.",
        done.resealed, done.current
    );
    for (name, why) in &done.failed {
        println!("could not: {name}: {why}");
    }
    if done.failed.is_empty() { Ok(()) } else { exit(1) }
}

/// The generated table of offerings and plans.
pub(super) fn catalog_table(catalog: &Catalog) -> String {
    let mut text = String::from(
        "# Offerings and plans\n\nGenerated from `catalog/` and `plans/` by `make gen`; do not edit.\n\n| offering | plan | runs on | changes to | free | maintenance | description |\n|---|---|---|---|---|---|---|\n",
    );
    for offering in &catalog.offerings {
        for plan in &offering.plans {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                offering.name,
                plan.name,
                plan.runs_on.join(", "),
                if plan.updates_to.is_empty() {
                    "–".to_owned()
                } else {
                    plan.updates_to.join(", ")
                },
                if plan.free { "yes" } else { "no" },
                plan.maintenance_version.as_deref().unwrap_or("–"),
                plan.description.replace('|', "\\|")
            );
        }
    }
    text
}
