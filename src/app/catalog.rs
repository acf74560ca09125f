//! Loading the catalog and putting changed files into use while the broker runs.

use crate::adapters::catalog_dir::{self, Watch};
use crate::config;
use crate::domain::catalog::{Catalog, Mechanisms, Problem, Sources};
use crate::engine::Engine;
use crate::ports::CredentialMechanism;
use anyhow::{Context, anyhow};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The mechanisms of this process, as the catalog's checker asks about them.
struct Registered<'a>(&'a BTreeMap<String, Arc<dyn CredentialMechanism>>);

impl Mechanisms for Registered<'_> {
    fn registered(&self, mechanism: &str) -> bool {
        self.0.contains_key(mechanism)
    }

    fn check_settings(&self, mechanism: &str, settings: &Map<String, Value>) -> Vec<String> {
        self.0
            .get(mechanism)
            .map(|m| m.check_settings(settings))
            .unwrap_or_default()
    }
}

/// The files of a catalog: those the program carries, if wanted, under those of the directories.
pub fn sources(settings: &config::Catalog) -> anyhow::Result<Sources> {
    let own = catalog_dir::read(&settings.dirs).context("catalog.dirs")?;
    Ok(merged(settings, own))
}

fn merged(settings: &config::Catalog, own: Sources) -> Sources {
    let mut all = if settings.builtin {
        catalog_dir::embedded()
    } else {
        Sources::new()
    };
    all.extend(own);
    all
}

/// Checks sources against the mechanisms there are.
pub fn check(
    sources: &Sources,
    mechanisms: &BTreeMap<String, Arc<dyn CredentialMechanism>>,
) -> Result<Catalog, Vec<Problem>> {
    Catalog::load(sources, &Registered(mechanisms))
}

/// Loads a catalog that is right.
pub fn load(
    settings: &config::Catalog,
    mechanisms: &BTreeMap<String, Arc<dyn CredentialMechanism>>,
) -> anyhow::Result<Catalog> {
    check(&sources(settings)?, mechanisms)
        .map_err(|problems| anyhow!("the catalog cannot be used:\n{}", listed(&problems)))
}

/// One problem a line.
pub fn listed(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|p| format!("  {p}")).collect();
    lines.join("\n")
}

/// Puts changed files into use until `stop`; what is wrong is logged once and the old catalog stays.
pub(super) async fn watch(settings: config::Catalog, engine: Arc<Engine>, stop: CancellationToken) {
    if settings.dirs.is_empty() || settings.reload_seconds == 0 {
        return;
    }
    let dirs = settings.dirs.clone();
    let begun = tokio::task::spawn_blocking(move || {
        let now = catalog_dir::read(&dirs).unwrap_or_default();
        Watch::new(dirs, &now)
    });
    let mut watch = begun.await.ok();
    let mut complained = None;
    while let Some(mut looking) = watch.take() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(settings.reload_seconds)) => {}
            () = stop.cancelled() => return,
        }
        let looked = tokio::task::spawn_blocking(move || (looking.poll(), looking)).await;
        let Ok((found, looked)) = looked else { return };
        watch = Some(looked);
        match found {
            Ok(None) => {}
            Ok(Some(own)) => {
                complained = None;
                reload(&engine, &merged(&settings, own)).await;
            }
            Err(error) => {
                let why = error.to_string();
                if complained.as_ref() != Some(&why) {
                    error!(
                        error = why,
                        "the catalog's files cannot be read; the old catalog stays in use"
                    );
                    complained = Some(why);
                }
            }
        }
    }
}

async fn reload(engine: &Engine, sources: &Sources) {
    match check(sources, &engine.ports().mechanisms) {
        Ok(catalog) => match engine.set_catalog(catalog).await {
            Ok(()) => info!("the catalog changed and is in use"),
            Err(error) => error!(error = %error, "the changed catalog cannot be used; the old one stays"),
        },
        Err(problems) => error!(
            problems = listed(&problems),
            "the changed catalog is wrong; the old one stays in use"
        ),
    }
}
