//! Loading the catalog and putting changed files into use while the broker runs.

use crate::adapters::catalog_dir;
use crate::config;
use crate::domain::catalog::{Catalog, Mechanisms, Problem, Sources};
use crate::engine::Engine;
use crate::ports::CredentialMechanism;
use anyhow::{Context, anyhow};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
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

/// The files of a catalog: those of `dirs`, or the ones this program carries when no directory is named.
pub fn sources(dirs: &[PathBuf]) -> anyhow::Result<Sources> {
    if dirs.is_empty() {
        return Ok(catalog_dir::embedded());
    }
    catalog_dir::read(dirs).context("catalog.dirs")
}

/// Checks sources against the mechanisms there are.
pub fn check(
    sources: &Sources,
    mechanisms: &BTreeMap<String, Arc<dyn CredentialMechanism>>,
) -> Result<Catalog, Vec<Problem>> {
    Catalog::load(sources, &Registered(mechanisms))
}

/// Loads a catalog that is right.
pub fn load(dirs: &[PathBuf], mechanisms: &BTreeMap<String, Arc<dyn CredentialMechanism>>) -> anyhow::Result<Catalog> {
    check(&sources(dirs)?, mechanisms).map_err(|problems| anyhow!("the catalog cannot be used:\n{}", listed(&problems)))
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
    let dirs = Arc::new(settings.dirs);
    let mut seen = read(&dirs).await;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(settings.reload_seconds)) => {}
            () = stop.cancelled() => return,
        }
        let now = read(&dirs).await;
        if now == seen {
            continue;
        }
        match &now {
            Ok(sources) => reload(&engine, sources).await,
            Err(why) => error!(error = why, "the catalog's files cannot be read; the old catalog stays in use"),
        }
        seen = now;
    }
}

async fn read(dirs: &Arc<Vec<PathBuf>>) -> Result<Sources, String> {
    let dirs = dirs.clone();
    tokio::task::spawn_blocking(move || sources(&dirs).map_err(|e| format!("{e:#}")))
        .await
        .unwrap_or_else(|e| Err(e.to_string()))
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
