//! A `chandler serve` set up in a home: configuration, key, platform.

use super::audit::State;
use super::home::Home;
use super::platform::Platform;
use super::process::{Address, Broker};
use chandler::adapters::sealed::Keys;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The password of the platform `cf`.
pub const PASSWORD: &str = "a password of the platform cf";

/// A configuration file, and what it says.
pub struct Served {
    pub file: PathBuf,
    pub settings: Value,
}

impl Served {
    /// A configuration over the database at `url`, with a lease of five seconds.
    pub fn new(home: &Home, url: &str) -> Self {
        let key = home.path().join("seal.key");
        if !key.exists() {
            Keys::create_file(&key).unwrap();
        }
        let password = home.private("cf-password", PASSWORD);
        let settings = json!({
            "http": {"listen": "127.0.0.1:0", "shutdown_seconds": 20},
            "store": {"url": url},
            "catalog": {"dirs": [home.offers()], "reload_seconds": 0},
            "provisioner": {"local": {"dir": home.path().join("instances")}},
            "secrets": {"keys": [{"label": "first", "file": key}]},
            "platforms": [{"name": "cf", "credentials": [{"username": "cf", "password_file": password}]}],
            "engine": {"lease_seconds": 5, "poll_milliseconds": 200},
        });
        let served = Self {
            file: home.path().join("broker.json"),
            settings,
        };
        served.write();
        served
    }

    /// Over a SQLite file in the home.
    pub fn sqlite(home: &Home) -> Self {
        Self::new(
            home,
            &format!("sqlite://{}", home.path().join("broker.db").display()),
        )
    }

    /// Writes the settings, after they were changed.
    pub fn write(&self) {
        std::fs::write(&self.file, serde_json::to_string_pretty(&self.settings).unwrap()).unwrap();
    }

    pub fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// The platform `cf` at a broker.
    pub fn platform(broker: &Broker) -> Platform {
        Self::platform_at(&broker.address)
    }

    /// The same at an address.
    pub fn platform_at(address: &Address) -> Platform {
        Platform::new(address, "cf", PASSWORD)
    }

    /// The rows, beside the brokers.
    pub async fn state(&self) -> State {
        let (config, _) = chandler::config::load(Some(&self.file), std::iter::empty())
            .into_config()
            .unwrap();
        State::of(&config, "cf").await
    }
}
