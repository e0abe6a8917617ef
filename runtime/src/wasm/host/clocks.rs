//! `wasi:clocks/monotonic-clock` in both tracks over our own [`Outside`]: what a guest reads and what it waits for are the
//! same clock, so that a run under another one goes by that one. It knows no limit: what a wait may take is a deadline of
//! whoever called the guest.

use std::sync::Arc;

use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock as p2;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::clocks::{monotonic_clock as p3, types};

use super::outside::Outside;
use crate::backend::Task;

/// A store's clock and its table, for one host call.
pub struct ClocksView<'a> {
    pub outside: &'a Arc<dyn Outside>,
    pub table: &'a mut ResourceTable,
}

/// A store that has a clock.
pub trait ClocksHost: Send + 'static {
    fn clocks(&mut self) -> ClocksView<'_>;
}

struct Clocks;

impl HasData for Clocks {
    type Data<'a> = ClocksView<'a>;
}

/// Links the interface of 0.2. Whoever linked another before must allow shadowing.
pub fn add_to_linker_02<T: ClocksHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    p2::add_to_linker::<_, Clocks>(linker, T::clocks)
}

/// Links the interface of 0.3.
pub fn add_to_linker_03<T: ClocksHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    p3::add_to_linker::<_, Clocks>(linker, T::clocks)
}

impl ClocksView<'_> {
    fn subscribe(&mut self, when: Option<u64>) -> wasmtime::Result<Resource<DynPollable>> {
        let wait = match when {
            Some(when) if when <= self.outside.monotonic_now() => Wait::Past { yielded: false },
            // A moment that the clock cannot say never comes.
            None => Wait::Never,
            Some(when) => Wait::Until {
                when,
                outside: Arc::clone(self.outside),
            },
        };
        let wait = self.table.push(wait)?;
        subscribe(self.table, wait)
    }
}

impl p2::Host for ClocksView<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.outside.monotonic_now())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(self.outside.monotonic_resolution())
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe(Some(when))
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe(self.outside.monotonic_now().checked_add(duration))
    }
}

/// What a guest's pollable waits for.
enum Wait {
    Past { yielded: bool },
    Until { when: u64, outside: Arc<dyn Outside> },
    Sleeping(Task<'static, ()>),
    Never,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Wait {
    async fn ready(&mut self) {
        if let Self::Until { when, outside } = self {
            *self = Self::Sleeping(outside.sleep_until(*when));
        }
        match self {
            Self::Past { yielded: true } => {}
            Self::Past { yielded } => {
                // A guest that polls with no timeout in a loop must let the reactor see what it waits for.
                *yielded = true;
                tokio::task::yield_now().await;
            }
            Self::Sleeping(sleep) => {
                sleep.await;
                *self = Self::Past { yielded: true };
            }
            Self::Until { .. } | Self::Never => std::future::pending().await,
        }
    }
}

impl<T: 'static> p3::HostWithStore<T> for Clocks {
    async fn wait_until(store: &Accessor<T, Self>, when: u64) -> wasmtime::Result<()> {
        let sleep = store.with(|mut store| {
            let outside = store.get().outside;
            (when > outside.monotonic_now()).then(|| outside.sleep_until(when))
        });
        if let Some(sleep) = sleep {
            sleep.await;
        }
        Ok(())
    }

    async fn wait_for(store: &Accessor<T, Self>, duration: types::Duration) -> wasmtime::Result<()> {
        let when = store.with(|mut store| store.get().outside.monotonic_now().checked_add(duration));
        match when {
            Some(when) => Self::wait_until(store, when).await,
            None => std::future::pending().await,
        }
    }
}

impl p3::Host for ClocksView<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.outside.monotonic_now())
    }

    fn get_resolution(&mut self) -> wasmtime::Result<types::Duration> {
        Ok(self.outside.monotonic_resolution())
    }
}
