//! A certificate authority of this node's own, for hosts that no public one vouches for. Its root is made once; certificates for the
//! names that clients ask for are made on demand and kept in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::CertificateError;
use crate::clock::Clock;

/// Long enough for any restart to be rare, short enough that a lost key is no key for years.
const LEAF_LIFE: Duration = Duration::from_secs(7 * 86_400);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clients' clocks differ.
const BACKDATED: Duration = Duration::from_secs(86_400);
/// Names that a client may make up: past this many the memory starts anew.
const MOST_LEAVES: usize = 4096;
const ROOT_NAME: &str = "narae internal authority";

/// The node's own authority.
pub struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// For clients that name no host.
    own_names: Vec<String>,
    leaves: Mutex<BTreeMap<String, Leaf>>,
    clock: Clock,
}

struct Leaf {
    key: Arc<CertifiedKey>,
    until: SystemTime,
}

impl Authority {
    /// Opens the authority in `dir` (`ca.crt`, `ca.key`), or makes it. `own_names`: hosts and addresses of the node itself.
    ///
    /// # Errors
    /// The directory cannot be used, or what it holds is not an authority of ours.
    pub fn open(dir: &Path, own_names: Vec<String>, clock: Clock) -> Result<Self, CertificateError> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let keep = |path: &Path| {
            let path = path.to_owned();
            move |source| CertificateError::Keep { path, source }
        };
        let made = |source| CertificateError::Make {
            name: ROOT_NAME.into(),
            source,
        };
        if !certificate.exists() || !key.exists() {
            std::fs::create_dir_all(dir).map_err(keep(dir))?;
            let pair = KeyPair::generate().map_err(made)?;
            let root = root_params(wall(&clock)).self_signed(&pair).map_err(made)?;
            crate::secret_file::write(&key, pair.serialize_pem().as_bytes()).map_err(keep(&key))?;
            crate::secret_file::write(&certificate, root.pem().as_bytes()).map_err(keep(&certificate))?;
        }
        let text = std::fs::read_to_string(&key).map_err(keep(&key))?;
        let pair = KeyPair::from_pem(&text).map_err(made)?;
        let root = CertificateDer::from_pem_file(&certificate).map_err(|source| CertificateError::Read {
            path: PathBuf::from(&certificate),
            source,
        })?;
        Ok(Self {
            root,
            // The issuer's name and key are all that a leaf takes from its root.
            issuer: Issuer::new(root_params(wall(&clock)), pair),
            own_names,
            leaves: Mutex::default(),
            clock,
        })
    }

    /// What a client has to trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A certificate for `name` as the client asked for it, or for the node itself. Made once, and again when a third of its life is left.
    ///
    /// # Errors
    /// The name is no host name, or signing failed.
    pub fn certificate(&self, name: Option<&str>) -> Result<Arc<CertifiedKey>, CertificateError> {
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let now = wall(&self.clock);
        let fresh = |leaf: &&Leaf| leaf.until > now + LEAF_LIFE / 3 && leaf.until <= now + LEAF_LIFE;
        let known = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = known.get(&name).filter(fresh) {
            return Ok(Arc::clone(&leaf.key));
        }
        drop(known);
        let key = Arc::new(self.make(&name, now)?);
        let mut known = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_LEAVES {
            known.clear();
        }
        let leaf = Leaf {
            key: Arc::clone(&key),
            until: now + LEAF_LIFE,
        };
        known.insert(name, leaf);
        Ok(key)
    }

    fn make(&self, name: &str, now: SystemTime) -> Result<CertifiedKey, CertificateError> {
        let failed = |source| CertificateError::Make {
            name: name.to_owned(),
            source,
        };
        let names = if name.is_empty() {
            self.own_names.clone()
        } else {
            vec![name.to_owned()]
        };
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LEAF_LIFE).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate().map_err(failed)?;
        let leaf = params.signed_by(&pair, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        CertifiedKey::from_der(
            vec![leaf.der().clone(), self.root.clone()],
            key,
            &aws_lc_rs::default_provider(),
        )
        .map_err(|source| CertificateError::Setup { source })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn wall(clock: &Clock) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(clock.wall().0).unwrap_or(0))
}

fn root_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ROOT_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + ROOT_LIFE).into();
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Millis, Timestamp};

    const NOW: i64 = 1_790_000_000_000;

    fn clock(ms: i64) -> Clock {
        Clock::new(move || Timestamp(ms), || Millis(0))
    }

    fn now() -> Clock {
        clock(NOW)
    }

    fn much_later() -> Clock {
        let two_thirds = i64::try_from(LEAF_LIFE.as_millis()).unwrap() * 2 / 3;
        clock(NOW + two_thirds + 1)
    }

    fn open(dir: &Path, clock: Clock) -> Authority {
        Authority::open(dir, vec!["localhost".into(), "127.0.0.1".into()], clock).unwrap()
    }

    #[test]
    fn the_authority_outlives_the_process_and_its_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (open(dir.path(), now()), open(dir.path(), much_later()));
        assert_eq!(first.root, second.root);
        let mode = std::fs::metadata(dir.path().join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_name_has_one_certificate_until_a_third_of_its_life_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = open(dir.path(), now());
        let first = authority.certificate(Some("a.test")).unwrap();
        assert_eq!(authority.certificate(Some("A.test")).unwrap().cert, first.cert);
        assert_ne!(authority.certificate(Some("b.test")).unwrap().cert, first.cert);
        authority.certificate(None).unwrap();
        authority.clock = much_later();
        assert_ne!(authority.certificate(Some("a.test")).unwrap().cert, first.cert);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = open(dir.path(), much_later());
        let first = authority.certificate(Some("a.test")).unwrap();
        authority.clock = now();
        assert_ne!(authority.certificate(Some("a.test")).unwrap().cert, first.cert);
    }

    #[test]
    fn names_that_clients_make_up_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let authority = open(dir.path(), now());
        let leaf = Leaf {
            key: authority.certificate(None).unwrap(),
            until: wall(&now()),
        };
        let mut leaves = authority.leaves.lock().unwrap();
        for n in 0..MOST_LEAVES {
            let (key, until) = (Arc::clone(&leaf.key), leaf.until);
            leaves.insert(n.to_string(), Leaf { key, until });
        }
        drop(leaves);
        authority.certificate(Some("one.more")).unwrap();
        assert_eq!(authority.leaves.lock().unwrap().len(), 1);
    }
}
