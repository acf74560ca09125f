//! `chandler credentials`: new credentials for the administrators of instances, by whom the broker itself logs in.
//!
//! The command accepts the work and says so; a running broker does it.

use super::{Where, exit};
use crate::app::{self, Role};
use crate::domain::error::{Error, ErrorKind};
use crate::domain::instance::{InstanceState, Millis};
use crate::engine::{Engine, administrator_since};
use anyhow::anyhow;
use clap::{Args, Subcommand};

/// Instances read at once.
const PAGE: i64 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum CredentialsCommand {
    /// Give administrators of instances new credentials; the former ones are refused then. Bindings do not notice.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["instance", "all"])]
pub(super) struct RotateArgs {
    #[command(flatten)]
    place: Where,
    /// Of this instance: the broker's name for it, as `instances list` shows it.
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Of every instance.
    #[arg(long)]
    all: bool,
    /// With --all: only where the present credentials are in use for longer, such as 90d, 12h or 30m.
    #[arg(long, value_name = "TIME", requires = "all", conflicts_with = "instance", value_parser = age)]
    older_than: Option<Millis>,
}

/// A time such as `90d`, as milliseconds.
fn age(text: &str) -> Result<Millis, String> {
    let wrong = || "a whole number with d, h or m behind it, such as 90d".to_owned();
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    let minutes: Millis = match unit {
        "d" => 24 * 60,
        "h" => 60,
        "m" => 1,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Millis::from(number) * minutes * 60_000)
}

pub(super) async fn run(command: CredentialsCommand) -> anyhow::Result<()> {
    let CredentialsCommand::Rotate(args) = command;
    let engine = app::assemble(&args.place.config()?, Role::Http).await?.engine;
    let Some(instance) = args.instance else {
        return rotate_all(&engine, args.older_than.unwrap_or(0)).await;
    };
    let operation = engine.rotate_admin(&instance).await?;
    println!("Under way. `chandler operations show {operation}` tells how far it is.");
    Ok(())
}

/// How many instances came to what.
#[derive(Default)]
struct Count {
    begun: u64,
    /// Their kind of server cannot.
    cannot: u64,
    /// Another time they may.
    refused: u64,
    young: u64,
}

async fn rotate_all(engine: &Engine, older_than: Millis) -> anyhow::Result<()> {
    let before = engine.ports().clock.now() - older_than;
    let mut count = Count::default();
    let mut after = String::new();
    loop {
        let page = engine.store().instances_page(&after, None, PAGE).await;
        let page = page.map_err(|e| anyhow!("{e}"))?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.iid);
        for instance in page.iter().filter(|i| i.state != InstanceState::Gone) {
            if administrator_since(instance) > before {
                count.young += 1;
                continue;
            }
            let begun = engine.rotate_admin(&instance.iid).await;
            println!("{}  {}", instance.iid, told(&begun));
            *(match begun {
                Ok(_) => &mut count.begun,
                Err(error) if error.kind == ErrorKind::BadRequest => &mut count.cannot,
                Err(_) => &mut count.refused,
            }) += 1;
        }
    }
    println!(
        "{} under way, {} cannot, {} not now, {} not old enough. `chandler operations list` tells how they end.",
        count.begun, count.cannot, count.refused, count.young
    );
    if count.refused > 0 { exit(1) } else { Ok(()) }
}

fn told(begun: &Result<String, Error>) -> String {
    match begun {
        Ok(operation) => format!("under way: operation {operation}"),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(age("90d"), Ok(90 * 24 * 3_600_000));
        assert_eq!(age("12h"), Ok(12 * 3_600_000));
        assert_eq!(age("0m"), Ok(0));
        for wrong in ["", "d", "90", "-1d", "1.5h", "90 d", "9é", "99999999999d"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
