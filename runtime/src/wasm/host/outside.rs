//! The one narrow layer between a guest's host calls and the world: time, waiting, randomness, names and connections.
//!
//! Everything a guest can observe that is not a function of its inputs passes through [`Outside`], so that a run can be
//! recorded and given again. It knows no guest and no policy: what may be reached is decided above it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use futures::future::Either;
use rand_core::TryRng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use crate::backend::Task;

/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;
/// Lookups at once in the process: each holds a thread until the system's resolver gives up.
const MAX_LOOKUPS: usize = 32;

/// A byte stream to somewhere else.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Time, waiting, randomness, names, connections.
pub trait Outside: Send + Sync {
    /// Nanoseconds since a fixed moment before any guest ran; never goes back.
    fn monotonic_now(&self) -> u64;
    /// Nanoseconds between two values of it.
    fn monotonic_resolution(&self) -> u64;
    /// Ends when [`monotonic_now`](Self::monotonic_now) has reached `when`; at once if it has.
    fn sleep_until(&self, when: u64) -> Task<'static, ()>;
    /// Since the Unix epoch.
    fn wall_now(&self) -> Duration;
    fn wall_resolution(&self) -> Duration;
    /// Fills `out` with bytes nobody can guess.
    fn secure_random(&self, out: &mut [u8]);
    /// A seed for hash tables and cheap generators: new for each caller, not for secrets.
    fn insecure_seed(&self) -> u128;
    /// Addresses of a host as the system's resolver sees it (which also reads `2130706433` or `0x7f.1`), at most 16.
    fn resolve(&self, host: String, port: u16) -> Task<'static, io::Result<Vec<SocketAddr>>>;
    /// A TCP connection to exactly this address.
    fn connect(&self, address: SocketAddr) -> Task<'static, io::Result<Box<dyn Wire>>>;
}

/// Waits for `what` at most so long by this clock; `None` when the time is over.
pub async fn within<T>(outside: &Arc<dyn Outside>, time: Duration, what: impl Future<Output = T>) -> Option<T> {
    until(outside, deadline(outside, time), what).await
}

/// The moment so much later; the end of the clock if it is beyond.
pub fn deadline(outside: &Arc<dyn Outside>, time: Duration) -> u64 {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    outside.monotonic_now().saturating_add(time)
}

/// Waits for `what` until this moment at most.
pub async fn until<T>(outside: &Arc<dyn Outside>, when: u64, what: impl Future<Output = T>) -> Option<T> {
    let what = std::pin::pin!(what);
    match futures::future::select(what, outside.sleep_until(when)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}

/// The world as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real;

/// One for all stores of the process.
pub fn real() -> Arc<dyn Outside> {
    static REAL: LazyLock<Arc<dyn Outside>> = LazyLock::new(|| Arc::new(Real));
    REAL.clone()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the layer that gives guests the time is where it is looked up"
)]
fn instant() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the layer that gives guests the time is where it is looked up"
)]
fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Zero of the monotonic clock. The first look makes it, so that it is before every other value.
fn start() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(instant);
    *START
}

impl Outside for Real {
    fn monotonic_now(&self) -> u64 {
        let start = start();
        u64::try_from(instant().saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
    }

    fn monotonic_resolution(&self) -> u64 {
        1
    }

    fn sleep_until(&self, when: u64) -> Task<'static, ()> {
        match start().checked_add(Duration::from_nanos(when)) {
            Some(at) => Box::pin(tokio::time::sleep_until(at.into())),
            None => Box::pin(std::future::pending()),
        }
    }

    fn wall_now(&self) -> Duration {
        system_time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn wall_resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn secure_random(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the kernel gives random bytes to every process");
    }

    fn insecure_seed(&self) -> u128 {
        // Keys of a `RandomState` come from the kernel once per thread and are new for each: SipHash under them cannot
        // be guessed from outside, and costs no system call.
        let (high, low) = (RandomState::new(), RandomState::new());
        u128::from(high.hash_one(0)) << 64 | u128::from(low.hash_one(1))
    }

    fn resolve(&self, host: String, port: u16) -> Task<'static, io::Result<Vec<SocketAddr>>> {
        static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKUPS)));
        Box::pin(async move {
            let permit = LOOKUPS.clone().acquire_owned().await.map_err(io::Error::other)?;
            let look_up = move || {
                // Held by the thread, not by the caller: one that stopped waiting does not free the thread.
                let _permit = permit;
                Ok((host.as_str(), port).to_socket_addrs()?.take(MAX_ADDRESSES).collect())
            };
            tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)?
        })
    }

    fn connect(&self, address: SocketAddr) -> Task<'static, io::Result<Box<dyn Wire>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    }
}

/// Gives a store's WASI context its clocks and generators from `outside`.
pub fn furnish(builder: &mut WasiCtxBuilder, outside: &Arc<dyn Outside>) {
    let seed = outside.insecure_seed();
    builder
        .monotonic_clock(Clock(outside.clone()))
        .wall_clock(Clock(outside.clone()))
        .secure_random(SecureRandom(outside.clone()))
        .insecure_random(InsecureRandom::seeded(seed))
        // Another value than the generator started with.
        .insecure_random_seed(outside.insecure_seed());
}

/// Both clocks of WASI.
struct Clock(Arc<dyn Outside>);

impl HostMonotonicClock for Clock {
    fn resolution(&self) -> u64 {
        self.0.monotonic_resolution()
    }

    fn now(&self) -> u64 {
        self.0.monotonic_now()
    }
}

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        self.0.wall_resolution()
    }

    fn now(&self) -> Duration {
        self.0.wall_now()
    }
}

struct SecureRandom(Arc<dyn Outside>);

impl TryRng for SecureRandom {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.secure_random(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.secure_random(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.secure_random(out);
        Ok(())
    }
}

/// `wasi:random/insecure`: what follows from a seed, so a recording needs to keep only the seed.
struct InsecureRandom(fastrand::Rng);

impl InsecureRandom {
    fn seeded(seed: u128) -> Self {
        let bytes = seed.to_le_bytes();
        let (mut low, mut high) = ([0; 8], [0; 8]);
        low.copy_from_slice(&bytes[..8]);
        high.copy_from_slice(&bytes[8..]);
        Self(fastrand::Rng::with_seed(
            u64::from_le_bytes(low) ^ u64::from_le_bytes(high),
        ))
    }
}

impl TryRng for InsecureRandom {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let mut last = Real.monotonic_now();
        for _ in 0..1000 {
            let now = Real.monotonic_now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn seeds_and_random_bytes_differ_from_call_to_call() {
        assert_ne!(Real.insecure_seed(), Real.insecure_seed());
        let (mut a, mut b) = ([0; 32], [0; 32]);
        Real.secure_random(&mut a);
        Real.secure_random(&mut b);
        assert_ne!(a, b);
    }

    #[test]
    fn insecure_bytes_follow_from_the_seed() {
        let draw = |seed| InsecureRandom::seeded(seed).try_next_u64().unwrap();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[tokio::test]
    async fn the_resolver_reads_numbers_that_hide_an_address() {
        for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1"] {
            let addresses = Real.resolve(host.into(), 80).await.unwrap();
            assert!(
                addresses.iter().all(|a| a.ip().is_loopback()) && !addresses.is_empty(),
                "{host}: {addresses:?}"
            );
        }
    }
}
