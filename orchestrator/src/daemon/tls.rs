//! The certificates and the TLS listener that a node file asks for.

use std::path::Path;
use std::sync::Arc;

use super::{DaemonError, cannot};
use crate::certificates::{Authority, Certificates, Files};
use crate::clock::Clock;
use crate::config::Code;
use crate::events::{Events, Occurrence};
use crate::model::EventKind;
use crate::model::node::{NodeConfig, TlsMode};
use crate::proxy::TlsOptions;

/// Where the certificates of `tls_listen` come from; none without it.
pub(super) fn certificates(
    config: &NodeConfig,
    data_dir: &Path,
    name: &str,
    clock: &Clock,
) -> Result<Option<Arc<Certificates>>, DaemonError> {
    let tls = &config.tls;
    let place = |file: &Option<String>| data_dir.join(file.as_deref().unwrap_or_default());
    let made = match tls.mode {
        TlsMode::Off => return Ok(None),
        TlsMode::File => Certificates::of_files(Files {
            certificate: place(&tls.cert_file),
            key: place(&tls.key_file),
        }),
        TlsMode::Internal => {
            let own_names = ["localhost", name, "127.0.0.1", "::1"].map(str::to_owned).to_vec();
            Authority::open(&data_dir.join("tls"), own_names, clock.clone())
                .map(|a| Certificates::Internal(Box::new(a)))
        }
    };
    let made = made.map_err(|source| DaemonError {
        what: "use the certificates of [tls]".into(),
        code: Code::BadNodePath,
        source: source.into(),
    })?;
    Ok(Some(Arc::new(made)))
}

pub(super) fn options(
    config: &NodeConfig,
    certificates: Option<&Arc<Certificates>>,
) -> Result<Option<TlsOptions>, DaemonError> {
    let Some(certificates) = certificates.filter(|_| !config.http.tls_listen.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(TlsOptions {
        listen: config.http.tls_listen.clone(),
        config: certificates.server_config().map_err(cannot("set up TLS"))?,
    }))
}

/// Looks whether the certificate's files changed: two `stat`s a second.
pub(super) fn refresh(certificates: &Certificates, events: &Events) {
    let text = match certificates.refresh() {
        Ok(false) => return,
        Ok(true) => "another certificate is shown from now on: its files changed".to_owned(),
        Err(error) => format!("the old certificate stays: {}", crate::agent::report(&error)),
    };
    tracing::info!("{text}");
    events.record(EventKind::Config, None, Occurrence::new(text));
}
