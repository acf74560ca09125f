//! What belongs together in `bindings`, `vault` and `keycloak`, and what of it is insecure.

use super::bindings::{Delivery, Keycloak, Vault, VaultLoginKind};
use super::check::Findings;
use super::sections::{Config, ProvisionerKind};
use std::net::IpAddr;

pub(super) fn check(config: &Config, found: &mut Findings) {
    if let Some(v) = &config.vault {
        vault(v, found);
    }
    if let Some(k) = &config.keycloak {
        keycloak(k, found);
        if config.vault.is_none() {
            found.refuse(
                "keycloak",
                "needs `vault`: a binding's client is for fetching its secret there; set both or neither",
            );
        }
    }
    if config.vault.is_some() && config.keycloak.is_none() {
        found.refuse("vault", "needs `keycloak`: applications log in to the vault with their binding's client; set both or neither");
    }
    ways("bindings.delivery", &config.bindings.delivery, config, found);
    for (index, platform) in config.platforms.iter().enumerate() {
        ways(
            &format!("platforms.{index}.delivery"),
            &platform.delivery,
            config,
            found,
        );
    }
    for (name, namespaces) in &config.bindings.secret_namespaces {
        let path = format!("bindings.secret_namespaces.{name}");
        if !config.platforms.iter().any(|p| &p.name == name) {
            found.refuse(path.as_str(), "is not the name of a platform");
        }
        // They become part of the rules that `chandler rbac` prints.
        if !namespaces.iter().all(|namespace| is_namespace(namespace)) {
            found.refuse(path, "must be names of namespaces: a-z 0-9 -, at most 63");
        }
    }
}

fn ways(path: &str, ways: &[Delivery], config: &Config, found: &mut Findings) {
    for (index, way) in ways.iter().enumerate() {
        if ways[..index].contains(way) {
            found.refuse(path, "names one way twice");
        }
        match way {
            Delivery::Reference if config.vault.is_none() => {
                found.refuse(path, "`reference` needs `vault` and `keycloak`");
            }
            Delivery::Secret if config.provisioner.kind != ProvisionerKind::Kubernetes => {
                found.refuse(path, "`secret` needs the provisioner `kubernetes`");
            }
            _ => {}
        }
    }
}

fn vault(vault: &Vault, found: &mut Findings) {
    address("vault.address", &vault.address, vault.allow_plaintext, found);
    for (path, mount) in [
        ("vault.kv_mount", &vault.kv_mount),
        ("vault.internal_mount", &vault.internal_mount),
        ("vault.jwt_mount", &vault.jwt_mount),
        (
            "vault.login.mount",
            vault.login.mount.as_ref().unwrap_or(&vault.jwt_mount),
        ),
    ] {
        if !is_mount(mount) {
            found.refuse(path, "must be a mount's path: a-z 0-9 - _ in parts divided by /");
        }
    }
    if vault.kv_mount == vault.internal_mount {
        found.refuse(
            "vault.internal_mount",
            "must be another mount than `vault.kv_mount`: no application may read what lies there",
        );
    }
    for (path, role) in [
        ("vault.jwt_role", &vault.jwt_role),
        ("vault.login.role", &vault.login.role),
    ] {
        if role.contains('/') || !is_mount(role) {
            found.refuse(path, "must be a role's name: a-z 0-9 - _");
        }
    }
    for (path, version) in [
        ("vault.min_vault", &vault.min_vault),
        ("vault.min_openbao", &vault.min_openbao),
    ] {
        if !version.split('.').all(|part| part.parse::<u32>().is_ok()) {
            found.refuse(path, "must be a version, such as 2.0.4");
        }
    }
    if let Some(public) = &vault.public_address {
        address("vault.public_address", public, vault.allow_plaintext, found);
    }
    let login = &vault.login;
    if login.wrapped && login.kind != VaultLoginKind::AppRole {
        found.refuse("vault.login.wrapped", "is for the log-in `approle` alone");
    }
    match login.kind {
        VaultLoginKind::Kubernetes => {}
        VaultLoginKind::AppRole => {
            for (path, file) in [
                ("vault.login.role_id_file", &login.role_id_file),
                ("vault.login.secret_id_file", &login.secret_id_file),
            ] {
                // A wrapped secret id is gone once it was used: whether the file can be read is told when logging in.
                if file.is_none() {
                    found.refuse(path, "must be given for the log-in `approle`");
                }
            }
        }
        VaultLoginKind::Token => match &login.token_file {
            Some(file) => drop(found.secret("vault.login.token_file", file)),
            None => found.refuse("vault.login.token_file", "must be given for the log-in `token`"),
        },
    }
}

fn keycloak(keycloak: &Keycloak, found: &mut Findings) {
    address("keycloak.url", &keycloak.url, keycloak.allow_plaintext, found);
    if keycloak.realm == "master" {
        found.refuse(
            "keycloak.realm",
            "must be a realm of its own: whoever may make clients in a realm can make himself its administrator",
        );
    }
    match (&keycloak.client_secret_file, &keycloak.private_key_file) {
        (Some(file), None) => drop(found.secret("keycloak.client_secret_file", file)),
        (None, Some(file)) => drop(found.secret("keycloak.private_key_file", file)),
        _ => found.refuse(
            "keycloak.client_secret_file",
            "give one of `client_secret_file` and `private_key_file`: how the broker proves who it is",
        ),
    }
}

fn is_namespace(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_mount(mount: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    mount.split('/').all(part)
}

fn address(path: &str, address: &str, allow_plaintext: bool, found: &mut Findings) {
    let rest = if let Some(rest) = address.strip_prefix("https://") {
        rest
    } else if let Some(rest) = address.strip_prefix("http://") {
        if !allow_plaintext && !is_loopback(rest) {
            found.refuse(
                path,
                "secrets would cross the network in clear; use https, or set `allow_plaintext: true` beside it",
            );
        }
        rest
    } else {
        found.refuse(path, "must be given: an address that starts with https://");
        return;
    };
    if rest.is_empty() || rest.contains(['?', '#', '@', ' ']) {
        found.refuse(path, "must be an address without user, query and fragment");
    }
}

fn is_loopback(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
