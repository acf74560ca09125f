//! Looks whether the vault is as the broker needs it: reached, of a version without known holes, with exactly the rights of
//! its policy, and with the log-in that applications use.
//!
//! Nothing is written by looking. A person's look never uses up a wrapped secret id, which the broker itself needs.

use super::Vault;
use super::fault::{self, Health, Product};
use super::http::Request;
use super::login::bytes;
use super::policy::{self, Ban, Rule};
use crate::ports::{Finding, PortErrorKind, PortResult};
use serde_json::{Value, json};

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looker {
    /// The broker, whose log-in it is.
    Broker,
    /// A person, beside it.
    Person,
}

/// Versions below which the vault has known holes in the kind of policy that bindings share.
#[derive(Debug, Clone)]
pub struct Minimum {
    /// Of Vault.
    pub vault: String,
    /// Of OpenBao.
    pub openbao: String,
    /// An older one is an error instead of a warning.
    pub refuse_older: bool,
}

impl Minimum {
    fn judge(&self, health: &Health) -> Finding {
        let name = health.product.name();
        let minimum = match health.product {
            Product::Vault => &self.vault,
            Product::OpenBao => &self.openbao,
        };
        let version = &health.version;
        match (numbers(version), numbers(minimum)) {
            (Some(is), Some(least)) if is >= least => Finding::good(format!("{name} {version} answers.")),
            (Some(_), Some(_)) => {
                let text = format!(
                    "{name} {version} is older than {minimum}: names with `*` or `/` in them can open other secrets there. \
                     The broker gives no such names; upgrade all the same."
                );
                if self.refuse_older {
                    Finding::error(text)
                } else {
                    Finding::warning(text)
                }
            }
            _ => Finding::warning(format!(
                "{name} says its version is \"{version}\", which cannot be compared with {minimum}."
            )),
        }
    }
}

/// The three numbers of a version, whatever follows them.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let core = version.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).ok();
    Some([next()?, next()?, next()?])
}

impl Vault {
    /// All that can be seen from here.
    pub async fn check(&self, looker: Looker) -> Vec<Finding> {
        let health = match Health::of(&self.session.http).await {
            Ok(health) => health,
            Err(error) => return vec![Finding::failure(&error)],
        };
        if let Some(trouble) = health.trouble() {
            return vec![Finding::failure(&trouble)];
        }
        let mut found = vec![self.settings.minimum.judge(&health)];
        found.push(
            self.role_of_bindings()
                .await
                .unwrap_or_else(|error| Finding::failure(&error)),
        );
        if looker == Looker::Person && self.session.is_single_use() {
            found.push(Finding::warning(
                "The broker's log-in is wrapped and can be used once, so it was not tried; the broker checks its rights itself when it starts.",
            ));
            return found;
        }
        if let Err(error) = self.keep_logged_in().await {
            found.push(Finding::failure(&error));
            return found;
        }
        let rest = async {
            found.extend(self.rights().await?);
            found.push(self.log_in_of_bindings().await?);
            for mount in self.stores() {
                found.push(self.store(mount).await?);
            }
            PortResult::Ok(())
        };
        if let Err(error) = rest.await {
            found.push(Finding::failure(&error));
        }
        found
    }

    fn stores(&self) -> Vec<&str> {
        let internal = self
            .settings
            .instance_secrets
            .then_some(self.settings.internal_mount.as_str());
        [self.settings.kv_mount.as_str()]
            .into_iter()
            .chain(internal)
            .collect()
    }

    /// A log-in with something that is no token: the vault says whether it knows the role before it looks at that.
    async fn role_of_bindings(&self) -> PortResult<Finding> {
        let settings = &self.settings;
        let path = format!("auth/{}/login", settings.jwt_mount);
        let body = bytes(json!({"role": settings.jwt_role, "jwt": "none"}))?;
        let request = Request::post(&path, &body);
        let answer = self.session.http.send(request).await?;
        let missing = ["could not be found", "could not load", "no handler"];
        Ok(match answer.status {
            500.. | 429 => Finding::failure(&fault::refusal(&self.session.http, &request, &answer).await),
            400 if !missing.iter().any(|text| answer.errors.contains(text)) => Finding::good(format!(
                "Applications can log in: {} has the role {}.",
                settings.jwt_mount, settings.jwt_role
            )),
            _ => Finding::error(format!(
                "Applications cannot log in: the log-in {} with the role {} is missing or not configured ({}); `chandler bootstrap vault` makes it.",
                settings.jwt_mount,
                settings.jwt_role,
                fault::told(&request, &answer)
            )),
        })
    }

    /// Whether unbinding can end the tokens of applications.
    async fn log_in_of_bindings(&self) -> PortResult<Finding> {
        let mount = &self.settings.jwt_mount;
        Ok(match self.accessor().await? {
            Some(_) => Finding::good(format!("The broker sees the applications' log-in {mount}.")),
            None => Finding::error(format!(
                "There is no log-in {mount}; `chandler bootstrap vault` makes it."
            )),
        })
    }

    async fn store(&self, mount: &str) -> PortResult<Finding> {
        let path = format!("{mount}/config");
        let request = Request::get(&path);
        let answer = self.session.call(request).await?;
        if !answer.is_success() {
            return Ok(Finding::error(format!(
                "There is no store {mount} of the kind KV version 2 ({}); `chandler bootstrap vault` makes it.",
                fault::told(&request, &answer)
            )));
        }
        Ok(if answer.data("cas_required") == &Value::Bool(true) {
            Finding::good(format!(
                "The store {mount} refuses writes that do not say what they replace."
            ))
        } else {
            Finding::warning(format!(
                "The store {mount} accepts writes without a check (cas_required is off); `chandler bootstrap vault` sets it."
            ))
        })
    }

    /// The broker's rights against its policy and what it must not have.
    async fn rights(&self) -> PortResult<Vec<Finding>> {
        let rules = policy::rules(&self.settings);
        let bans = policy::bans(&self.settings);
        let paths: Vec<&str> = rules
            .iter()
            .map(|rule| rule.sample.as_str())
            .chain(bans.iter().map(|ban| ban.path.as_str()))
            .collect();
        let body = bytes(json!({"paths": paths}))?;
        let request = Request::post("sys/capabilities-self", &body);
        let answer = match self.session.call(request).await {
            Err(why) if why.kind == PortErrorKind::Denied => {
                return Ok(vec![Finding::error(format!(
                    "The broker may not even ask for its rights: its token lacks the policy {} ({}); \
                     `chandler bootstrap vault` makes policy and role.",
                    policy::broker_name(&self.settings),
                    why.detail
                ))]);
            }
            answer => answer?,
        };
        if !answer.is_success() {
            return Err(fault::refusal(&self.session.http, &request, &answer).await);
        }
        let has = |path: &str| -> Vec<String> {
            let told = answer
                .data(path)
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let told = told.iter().filter_map(Value::as_str);
            told.filter(|capability| *capability != "deny")
                .map(str::to_owned)
                .collect()
        };
        Ok(compare(&rules, &bans, has))
    }
}

fn compare(rules: &[Rule], bans: &[Ban], has: impl Fn(&str) -> Vec<String>) -> Vec<Finding> {
    if rules
        .iter()
        .any(|rule| has(&rule.sample).iter().any(|capability| capability == "root"))
    {
        return vec![Finding::warning(
            "The broker's token is one of root: it may do everything in the vault. Give it the policy that `chandler bootstrap vault` makes.",
        )];
    }
    let mut found = Vec::new();
    for rule in rules {
        let has = has(&rule.sample);
        let is = |capability: &str| has.iter().any(|has| has == capability);
        let missing: Vec<&str> = rule
            .capabilities
            .iter()
            .copied()
            .filter(|needed| !is(needed))
            .collect();
        if !missing.is_empty() {
            found.push(Finding::error(format!(
                "The broker needs to {} {} and may not; `chandler bootstrap vault` prints its policy.",
                missing.join(", "),
                rule.path
            )));
        }
        let surplus: Vec<&str> = has
            .iter()
            .map(String::as_str)
            .filter(|has| !rule.capabilities.contains(has))
            .collect();
        if !surplus.is_empty() {
            found.push(Finding::warning(format!(
                "The broker may also {} {}: more than it needs.",
                surplus.join(", "),
                rule.path
            )));
        }
    }
    for ban in bans {
        let has = has(&ban.path);
        if !has.is_empty() {
            found.push(Finding::warning(format!(
                "The broker may {} {}: whoever has its token could {}.",
                has.join(", "),
                ban.path,
                ban.danger
            )));
        }
    }
    if found.is_empty() {
        found.push(Finding::good(
            "The broker's rights are those of its policy, no more and no less.",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ports::Grade;

    fn health(version: &str, product: Product) -> Health {
        Health {
            initialized: true,
            sealed: false,
            standby: false,
            version: version.to_owned(),
            product,
        }
    }

    #[test]
    fn old_versions_are_told_or_refused() {
        let mut minimum = Minimum {
            vault: "2.0.4".to_owned(),
            openbao: "2.6.2".to_owned(),
            refuse_older: false,
        };
        for (version, product, grade) in [
            ("2.0.4", Product::Vault, Grade::Good),
            ("2.0.4+ent", Product::Vault, Grade::Good),
            ("2.1.0-rc1", Product::Vault, Grade::Good),
            ("1.21.4", Product::Vault, Grade::Warning),
            ("2.0.10", Product::Vault, Grade::Good),
            ("2.6.2", Product::OpenBao, Grade::Good),
            ("2.6.1", Product::OpenBao, Grade::Warning),
            ("10.0.0", Product::OpenBao, Grade::Good),
            ("dev", Product::OpenBao, Grade::Warning),
        ] {
            assert_eq!(minimum.judge(&health(version, product)).grade, grade, "{version}");
        }
        minimum.refuse_older = true;
        assert_eq!(
            minimum.judge(&health("1.21.4", Product::Vault)).grade,
            Grade::Error
        );
    }

    #[test]
    fn missing_rights_are_errors_and_surplus_ones_warnings() {
        let rules = [Rule {
            path: "osb/data/+".to_owned(),
            sample: "osb/data/x".to_owned(),
            capabilities: &["create", "update"],
            reason: "",
        }];
        let bans = [Ban {
            path: "sys/policies/acl/x".to_owned(),
            danger: "do harm",
        }];
        let grades = |rights: &[(&str, &[&str])]| {
            let has = |path: &str| {
                let found = rights.iter().find(|(of, _)| *of == path);
                found
                    .map(|(_, has)| has.iter().map(|c| (*c).to_owned()).collect())
                    .unwrap_or_default()
            };
            compare(&rules, &bans, has)
                .iter()
                .map(|finding| finding.grade)
                .collect::<Vec<_>>()
        };
        assert_eq!(grades(&[("osb/data/x", &["create", "update"])]), [Grade::Good]);
        assert_eq!(grades(&[("osb/data/x", &["create"])]), [Grade::Error]);
        assert_eq!(
            grades(&[("osb/data/x", &["create", "read", "update"])]),
            [Grade::Warning]
        );
        assert_eq!(
            grades(&[
                ("osb/data/x", &["create", "update"]),
                ("sys/policies/acl/x", &["update"])
            ]),
            [Grade::Warning]
        );
        assert_eq!(grades(&[("osb/data/x", &["root"])]), [Grade::Warning]);
        assert_eq!(grades(&[]), [Grade::Error]);
    }
}
