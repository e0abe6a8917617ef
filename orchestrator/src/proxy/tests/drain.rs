//! Leaving without losing anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use narae_runtime::{Body, Response};
use tokio::sync::Notify;

use super::*;
use crate::model::ReplicaId;

#[tokio::test]
async fn a_request_in_flight_is_answered_and_then_the_connection_ends() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, wait) = (Arc::clone(&begun), Arc::clone(&go));
    let slow = fake::guest(move |_| {
        begin.notify_one();
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Ok(Response::new(Body::full("done")))
        }
    });
    let world = World::of(vec![slow]);
    let mut idle = world.connect().await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within(begun.notified()).await;
    go.notify_one();
    assert_eq!(idle.answer().await.body, "done");
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within(begun.notified()).await;
    let mut drained = std::pin::pin!(world.server.drain(PATIENCE));
    assert!(futures::poll!(drained.as_mut()).is_pending());
    assert_eq!(idle.rest().await, "", "idle connections end at once");
    go.notify_one();
    let got = client.answer().await;
    assert_eq!((got.body.as_str(), got.field("connection")), ("done", Some("close")));
    assert_eq!(client.rest().await, "");
    assert!(within(drained).await);
}

#[tokio::test]
async fn a_drain_gives_up_after_its_grace() {
    let world = World::of(vec![fake::guest(|_| std::future::pending())]);
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within(async {
        while world.service.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!world.server.drain(Duration::from_millis(20)).await);
    drop(world.server);
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_free_again_after_the_end() {
    let first = World::of(vec![fake::hello()]);
    let address = first.address();
    let start = || {
        Server::start(
            &[address],
            balancer(),
            ServerOptions {
                threads: 2,
                ..ServerOptions::default()
            },
        )
    };
    assert_eq!(start().err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));
    let mut client = first.connect().await;
    client.get("/").await;
    assert!(first.server.drain(PATIENCE).await);
    assert_eq!(client.rest().await, "");
    let second = start().unwrap();
    assert_eq!(second.addresses(), [address]);
    let mut client = Client {
        stream: TcpStream::connect(address).await.unwrap(),
        buffer: Vec::new(),
    };
    assert_eq!(client.get("/").await.status, 404);
}

/// Load on kept and on new connections while replicas are swapped under it: new one in, old one out, drained, stopped.
#[tokio::test]
async fn a_hundred_swaps_under_load_lose_nothing() {
    let stopped_replica = |stopped: &Arc<AtomicBool>| {
        let stopped = Arc::clone(stopped);
        fake::guest(move |_| {
            let stopped = Arc::clone(&stopped);
            async move {
                tokio::task::yield_now().await;
                // A request at a stopped replica is a lost one: retries are off.
                if stopped.load(Ordering::SeqCst) {
                    Err(CallError::Gone)
                } else {
                    Ok(Response::new(Body::full("fine")))
                }
            }
        })
    };
    let traffic = ServiceTraffic {
        retry_attempts: 0,
        ..ServiceTraffic::default()
    };
    let mut stopped = Arc::new(AtomicBool::new(false));
    let world = World::with(vec![stopped_replica(&stopped)], 64, traffic, ServerOptions::default());
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let kept = async {
        let mut client = world.connect().await;
        while !over.load(Ordering::Relaxed) {
            assert_eq!(client.get("/").await.status, 200);
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let new = async {
        while !over.load(Ordering::Relaxed) {
            assert_eq!(world.connect().await.get("/").await.status, 200);
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let swaps = async {
        for id in 2..102 {
            let before = served.load(Ordering::Relaxed);
            let next = Arc::new(AtomicBool::new(false));
            world.service.admit(fake::upstream(id, 64, stopped_replica(&next)));
            let old = world.service.remove(ReplicaId(id - 1)).unwrap();
            within(old.idle()).await;
            stopped.store(true, Ordering::SeqCst);
            stopped = next;
            within(async {
                while served.load(Ordering::Relaxed) < before + 3 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(kept, new, swaps);
    assert!(world.recorder.failed.lock().unwrap().is_empty());
    world.settled().await;
}
