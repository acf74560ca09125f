//! `chandler rbac`: the rights the broker needs in a cluster, ready to be applied by an administrator.

use super::load_config;
use crate::adapters::kubernetes::rbac;
use crate::app::{self, SystemClock};
use crate::config::{self, Config, Tenancy, Transport};
use crate::domain::catalog::Catalog;
use crate::ports::Clock;
use anyhow::{anyhow, bail};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct RbacArgs {
    /// Configuration file of a `chandler serve`; without one, the built-in catalog with all settings as they come.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The service account the broker runs as; without it, `chandler` in the configured `broker_namespace`.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service_account: Option<String>,
}

pub(super) fn run(args: &RbacArgs) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(file) => load_config(file)?,
        None => Config::default(),
    };
    let settings = app::kubernetes_settings(&config.provisioner.kubernetes, &config.bindings);
    let clock: std::sync::Arc<dyn Clock> = std::sync::Arc::new(SystemClock);
    let catalog = app::catalog::load(&config.catalog, &app::mechanisms(&clock))?;
    let account = args
        .service_account
        .clone()
        .unwrap_or_else(|| format!("{}/chandler", settings.broker_namespace));
    let (namespace, name) = split(&account)?;
    println!(
        "# What the service account {namespace}/{name} may do, for the catalog as it is now: print it again when a service is added.\n\
         # Apply it as an administrator: chandler rbac | kubectl apply -f -"
    );
    print!(
        "{}",
        rbac::yaml(&rbac::manifests(&settings, &catalog.offerings, (namespace, name)))
    );
    Ok(())
}

/// The same for the chart, a text for each tenancy, without and with Secrets in applications' namespaces: with placeholders
/// that its templates replace, and for a broker that runs in the cluster.
pub(super) fn for_chart(catalog: &Catalog) -> [(&'static str, String); 4] {
    let text = |tenancy: Tenancy, applications: &[&str]| {
        let section = config::Kubernetes {
            tenancy,
            namespace: "placeholder-instances".into(),
            broker_namespace: "placeholder-namespace".into(),
            transport: Transport::Direct,
            ..config::Kubernetes::default()
        };
        let namespaces = applications.iter().map(|&name| name.to_owned()).collect();
        let bindings = config::Bindings {
            secret_namespaces: [("any".to_owned(), namespaces)].into(),
            ..config::Bindings::default()
        };
        let settings = app::kubernetes_settings(&section, &bindings);
        let account = ("placeholder-namespace", "placeholder-account");
        rbac::yaml(&rbac::manifests(&settings, &catalog.offerings, account))
    };
    let applications = ["placeholder-application"];
    [
        (
            "charts/chandler/files/rbac-instance.yaml",
            text(Tenancy::Instance, &[]),
        ),
        (
            "charts/chandler/files/rbac-shared.yaml",
            text(Tenancy::Shared, &[]),
        ),
        (
            "charts/chandler/files/rbac-instance-secrets.yaml",
            text(Tenancy::Instance, &applications),
        ),
        (
            "charts/chandler/files/rbac-shared-secrets.yaml",
            text(Tenancy::Shared, &applications),
        ),
    ]
}

/// Namespace and name, which stand inside the rules and so must be nothing but names.
pub(super) fn split(account: &str) -> anyhow::Result<(&str, &str)> {
    let (namespace, name) = account
        .split_once('/')
        .ok_or_else(|| anyhow!("`{account}` is not NAMESPACE/NAME, such as chandler/chandler."))?;
    let is_name = |text: &str, dots: bool| {
        (1..=if dots { 253 } else { 63 }).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
            && !text.starts_with(['-', '.'])
            && !text.ends_with(['-', '.'])
    };
    if !is_name(namespace, false) || !is_name(name, true) {
        bail!(
            "`{account}` does not name a service account: small letters, digits and dashes, NAMESPACE/NAME."
        );
    }
    Ok((namespace, name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn only_names_reach_the_rules() {
        assert_eq!(split("osb/chandler.v2").unwrap(), ("osb", "chandler.v2"));
        for wrong in ["chandler", "/a", "a/", "a.b/c", "a/b'", "A/b", "a/b/c", "a/-b"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
    }
}
