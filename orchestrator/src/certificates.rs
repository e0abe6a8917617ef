//! Floor 2: which certificate a TLS client is shown. Certificates from files, read again when they change, or from a certificate
//! authority of this node's own. Knows no socket, no route and no request.

mod authority;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;

pub use authority::Authority;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("`{}` holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("the key `{}` cannot be used with the certificate `{}`", key.display(), certificate.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot keep the certificate authority in `{}`", path.display())]
    Keep { path: PathBuf, source: std::io::Error },
    #[error("cannot make a certificate for `{name}`")]
    Make { name: String, source: rcgen::Error },
    #[error("cannot set up TLS")]
    Setup { source: rustls::Error },
}

/// A certificate chain and its key in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// The chain, leaf first, and its key; they must belong together.
    ///
    /// # Errors
    /// A file cannot be read or holds nothing of use, or the key is another one's.
    pub fn load(&self) -> Result<CertifiedKey, CertificateError> {
        let read = |path: &Path, source| CertificateError::Read {
            path: path.to_owned(),
            source,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|e| read(&self.certificate, e))?;
        if chain.is_empty() {
            return Err(CertificateError::Empty {
                path: self.certificate.clone(),
            });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| read(&self.key, e))?;
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|source| {
            CertificateError::Unusable {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            }
        })
    }

    /// Changes whenever one of the files was written. `None` while one is absent.
    fn stamp(&self) -> Option<[SystemTime; 2]> {
        let written = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        Some([written(&self.certificate)?, written(&self.key)?])
    }
}

/// Where this node's certificates come from.
#[derive(Debug)]
pub enum Certificates {
    File { files: Files, current: ArcSwap<Shown> },
    Internal(Box<Authority>),
}

/// What is shown now, and of which state of the files.
#[derive(Debug)]
pub struct Shown {
    key: Arc<CertifiedKey>,
    stamp: Option<[SystemTime; 2]>,
}

impl Certificates {
    /// # Errors
    /// The files cannot be used: a node does not start with a certificate it has not.
    pub fn of_files(files: Files) -> Result<Self, CertificateError> {
        // The stamp first: a file that is written in between is read again at the next look.
        let stamp = files.stamp();
        let key = Arc::new(files.load()?);
        let current = ArcSwap::from_pointee(Shown { key, stamp });
        Ok(Self::File { files, current })
    }

    /// Reads the files again if they were written since. True: another certificate is shown to the next client. Connections
    /// that are open keep theirs.
    ///
    /// # Errors
    /// The new files cannot be used; the old certificate stays. Told once per state of the files.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let Self::File { files, current } = self else {
            return Ok(false);
        };
        let (stamp, shown) = (files.stamp(), current.load_full());
        if stamp.is_none() || stamp == shown.stamp {
            return Ok(false);
        }
        let loaded = files.load();
        let key = match &loaded {
            Ok(key) => Arc::new(key.clone()),
            Err(_) => Arc::clone(&shown.key),
        };
        let changed = key.cert != shown.key.cert;
        current.store(Arc::new(Shown { key, stamp }));
        loaded.map(|_| changed)
    }

    /// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, no early data, tickets whose keys this process alone has.
    ///
    /// # Errors
    /// The cryptography of this build does not support it.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
        let setup = |source| CertificateError::Setup { source };
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(setup)?;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::File { current, .. } => Some(Arc::clone(&current.load().key)),
            Self::Internal(authority) => match authority.certificate(hello.server_name()) {
                Ok(key) => Some(key),
                Err(error) => {
                    tracing::error!(%error, "no certificate for a TLS client");
                    None
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> Files {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = Files {
            certificate: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn later(files: &Files) {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
        let file = std::fs::File::options().write(true).open(&files.certificate).unwrap();
        file.set_modified(at).unwrap();
    }

    #[test]
    fn files_that_cannot_be_used_say_which_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), "a.test");
        std::fs::remove_file(&files.key).unwrap();
        let error = Certificates::of_files(files.clone()).unwrap_err();
        assert!(error.to_string().contains("key.pem"), "{error}");
        std::fs::write(&files.key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Certificates::of_files(files.clone()).unwrap_err();
        assert!(matches!(error, CertificateError::Unusable { .. }), "{error}");
        std::fs::write(&files.certificate, "no certificate at all").unwrap();
        let error = Certificates::of_files(files).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
    }

    #[test]
    fn a_new_certificate_is_shown_once_its_files_changed() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::of_files(write(dir.path(), "a.test")).unwrap();
        assert!(!certificates.refresh().unwrap(), "nothing was written");
        later(&write(dir.path(), "b.test"));
        assert!(certificates.refresh().unwrap());
        assert!(!certificates.refresh().unwrap());
    }

    #[test]
    fn a_broken_new_certificate_leaves_the_old_one_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), "a.test");
        let certificates = Certificates::of_files(files.clone()).unwrap();
        std::fs::write(&files.certificate, "half of one").unwrap();
        later(&files);
        certificates.refresh().unwrap_err();
        assert!(!certificates.refresh().unwrap());
        let Certificates::File { current, .. } = &certificates else {
            unreachable!()
        };
        assert_eq!(current.load().key.cert.len(), 1);
    }
}
