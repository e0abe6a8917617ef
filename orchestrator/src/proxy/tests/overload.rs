//! More requests than room.

use narae_runtime::{Body, Response};
use tokio::sync::Semaphore;

use super::*;

#[tokio::test]
async fn over_the_queue_requests_get_503_and_the_service_is_whole_after_the_burst() {
    let gate = Arc::new(Semaphore::new(0));
    let at_gate = Arc::clone(&gate);
    let guest = fake::guest(move |_| {
        let gate = Arc::clone(&at_gate);
        async move {
            let _pass = gate.acquire_owned().await.unwrap();
            Ok(Response::new(Body::full("fine")))
        }
    });
    let traffic = ServiceTraffic {
        queue: 3,
        queue_wait: PATIENCE,
        ..ServiceTraffic::default()
    };
    let world = World::with(vec![guest], 2, traffic, ServerOptions::default());
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = world.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        clients.push(client);
    }
    // Two in flight, three in the queue, five turned away.
    let mut pending: futures::stream::FuturesUnordered<_> =
        clients.iter_mut().map(|c| async move { c.answer().await }).collect();
    for _ in 0..5 {
        let got = within(futures::StreamExt::next(&mut pending)).await.unwrap();
        assert_eq!(
            (got.status, got.field("x-narae-error"), got.field("retry-after")),
            (503, Some("queue-full"), Some("1"))
        );
    }
    assert_eq!((world.service.in_flight(), world.service.queued()), (2, 3));
    gate.add_permits(2);
    for _ in 0..5 {
        assert_eq!(
            within(futures::StreamExt::next(&mut pending)).await.unwrap().status,
            200
        );
    }
    world.settled().await;
    assert_eq!(world.connect().await.get("/").await.status, 200);
}

#[tokio::test]
async fn clients_that_leave_the_queue_leave_no_place_taken() {
    let traffic = ServiceTraffic {
        queue: 1,
        queue_wait: PATIENCE,
        ..ServiceTraffic::default()
    };
    let world = World::with(
        vec![fake::guest(|_| std::future::pending())],
        1,
        traffic,
        ServerOptions::default(),
    );
    let mut holder = world.connect().await;
    holder.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    for _ in 0..20 {
        let mut waiter = world.connect().await;
        waiter.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        within(async {
            while world.service.queued() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(waiter);
        within(async {
            while world.service.queued() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    drop(holder);
    world.settled().await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_one_to_end_and_disturb_nobody() {
    let gate = Arc::new(Semaphore::new(0));
    let at_gate = Arc::clone(&gate);
    let guest = fake::guest(move |_| {
        let gate = Arc::clone(&at_gate);
        async move {
            gate.acquire_owned().await.unwrap().forget();
            Ok(Response::new(Body::full("fine")))
        }
    });
    let options = ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    };
    let world = World::with(vec![guest], 64, ServiceTraffic::default(), options);
    let mut inside = [world.connect().await, world.connect().await];
    for client in &mut inside {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    }
    within(async {
        while world.service.in_flight() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut outside = world.connect().await;
    outside.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((world.server.connections(), world.service.in_flight()), (2, 2));
    gate.add_permits(2);
    for client in &mut inside {
        assert_eq!(client.answer().await.status, 200);
    }
    gate.add_permits(1);
    drop(inside);
    assert_eq!(outside.answer().await.status, 200);
}

#[tokio::test]
async fn idle_connections_of_a_greedy_address_make_room_before_the_limit() {
    let options = ServerOptions {
        max_connections: 20,
        ..ServerOptions::default()
    };
    let world = World::with(vec![fake::hello()], 64, ServiceTraffic::default(), options);
    let mut held = Vec::new();
    for _ in 0..60 {
        let mut client = world.connect().await;
        assert_eq!(client.get("/").await.status, 200);
        held.push(client);
    }
    assert!(world.server.connections() <= 20);
}

#[tokio::test]
async fn heads_and_targets_that_are_too_large_are_refused() {
    let world = World::of(vec![fake::hello()]);
    let line = "a".repeat(1000);
    let fields = |n: usize| (0..n).map(|i| format!("x{i}: {line}\r\n")).collect::<String>();
    let many = "x: y\r\n".repeat(120);
    for (request, want) in [
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", fields(40)), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}", fields(90)), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(100_000)), 431),
    ] {
        let got = world.raw(&request).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {want}")), "{want}: {got:.200}");
    }
}
