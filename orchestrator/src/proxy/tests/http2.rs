//! HTTP/2 with prior knowledge.

use bytes::Bytes;
use http_body_util::BodyExt;
use narae_runtime::{Body, BodyError, Response, TrapReport};

use super::*;

async fn connect(world: &World) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let (client, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn get(path: &str) -> http::Request<()> {
    http::Request::builder()
        .uri(format!("http://a.test{path}"))
        .version(http::Version::HTTP_2)
        .body(())
        .unwrap()
}

async fn body(mut body: h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = within(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[tokio::test]
async fn streams_share_a_connection_and_guests_see_one_host() {
    let world = World::of(vec![fake::guest(|request| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        Ok(Response::new(Body::full(format!("{} {host}", request.uri()))))
    })]);
    let client = connect(&world).await;
    let mut answers = Vec::new();
    for n in 0..50 {
        let mut client = client.clone().ready().await.unwrap();
        answers.push(client.send_request(get(&format!("/{n}?q")), true).unwrap().0);
    }
    for (n, answer) in answers.into_iter().enumerate() {
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-request-id"].len(), 32);
        assert_eq!(
            body(answer.into_body()).await.unwrap(),
            format!("/{n}?q a.test").into_bytes()
        );
    }
    world.settled().await;
}

#[tokio::test]
async fn a_guest_that_fails_after_its_head_resets_the_stream_and_only_that() {
    let world = World::of(vec![fake::guest(|request| async move {
        if request.uri().path() == "/ok" {
            return Ok(Response::new(Body::full("fine")));
        }
        let trap = CallError::Trap(TrapReport {
            reason: "x".into(),
            limit: None,
            backtrace: Arc::new([]),
        });
        let frames = futures::stream::iter([
            Ok(http_body::Frame::data(Bytes::from("begun"))),
            Err(BodyError::Guest(trap)),
        ]);
        Ok(Response::new(Body::stream(http_body_util::StreamBody::new(frames))))
    })]);
    let mut client = connect(&world).await.ready().await.unwrap();
    // The reset may overtake the head.
    let error = match within(client.send_request(get("/"), true).unwrap().0).await {
        Ok(failed) => body(failed.into_body()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    let answer = within(client.send_request(get("/ok"), true).unwrap().0).await.unwrap();
    assert_eq!(body(answer.into_body()).await.unwrap(), b"fine");
    world.settled().await;
}

#[tokio::test]
async fn a_reader_that_opens_no_window_loses_its_stream() {
    let floods = fake::guest(|_| async { Ok(Response::new(Body::full(vec![b'x'; 1 << 20]))) });
    let options = ServerOptions {
        write_idle: Duration::from_millis(60),
        ..ServerOptions::default()
    };
    let world = World::with(vec![floods], 64, ServiceTraffic::default(), options);
    let mut client = connect(&world).await.ready().await.unwrap();
    let answer = within(client.send_request(get("/"), true).unwrap().0).await.unwrap();
    let mut stalled = answer.into_body();
    let end = within(async {
        loop {
            match stalled.data().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    })
    .await;
    assert!(end.is_some_and(|e| e.is_err()), "the stream is reset, not ended");
    world.settled().await;
}

#[tokio::test]
async fn limits_and_refusals_hold_in_http2() {
    let traffic = ServiceTraffic {
        body_bytes: 10,
        ..ServiceTraffic::default()
    };
    let guest = fake::guest(|request| async move {
        drop(request.into_body().collect().await);
        Ok(Response::new(Body::Empty))
    });
    let world = World::with(vec![guest], 4, traffic, ServerOptions::default());
    let mut client = connect(&world).await.ready().await.unwrap();
    let (answer, mut sender) = client.send_request(get("/"), false).unwrap();
    sender.send_data(Bytes::from("0123456789abc"), true).unwrap();
    let answer = within(answer).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert!(!answer.headers().contains_key("connection"));
    let mut request = get("/");
    request.headers_mut().insert("host", "b.test".parse().unwrap());
    assert_eq!(
        within(client.send_request(request, true).unwrap().0)
            .await
            .unwrap()
            .status(),
        400
    );
    let mut head = get("/missing");
    *head.method_mut() = http::Method::HEAD;
    world.balancer.publish(Table::default());
    let answer = within(client.send_request(head, true).unwrap().0).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert!(body(answer.into_body()).await.unwrap().is_empty());
    world.settled().await;
}

#[tokio::test]
async fn a_reset_stream_gives_its_slot_back() {
    let world = World::with(
        vec![fake::guest(|_| std::future::pending())],
        1,
        ServiceTraffic::default(),
        ServerOptions::default(),
    );
    let mut client = connect(&world).await.ready().await.unwrap();
    let (answer, mut sender) = client.send_request(get("/"), false).unwrap();
    within(async {
        while world.service.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    sender.send_reset(h2::Reason::CANCEL);
    drop(answer);
    world.settled().await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_closes_the_connection() {
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go);
    let slow = fake::guest(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Ok(Response::new(Body::full("done")))
        }
    });
    let world = World::of(vec![slow]);
    let mut client = connect(&world).await.ready().await.unwrap();
    let answer = client.send_request(get("/"), true).unwrap().0;
    within(async {
        while world.service.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let drain = async { world.server.drain(PATIENCE).await };
    let finish = async {
        go.notify_one();
        body(within(answer).await.unwrap().into_body()).await.unwrap()
    };
    let (drained, bytes) = within(async { tokio::join!(drain, finish) }).await;
    assert!(drained);
    assert_eq!(bytes, b"done");
}
