//! `chandler doctor`: looks at everything around the broker and says what is missing, what to do, and what is too much.
//!
//! Nothing is changed by looking. It ends with 1 when something keeps the broker from its work.

use super::{Where, exit};
use crate::adapters::keycloak::Look;
use crate::adapters::vault::Looker;
use crate::app::{self, SystemClock};
use crate::config::{Config, ProvisionerKind};
use crate::ports::{Clock, Finding, Grade, Provisioner};

pub(super) async fn run(place: &Where) -> anyhow::Result<()> {
    app::install_tls_provider();
    let made_for_this = place.config.is_none() && !place.data_dir.is_dir();
    let scratch;
    let (config, dirs) = if made_for_this {
        // Nothing is set up yet: look with a throwaway directory instead of leaving one behind.
        scratch = std::env::temp_dir().join(format!("chandler-doctor-{}", std::process::id()));
        let mut config = Config::default();
        config.provisioner.local.dir = scratch.join("instances");
        (config, Some(scratch))
    } else {
        (place.config()?, None)
    };
    let provisioner = match config.provisioner.kind {
        ProvisionerKind::Local => report(&config),
        ProvisionerKind::Kubernetes => cluster_report(&config).await,
    };
    if let Some(dir) = dirs {
        // A left-over empty directory does no harm.
        let _ = std::fs::remove_dir_all(dir);
    }
    // What is around the instances is told too when the machine or the cluster is not well.
    let mut sound = true;
    if config.vault.is_some() {
        sound &= told("The vault", &vault(&config).await);
    }
    if config.keycloak.is_some() {
        sound &= told("Keycloak", &keycloak(&config).await);
    }
    provisioner?;
    if sound { Ok(()) } else { exit(1) }
}

/// What the vault shows.
async fn vault(config: &Config) -> Vec<Finding> {
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    match app::vault(config, clock) {
        Ok(Some(vault)) => vault.check(Looker::Person).await,
        Ok(None) => Vec::new(),
        Err(why) => vec![Finding::error(format!("{why:#}"))],
    }
}

/// What Keycloak shows.
async fn keycloak(config: &Config) -> Vec<Finding> {
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    match app::keycloak(config, &clock) {
        Ok(Some(keycloak)) => keycloak.check(Look::Whole).await,
        Ok(None) => Vec::new(),
        Err(why) => vec![Finding::error(format!("{why:#}"))],
    }
}

/// Prints findings under a head; false when one of them keeps the broker from its work.
pub(super) fn told(head: &str, findings: &[Finding]) -> bool {
    println!("\n{head}:\n");
    for finding in findings {
        let word = match finding.grade {
            Grade::Good => "good",
            Grade::Warning => "warning",
            Grade::Unknown => "unknown",
            Grade::Error => "error",
        };
        println!("  {word:<8} {}", finding.text);
    }
    findings
        .iter()
        .all(|finding| matches!(finding.grade, Grade::Good | Grade::Warning))
}

fn report(config: &Config) -> anyhow::Result<()> {
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    let mechanisms = app::mechanisms(&clock);
    let catalog = app::catalog::load(&config.catalog, &mechanisms)?;
    let local = app::local_provisioner(config)?;
    println!("What this machine can provision:\n");
    for (offering, row) in catalog.offerings.iter().zip(local.doctor(&catalog.offerings)) {
        let mechanism = offering.binding.as_ref().map_or("", |b| b.mechanism.as_str());
        let bindable = mechanism.is_empty() || mechanisms.contains_key(mechanism);
        let small = offering
            .plans
            .iter()
            .any(|p| p.runs_on.iter().any(|r| r == "local"));
        let word = if row.available && bindable && small {
            "yes"
        } else {
            "no"
        };
        println!("  {:<12}  {word}", row.offering);
        for binary in &row.binaries {
            let found = binary
                .path
                .as_ref()
                .map_or_else(|| "not found".to_owned(), |p| p.display().to_string());
            println!(
                "      {:<12}  {found}  {}",
                binary.name,
                binary.version.as_deref().unwrap_or_default()
            );
        }
        if !row.advice.is_empty() {
            println!("      {}", row.advice);
        }
        if !bindable {
            println!(
                "      Its credential mechanism \"{mechanism}\" is not part of this version, so it is not offered."
            );
        }
        if !small {
            println!("      None of its plans runs as a local process.");
        }
    }
    Ok(())
}

/// Whether the cluster answers, and which plans can be provisioned in it.
async fn cluster_report(config: &Config) -> anyhow::Result<()> {
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    let mechanisms = app::mechanisms(&clock);
    let catalog = app::catalog::load(&config.catalog, &mechanisms)?;
    let cluster = app::kubernetes_provisioner(config, clock).await?;
    let asked = match cluster.version().await {
        Ok(version) => cluster.discover(&catalog.offerings).await.map(|_| version),
        Err(why) => Err(why),
    };
    match asked {
        Ok(version) => {
            println!("The cluster answers: Kubernetes {version}.\n\nWhat can be provisioned in it:\n");
        }
        Err(why) => {
            println!(
                "The cluster does not answer as it should. {}\n  {}",
                why.message, why.detail
            );
            return exit(1);
        }
    }
    for offering in &catalog.offerings {
        let mechanism = offering
            .binding
            .as_ref()
            .map(|binding| binding.mechanism.as_str());
        let lacking = mechanism.filter(|mechanism| !mechanisms.contains_key(*mechanism));
        for plan in &offering.plans {
            let name = format!("{}/{}", offering.name, plan.name);
            let offered = match lacking {
                None => cluster.offers(offering, plan),
                Some(mechanism) => Err(format!(
                    "its credential mechanism \"{mechanism}\" is not part of this version"
                )),
            };
            match offered {
                Ok(()) => println!("  {name:<24}  yes"),
                Err(why) => println!("  {name:<24}  no: {why}"),
            }
        }
    }
    Ok(())
}
