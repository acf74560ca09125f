//! The configuration of `chandler dev`: everything on loopback, below one directory.

use super::Hidden;
use super::files::read_secret;
use super::sections::{
    Catalog, Config, Credential, Http, Local, Log, LogFormat, Platform, Provisioner, SealKey, Secrets, Store,
};
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What `chandler dev` can be told.
#[derive(Debug, Clone)]
pub struct Dev {
    /// Directory for everything the broker keeps; made when missing.
    pub data_dir: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Directories that each hold `catalog/` and `plans/`.
    pub catalog_dirs: Vec<PathBuf>,
    /// Password of the platform user `dev`: see [`dev_password`].
    pub password: Hidden,
    /// User that instances run as when the broker runs as root.
    pub run_as: Option<String>,
}

impl Config {
    /// The embedded default: SQLite, sealed secrets and instances below `data_dir`, one platform `dev`.
    ///
    /// The seal key's file is `data_dir/seal.key`, labelled `dev`; whoever starts the broker makes it when missing.
    pub fn dev(dev: &Dev) -> std::io::Result<Self> {
        let data_dir = std::path::absolute(&dev.data_dir)?;
        Ok(Self {
            http: Http {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, dev.port)),
                ..Http::default()
            },
            store: Store {
                url: format!("sqlite://{}", data_dir.join("chandler.db").display()),
                ..Store::default()
            },
            catalog: Catalog {
                dirs: dev.catalog_dirs.clone(),
                reload_seconds: 2,
                ..Catalog::default()
            },
            provisioner: Provisioner {
                local: Local {
                    dir: data_dir.join("instances"),
                    run_as: dev.run_as.clone(),
                    ..Local::default()
                },
                ..Provisioner::default()
            },
            secrets: Secrets {
                keys: vec![SealKey {
                    label: "dev".to_owned(),
                    file: data_dir.join("seal.key"),
                }],
                ..Secrets::default()
            },
            platforms: vec![Platform {
                name: "dev".to_owned(),
                delivery: Vec::new(),
                credentials: vec![Credential {
                    username: "dev".to_owned(),
                    password: Some(dev.password.clone()),
                    ..Credential::default()
                }],
            }],
            log: Log {
                format: LogFormat::Text,
                ..Log::default()
            },
            ..Self::default()
        })
    }
}

/// The password of the platform user `dev`: `given` (from `CHANDLER_DEV_PASSWORD`), else what
/// `data_dir/dev-password` holds, else a new one that is written there with mode 0600.
///
/// Of two brokers that start at once, both get the same. The flag tells whether it is new.
pub fn dev_password(data_dir: &Path, given: Option<String>) -> Result<(Hidden, bool), String> {
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok((Hidden::new(given), false));
    }
    let file = data_dir.join("dev-password");
    let fail = |error: std::io::Error| {
        format!(
            "{} cannot be written ({error}); choose another directory with --data-dir",
            file.display()
        )
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data_dir)
        .map_err(fail)?;
    if !file.exists() {
        let password = data_encoding::HEXLOWER.encode(&random_bytes()?);
        // Written whole under another name and then linked, so that nobody ever reads half of it.
        let draft = data_dir.join(format!(".dev-password.{}", std::process::id()));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut open| {
                writeln!(open, "{password}")?;
                open.sync_all()
            })
            .and_then(|()| std::fs::hard_link(&draft, &file));
        // What is left of the draft is of no use to anybody.
        let _ = std::fs::remove_file(&draft);
        match written {
            Ok(()) => return Ok((Hidden::new(password), true)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail(error)),
        }
    }
    read_secret(&file).map(|read| (Hidden::from(read.content), false))
}

fn random_bytes() -> Result<[u8; 20], String> {
    let mut bytes = [0; 20];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| "the system gives no random numbers; try again".to_owned())?;
    Ok(bytes)
}
