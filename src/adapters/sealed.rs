//! Secrets sealed with AES-256-GCM, kept wherever [`Rows`] keeps text.
//!
//! A sealed text is `v1:<label>:<base64 of nonce, ciphertext, tag>`. The label tells which key
//! opens it, so keys can be exchanged one row at a time while the broker runs. The secret's name is
//! authenticated with it: a row copied to another name does not open. Nonces are random, 96 bits,
//! which is safe for 2^32 secrets under one key; `rekey` to a new key starts the count again.
//!
//! What must stay true: no key and nothing in clear ever reaches `Rows`, an error or `Debug`.

use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, SecretStore};
use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Length of a key in bytes.
const KEY_LEN: usize = 32;
/// Rows that [`SealedStore::rekey`] reads at a time.
const PAGE: u32 = 200;
/// Times `rekey` looks at a row again that changed under its hands.
const TRIES: usize = 3;

/// Where sealed texts are kept: a table of name and text.
#[async_trait]
pub trait Rows: Send + Sync {
    /// Stores `sealed` unless the name is taken, in one atomic step; returns what is stored afterwards.
    async fn insert_absent(&self, name: &str, sealed: &str) -> PortResult<String>;
    /// The text stored under `name`.
    async fn get(&self, name: &str) -> PortResult<Option<String>>;
    /// Removes a row; an absent one is success.
    async fn delete(&self, name: &str) -> PortResult<()>;
    /// Names that start with `prefix`, which is never a pattern.
    async fn list(&self, prefix: &str) -> PortResult<Vec<String>>;
    /// At most `limit` rows, in the byte order of their names, of those that come after `after`.
    async fn page(&self, after: &str, limit: u32) -> PortResult<Vec<(String, String)>>;
    /// Replaces the text under `name` if it still is `old`; tells whether it did.
    async fn replace(&self, name: &str, old: &str, new: &str) -> PortResult<bool>;
}

/// The keys in use: one seals, all open.
pub struct Keys {
    primary: String,
    keys: BTreeMap<String, RandomizedNonceKey>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("primary", &self.primary)
            .field("labels", &self.labels())
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads keys from files, each with its label; every error at once, each naming its file and what to do.
    ///
    /// Whether a file is readable by others is for the configuration to check.
    pub fn load(primary: &str, files: &[(String, PathBuf)]) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut keys = BTreeMap::new();
        for (label, file) in files {
            if !is_label(label) {
                errors.push(format!(
                    "the key label `{label}` must be 1 to 32 of a-z 0-9 . _ -"
                ));
                continue;
            }
            match read_key(file) {
                Ok(key) => {
                    if keys.insert(label.clone(), key).is_some() {
                        errors.push(format!(
                            "two keys have the label `{label}`; labels never mean two keys"
                        ));
                    }
                }
                Err(error) => errors.push(format!("key `{label}`: {error}")),
            }
        }
        if errors.is_empty() && !keys.contains_key(primary) {
            errors.push(format!(
                "no key has the label `{primary}` that new secrets are to be sealed under"
            ));
        }
        if errors.is_empty() {
            Ok(Self {
                primary: primary.to_owned(),
                keys,
            })
        } else {
            Err(errors)
        }
    }

    /// Makes a file with a new random key, mode 0600. A file that exists is never touched: that is an error.
    pub fn create_file(path: &Path) -> Result<(), String> {
        let shown = path.display();
        let mut key = Zeroizing::new([0; KEY_LEN]);
        aws_lc_rs::rand::fill(key.as_mut())
            .map_err(|_| "the system gives no random numbers; try again".to_owned())?;
        let text = Zeroizing::new(format!("{}\n", BASE64.encode(key.as_ref())));
        // Under another name first: a crash must not leave half a key where a whole one is expected.
        let mut draft_name = path.file_name().unwrap_or_default().to_owned();
        draft_name.push(format!(".new-{}", std::process::id()));
        let draft = path.with_file_name(draft_name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            // Unlike a rename, a link fails when the name is taken.
            .and_then(|()| std::fs::hard_link(&draft, path))
            .and_then(|()| {
                path.parent()
                    .filter(|dir| !dir.as_os_str().is_empty())
                    .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
            });
        // A draft that cannot be removed holds the same key with the same mode: no harm beyond untidiness.
        let _ = std::fs::remove_file(&draft);
        made.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("{shown} exists already and is left as it is; choose another name for a new key")
            }
            _ => format!("the key file {shown} cannot be made: {error}"),
        })
    }

    /// Labels of all keys.
    pub fn labels(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }

    /// Seals `secret` for `name` under the primary key.
    pub fn seal(&self, name: &str, secret: &Secret) -> PortResult<String> {
        let key = self.key(&self.primary)?;
        let clear = serde_json::to_vec(secret.expose()).map(Zeroizing::new);
        let clear = clear
            .map_err(|error| PortError::invalid("the secret cannot be written as JSON").with_detail(error))?;
        // Room for the tag from the start: growing later would leave a copy in clear behind.
        let mut text = Zeroizing::new(Vec::with_capacity(clear.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(&clear);
        let nonce = key
            .seal_in_place_append_tag(Aad::from(associated(&self.primary, name)), &mut *text)
            .map_err(|_| PortError::transient("a secret could not be sealed"))?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&text);
        Ok(format!("v1:{}:{}", self.primary, BASE64.encode(sealed)))
    }

    /// Opens a text sealed for `name`.
    ///
    /// [`Denied`](crate::ports::PortErrorKind::Denied) when the key is missing or wrong, or the text was changed or moved here from another name.
    pub fn open(&self, name: &str, sealed: &str) -> PortResult<Secret> {
        let denied = |detail: String| {
            PortError::denied(
                "The credentials of this resource cannot be read by the broker. Tell its operator.",
            )
            .with_detail(detail)
        };
        let (label, body) = parts(sealed).ok_or_else(|| {
            denied(format!(
                "secret `{name}` is not in the form v1:<label>:<text>; restore the row from a backup"
            ))
        })?;
        let key = self.key(label)?;
        let wrong = || {
            denied(format!(
                "secret `{name}` does not open with the key labelled `{label}`: the file holds another key than the one it was sealed with, or the row was changed or copied from another name; put the right key under that label, or restore the row from a backup"
            ))
        };
        let mut bytes = Zeroizing::new(BASE64.decode(body).map_err(|_| wrong())?);
        if bytes.len() < NONCE_LEN {
            return Err(wrong());
        }
        let (nonce, text) = bytes.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let clear = key
            .open_in_place(nonce, Aad::from(associated(label, name)), text)
            .map_err(|_| wrong())?;
        serde_json::from_slice(clear)
            .map(Secret::new)
            .map_err(|_| wrong())
    }

    fn key(&self, label: &str) -> PortResult<&RandomizedNonceKey> {
        self.keys.get(label).ok_or_else(|| {
            PortError::denied("The credentials of this resource cannot be read by the broker. Tell its operator.").with_detail(format!(
                "no key labelled `{label}` is configured; add its file to `secrets.keys`, and remove it only after `chandler secrets rekey` has run"
            ))
        })
    }
}

/// What is authenticated beside the ciphertext: format and key, so that neither can be swapped, and the name.
fn associated(label: &str, name: &str) -> Vec<u8> {
    format!("v1:{label}:{name}").into_bytes()
}

fn parts(sealed: &str) -> Option<(&str, &str)> {
    sealed.strip_prefix("v1:")?.split_once(':')
}

fn is_label(label: &str) -> bool {
    (1..=32).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

fn read_key(path: &Path) -> Result<RandomizedNonceKey, String> {
    let shown = path.display();
    let wrong = || {
        format!("{shown} does not hold 32 bytes in base64; `chandler secrets new-key FILE` makes such a file")
    };
    let mut text = Zeroizing::new(String::new());
    // A key file is 45 bytes long: never read a wrong path whole.
    File::open(path)
        .and_then(|file| file.take(1024).read_to_string(&mut text))
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let bytes = Zeroizing::new(BASE64.decode(text.trim()).map_err(|_| wrong())?);
    if bytes.len() != KEY_LEN {
        return Err(wrong());
    }
    RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| wrong())
}

/// What a [`SealedStore::rekey`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rekeyed {
    /// Rows sealed anew under the primary key.
    pub resealed: u64,
    /// Rows that were sealed under it already.
    pub current: u64,
    /// Rows that could not be opened or replaced: name and reason.
    pub failed: Vec<(String, String)>,
}

/// The port `SecretStore` over sealed rows.
pub struct SealedStore<R> {
    keys: Keys,
    rows: R,
}

impl<R: Rows> SealedStore<R> {
    /// Seals with `keys` into `rows`.
    pub fn new(keys: Keys, rows: R) -> Self {
        Self { keys, rows }
    }

    /// Seals every row under the primary key that is not yet. Safe to repeat, and while brokers run that have both keys.
    ///
    /// A row that cannot be opened is reported and left alone. Old keys may be removed once `failed` is empty
    /// and every running broker seals under the new one.
    pub async fn rekey(&self) -> PortResult<Rekeyed> {
        let mut done = Rekeyed::default();
        let mut after = String::new();
        loop {
            let page = self.rows.page(&after, PAGE).await?;
            let Some((last, _)) = page.last() else {
                return Ok(done);
            };
            after.clone_from(last);
            for (name, sealed) in page {
                self.rekey_row(&name, sealed, &mut done).await?;
            }
        }
    }

    async fn rekey_row(&self, name: &str, mut sealed: String, done: &mut Rekeyed) -> PortResult<()> {
        for _ in 0..TRIES {
            if parts(&sealed).is_some_and(|(label, _)| label == self.keys.primary) {
                done.current += 1;
                return Ok(());
            }
            let resealed = match self
                .keys
                .open(name, &sealed)
                .and_then(|secret| self.keys.seal(name, &secret))
            {
                Ok(resealed) => resealed,
                Err(error) => {
                    done.failed.push((name.to_owned(), error.detail));
                    return Ok(());
                }
            };
            if self.rows.replace(name, &sealed, &resealed).await? {
                done.resealed += 1;
                return Ok(());
            }
            match self.rows.get(name).await? {
                Some(present) => sealed = present,
                None => return Ok(()),
            }
        }
        done.failed.push((
            name.to_owned(),
            "the row keeps changing; run `chandler secrets rekey` again".to_owned(),
        ));
        Ok(())
    }
}

#[async_trait]
impl<R: Rows> SecretStore for SealedStore<R> {
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
        let sealed = self.keys.seal(name, value)?;
        let stored = self.rows.insert_absent(name, &sealed).await?;
        self.keys.open(name, &stored)
    }

    async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
        self.rows
            .get(name)
            .await?
            .map(|sealed| self.keys.open(name, &sealed))
            .transpose()
    }

    async fn destroy(&self, name: &str) -> PortResult<()> {
        self.rows.delete(name).await
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        self.rows.list(prefix).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::ports::PortErrorKind;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Table(Arc<Mutex<BTreeMap<String, String>>>);

    #[async_trait]
    impl Rows for Table {
        async fn insert_absent(&self, name: &str, sealed: &str) -> PortResult<String> {
            tokio::task::yield_now().await;
            Ok(self
                .0
                .lock()
                .unwrap()
                .entry(name.to_owned())
                .or_insert_with(|| sealed.to_owned())
                .clone())
        }
        async fn get(&self, name: &str) -> PortResult<Option<String>> {
            Ok(self.0.lock().unwrap().get(name).cloned())
        }
        async fn delete(&self, name: &str) -> PortResult<()> {
            self.0.lock().unwrap().remove(name);
            Ok(())
        }
        async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
            Ok(self
                .0
                .lock()
                .unwrap()
                .keys()
                .filter(|name| name.starts_with(prefix))
                .cloned()
                .collect())
        }
        async fn page(&self, after: &str, limit: u32) -> PortResult<Vec<(String, String)>> {
            let rows = self.0.lock().unwrap();
            let rows = rows.iter().filter(|(name, _)| name.as_str() > after);
            Ok(rows
                .take(limit as usize)
                .map(|(name, sealed)| (name.clone(), sealed.clone()))
                .collect())
        }
        async fn replace(&self, name: &str, old: &str, new: &str) -> PortResult<bool> {
            let mut rows = self.0.lock().unwrap();
            Ok(rows
                .get_mut(name)
                .filter(|sealed| *sealed == old)
                .map(|sealed| new.clone_into(sealed))
                .is_some())
        }
    }

    struct KeyRing(tempfile::TempDir);

    impl KeyRing {
        fn new(labels: &[&str]) -> Self {
            let ring = Self(tempfile::tempdir().unwrap());
            for label in labels {
                Keys::create_file(&ring.0.path().join(label)).unwrap();
            }
            ring
        }

        fn files(&self, labels: &[&str]) -> Vec<(String, PathBuf)> {
            labels
                .iter()
                .map(|label| ((*label).to_owned(), self.0.path().join(label)))
                .collect()
        }

        fn keys(&self, labels: &[&str]) -> Keys {
            Keys::load(labels[0], &self.files(labels)).unwrap()
        }
    }

    fn secret() -> Secret {
        Secret::from_pairs([("password", "hunter2")])
    }

    #[tokio::test]
    async fn what_is_sealed_opens_and_shows_nothing() {
        let ring = KeyRing::new(&["a"]);
        let table = Table::default();
        let store = SealedStore::new(ring.keys(&["a"]), table.clone());
        assert_eq!(store.get("i/admin").await.unwrap(), None);
        assert_eq!(store.create("i/admin", &secret()).await.unwrap(), secret());
        assert_eq!(store.get("i/admin").await.unwrap(), Some(secret()));
        let row = table.get("i/admin").await.unwrap().unwrap();
        assert!(row.starts_with("v1:a:"), "{row}");
        let body = BASE64.decode(parts(&row).unwrap().1).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
        assert!(
            !format!("{:?}", ring.keys(&["a"]))
                .contains(std::fs::read_to_string(ring.0.path().join("a")).unwrap().trim())
        );

        assert_eq!(store.list("i/").await.unwrap(), ["i/admin"]);
        store.destroy("i/admin").await.unwrap();
        store.destroy("i/admin").await.unwrap();
        assert_eq!(store.get("i/admin").await.unwrap(), None);
    }

    #[test]
    fn the_same_secret_never_looks_the_same() {
        let keys = KeyRing::new(&["a"]).keys(&["a"]);
        assert_ne!(
            keys.seal("n", &secret()).unwrap(),
            keys.seal("n", &secret()).unwrap()
        );
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let keys = KeyRing::new(&["a"]).keys(&["a"]);
        let sealed = keys.seal("n", &secret()).unwrap();
        let (label, body) = parts(&sealed).unwrap();
        let bytes = BASE64.decode(body).unwrap();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let changed = format!("v1:{label}:{}", BASE64.encode(changed));
            assert_eq!(
                keys.open("n", &changed).unwrap_err().kind,
                PortErrorKind::Denied,
                "byte {i}"
            );
        }
        for broken in [
            "",
            "v1:a",
            "v1:a:",
            "v1:a:!",
            "v1:a:AAAA",
            "v2:a:AAAA",
            &sealed[..sealed.len() - 4],
        ] {
            assert_eq!(
                keys.open("n", broken).unwrap_err().kind,
                PortErrorKind::Denied,
                "{broken}"
            );
        }
    }

    #[test]
    fn a_row_moved_to_another_name_or_label_does_not_open() {
        let ring = KeyRing::new(&["a"]);
        std::fs::copy(ring.0.path().join("a"), ring.0.path().join("b")).unwrap();
        let keys = ring.keys(&["a", "b"]);
        let sealed = keys.seal("i/b/one", &secret()).unwrap();
        assert!(keys.open("i/b/one", &sealed).is_ok());
        assert_eq!(
            keys.open("i/b/two", &sealed).unwrap_err().kind,
            PortErrorKind::Denied
        );
        let relabelled = sealed.replacen("v1:a:", "v1:b:", 1);
        assert_eq!(
            keys.open("i/b/one", &relabelled).unwrap_err().kind,
            PortErrorKind::Denied
        );
    }

    #[test]
    fn missing_and_wrong_keys_are_named_in_the_log_only() {
        let ring = KeyRing::new(&["a", "b"]);
        let sealed = ring.keys(&["a"]).seal("n", &secret()).unwrap();
        let missing = ring.keys(&["b"]).open("n", &sealed).unwrap_err();
        assert_eq!(missing.kind, PortErrorKind::Denied);
        assert!(
            missing.detail.contains("no key labelled `a`") && missing.detail.contains("secrets.keys"),
            "{}",
            missing.detail
        );
        std::fs::copy(ring.0.path().join("b"), ring.0.path().join("a")).unwrap();
        let wrong = ring.keys(&["a"]).open("n", &sealed).unwrap_err();
        assert!(wrong.detail.contains("labelled `a`"), "{}", wrong.detail);
        for error in [missing, wrong] {
            assert!(
                !error.message.contains('`') && !error.detail.contains(&sealed),
                "{error:?}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn racing_creators_get_one_value() {
        let ring = KeyRing::new(&["a"]);
        let store = Arc::new(SealedStore::new(ring.keys(&["a"]), Table::default()));
        let racers = (0..16).map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store
                    .create("n", &Secret::from_pairs([("password", i.to_string())]))
                    .await
                    .unwrap()
            })
        });
        let values: Vec<Secret> = futures::future::join_all(racers.collect::<Vec<_>>())
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert!(values.iter().all(|value| *value == values[0]));
        assert_eq!(store.get("n").await.unwrap().as_ref(), values.first());
    }

    #[tokio::test]
    async fn rekey_reseals_in_pages_and_can_be_repeated() {
        let ring = KeyRing::new(&["old", "new", "lost"]);
        let table = Table::default();
        let rows = u64::from(PAGE) * 2 + 1;
        let before = SealedStore::new(ring.keys(&["old"]), table.clone());
        for i in 0..rows {
            before.create(&format!("i/b/{i}"), &secret()).await.unwrap();
        }
        SealedStore::new(ring.keys(&["lost"]), table.clone())
            .create("lost", &secret())
            .await
            .unwrap();

        let after = SealedStore::new(ring.keys(&["new", "old"]), table.clone());
        after.create("i/b/new", &secret()).await.unwrap();
        let done = after.rekey().await.unwrap();
        assert_eq!((done.resealed, done.current), (rows, 1));
        assert_eq!(done.failed.len(), 1);
        assert!(
            done.failed[0].0 == "lost" && done.failed[0].1.contains("`lost`"),
            "{:?}",
            done.failed
        );

        let again = after.rekey().await.unwrap();
        assert_eq!((again.resealed, again.current), (0, rows + 1));
        let only_new = SealedStore::new(ring.keys(&["new"]), table);
        for i in 0..rows {
            assert_eq!(only_new.get(&format!("i/b/{i}")).await.unwrap(), Some(secret()));
        }
    }

    /// Rows where somebody else is always faster.
    struct Contested(Table, Keys);

    #[async_trait]
    impl Rows for Contested {
        async fn insert_absent(&self, name: &str, sealed: &str) -> PortResult<String> {
            self.0.insert_absent(name, sealed).await
        }
        async fn get(&self, name: &str) -> PortResult<Option<String>> {
            self.0.get(name).await
        }
        async fn delete(&self, name: &str) -> PortResult<()> {
            self.0.delete(name).await
        }
        async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
            self.0.list(prefix).await
        }
        async fn page(&self, after: &str, limit: u32) -> PortResult<Vec<(String, String)>> {
            self.0.page(after, limit).await
        }
        async fn replace(&self, name: &str, old: &str, new: &str) -> PortResult<bool> {
            match name {
                "deleted" => self.0.delete(name).await?,
                "rekeyed" => {
                    let theirs = self.1.seal(name, &secret())?;
                    self.0.replace(name, old, &theirs).await?;
                }
                _ => {}
            }
            self.0.replace(name, old, new).await
        }
    }

    #[tokio::test]
    async fn rekey_beside_a_running_broker_loses_nothing() {
        let ring = KeyRing::new(&["old", "new"]);
        let table = Table::default();
        let before = SealedStore::new(ring.keys(&["old"]), table.clone());
        for name in ["deleted", "rekeyed", "still"] {
            before.create(name, &secret()).await.unwrap();
        }
        let store = SealedStore::new(
            ring.keys(&["new", "old"]),
            Contested(table.clone(), ring.keys(&["new"])),
        );
        let done = store.rekey().await.unwrap();
        assert_eq!(
            done,
            Rekeyed {
                resealed: 1,
                current: 1,
                failed: Vec::new()
            }
        );
        assert_eq!(store.list("").await.unwrap(), ["rekeyed", "still"]);
        assert_eq!(store.get("rekeyed").await.unwrap(), Some(secret()));
    }

    #[test]
    fn key_files_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        Keys::create_file(&file).unwrap();
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let first = std::fs::read_to_string(&file).unwrap();
        assert!(Keys::create_file(&file).unwrap_err().contains("exists already"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), first);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no draft is left"
        );
        assert!(Keys::create_file(&dir.path().join("no/such")).is_err());
    }

    #[test]
    fn loading_tells_every_error_and_no_content() {
        let ring = KeyRing::new(&["good"]);
        std::fs::write(ring.0.path().join("short"), BASE64.encode([7; 16])).unwrap();
        std::fs::write(ring.0.path().join("text"), "hunter2 hunter2").unwrap();
        let errors = Keys::load(
            "absent",
            &ring.files(&["good", "short", "text", "none", "Bad label"]),
        )
        .unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert!(!errors.concat().contains("hunter2"));
        assert_eq!(Keys::load("absent", &ring.files(&["good"])).unwrap_err().len(), 1);
        assert_eq!(
            Keys::load("good", &ring.files(&["good", "good"]))
                .unwrap_err()
                .len(),
            1
        );
    }
}
