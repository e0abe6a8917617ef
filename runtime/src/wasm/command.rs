//! A command's run from start to exit code, under the same walls as a service.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use wasmtime::Store;
use wasmtime_wasi::I32Exit;

use super::host::stdio::Stdio;
use super::program::Pre;
use super::store::{self, Exceeded, StoreData};
use super::{Shared, trap};
use crate::backend::Spent;
use crate::error::{CallError, Limit, StartError};
use crate::guest::{Guest, Limits};

/// Runs a command to its end. Its code is that of `wasi:cli/exit`, else 0 or 1 by the result of `run`.
pub(super) async fn run(shared: &Arc<Shared>, guest: Guest, stdio: Stdio, spent: Spent) -> Result<i32, CallError> {
    let (mut parts, pre) = shared.parts(&guest).await.map_err(|e| match e {
        StartError::Trap(report) => CallError::Trap(report),
        StartError::OutOfMemory => CallError::OutOfMemory,
        StartError::Unsupported(why) => CallError::BadAnswer(why.into()),
    })?;
    if let Some(parts) = Arc::get_mut(&mut parts) {
        (parts.cpu_ns, parts.held) = (spent.cpu_ns, spent.memory_bytes);
    }
    let store = store::make(pre.engine(), &parts, Some(stdio));
    let meter = Arc::clone(&store.data().meter);
    meter.allow(Limit::StartTime, guest.limits.start_time);
    let mut running = pin!(execute(store, pre, guest.limits.clone()));
    let metered = std::future::poll_fn(|cx| {
        meter.enter();
        let polled = running.as_mut().poll(cx);
        meter.leave();
        match (polled, meter.spent()) {
            (Poll::Pending, Some(limit)) => Poll::Ready(Err(Exceeded(limit).into())),
            (polled, _) => polled,
        }
    });
    let ended = match given(guest.limits.timeout) {
        None => metered.await,
        Some(timeout) => match tokio::time::timeout(timeout, metered).await {
            Ok(ended) => ended,
            Err(_) => return Err(CallError::Timeout(Limit::Timeout)),
        },
    };
    match ended {
        Ok(Ok(())) => Ok(0),
        Ok(Err(())) => Ok(1),
        Err(e) => match e.downcast_ref::<I32Exit>() {
            Some(exit) => Ok(exit.0),
            None if trap::is_shortage(&e) => Err(CallError::OutOfMemory),
            None => Err(CallError::Trap(trap::report(&e, &meter))),
        },
    }
}

/// A limit in time that was set: neither zero nor endless.
fn given(time: Duration) -> Option<Duration> {
    (!time.is_zero() && time != Duration::MAX).then_some(time)
}

/// Instantiates and runs; the store is dropped, and with it what was not yet written, before this ends.
async fn execute(mut store: Store<StoreData>, pre: Pre, limits: Limits) -> wasmtime::Result<Result<(), ()>> {
    let meter = Arc::clone(&store.data().meter);
    let cpu_time = given(limits.cpu_time).unwrap_or(Duration::MAX);
    match pre {
        Pre::Command02(pre) => {
            let command = pre.instantiate_async(&mut store).await?;
            meter.settle();
            meter.allow(Limit::CpuTime, cpu_time);
            command.wasi_cli_run().call_run(&mut store).await
        }
        Pre::Command03(pre) => {
            let command = pre.instantiate_async(&mut store).await?;
            meter.settle();
            meter.allow(Limit::CpuTime, cpu_time);
            store
                .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
                .await?
        }
        Pre::Http02(_) | Pre::Http03(_) => Err(wasmtime::format_err!("a service is not a command")),
    }
}
