//! The tasks behind a replica: start it, probe it. They run on the guests' runtime and end by recording a fact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::{
    Artifact, Body, BodyError, CallError, Credential, CredentialName, Grants, Guest, Instance, PrepareError, Prepared,
    Request, StartError, TrapReport, VolumeGrant,
};

use super::Agent;
use crate::crashes::{Crash, CrashKind};
use crate::events::Occurrence;
use crate::model::{Death, EventKind, Phase, Probing, Redacted, ReplicaId, Revision, ServiceSpec};
use crate::plan::{facts, words};
use crate::secrets::mask::Mask;

/// The user agent of the implicit probe: guests and their logs can tell it from a client.
const PROBE_AGENT: &str = "narae-probe";
/// Wall clock that a start may take beyond `limits.start_time`: a busy machine is not the guest's fault.
const START_SLACK: Duration = Duration::from_secs(2);
/// A probe reads so much of an answer's body at most: enough to let a guest end its answer, not to fetch a file.
const PROBE_BODY_BYTES: usize = 64 << 10;

impl Agent {
    pub(super) fn start_task(self: &Arc<Self>, id: ReplicaId, revision: Arc<Revision>, life: u64) {
        let agent = Arc::clone(self);
        self.tools.guests.spawn(async move {
            let starting = Arc::clone(&agent);
            // In a task of its own: a bug there is a death that is told, not a replica that starts for ever.
            let task = tokio::spawn(async move { starting.start(id, &revision).await });
            let result = task.await.unwrap_or_else(|_| {
                agent.tools.metrics.node().panicked();
                Err(Death::StartTrapped {
                    reason: "the start task panicked: a bug in narae".into(),
                })
            });
            agent.started(id, life, result).await;
            agent.tools.wake.notify_one();
        });
    }

    async fn start(&self, id: ReplicaId, revision: &Revision) -> Result<Arc<dyn Instance>, Death> {
        let prepared = self
            .prepared(revision)
            .await
            .map_err(|reason| Death::CannotPrepare { reason })?;
        let guest = self.guest(id, revision, prepared).await?;
        // Processor time is the guest's limit; a start that waits instead has this one.
        let wall = revision.spec.limits.start_time + START_SLACK;
        let Ok(started) = tokio::time::timeout(wall, self.tools.backend.start(guest)).await else {
            return Err(Death::StartTrapped {
                reason: format!("the start did not end within {}", words::duration(wall)),
            });
        };
        started.map_err(|error| match error {
            StartError::Trap(report) => {
                self.note_start_trap(id, revision, &report);
                Death::StartTrapped {
                    reason: report.reason.to_string(),
                }
            }
            StartError::OutOfMemory => Death::NoMemory,
            other => Death::CannotPrepare {
                reason: other.to_string(),
            },
        })
    }

    /// A start that trapped tells its limit and where it was, as a call does.
    fn note_start_trap(&self, id: ReplicaId, revision: &Revision, report: &TrapReport) {
        let kind = report.limit.map_or(EventKind::Trap, |_| EventKind::Limit);
        self.tools.crashes.remember(Crash {
            kind: CrashKind::Call,
            service: revision.spec.name.clone(),
            revision: revision.number,
            replica: id,
            reason: report.reason.to_string(),
            limit: report.limit.map(|limit| limit.name()),
            backtrace: report.backtrace.to_vec(),
        });
        self.tools.events.record_with(kind, Some(&revision.spec.name), || {
            let occurrence = Occurrence {
                limit: report.limit.map(|limit| limit.name().to_owned()),
                ..Occurrence::new(format!("start trapped: {report}"))
            };
            occurrence
                .revision(revision.number)
                .replica(id)
                .backtrace(report.backtrace.iter().cloned())
        });
    }

    async fn started(&self, id: ReplicaId, life: u64, result: Result<Arc<dyn Instance>, Death>) {
        match result {
            Err(death) => {
                self.die(id, life, death);
            }
            Ok(instance) => {
                let since = self.tools.clock.monotonic();
                let unwanted = {
                    let mut state = self.lock();
                    match state.slots.get_mut(&id) {
                        Some(slot) if slot.life == life && matches!(slot.facts.phase, Phase::Starting { .. }) => {
                            slot.instance = Some(instance);
                            facts::started(&mut slot.facts, since);
                            None
                        }
                        _ => Some(instance),
                    }
                };
                match unwanted {
                    None => self.note_event(id, EventKind::Started, "started".into()),
                    Some(instance) => instance.stop(Duration::ZERO).await,
                }
            }
        }
    }

    /// Compiled and linked once for each digest, however many replicas ask at once. Says why not, in one sentence.
    pub(super) async fn prepared(&self, revision: &Revision) -> Result<Prepared, String> {
        let cell = {
            let mut prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(prepared.entry(revision.digest).or_default())
        };
        let made = cell
            .get_or_try_init(|| async {
                let read = self.tools.blobs.read(revision.digest).await.map_err(|e| report(&e))?;
                let bytes = read.ok_or_else(|| format!("module {} is not stored any more", revision.digest))?;
                // Inspected when it was deployed; the blob store has just verified the digest.
                let artifact = Artifact {
                    digest: revision.digest,
                    kind: revision.kind,
                    imports: Vec::new(),
                    exports: Vec::new(),
                    bytes,
                };
                self.tools
                    .backend
                    .prepare(&artifact)
                    .await
                    .map_err(|e: PrepareError| report(&e))
            })
            .await;
        made.cloned()
    }

    /// Compiled code of digests that no replica runs any more is let go, but for what is kept for a schedule.
    pub(super) fn drop_unused_code(&self, used: &std::collections::BTreeSet<narae_runtime::Digest>) {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let mut prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.retain(|digest, _| used.contains(digest) || kept.contains(digest));
    }

    /// Code of these stays, whether a replica runs it or not.
    pub fn keep_code(&self, digests: std::collections::BTreeSet<narae_runtime::Digest>) {
        *self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = digests;
    }

    /// Compiles and links what will be needed soon. A failure is told when a replica is started.
    pub fn prepare_ahead(self: &Arc<Self>, revision: Arc<Revision>) {
        let kept = &mut *self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.insert(revision.digest);
        let agent = Arc::clone(self);
        self.tools.guests.spawn(async move {
            if let Err(reason) = agent.prepared(&revision).await {
                tracing::warn!(service = %revision.service, reason, "what a schedule will need cannot be prepared");
            }
        });
    }

    /// The service's volumes, opened. The first time they are measured, which takes as long as they have files.
    async fn volumes(&self, spec: &ServiceSpec) -> Result<Vec<VolumeGrant>, Death> {
        let mut grants = Vec::with_capacity(spec.volumes.len());
        for volume in &spec.volumes {
            let (volumes, service, name) = (Arc::clone(&self.tools.volumes), spec.name.clone(), volume.name.clone());
            let opened = tokio::task::spawn_blocking(move || volumes.open(&service, &name)).await;
            let opened = opened
                .map_err(|e| report(&e))
                .and_then(|opened| opened.map_err(|e| report(&e)));
            grants.push(VolumeGrant {
                volume: opened.map_err(|e| Death::CannotPrepare {
                    reason: format!("volume `{}`: {e}", volume.name),
                })?,
                guest_path: volume.mount.clone(),
                size_bytes: volume.size_bytes,
                read_only: volume.read_only,
            });
        }
        Ok(grants)
    }

    /// A guest of this revision with everything its file grants.
    pub(super) async fn guest(&self, id: ReplicaId, revision: &Revision, prepared: Prepared) -> Result<Guest, Death> {
        let spec = &revision.spec;
        let secrets = self.tools.secrets.values(&revision.secrets).await;
        let secrets = secrets.map_err(|e| Death::CannotPrepare { reason: report(&e) })?;
        let volumes = self.volumes(spec).await?;
        let secret = |name: &String| {
            secrets.get(name).ok_or_else(|| Death::CannotPrepare {
                reason: format!("secret `{name}` is not pinned by revision {}", revision.number),
            })
        };
        let mut key_values = BTreeMap::new();
        for store in &spec.keyvalue {
            let password = store.password.as_ref().map(secret).transpose()?;
            let password = password.map(Redacted::expose);
            let opened = self.tools.keyvalues.open_store(&spec.name, store, password);
            let opened = opened.map_err(|e| Death::CannotPrepare {
                reason: format!("key-value store `{}`: {e}", store.name),
            })?;
            key_values.insert(store.name.clone(), opened);
        }
        let pairs =
            |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>();
        let mut env = pairs(&spec.env);
        for (variable, name) in &spec.secrets {
            env.push((variable.clone(), secret(name)?.expose().to_owned()));
        }
        let credentials = spec.outbound.credentials.iter();
        let credentials = credentials.map(|named| credential(named, secret(&named.secret)?));
        Ok(Guest {
            prepared,
            label: format!("{}/{}/{}", spec.name, revision.number, id).into(),
            limits: spec.limits.clone(),
            grants: Grants {
                env,
                args: spec.args.clone(),
                config: pairs(&spec.config),
                outbound: spec.outbound.clone(),
                key_values,
                volumes,
                neighbours: Some(Arc::clone(&self.inside) as Arc<dyn narae_runtime::Neighbours>),
                credentials: credentials.collect::<Result<_, Death>>()?,
            },
            logs: Mask::of(secrets.values())
                .over(self.tools.logs.ring(&spec.name, &spec.logs).sink(revision.number, id)),
        })
    }

    pub(super) fn probe_task(
        self: &Arc<Self>,
        id: ReplicaId,
        probe: Probing,
        (instance, revision, life): (Arc<dyn Instance>, Arc<Revision>, u64),
    ) {
        let agent = Arc::clone(self);
        self.tools.guests.spawn(async move {
            let task = tokio::spawn(async move { probe_once(&*instance, &revision, probe).await });
            let outcome = task.await.unwrap_or_else(|_| {
                agent.tools.metrics.node().panicked();
                Some(Err("the probe task panicked: a bug in narae".into()))
            });
            if probe == Probing::Liveness {
                agent.lived(id, life, outcome);
                agent.tools.wake.notify_one();
                return;
            }
            let outcome = outcome.unwrap_or_else(|| Err("no room for the probe".into()));
            agent.probed(id, life, outcome);
            agent.tools.wake.notify_one();
        });
    }

    fn lived(&self, id: ReplicaId, life: u64, outcome: Option<Result<(), String>>) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(&id).filter(|s| s.life == life) {
            facts::lived(&mut slot.facts, outcome);
        }
    }

    fn probed(&self, id: ReplicaId, life: u64, outcome: Result<(), String>) {
        let at = self.tools.clock.monotonic();
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(&id).filter(|s| s.life == life) else {
            return;
        };
        facts::probed(&mut slot.facts, outcome, slot.revision.spec.readiness.as_ref(), at);
    }
}

/// A header that can be sent; its value is told to nobody.
fn credential(named: &CredentialName, value: &Redacted) -> Result<Credential, Death> {
    let unusable = |what: &str| Death::CannotPrepare {
        reason: format!("secret `{}` cannot be {what}", named.secret),
    };
    let header = named.header.parse().map_err(|_| unusable("sent under that name"))?;
    let value = value.expose().parse().map_err(|_| unusable("the value of a header"))?;
    Ok(Credential::new(named.host.clone(), header, value))
}

/// Sends one probe and judges the answer: with a path 200 to 399 counts, without one anything below 500. `None`: the node had
/// no room for it just then, which says nothing about the guest.
async fn probe_once(instance: &dyn Instance, revision: &Revision, probe: Probing) -> Option<Result<(), String>> {
    let spec = &revision.spec;
    let (path, timeout, implicit) = match (probe, &spec.readiness, &spec.liveness) {
        (Probing::Readiness, Some(readiness), _) => (readiness.path.as_str(), readiness.timeout, false),
        (Probing::Liveness, _, Some(liveness)) => (liveness.path.as_str(), liveness.timeout, false),
        _ => match (&spec.startup.path, spec.routes.first()) {
            (Some(path), _) => (path.as_str(), spec.startup.timeout, false),
            (None, Some(route)) => (route.path.as_str(), spec.limits.timeout.max(spec.startup.timeout), true),
            // No route: that it was instantiated is the proof.
            (None, None) => return Some(Ok(())),
        },
    };
    let host = spec.routes.first().map_or("localhost", |r| match &r.host {
        crate::model::service::HostPattern::Exact(host) => host,
        _ => "localhost",
    });
    let request = ::http::Request::builder()
        .uri(path)
        .header(::http::header::HOST, host)
        .header(::http::header::USER_AGENT, PROBE_AGENT)
        .body(Body::Empty);
    let request = match request {
        Ok(request) => request,
        Err(error) => return Some(Err(format!("cannot make the probe: {error}"))),
    };
    let status = match tokio::time::timeout(timeout, ask(instance, request)).await {
        Ok(Ok(status)) => status,
        Ok(Err(CallError::Busy | CallError::OutOfMemory | CallError::Stopped)) => return None,
        Ok(Err(error)) => return Some(Err(report(&error))),
        Err(_) => return Some(Err(format!("no answer from {path} within {timeout:?}"))),
    };
    let good = if implicit {
        status.as_u16() < 500
    } else {
        (200..400).contains(&status.as_u16())
    };
    Some(if good {
        Ok(())
    } else {
        Err(format!("{path} answered {}", status.as_u16()))
    })
}

async fn ask(instance: &dyn Instance, request: Request) -> Result<::http::StatusCode, CallError> {
    use http_body_util::BodyExt;
    let response = instance.probe(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut read = 0;
    while read < PROBE_BODY_BYTES
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| match error {
            BodyError::Guest(cause) => cause,
            other => CallError::BadAnswer(report(&other).into()),
        })?;
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(status)
}

/// An error with its causes, in one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
