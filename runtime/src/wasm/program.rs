//! A compiled and linked artifact, ready to be started many times, and the linkers that make it so.

use std::sync::{OnceLock, Weak};

use wasmtime::Engine;
use wasmtime::component::{Component, HasData, InstancePre, Linker, ResourceTable};
use wasmtime_wasi_config::WasiConfig;
use wasmtime_wasi_http::{p2, p3};

use super::Shared;
use super::host::logging::Logging;
use super::host::{clocks, filesystem};
use super::store::StoreData;
use crate::artifact::{Artifact, Kind};
use crate::engine::EngineKind;
use crate::error::PrepareError;

/// What `prepare` keeps. A guest that fits into no slot of the pool gets a second form, made when it is first needed.
pub struct Program {
    /// The backend that made it.
    pub home: Weak<Shared>,
    pub artifact: Artifact,
    /// For the pool; `None` where even the artifact itself does not fit.
    pub pooled: Option<Pre>,
    pub large: tokio::sync::OnceCell<Pre>,
}

/// A component with everything linked, by kind.
#[derive(Clone)]
pub enum Pre {
    Http02(p2::bindings::ProxyPre<StoreData>),
    Http03(p3::bindings::ServicePre<StoreData>),
    Command02(wasmtime_wasi::p2::bindings::CommandPre<StoreData>),
    Command03(wasmtime_wasi::p3::bindings::CommandPre<StoreData>),
}

impl Pre {
    fn of(kind: Kind, pre: InstancePre<StoreData>) -> wasmtime::Result<Self> {
        Ok(match kind {
            Kind::Http02 => Self::Http02(p2::bindings::ProxyPre::new(pre)?),
            Kind::Http03 => Self::Http03(p3::bindings::ServicePre::new(pre)?),
            Kind::Command02 | Kind::CommandCore => Self::Command02(wasmtime_wasi::p2::bindings::CommandPre::new(pre)?),
            Kind::Command03 => Self::Command03(wasmtime_wasi::p3::bindings::CommandPre::new(pre)?),
        })
    }

    /// The engine it was made for.
    pub fn engine(&self) -> &Engine {
        match self {
            Self::Http02(pre) => pre.engine(),
            Self::Http03(pre) => pre.engine(),
            Self::Command02(pre) => pre.engine(),
            Self::Command03(pre) => pre.engine(),
        }
    }

    /// Serves several requests at once in one instance.
    pub const fn is_03(&self) -> bool {
        matches!(self, Self::Http03(_))
    }
}

/// The engine that runs this kind.
pub const fn engine_kind(kind: Kind) -> EngineKind {
    match kind {
        Kind::Http02 | Kind::Command02 | Kind::CommandCore => EngineKind::V02,
        Kind::Http03 | Kind::Command03 => EngineKind::V03,
    }
}

/// One linker for each engine, made when first needed.
#[derive(Default)]
pub struct Linkers([OnceLock<Linker<StoreData>>; 4]);

impl Linkers {
    /// Links a component of this artifact.
    pub fn link(&self, artifact: &Artifact, component: &Component, large: bool) -> Result<Pre, PrepareError> {
        let kind = engine_kind(artifact.kind);
        let cell = &self.0[usize::from(kind == EngineKind::V03) * 2 + usize::from(large)];
        let linker = match cell.get() {
            Some(linker) => linker,
            None => {
                let made = linker(component.engine(), kind).map_err(|e| PrepareError::Engine(format!("{e:#}")))?;
                cell.get_or_init(|| made)
            }
        };
        let pre = linker
            .instantiate_pre(component)
            .map_err(|e| unlinked(component, kind, &e))?;
        Pre::of(artifact.kind, pre).map_err(|e| PrepareError::Link(super::trap::printable(&format!("{e:#}"))))
    }
}

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

/// Everything that a guest can be linked to; what it may do with it is decided for each store.
fn linker(engine: &Engine, kind: EngineKind) -> wasmtime::Result<Linker<StoreData>> {
    let mut linker = Linker::<StoreData>::new(engine);
    let l = &mut linker;
    wasmtime_wasi::p2::add_to_linker_async(l)?;
    // The same interfaces once more, without the detour through the WASI context: a guest that only reads and writes
    // streams never needs one made.
    l.allow_shadowing(true);
    wasmtime_wasi_io::bindings::wasi::io::error::add_to_linker::<_, Table>(l, |data| &mut data.table)?;
    wasmtime_wasi_io::bindings::wasi::io::poll::add_to_linker::<_, Table>(l, |data| &mut data.table)?;
    wasmtime_wasi_io::bindings::wasi::io::streams::add_to_linker::<_, Table>(l, |data| &mut data.table)?;
    // Ours: what a guest waits for goes by the clock that it reads.
    clocks::add_to_linker_02(l)?;
    filesystem::add_to_linker_02(l)?;
    l.allow_shadowing(false);
    p2::add_only_http_to_linker_async(l)?;
    wasmtime_wasi_config::add_to_linker(l, |data| WasiConfig::new(&data.parts.config))?;
    super::host::keyvalue::add_to_linker(l, |data| data.parts.key_values.view(&mut data.table))?;
    super::host::logging::add_to_linker(l, |data| Logging(&data.parts.logs))?;
    super::host::sockets::add_02(l)?;
    if kind == EngineKind::V03 {
        wasmtime_wasi::p3::add_to_linker(l)?;
        l.allow_shadowing(true);
        clocks::add_to_linker_03(l)?;
        filesystem::add_to_linker_03(l)?;
        l.allow_shadowing(false);
        p3::add_to_linker(l)?;
        super::host::sockets::add_03(l)?;
    }
    Ok(linker)
}

/// Interfaces offered in the 0.2 track, without version.
const OFFERED_02: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Interfaces offered in the 0.3 track, without version.
const OFFERED_03: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// Why a component was not linked: the imports nobody offers, or wasmtime's own words.
fn unlinked(component: &Component, kind: EngineKind, error: &wasmtime::Error) -> PrepareError {
    let ty = component.component_type();
    let missing: Vec<_> = ty
        .imports(component.engine())
        .map(|(name, _)| name)
        .filter(|name| !is_offered(name, kind))
        .take(64)
        .map(super::trap::printable)
        .collect();
    if missing.is_empty() {
        return PrepareError::Link(super::trap::printable(&format!("{error:#}")));
    }
    PrepareError::Imports(missing)
}

pub fn is_offered(name: &str, kind: EngineKind) -> bool {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    if interface == "wasi:config/store" {
        // A release candidate matches nothing but itself.
        return version == "0.2.0-rc.1";
    }
    if matches!(
        interface,
        "wasi:keyvalue/store" | "wasi:keyvalue/atomics" | "wasi:keyvalue/batch"
    ) {
        return matches!(version, "0.2.0-draft" | "0.2.0-draft2");
    }
    if interface == "wasi:logging/logging" {
        return version == "0.1.0-draft";
    }
    (version.starts_with("0.2.") && OFFERED_02.contains(&interface))
        || (version.starts_with("0.3.") && kind == EngineKind::V03 && OFFERED_03.contains(&interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_matched_by_track() {
        assert!(is_offered("wasi:cli/exit@0.2.0", EngineKind::V02));
        assert!(is_offered("wasi:cli/exit@0.2.12", EngineKind::V03));
        assert!(!is_offered("wasi:cli/exit@0.3.0", EngineKind::V02));
        assert!(!is_offered("wasi:cli/exit@0.1.0", EngineKind::V02));
        assert!(!is_offered("wasi:blobstore/types@0.2.0", EngineKind::V02));
    }

    #[test]
    fn what_is_said_to_be_offered_is_linked() {
        for (kind, offered) in [(EngineKind::V02, OFFERED_02), (EngineKind::V03, OFFERED_03)] {
            let engine = Engine::new(&crate::engine::base_config(kind)).unwrap();
            linker(&engine, kind).unwrap();
            assert!(offered.is_sorted());
        }
    }
}
