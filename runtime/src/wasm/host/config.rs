//! `wasi:config/store`: the service's `[config]` as the guest reads it. It holds no defaults and reads no environment.
//!
//! Guests ask for `wasi:config/store@0.2.0-rc.1`, the only version toolchains emit.

use std::sync::Arc;

use wasmtime::component::Linker;
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

/// The values of one revision, shared by all its stores.
#[derive(Clone, Default)]
pub struct ConfigValues(Arc<WasiConfigVariables>);

impl ConfigValues {
    /// From [`crate::Grants::config`].
    pub fn new(values: &[(String, String)]) -> Self {
        Self(Arc::new(values.iter().cloned().collect()))
    }

    /// What the linked functions read.
    pub fn view(&self) -> WasiConfig<'_> {
        WasiConfig::new(&self.0)
    }
}

/// Links the interface; `view` finds the store's values.
pub fn add_to_linker<T: 'static>(linker: &mut Linker<T>, view: fn(&mut T) -> WasiConfig<'_>) -> wasmtime::Result<()> {
    wasmtime_wasi_config::add_to_linker(linker, view)
}
