//! The configuration: one file, the environment over it, every mistake told at once.
//!
//! What must stay true: no secret is ever a value here (they are named by file), a setting nobody
//! knows is refused instead of ignored, an insecure one is refused unless another setting says it
//! is meant, and a finding never repeats a value that may be a secret. This is the only module
//! that reads the process environment.

mod bindings;
mod check;
mod check_bindings;
mod dev;
mod docs;
mod files;
mod hidden;
mod kubernetes;
mod schema;
mod sections;
mod source;
mod url;

pub use bindings::{Bindings, Delivery, Keycloak, Vault, VaultLogin, VaultLoginKind};
pub use dev::{Dev, dev_password};
pub use docs::{config_reference, config_schema_json};
pub use files::{SecretFile, read_secret};
pub use hidden::Hidden;
pub use kubernetes::{Drift, Images, Kubernetes, Tenancy, Transport};
pub use sections::{
    Catalog, Config, Credential, DeletedLastOperation, DeprovisionWithBindings, Engine, Http, Local, Log,
    LogFormat, Osb, Platform, PortRange, Provisioner, ProvisionerKind, SealKey, Secrets, SecretsKind, Store,
    Tls,
};
pub use source::PREFIX;
pub use url::StoreUrl;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The setting, such as `platforms.0.name`; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
    /// The environment variable it came from, when it did.
    pub variable: Option<String>,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            variable: None,
        }
    }

    fn with_variable(mut self, name: &str) -> Self {
        self.variable = Some(name.to_owned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(variable) = &self.variable {
            write!(f, " (set by {variable})")?;
        }
        Ok(())
    }
}

/// Everything that must be put right before the broker can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for Problems {}

/// A configuration as it was read, with all that was found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings in effect; where a value was unusable, its default.
    pub config: Config,
    /// What must be put right.
    pub problems: Vec<Problem>,
    /// What can stay but should not.
    pub warnings: Vec<Problem>,
    /// Settings that came from the environment, with the variable.
    pub from_environment: BTreeMap<String, String>,
}

/// The process environment, for [`load`].
///
/// Variables that are not Unicode are left out: no setting can be given by one.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// One variable of the process environment, for the few that are not settings, such as `CHANDLER_DEV_PASSWORD`.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads `file` (YAML, TOML or JSON by its extension), lays `CHANDLER__SECTION__KEY` over it and checks everything.
///
/// Relative paths in it are relative to the file's directory; without a file, to the working directory.
pub fn load(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Loaded {
    let schema = schema::schema();
    let mut problems = Vec::new();
    let mut value = match file.map(source::read) {
        Some(Ok(value)) => value,
        Some(Err(problem)) => {
            problems.push(problem);
            return Loaded {
                config: Config::default(),
                problems,
                warnings: Vec::new(),
                from_environment: BTreeMap::new(),
            };
        }
        None => Value::Object(serde_json::Map::new()),
    };
    let (from_environment, unplaced) = source::overlay(&mut value, environment, &schema);
    problems.extend(unplaced);
    source::drop_nulls(&mut value);

    let structural = schema::problems(&schema, &value);
    for (path, problem) in &structural {
        let is_text =
            schema::at(&schema, path).and_then(|schema| schema.get("type")) == Some(&Value::from("string"));
        let blank = if is_text {
            Value::from("")
        } else {
            Value::Object(serde_json::Map::new())
        };
        take_out(&mut value, path, &blank);
        problems.push(match from_environment.get(&problem.path) {
            Some(name) => problem.clone().with_variable(name),
            None => problem.clone(),
        });
    }
    let config = serde_path_to_error::deserialize::<_, Config>(&value);
    let mut config = config.unwrap_or_else(|error| {
        problems.push(Problem::new(error.path().to_string(), "cannot be understood"));
        Config::default()
    });
    config.resolve_paths(file.and_then(Path::parent).unwrap_or(Path::new("")));

    let found = check::check(&config);
    // A setting that was taken out is told once: its default is not to be judged.
    let taken: Vec<&str> = structural
        .iter()
        .map(|(_, problem)| problem.path.as_str())
        .collect();
    problems.extend(
        found
            .problems
            .into_iter()
            .filter(|problem| !taken.iter().any(|path| concerns(path, &problem.path)))
            .map(|problem| match from_environment.get(&problem.path) {
                Some(name) => problem.with_variable(name),
                None => problem,
            }),
    );
    if StoreUrl::parse(&config.store.url).is_err() {
        // It may hold a password: nobody is to see it through `show`.
        config.store.url.clear();
    }
    problems.sort();
    Loaded {
        config,
        problems,
        warnings: found.warnings,
        from_environment,
    }
}

/// Whether one path lies at or within the other.
fn concerns(a: &str, b: &str) -> bool {
    let within = |outer: &str, inner: &str| {
        inner == outer
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    a.is_empty() || b.is_empty() || within(a, b) || within(b, a)
}

/// Takes the value at `path` out, so that the rest can still be understood.
///
/// A list member is replaced by `blank` instead: the others keep their numbers.
fn take_out(value: &mut Value, path: &[String], blank: &Value) {
    let Some((part, rest)) = path.split_first() else {
        *value = blank.clone();
        return;
    };
    match value {
        Value::Object(map) if rest.is_empty() => {
            map.remove(part);
        }
        Value::Object(map) => {
            if let Some(member) = map.get_mut(part) {
                take_out(member, rest, blank);
            }
        }
        Value::Array(items) => {
            if let Some(item) = part.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                take_out(item, rest, blank);
            }
        }
        _ => {}
    }
}

impl Loaded {
    /// The configuration with its warnings, when nothing must be put right.
    pub fn into_config(self) -> Result<(Config, Vec<Problem>), Problems> {
        if self.problems.is_empty() {
            Ok((self.config, self.warnings))
        } else {
            Err(Problems(self.problems))
        }
    }

    /// What `chandler config check` prints; it is a failure when [`Self::problems`] holds anything.
    pub fn check_report(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            let _ = writeln!(text, "error    {problem}");
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning  {warning}");
        }
        let _ = match (self.problems.len(), self.warnings.len()) {
            (0, 0) => writeln!(text, "The configuration is in order."),
            (0, n) => writeln!(text, "The configuration can be used; warnings: {n}."),
            (n, _) => writeln!(text, "The configuration cannot be used; errors: {n}."),
        };
        text
    }

    /// What `chandler config show` prints: all settings in effect as YAML, secrets as `<set>`.
    pub fn show(&self) -> String {
        let mut text = serde_saphyr::to_string(&self.config)
            .unwrap_or_else(|error| format!("# cannot be shown: {error}\n"));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        for (path, name) in &self.from_environment {
            let _ = writeln!(text, "# {path} is set by {name}");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "# error: {problem}");
        }
        text
    }
}

impl Config {
    /// Makes relative paths relative to `base` instead of the working directory.
    fn resolve_paths(&mut self, base: &Path) {
        let files = [&mut self.provisioner.local.dir]
            .into_iter()
            .chain(self.catalog.dirs.iter_mut())
            .chain(self.provisioner.kubernetes.kubeconfig.iter_mut())
            .chain(self.secrets.keys.iter_mut().map(|key| &mut key.file))
            .chain(self.store.password_file.iter_mut())
            .chain(self.vault.iter_mut().flat_map(|vault| {
                let login = &mut vault.login;
                [
                    &mut vault.ca_file,
                    &mut login.token_file,
                    &mut login.role_id_file,
                    &mut login.secret_id_file,
                ]
                .into_iter()
                .flatten()
            }))
            .chain(self.keycloak.iter_mut().flat_map(|keycloak| {
                [
                    &mut keycloak.ca_file,
                    &mut keycloak.client_secret_file,
                    &mut keycloak.private_key_file,
                ]
                .into_iter()
                .flatten()
            }))
            .chain(
                self.http
                    .tls
                    .iter_mut()
                    .flat_map(|tls| [&mut tls.cert_file, &mut tls.key_file]),
            )
            .chain(
                self.platforms
                    .iter_mut()
                    .flat_map(|platform| platform.credentials.iter_mut())
                    .flat_map(|credential| {
                        credential
                            .password_file
                            .iter_mut()
                            .chain(credential.password_hash_file.iter_mut())
                    }),
            );
        for file in files {
            if !file.as_os_str().is_empty() {
                let joined = base.join(&*file);
                *file = std::path::absolute(&joined).unwrap_or(joined);
            }
        }
    }
}

/// What a log-in is checked against.
pub enum Proof {
    /// A password in clear, to be hashed when the broker starts.
    Password(Hidden),
    /// An argon2id hash.
    Hash(Hidden),
}

impl Credential {
    /// Reads what this log-in is checked against; an error says which file is at fault.
    pub fn proof(&self) -> Result<Proof, String> {
        let from_file = |path: &PathBuf| read_secret(path).map(|read| Hidden::from(read.content));
        if let Some(password) = &self.password {
            return Ok(Proof::Password(password.clone()));
        }
        if let Some(file) = &self.password_file {
            return from_file(file).map(Proof::Password);
        }
        if let Some(hash) = &self.password_hash {
            return Ok(Proof::Hash(hash.clone()));
        }
        match &self.password_hash_file {
            Some(file) => from_file(file).map(Proof::Hash),
            None => Err(format!(
                "the log-in `{}` has neither password nor hash; give one in the configuration",
                self.username
            )),
        }
    }
}

#[cfg(test)]
mod tests;
