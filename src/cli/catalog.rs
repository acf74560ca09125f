//! `chandler catalog`: what a service author asks before a broker sees the folder.
//!
//! Nothing here talks to a server: an instance is rendered with secrets made up on the spot, exactly as the broker would
//! render it.

use super::exit;
use crate::app;
use crate::config;
use crate::domain::catalog::{Catalog, KnownMechanisms, Mechanisms, Offering, Plan};
use crate::domain::manifest::{self, KUBERNETES, ObjectSpec};
use crate::domain::params;
use crate::domain::secret::Secret;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// The iid of the instance that is rendered.
const IID: &str = "sampleinstancesampleinstan";

#[derive(Debug, Subcommand)]
pub(super) enum CatalogCommand {
    /// Tell everything that is wrong with catalog folders, at once.
    Check {
        /// Directories that each hold `catalog/` and `plans/`; without any, the built-in catalog.
        dirs: Vec<PathBuf>,
    },
    /// Print the Kubernetes objects of an instance as YAML, with made-up secrets.
    Render(Render),
}

#[derive(Debug, Args)]
pub(super) struct Render {
    /// Name of the offering.
    offering: String,
    /// Name of the plan.
    plan: String,
    /// Parameters, as a platform would send them.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    parameters: String,
    /// A kind that the cluster has beside the usual ones, such as `monitoring.coreos.com/v1/ServiceMonitor`; repeatable.
    #[arg(long = "kind", value_name = "API_VERSION/KIND")]
    kinds: Vec<String>,
    /// Directory that holds `catalog/` and `plans/`, laid over the built-in catalog; repeatable.
    #[arg(long = "dir")]
    dirs: Vec<PathBuf>,
}

pub(super) fn run(command: CatalogCommand) -> anyhow::Result<()> {
    match command {
        CatalogCommand::Check { dirs } => check(&dirs),
        CatalogCommand::Render(render) => {
            print!("{}", render.yaml()?);
            Ok(())
        }
    }
}

fn check(dirs: &[PathBuf]) -> anyhow::Result<()> {
    match app::catalog::check(
        &app::catalog::sources(&settings(dirs, dirs.is_empty()))?,
        &mechanisms(),
    ) {
        Ok(catalog) => {
            let plans: usize = catalog.offerings.iter().map(|o| o.plans.len()).sum();
            println!(
                "The catalog is in order: {} offerings, {plans} plans.",
                catalog.offerings.len()
            );
            Ok(())
        }
        Err(problems) => {
            println!(
                "{}\n{} problem(s).",
                app::catalog::listed(&problems),
                problems.len()
            );
            exit(1)
        }
    }
}

fn settings(dirs: &[PathBuf], builtin: bool) -> config::Catalog {
    config::Catalog {
        builtin,
        dirs: dirs.to_vec(),
        ..config::Catalog::default()
    }
}

fn mechanisms() -> app::Mechanisms {
    let clock: Arc<dyn crate::ports::Clock> = Arc::new(app::SystemClock);
    app::mechanisms(&clock)
}

impl Render {
    fn yaml(&self) -> anyhow::Result<String> {
        let mechanisms = mechanisms();
        let catalog = app::catalog::load(&settings(&self.dirs, true), &mechanisms)?;
        let (offering, plan) = find(&catalog, &self.offering, &self.plan)?;
        if offering.objects.is_empty() {
            bail!(
                "{} has no folder objects/, so it does not run on Kubernetes.",
                offering.name
            );
        }
        let sent: Map<String, Value> = serde_json::from_str(&self.parameters)
            .context("--parameters is not a JSON object such as {\"consumers\": [\"shop\"]}")?;
        params::check(&plan.schemas.create, &sent).map_err(|why| anyhow!(why))?;
        let parameters = params::with_defaults(&plan.schemas.create, &sent);
        let place = manifest::cluster_place(
            &offering.name,
            &format!("osb-{IID}"),
            "cluster.local",
            &self.kinds,
        );
        let scope = manifest::instance_scope(IID, "sample", offering, plan, &parameters, &place);
        let admin = match &offering.binding {
            None => Secret::default(),
            Some(binding) => match mechanisms.get(&binding.mechanism) {
                None => Secret::new(KnownMechanisms.sample_admin(&binding.mechanism)),
                Some(mechanism) => mechanism
                    .generate_admin(&manifest::settings(binding, plan, &scope)?)
                    .map_err(|e| anyhow!("{} ({})", e.message, e.detail))?,
            },
        };
        let generated = offering.generated.iter().map(|(name, length)| {
            (
                name.clone(),
                "sample".repeat(length.div_ceil(6))[..*length].to_owned(),
            )
        });
        let generated = Secret::from_pairs(generated);
        let desired = manifest::render(offering, plan, KUBERNETES, &scope, &admin, &generated)?;
        let mut text = String::new();
        for object in &desired.objects {
            document(object, &mut text)?;
        }
        Ok(text)
    }
}

/// One document, with what the broker keeps about it as a comment: a cluster would refuse those members.
fn document(object: &ObjectSpec, text: &mut String) -> anyhow::Result<()> {
    writeln!(text, "---\n# phase {}", object.phase)?;
    for (name, rule) in [("ready", &object.ready), ("failed", &object.failed)] {
        if let Some(rule) = rule {
            writeln!(text, "# {name}: {}", rule.replace('\n', " "))?;
        }
    }
    let yaml =
        serde_saphyr::to_string(&object.object).map_err(|e| anyhow!("the object cannot be written: {e}"))?;
    text.push_str(yaml.trim_end());
    text.push('\n');
    Ok(())
}

fn find<'a>(catalog: &'a Catalog, offering: &str, plan: &str) -> anyhow::Result<(&'a Offering, &'a Plan)> {
    let names = |names: Vec<&str>| names.join(", ");
    let found = catalog
        .offerings
        .iter()
        .find(|o| o.name == offering)
        .ok_or_else(|| {
            let known = catalog.offerings.iter().map(|o| o.name.as_str()).collect();
            anyhow!("There is no offering {offering:?}; there are {}.", names(known))
        })?;
    let plan = found.plans.iter().find(|p| p.name == plan).ok_or_else(|| {
        let known = found.plans.iter().map(|p| p.name.as_str()).collect();
        anyhow!("{offering} has no plan {plan:?}; it has {}.", names(known))
    })?;
    Ok((found, plan))
}
