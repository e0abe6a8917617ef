//! Peers that hold a connection without using it. Deadlines are short here; their lengths are the options' business.

use http_body_util::BodyExt;
use narae_runtime::{Body, Response};

use super::*;
use crate::proxy::body::Pace;

const SHORT: Duration = Duration::from_millis(60);

fn world(instance: Arc<dyn Instance>, options: ServerOptions) -> World {
    World::with(vec![instance], 64, ServiceTraffic::default(), options)
}

#[tokio::test]
async fn silent_connections_and_half_heads_and_half_prefaces_are_cut() {
    let world = world(
        fake::hello(),
        ServerOptions {
            header_timeout: SHORT,
            ..ServerOptions::default()
        },
    );
    for bytes in [
        "",
        "G",
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "PRI * HT",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
        "\r\n",
    ] {
        assert_eq!(world.raw(bytes).await, "", "{bytes:?}");
    }
    let mut client = world.connect().await;
    assert_eq!(client.get("/").await.status, 200);
    client.send("GET / HT").await;
    assert_eq!(client.rest().await, "", "the second head has a deadline, too");
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_its_head_deadline_is_not_its_keep_alive() {
    let options = ServerOptions {
        header_timeout: PATIENCE,
        keep_alive: SHORT,
        ..ServerOptions::default()
    };
    let world = world(fake::hello(), options);
    let mut client = world.connect().await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_body_that_stalls_is_a_408() {
    let pace = Pace {
        first: SHORT,
        bytes_per_second: 1_000_000,
        idle: SHORT,
    };
    let reads = fake::guest(|request| async move {
        let length = request.into_body().collect().await.map_or(0, |b| b.to_bytes().len());
        Ok(Response::new(Body::full(length.to_string())))
    });
    let world = world(
        reads,
        ServerOptions {
            body_pace: pace,
            ..ServerOptions::default()
        },
    );
    for framing in [
        "content-length: 10\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let got = world.raw(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}")).await;
        assert!(
            got.starts_with("HTTP/1.1 408") && got.contains("x-narae-error: body-stalled"),
            "{got}"
        );
    }
    world.settled().await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_and_its_slot_comes_back() {
    let floods = fake::guest(|_| async { Ok(Response::new(Body::full(vec![b'x'; 64 << 20]))) });
    let world = world(
        floods,
        ServerOptions {
            write_idle: SHORT,
            keep_alive: PATIENCE,
            ..ServerOptions::default()
        },
    );
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within(async {
        while world.server.connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.settled().await;
}

#[tokio::test]
async fn an_answer_that_waits_for_its_guest_is_never_cut() {
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go);
    let quiet = fake::guest(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            let frames = futures::stream::once(async move {
                wait.notified().await;
                Ok(http_body::Frame::data(bytes::Bytes::from("at last")))
            });
            Ok(Response::new(Body::stream(http_body_util::StreamBody::new(frames))))
        }
    });
    let options = ServerOptions {
        header_timeout: SHORT,
        keep_alive: SHORT,
        write_idle: SHORT,
        ..ServerOptions::default()
    };
    let world = world(quiet, options);
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    // A second connection lives through its own deadline meanwhile: the clock of this test.
    assert_eq!(world.raw("").await, "");
    assert_eq!(world.raw("").await, "");
    go.notify_one();
    client.until("at last").await;
}
