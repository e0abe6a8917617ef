//! Secrets of this node: sealed in the desired-state store, opened for the one use that needs them.
//!
//! Each version of a secret is a record `secrets/<name>/<version>`, sealed with AES-256-GCM under a key derived from a file that
//! only this node has, with its name and version as associated data: a record that is moved or renamed does not open. Knows no
//! service; which versions are still needed is told to it.

pub mod mask;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::model::redacted::wipe;
use crate::model::{Redacted, Timestamp};
use crate::store::{Guard, Item, Outcome, Store, StoreError};

const PREFIX: &str = "secrets/";
/// Shape of the JSON around every record.
const SCHEMA: u32 = 1;
/// Most names.
pub const MAX_SECRETS: usize = 1_000;
/// Most bytes of one value: a certificate chain with its key fits.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Most bytes of all kept versions together, sealed: every reader of desired state walks over them.
pub const MAX_ALL_BYTES: usize = 16 << 20;
/// Tries of a read-change-write: each lost race means that another writer got on.
const TRIES: u32 = 32;

/// Why a secret was not read or written. No text has a part of a value in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretsError {
    #[error("no secret `{0}`")]
    NoSecret(String),
    /// It was there when the revision was made, and was deleted since.
    #[error("secret `{name}` has no version {version} any more")]
    NoVersion { name: String, version: u64 },
    #[error("`{0}` is not a secret's name: 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end")]
    BadName(String),
    #[error("a secret has 1 to {MAX_VALUE_BYTES} bytes, not {0}")]
    BadSize(usize),
    #[error("a secret is text in UTF-8 without a zero byte: guests read it from their environment")]
    NotText,
    #[error("this node keeps {MAX_SECRETS} secrets, and has them")]
    TooMany,
    #[error("all secrets together would have more than {MAX_ALL_BYTES} bytes")]
    TooLarge,
    /// The file of the key cannot be used: nothing can be sealed or opened.
    #[error("the key of the secrets cannot be used: {0}")]
    Key(Arc<str>),
    /// Another key sealed it, or the record was changed.
    #[error("secret `{name}` version {version} cannot be opened: {detail}")]
    Sealed { name: String, version: u64, detail: String },
    #[error("secret `{0}` changes too fast")]
    Contended(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One kept version, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub name: String,
    pub version: u64,
    pub at: Timestamp,
    /// Whether this node's key made it. False: it does not open.
    pub ours: bool,
}

/// What a `set` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// The current version now.
    pub version: u64,
    /// False: it had this value already.
    pub changed: bool,
}

/// The store of secrets. Readers need no lock; whoever makes revisions that pin versions, or removes versions, holds
/// [`Secrets::changing`] meanwhile, so that no version is removed between being chosen and being pinned.
pub struct Secrets {
    store: Arc<dyn Store>,
    key: Result<Key, Arc<str>>,
    changing: tokio::sync::Mutex<()>,
}

struct Key {
    aead: RandomizedNonceKey,
    /// Names the key in records without telling anything of it.
    id: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    at: Timestamp,
    /// [`Key::id`] of what sealed it.
    key: String,
    /// Nonce, ciphertext and tag as hex digits.
    sealed: String,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    schema: u32,
    body: T,
}

/// Whether it may be a secret's name: a DNS label.
pub fn is_name(text: &str) -> bool {
    text.parse::<crate::model::ServiceName>().is_ok()
}

impl Secrets {
    /// Over `store`, with the key in the file `key_file`: made with mode 0600 when there is none. A file that cannot be read
    /// or is no key fails no start: every use of a secret says so. It is never overwritten.
    pub fn open(key_file: &Path, store: Arc<dyn Store>) -> Self {
        let key = file_key(key_file)
            .map_err(|detail| Arc::from(format!("`{}`: {detail}", key_file.display())))
            .and_then(|mut file| {
                let key = Key::derive(&file).ok_or_else(|| Arc::from("it could not be derived"));
                wipe(&mut file);
                key
            });
        if let Err(detail) = &key {
            tracing::error!(error = &**detail, "secrets cannot be opened or set");
        }
        let changing = tokio::sync::Mutex::default();
        Self { store, key, changing }
    }

    /// Held while versions are chosen and pinned, or removed.
    pub async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// The newest version of a secret; none: there is no such secret.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn current(&self, name: &str) -> Result<Option<u64>, SecretsError> {
        Ok(self.newest(name).await?.map(|(version, _)| version))
    }

    /// The value of one version.
    ///
    /// # Errors
    /// It is not there, or was sealed under another key, or the key cannot be used.
    pub async fn value(&self, name: &str, version: u64) -> Result<Redacted, SecretsError> {
        let gone = || SecretsError::NoVersion {
            name: name.to_owned(),
            version,
        };
        let item = self.store.get(&record_key(name, version)).await?.ok_or_else(gone)?;
        self.opened(name, version, &item)
    }

    /// The values of all these versions, by name.
    ///
    /// # Errors
    /// As [`Self::value`], of the first that fails.
    pub async fn values(&self, pins: &BTreeMap<String, u64>) -> Result<BTreeMap<String, Redacted>, SecretsError> {
        let mut values = BTreeMap::new();
        for (name, version) in pins {
            values.insert(name.clone(), self.value(name, *version).await?);
        }
        Ok(values)
    }

    /// Every kept version, by name and then version.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list(&self) -> Result<Vec<Version>, SecretsError> {
        let listing = self.store.list(PREFIX).await?;
        let versions = listing.items.iter().filter_map(|item| {
            let (name, version) = name_and_version(&item.key)?;
            let record = record(item).ok();
            let ours = record
                .as_ref()
                .is_some_and(|r| self.key.as_ref().is_ok_and(|key| key.id == r.key));
            let at = record.map_or(Timestamp(0), |r| r.at);
            let name = name.to_owned();
            Some(Version {
                name,
                version,
                at,
                ours,
            })
        });
        Ok(versions.collect())
    }

    /// Makes `value` the current version. The number is above every kept version and above `used` (the highest that any kept
    /// revision names), so that no number ever means two values. The same value again makes no new version.
    ///
    /// # Errors
    /// The name, the size or the text is wrong, a bound is met, or the key cannot be used.
    pub async fn set(&self, name: &str, value: &Redacted, used: u64, at: Timestamp) -> Result<Set, SecretsError> {
        if !is_name(name) {
            return Err(SecretsError::BadName(name.to_owned()));
        }
        let text = value.expose();
        if !(1..=MAX_VALUE_BYTES).contains(&text.len()) {
            return Err(SecretsError::BadSize(text.len()));
        }
        if text.contains('\0') {
            return Err(SecretsError::NotText);
        }
        let key = self.key()?;
        for _ in 0..TRIES {
            let newest = self.newest(name).await?;
            if let Some((version, item)) = &newest
                && let Ok(old) = self.opened(name, *version, item)
                && bool::from(old.expose().as_bytes().ct_eq(text.as_bytes()))
            {
                let version = *version;
                return Ok(Set {
                    version,
                    changed: false,
                });
            }
            let version = newest.as_ref().map_or(0, |(version, _)| *version).max(used) + 1;
            let body = Record {
                at,
                key: key.id.clone(),
                sealed: key
                    .seal(name, version, text)
                    .ok_or_else(|| SecretsError::Key("it seals nothing".into()))?,
            };
            let bytes = serde_json::to_vec(&Envelope { schema: SCHEMA, body }).expect("records have no failing fields");
            self.room(name, bytes.len()).await?;
            let mut guards = vec![Guard::absent(record_key(name, version))];
            guards.extend(newest.map(|(_, item)| Guard::modified(&*item.key, item.modified)));
            let ops = vec![crate::store::Op::put(record_key(name, version), bytes)];
            if let Outcome::Committed(_) = self.store.txn(guards, ops).await? {
                return Ok(Set { version, changed: true });
            }
        }
        Err(SecretsError::Contended(name.to_owned()))
    }

    /// Removes every version of a secret. Whether somebody needs it is for the caller to know.
    ///
    /// # Errors
    /// There is no such secret, or the store cannot be written.
    pub async fn delete(&self, name: &str) -> Result<(), SecretsError> {
        let none = || SecretsError::NoSecret(name.to_owned());
        if !is_name(name) {
            return Err(none());
        }
        let items = self.versions(name).await?;
        if items.is_empty() {
            return Err(none());
        }
        self.remove(items.iter().map(|item| item.key.to_string()).collect())
            .await
    }

    /// Removes versions that are neither `pinned` nor the newest of their name. Returns how many.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn trim(&self, pinned: &BTreeSet<(String, u64)>) -> Result<usize, SecretsError> {
        let listing = self.store.list(PREFIX).await?;
        let kept: Vec<_> = listing.items.iter().filter_map(|i| name_and_version(&i.key)).collect();
        let newest: BTreeMap<&str, u64> = kept.iter().copied().collect();
        let old = kept.iter().filter(|(name, version)| {
            newest.get(name) != Some(version) && !pinned.contains(&((*name).to_owned(), *version))
        });
        let keys: Vec<_> = old.map(|(name, version)| record_key(name, *version)).collect();
        let count = keys.len();
        self.remove(keys).await?;
        Ok(count)
    }

    async fn remove(&self, keys: Vec<String>) -> Result<(), SecretsError> {
        for keys in keys.chunks(crate::store::MAX_OPS) {
            let ops = keys.iter().map(crate::store::Op::delete).collect();
            let Outcome::Committed(_) = self.store.txn(Vec::new(), ops).await? else {
                continue;
            };
        }
        Ok(())
    }

    async fn versions(&self, name: &str) -> Result<Vec<Item>, SecretsError> {
        Ok(self.store.list(&format!("{PREFIX}{name}/")).await?.items)
    }

    /// The last by key, which is the highest number.
    async fn newest(&self, name: &str) -> Result<Option<(u64, Item)>, SecretsError> {
        if !is_name(name) {
            return Ok(None);
        }
        let last = self.versions(name).await?.pop();
        Ok(last.and_then(|item| Some((name_and_version(&item.key)?.1, item))))
    }

    /// Room for one more record of so many bytes.
    async fn room(&self, name: &str, bytes: usize) -> Result<(), SecretsError> {
        let listing = self.store.list(PREFIX).await?;
        let names: BTreeSet<&str> = listing
            .items
            .iter()
            .filter_map(|i| name_and_version(&i.key))
            .map(|(name, _)| name)
            .collect();
        if names.len() >= MAX_SECRETS && !names.contains(name) {
            return Err(SecretsError::TooMany);
        }
        let all: usize = listing.items.iter().map(|i| i.value.len()).sum();
        if all + bytes > MAX_ALL_BYTES {
            return Err(SecretsError::TooLarge);
        }
        Ok(())
    }

    fn key(&self) -> Result<&Key, SecretsError> {
        self.key.as_ref().map_err(|detail| SecretsError::Key(detail.clone()))
    }

    fn opened(&self, name: &str, version: u64, item: &Item) -> Result<Redacted, SecretsError> {
        let key = self.key()?;
        let sealed = |detail: String| SecretsError::Sealed {
            name: name.to_owned(),
            version,
            detail,
        };
        let record = record(item).map_err(sealed)?;
        if record.key != key.id {
            let text = format!(
                "it was sealed under key {}, and `secrets.key` of this node is {}",
                record.key.escape_debug(),
                key.id
            );
            return Err(sealed(text));
        }
        key.open(name, version, &record.sealed)
            .ok_or_else(|| sealed("the record was changed".into()))
    }
}

impl Key {
    /// HKDF-SHA-256 with a name for each of its uses (RFC 5869).
    fn derive(file: &[u8]) -> Option<Self> {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"narae secrets v1").extract(file);
        let mut bytes = [0; 32];
        root.expand(&[b"seal"], hkdf::HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        let aead = RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()?;
        wipe(&mut bytes);
        root.expand(&[b"name of the key"], hkdf::HKDF_SHA256)
            .ok()?
            .fill(&mut bytes)
            .ok()?;
        let id = hex(&bytes[..4]);
        Some(Self { aead, id })
    }

    fn seal(&self, name: &str, version: u64, text: &str) -> Option<String> {
        let mut bytes = Vec::with_capacity(text.len() + AES_256_GCM.tag_len());
        bytes.extend_from_slice(text.as_bytes());
        let nonce = self
            .aead
            .seal_in_place_append_tag(bound_to(name, version), &mut bytes)
            .ok()?;
        Some(hex(nonce.as_ref()) + &hex(&bytes))
    }

    fn open(&self, name: &str, version: u64, sealed: &str) -> Option<Redacted> {
        let mut bytes = unhex(sealed)?;
        let (nonce, rest) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.aead.open_in_place(nonce, bound_to(name, version), rest).ok()?;
        let opened = std::str::from_utf8(text)
            .ok()
            .map(|text| Redacted::new(text.to_owned()));
        wipe(&mut bytes);
        opened
    }
}

/// The associated data: where the record belongs.
fn bound_to(name: &str, version: u64) -> Aad<Vec<u8>> {
    Aad::from(format!("narae secret\0{name}\0{version}").into_bytes())
}

/// Padded, so that the order of keys is the order of numbers.
fn record_key(name: &str, version: u64) -> String {
    format!("{PREFIX}{name}/{version:020}")
}

fn name_and_version(key: &str) -> Option<(&str, u64)> {
    let (name, version) = key.strip_prefix(PREFIX)?.split_once('/')?;
    Some((name, version.parse().ok()?))
}

fn record(item: &Item) -> Result<Record, String> {
    let envelope: Envelope<Record> =
        serde_json::from_slice(&item.value).map_err(|_| "its record makes no sense".to_owned())?;
    if envelope.schema != SCHEMA {
        return Err(format!(
            "its record has schema {}, this narae reads {SCHEMA}",
            envelope.schema
        ));
    }
    Ok(envelope.body)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// The 32 bytes of the key file, made when there is none.
fn file_key(path: &Path) -> Result<[u8; 32], String> {
    match std::fs::read(path) {
        Ok(bytes) => <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| format!("it has {} bytes, a key has 32; put the right file back", bytes.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = crate::secret_file::random().map_err(|e| e.to_string())?;
            crate::secret_file::write(path, &key).map_err(|e| e.to_string())?;
            Ok(key)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Where the key is in a data directory.
pub fn key_file(data_dir: &Path) -> PathBuf {
    data_dir.join("secrets.key")
}

#[cfg(test)]
mod tests;
