//! An open-loop HTTP load: requests leave on time whether or not earlier ones came back, so that a stall is seen as the
//! waiting it causes and not hidden by a client that waits with it. Used by the demo and by the swap tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Judges an answer's status and body.
pub type Judge = Arc<dyn Fn(http::StatusCode, &[u8]) -> bool + Send + Sync>;

/// One kind of request, sent at a steady rate.
#[derive(Clone)]
pub struct Shot {
    pub url: http::Uri,
    pub method: http::Method,
    pub host: Option<String>,
    pub body: Bytes,
    /// On a connection of its own.
    pub new_connection: bool,
    /// Judges status and body; anything else counts as lost.
    pub expect: Judge,
}

impl Shot {
    /// A GET that must be answered with 200.
    pub fn get(url: http::Uri) -> Self {
        let expect = Arc::new(|status: http::StatusCode, _: &[u8]| status == http::StatusCode::OK);
        Self {
            url,
            method: http::Method::GET,
            host: None,
            body: Bytes::new(),
            new_connection: false,
            expect,
        }
    }

    pub fn on_new_connection(mut self) -> Self {
        self.new_connection = true;
        self
    }

    pub fn expecting(mut self, expect: impl Fn(http::StatusCode, &[u8]) -> bool + Send + Sync + 'static) -> Self {
        self.expect = Arc::new(expect);
        self
    }
}

/// What the clients saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub sent: u64,
    pub good: u64,
    /// Not answered as expected: one line for each of the first few.
    pub lost: u64,
    pub examples: Vec<String>,
    /// Microseconds from the moment a request was due.
    pub latency: Histogram<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            sent: 0,
            good: 0,
            lost: 0,
            examples: Vec::new(),
            latency: empty(),
        }
    }
}

impl Seen {
    /// A latency quantile in milliseconds.
    pub fn quantile_ms(&self, q: f64) -> f64 {
        Duration::from_micros(self.latency.value_at_quantile(q)).as_secs_f64() * 1e3
    }

    pub fn max_ms(&self) -> f64 {
        Duration::from_micros(self.latency.max()).as_secs_f64() * 1e3
    }
}

/// One microsecond to two minutes, three digits.
fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("constant bounds are valid")
}

/// A running load; ends when stopped.
pub struct Load {
    stop: tokio_util::sync::CancellationToken,
    sender: tokio::task::JoinHandle<()>,
    results: tokio::task::JoinHandle<Seen>,
    good: Arc<AtomicU64>,
}

/// The longest a client waits for one answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Lost requests told one by one; the rest is counted.
const EXAMPLES: usize = 5;

impl Load {
    /// Starts sending `shots` in turn, `per_second` in all.
    pub fn start(shots: Vec<Shot>, per_second: u32) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let (results_in, results_out) = mpsc::unbounded_channel();
        let good = Arc::new(AtomicU64::new(0));
        let sender = tokio::spawn(send(shots, per_second, stop.clone(), results_in, Arc::clone(&good)));
        let results = tokio::spawn(gather(results_out));
        Self {
            stop,
            sender,
            results,
            good,
        }
    }

    /// Good answers so far: what a test waits for instead of sleeping.
    pub fn good(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for every answer, and tells what was seen.
    pub async fn finish(self) -> Seen {
        self.stop.cancel();
        let _ = self.sender.await;
        self.results.await.unwrap_or_default()
    }
}

type Outcome = (Duration, Result<(), String>);

async fn send(
    shots: Vec<Shot>,
    per_second: u32,
    stop: tokio_util::sync::CancellationToken,
    results: mpsc::UnboundedSender<Outcome>,
    good: Arc<AtomicU64>,
) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // A client that quietly sends again would hide what it lost.
    let kept = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .retry_canceled_requests(false)
        .build(connector.clone());
    let fresh = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .retry_canceled_requests(false)
        .build(connector);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for shot in shots.iter().cycle() {
        let due = tokio::select! {
            due = ticks.tick() => due,
            () = stop.cancelled() => return,
        };
        let client = if shot.new_connection {
            fresh.clone()
        } else {
            kept.clone()
        };
        let (shot, results, good) = (shot.clone(), results.clone(), Arc::clone(&good));
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(CLIENT_TIMEOUT, one(&client, &shot)).await;
            let outcome = outcome.unwrap_or_else(|_| Err("no answer in time".into()));
            if outcome.is_ok() {
                good.fetch_add(1, Ordering::Relaxed);
            }
            let _ = results.send((Instant::now().saturating_duration_since(due), outcome));
        });
    }
}

async fn one(client: &Client<HttpConnector, Full<Bytes>>, shot: &Shot) -> Result<(), String> {
    let mut request = http::Request::builder()
        .method(shot.method.clone())
        .uri(shot.url.clone());
    if let Some(host) = &shot.host {
        request = request.header(http::header::HOST, host);
    }
    if shot.new_connection {
        request = request.header(http::header::CONNECTION, "close");
    }
    let request = request.body(Full::new(shot.body.clone())).map_err(|e| e.to_string())?;
    let response = client.request(request).await.map_err(|e| crate::agent::report(&e))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| crate::agent::report(&e))?
        .to_bytes();
    if (shot.expect)(status, &body) {
        Ok(())
    } else {
        let start: String = String::from_utf8_lossy(&body).chars().take(80).collect();
        Err(format!("{status}: {}", start.escape_debug()))
    }
}

async fn gather(mut results: mpsc::UnboundedReceiver<Outcome>) -> Seen {
    let mut seen = Seen::default();
    while let Some((took, outcome)) = results.recv().await {
        seen.sent += 1;
        seen.latency
            .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        match outcome {
            Ok(()) => seen.good += 1,
            Err(text) => {
                seen.lost += 1;
                if seen.examples.len() < EXAMPLES {
                    seen.examples.push(text);
                }
            }
        }
    }
    seen
}

/// One request by itself.
pub async fn once(shot: Shot) -> Seen {
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(HttpConnector::new());
    let (results_in, results_out) = mpsc::unbounded_channel();
    let due = Instant::now();
    let outcome = tokio::time::timeout(CLIENT_TIMEOUT, one(&client, &shot)).await;
    let _ = results_in.send((
        due.elapsed(),
        outcome.unwrap_or_else(|_| Err("no answer in time".into())),
    ));
    drop(results_in);
    gather(results_out).await
}
