//! What the schema cannot say: what must be given, what belongs together, and what is insecure.
//!
//! Every finding is reported, none hides another. Files are looked at too, because a secret that
//! everybody on the machine can read is as insecure as a setting can be.

use super::Problem;
use super::files::read_secret;
use super::kubernetes::{Kubernetes, Tenancy};
use super::sections::{
    Config, Credential, Http, Local, Osb, Platform, Provisioner, ProvisionerKind, Secrets, Store,
};
use super::url::StoreUrl;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret;
use std::collections::HashSet;
use std::path::Path;

/// Shortest password that is accepted, in characters.
const SHORTEST_PASSWORD: usize = 12;

/// Names that `dashboard_url_template` may use.
const DASHBOARD_NAMES: [&str; 3] = ["instance_id", "service", "plan"];

/// What a check found.
#[derive(Default)]
pub(super) struct Findings {
    /// What must be put right.
    pub problems: Vec<Problem>,
    /// What can stay but should not.
    pub warnings: Vec<Problem>,
}

impl Findings {
    pub(super) fn refuse(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    pub(super) fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem::new(path, message));
    }

    /// Reads a secret file, noting what is wrong with it.
    pub(super) fn secret(&mut self, path: &str, file: &Path) -> Option<secrecy::SecretString> {
        if file.as_os_str().is_empty() {
            self.refuse(path, "must be given: the file that holds the secret, mode 0600");
            return None;
        }
        match read_secret(file) {
            Ok(read) => {
                if let Some(warning) = read.warning {
                    self.warn(path, warning);
                }
                Some(read.content)
            }
            Err(reason) => {
                self.refuse(path, reason);
                None
            }
        }
    }
}

/// Checks a whole configuration.
pub(super) fn check(config: &Config) -> Findings {
    let mut found = Findings::default();
    http(&config.http, &mut found);
    osb(&config.osb, &mut found);
    store(&config.store, &mut found);
    catalog(&config.catalog, &mut found);
    provisioner(&config.provisioner, &mut found);
    secrets(&config.secrets, &mut found);
    platforms(&config.platforms, &mut found);
    super::check_bindings::check(config, &mut found);
    found
}

fn http(http: &Http, found: &mut Findings) {
    if !http.listen.ip().is_loopback() && http.tls.is_none() {
        if http.allow_plaintext {
            found.warn(
                "http.allow_plaintext",
                format!(
                    "passwords and credentials cross {} in clear; let only the TLS proxy reach it",
                    http.listen
                ),
            );
        } else {
            found.refuse(
                "http.listen",
                format!(
                    "{} can be reached from other machines, and without TLS passwords and credentials would cross the network in clear; set `http.tls`, or listen on 127.0.0.1, or set `http.allow_plaintext: true` when a proxy in front ends TLS",
                    http.listen
                ),
            );
        }
    }
    if http.admin_listen == Some(http.listen) && http.listen.port() != 0 {
        found.refuse(
            "http.admin_listen",
            "is the same as `http.listen`; leave it out to serve both there, or choose another port",
        );
    }
    if let Some(tls) = &http.tls {
        if tls.cert_file.as_os_str().is_empty() {
            found.refuse(
                "http.tls.cert_file",
                "must be given: a PEM file with the certificate chain",
            );
        } else {
            let count = CertificateDer::pem_file_iter(&tls.cert_file)
                .map_err(|error| error.to_string())
                .and_then(|certs| {
                    certs
                        .collect::<Result<Vec<_>, _>>()
                        .map_err(|error| error.to_string())
                });
            match count {
                Ok(certs) if certs.is_empty() => found.refuse(
                    "http.tls.cert_file",
                    format!("{} holds no certificate", tls.cert_file.display()),
                ),
                Ok(_) => {}
                Err(error) => found.refuse(
                    "http.tls.cert_file",
                    format!("{} cannot be read as PEM: {error}", tls.cert_file.display()),
                ),
            }
        }
        if let Some(pem) = found.secret("http.tls.key_file", &tls.key_file)
            && PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes()).is_err()
        {
            found.refuse(
                "http.tls.key_file",
                format!("{} holds no private key in PEM form", tls.key_file.display()),
            );
        }
    }
}

fn osb(osb: &Osb, found: &mut Findings) {
    let Some(template) = &osb.dashboard_url_template else {
        return;
    };
    let path = "osb.dashboard_url_template";
    if !template.starts_with("https://") && !template.starts_with("http://") {
        found.refuse(path, "must be a URL that starts with https://");
    }
    for piece in template.split('{').skip(1) {
        let name = piece.split('}').next().unwrap_or_default();
        if !DASHBOARD_NAMES.contains(&name) {
            found.refuse(
                path,
                format!(
                    "does not know {{{name}}}; it may use {{{}}}",
                    DASHBOARD_NAMES.join("}, {")
                ),
            );
        }
    }
}

fn store(store: &Store, found: &mut Findings) {
    let url = match StoreUrl::parse(&store.url) {
        Ok(url) => url,
        Err(reason) => {
            found.refuse("store.url", reason);
            return;
        }
    };
    match &url {
        StoreUrl::Sqlite { .. } => {
            if store.password_file.is_some() {
                found.refuse("store.password_file", "has no meaning for SQLite; remove it");
            }
        }
        StoreUrl::Postgres {
            host,
            is_local,
            encrypted,
            ..
        } => {
            if !is_local && !encrypted && !store.allow_plaintext {
                found.refuse(
                    "store.url",
                    format!("{host} is another machine and the connection would not be certain to be encrypted; add `?sslmode=verify-full` (or `require`), or set `store.allow_plaintext: true` when the network between is trusted"),
                );
            }
            if let Some(file) = &store.password_file {
                found.secret("store.password_file", file);
            }
        }
    }
}

fn catalog(catalog: &super::sections::Catalog, found: &mut Findings) {
    if catalog.dirs.is_empty() && !catalog.builtin {
        found.refuse(
            "catalog.dirs",
            "must be given when `catalog.builtin` is false: directories that hold `catalog/` and `plans/`",
        );
    }
    for (i, dir) in catalog.dirs.iter().enumerate() {
        if !dir.join("catalog").is_dir() && !dir.join("plans").is_dir() {
            found.refuse(
                format!("catalog.dirs.{i}"),
                format!(
                    "{} holds no directory `catalog` or `plans`; correct the path",
                    dir.display()
                ),
            );
        }
    }
}

fn provisioner(provisioner: &Provisioner, found: &mut Findings) {
    match provisioner.kind {
        ProvisionerKind::Local => local(&provisioner.local, found),
        ProvisionerKind::Kubernetes => kubernetes(&provisioner.kubernetes, found),
    }
}

fn kubernetes(kubernetes: &Kubernetes, found: &mut Findings) {
    let path = "provisioner.kubernetes";
    if kubernetes.tenancy == Tenancy::Shared && kubernetes.namespace.is_empty() {
        found.refuse(
            format!("{path}.namespace"),
            "must be given for the tenancy `shared`: the namespace all instances live in",
        );
    }
    if kubernetes.tenancy == Tenancy::Instance && !kubernetes.namespace.is_empty() {
        found.refuse(
            format!("{path}.namespace"),
            "is only for the tenancy `shared`; leave it out, or set `tenancy: shared`",
        );
    }
    if let Some(file) = &kubernetes.kubeconfig
        && !file.is_file()
    {
        found.refuse(
            format!("{path}.kubeconfig"),
            format!("there is no file {}; correct the path", file.display()),
        );
    }
    for (image, other) in &kubernetes.images.replace {
        if !other.contains("@sha256:") {
            found.refuse(
                format!("{path}.images.replace.{image}"),
                "must name an image by its digest (name@sha256:…), so that nobody can put another one in its place",
            );
        }
    }
}

fn local(local: &Local, found: &mut Findings) {
    if local.dir.as_os_str().is_empty() {
        found.refuse(
            "provisioner.local.dir",
            "must be given: the directory for the instances' data",
        );
    }
    let Some(name) = &local.run_as else {
        return;
    };
    let path = "provisioner.local.run_as";
    let me = nix::unistd::geteuid();
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => found.refuse(
            path,
            "must not be root: a fault in a server would be a fault of the whole machine; name an ordinary user",
        ),
        Ok(Some(user)) if !me.is_root() && user.uid != me => found.refuse(
            path,
            format!("only root can start servers as `{name}`; run chandler as root, or leave this out"),
        ),
        Ok(Some(_)) => {}
        Ok(None) => found.refuse(
            path,
            format!("there is no user `{name}` on this machine; make it, or name another"),
        ),
        Err(error) => found.refuse(path, format!("the users of this machine cannot be looked up ({error})")),
    }
}

fn secrets(secrets: &Secrets, found: &mut Findings) {
    if secrets.keys.is_empty() {
        found.refuse("secrets.keys", "must hold at least one key; make one with `chandler secrets new-key FILE` and name it here with a label");
        return;
    }
    let mut labels = HashSet::new();
    for (i, key) in secrets.keys.iter().enumerate() {
        let path = format!("secrets.keys.{i}");
        if !is_label(&key.label) {
            found.refuse(format!("{path}.label"), "must be 1 to 32 of a-z 0-9 . _ -");
        } else if !labels.insert(&key.label) {
            found.refuse(
                format!("{path}.label"),
                format!(
                    "`{}` names another key already; labels never mean two keys",
                    key.label
                ),
            );
        }
        found.secret(&format!("{path}.file"), &key.file);
    }
    match &secrets.primary {
        Some(primary) if !labels.contains(primary) => {
            found.refuse(
                "secrets.primary",
                format!("no key in `secrets.keys` has the label `{primary}`"),
            );
        }
        None if secrets.keys.len() > 1 => {
            found.refuse(
                "secrets.primary",
                "must be given when there are several keys: the label of the one that seals new secrets",
            );
        }
        _ => {}
    }
}

fn is_label(label: &str) -> bool {
    (1..=32).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

fn is_platform_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn platforms(platforms: &[Platform], found: &mut Findings) {
    if platforms.is_empty() {
        found.refuse(
            "platforms",
            "must hold at least one platform, otherwise nobody can log in",
        );
    }
    let mut names = HashSet::new();
    let mut users = HashSet::new();
    for (i, platform) in platforms.iter().enumerate() {
        let path = format!("platforms.{i}");
        if !is_platform_name(&platform.name) {
            found.refuse(format!("{path}.name"), "must be 1 to 63 of a-z 0-9 -");
        } else if !names.insert(&platform.name) {
            found.refuse(
                format!("{path}.name"),
                format!(
                    "`{}` is another platform already; a second log-in goes into its `credentials`",
                    platform.name
                ),
            );
        }
        match platform.credentials.len() {
            1 | 2 => {}
            0 => found.refuse(
                format!("{path}.credentials"),
                "must hold a log-in, otherwise the platform cannot ask",
            ),
            _ => found.refuse(
                format!("{path}.credentials"),
                "must hold one or two log-ins: the present one and, while it is being replaced, the next",
            ),
        }
        for (j, credential) in platform.credentials.iter().enumerate() {
            let path = format!("{path}.credentials.{j}");
            let name = credential.username.as_str();
            if name.is_empty() || name.len() > 128 || name.contains(|c: char| c == ':' || c.is_control()) {
                found.refuse(
                    format!("{path}.username"),
                    "must be 1 to 128 characters without colon",
                );
            } else if !users.insert(name) {
                found.refuse(
                    format!("{path}.username"),
                    format!("`{name}` is another log-in already; a user name tells platform and slot"),
                );
            }
            check_credential(&path, credential, found);
        }
    }
}

fn check_credential(path: &str, credential: &Credential, found: &mut Findings) {
    let given = [
        credential.password.is_some(),
        credential.password_file.is_some(),
        credential.password_hash.is_some(),
        credential.password_hash_file.is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() != 1 {
        found.refuse(
            path,
            "must have exactly one of `password_file`, `password_hash`, `password_hash_file`",
        );
    }
    if let Some(file) = &credential.password_file {
        let at = format!("{path}.password_file");
        if let Some(password) = found.secret(&at, file)
            && password.expose_secret().chars().count() < SHORTEST_PASSWORD
        {
            found.refuse(at, format!("{} holds a password of fewer than {SHORTEST_PASSWORD} characters; make a long random one, such as by `openssl rand -hex 32`", file.display()));
        }
    }
    if let Some(hash) = &credential.password_hash {
        check_hash(&format!("{path}.password_hash"), hash.expose(), found);
    }
    if let Some(file) = &credential.password_hash_file {
        let at = format!("{path}.password_hash_file");
        if let Some(hash) = found.secret(&at, file) {
            check_hash(&at, hash.expose_secret(), found);
        }
    }
}

fn check_hash(path: &str, hash: &str, found: &mut Findings) {
    let valid = hash.starts_with("$argon2id$") && argon2::password_hash::phc::PasswordHash::new(hash).is_ok();
    if !valid {
        found.refuse(
            path,
            "is not an argon2id hash; make one with `chandler platforms hash-password`",
        );
    }
}
