//! Where a secret is kept when there is a vault: bindings' ones sealed in the store, instances' own ones in the vault.
//!
//! What must stay true: a name means one secret. What was sealed before there was a vault is found first and stays what
//! counts, so a value is never made a second time beside it.

use crate::domain::secret::Secret;
use crate::ports::{PortResult, SecretStore, secret_name};
use async_trait::async_trait;
use std::sync::Arc;

/// Two stores as one.
pub struct RoutedSecrets {
    sealed: Arc<dyn SecretStore>,
    vault: Arc<dyn SecretStore>,
}

impl RoutedSecrets {
    /// Bindings' secrets in `sealed`, those of instances in `vault`.
    pub fn new(sealed: Arc<dyn SecretStore>, vault: Arc<dyn SecretStore>) -> Self {
        Self { sealed, vault }
    }
}

#[async_trait]
impl SecretStore for RoutedSecrets {
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
        if secret_name::is_binding(name) {
            return self.sealed.create(name, value).await;
        }
        match self.sealed.get(name).await? {
            Some(before) => Ok(before),
            None => self.vault.create(name, value).await,
        }
    }

    async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
        match self.sealed.get(name).await? {
            None if !secret_name::is_binding(name) => self.vault.get(name).await,
            found => Ok(found),
        }
    }

    async fn destroy(&self, name: &str) -> PortResult<()> {
        if !secret_name::is_binding(name) {
            self.vault.destroy(name).await?;
        }
        self.sealed.destroy(name).await
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        let mut names = self.sealed.list(prefix).await?;
        if secret_name::is_binding(prefix) {
            return Ok(names);
        }
        names.extend(self.vault.list(prefix).await?);
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Table(Mutex<BTreeMap<String, Secret>>);

    impl Table {
        fn names(&self) -> Vec<String> {
            self.0.lock().unwrap().keys().cloned().collect()
        }
    }

    #[async_trait]
    impl SecretStore for Table {
        async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
            let mut rows = self.0.lock().unwrap();
            Ok(rows
                .entry(name.to_owned())
                .or_insert_with(|| value.clone())
                .clone())
        }
        async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
            Ok(self.0.lock().unwrap().get(name).cloned())
        }
        async fn destroy(&self, name: &str) -> PortResult<()> {
            self.0.lock().unwrap().remove(name);
            Ok(())
        }
        async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
            Ok(self
                .names()
                .into_iter()
                .filter(|name| name.starts_with(prefix))
                .collect())
        }
    }

    #[test]
    fn an_administrators_later_secrets_are_the_instances_too() {
        for number in [0, 1, 17] {
            let name = secret_name::nth_admin("i", number);
            assert!(
                secret_name::is_admin(&name) && !secret_name::is_binding(&name),
                "{name}"
            );
        }
        assert_eq!(secret_name::nth_admin("i", 0), secret_name::admin("i"));
        for other in [
            "i/admin-",
            "i/admin-x",
            "i/admin-1/b",
            "i/b/admin-1",
            "i/generated",
            "admin",
        ] {
            assert!(!secret_name::is_admin(other), "{other}");
        }
        assert!(secret_name::is_binding(&secret_name::binding("i", "b")));
    }

    fn secret(word: &str) -> Secret {
        Secret::from_pairs([("password", word)])
    }

    #[tokio::test]
    async fn each_kind_has_its_place_and_older_rows_stay() {
        let (sealed, vault) = (Arc::new(Table::default()), Arc::new(Table::default()));
        let both = RoutedSecrets::new(sealed.clone(), vault.clone());
        let (admin, binding) = (secret_name::admin("i"), secret_name::binding("i", "b"));
        both.create(&admin, &secret("new")).await.unwrap();
        both.create(&binding, &secret("bound")).await.unwrap();
        assert_eq!(sealed.names(), std::slice::from_ref(&binding));
        assert_eq!(vault.names(), std::slice::from_ref(&admin));

        let old = secret_name::admin("old");
        sealed.create(&old, &secret("sealed")).await.unwrap();
        assert_eq!(
            both.create(&old, &secret("other")).await.unwrap(),
            secret("sealed")
        );
        assert_eq!(both.get(&old).await.unwrap(), Some(secret("sealed")));
        assert_eq!(both.get(&admin).await.unwrap(), Some(secret("new")));
        assert_eq!(both.list("i/").await.unwrap(), [admin.clone(), binding.clone()]);
        assert_eq!(vault.names(), std::slice::from_ref(&admin));

        for name in [&admin, &binding, &old] {
            both.destroy(name).await.unwrap();
            assert_eq!(both.get(name).await.unwrap(), None);
        }
        assert!(sealed.names().is_empty() && vault.names().is_empty());
    }
}
