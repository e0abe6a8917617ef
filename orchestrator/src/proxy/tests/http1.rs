//! HTTP/1: what a client gets, and what a guest is given.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use narae_runtime::{Body, BodyError, Limit, Response, TrapReport};
use tokio::sync::{Notify, mpsc};

use super::*;

fn trap() -> CallError {
    CallError::Trap(TrapReport {
        reason: "unreachable".into(),
        limit: None,
        backtrace: Arc::new([]),
    })
}

/// Answers with what it was given.
fn mirror() -> Arc<dyn Instance> {
    fake::guest(|request| async move {
        let (head, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|e| CallError::BadAnswer(e.to_string().into()))?
            .to_bytes();
        let mut text = format!("{} {}\n", head.method, head.uri);
        for (name, value) in &head.headers {
            text += &format!("{name}={}\n", value.to_str().unwrap());
        }
        text += std::str::from_utf8(&body).unwrap();
        Ok(Response::new(Body::full(text)))
    })
}

/// Sends the request's body back as it comes.
fn echo() -> Arc<dyn Instance> {
    fake::guest(|request| async move { Ok(Response::new(request.into_body())) })
}

/// A body of what is sent into the channel.
fn channel_body(mut frames: mpsc::Receiver<Result<&'static str, CallError>>) -> Body {
    let frames = futures::stream::poll_fn(move |cx| {
        let next = std::task::ready!(frames.poll_recv(cx));
        std::task::Poll::Ready(next.map(|f| f.map(|t| Frame::data(Bytes::from(t))).map_err(BodyError::Guest)))
    });
    Body::stream(StreamBody::new(frames))
}

#[tokio::test]
async fn a_connection_carries_many_requests_one_after_the_other() {
    let world = World::of(vec![fake::hello()]);
    let mut client = world.connect().await;
    for _ in 0..50 {
        let got = client.get("/").await;
        assert_eq!((got.status, got.body.as_str()), (200, "hello\n"));
        assert_eq!(got.field("x-request-id").unwrap().len(), 32);
        assert!(got.field("date").is_some());
    }
    world.settled().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let world = World::of(vec![mirror()]);
    let mut client = world.connect().await;
    let requests: String = (0..200)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n"))
        .collect();
    client.send(requests).await;
    for n in 0..200 {
        assert!(client.answer().await.body.starts_with(&format!("GET /{n}\n")));
    }
}

#[tokio::test]
async fn a_guest_gets_a_clean_head_and_what_we_know_about_the_client() {
    let world = World::of(vec![mirror()]);
    let got = world
        .raw(
            "POST /a?b=c HTTP/1.1\r\nHost: A.test:80\r\nConnection: close, x-drop\r\nx-drop: 1\r\nTE: trailers\r\nUpgrade: h2c\r\n\
             X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nx-request-id: mine\r\nContent-Length: 3\r\n\r\nabc",
        )
        .await;
    let body = got.split_once("\r\n\r\n").unwrap().1;
    let mut lines: Vec<_> = body.lines().collect();
    lines.sort_unstable();
    let want = [
        "POST /a?b=c",
        "abc",
        "content-length=3",
        "host=A.test:80",
        "x-forwarded-for=127.0.0.1",
        "x-forwarded-host=A.test:80",
        "x-forwarded-proto=http",
        "x-request-id=mine",
    ];
    assert_eq!(lines, want);
    assert!(got.contains("x-request-id: mine\r\n"));
}

#[tokio::test]
async fn a_chunked_body_reaches_the_guest_and_the_connection_goes_on() {
    let world = World::of(vec![mirror()]);
    let mut client = world.connect().await;
    for _ in 0..2 {
        client
            .send(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            )
            .await;
        assert!(client.answer().await.body.ends_with("abcde"));
    }
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let world = World::of(vec![echo()]);
    let mut client = world.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for word in ["one", "two", "six"] {
        client.send(format!("3\r\n{word}\r\n")).await;
        client.until(&format!("3\r\n{word}\r\n")).await;
    }
    client.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn head_and_empty_statuses_carry_no_body() {
    let world = World::of(vec![fake::guest(|request| async move {
        let status = request.uri().path()[1..].parse::<u16>().unwrap();
        Ok(http::Response::builder()
            .status(status)
            .body(Body::full("secret"))
            .unwrap())
    })]);
    for (method, status) in [("HEAD", 200), ("HEAD", 404), ("GET", 204), ("GET", 304)] {
        let got = world
            .raw(format!(
                "{method} /{status} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            ))
            .await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{got}");
        assert!(got.ends_with("\r\n\r\n"), "{got}");
    }
    world.settled().await;
}

#[tokio::test]
async fn an_answer_that_http_does_not_allow_is_a_502() {
    let world = World::of(vec![fake::guest(|request| async move {
        let answer = http::Response::builder();
        Ok(match request.uri().path() {
            "/101" => answer.status(101).body(Body::Empty),
            "/long" => answer.header("content-length", "2").body(Body::full("abc")),
            _ => answer.header("content-length", "x").body(Body::full("abc")),
        }
        .unwrap())
    })]);
    let mut client = world.connect().await;
    for path in ["/101", "/long", "/x"] {
        let got = client.get(path).await;
        assert_eq!(
            (got.status, got.field("x-narae-error")),
            (502, Some("bad-answer")),
            "{path}"
        );
    }
    assert_eq!(world.recorder.failed.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn errors_have_their_status_and_traps_in_a_row_are_counted() {
    let world = World::of(vec![fake::guest(|request| async move {
        Err(match request.uri().path() {
            "/trap" => trap(),
            "/oom" => CallError::OutOfMemory,
            "/busy" => CallError::Busy,
            "/time" => CallError::Timeout(Limit::Timeout),
            _ => return Ok(Response::new(Body::full("fine"))),
        })
    })]);
    world.service.upstreams()[0].set_failure_limit(4);
    let mut client = world.connect().await;
    for (path, status, name) in [
        ("/trap", 500, "trap"),
        ("/trap", 500, "trap"),
        ("/oom", 503, "out-of-memory"),
        ("/busy", 503, "busy"),
        ("/time", 504, "timeout"),
        ("/trap", 500, "trap"),
    ] {
        let got = client.get(path).await;
        assert_eq!((got.status, got.field("x-narae-error")), (status, Some(name)));
        assert_eq!(got.field("retry-after").is_some(), status == 503);
    }
    assert_eq!(world.service.upstreams()[0].consecutive_traps(), 3);
    client.get("/").await;
    assert_eq!(world.service.upstreams()[0].consecutive_traps(), 0);
    client.get("/trap").await;
    assert_eq!(*world.recorder.traps.lock().unwrap(), [1, 2, 3, 1]);
    for _ in 0..3 {
        client.get("/trap").await;
    }
    client.get("/").await;
    let run = world.service.upstreams()[0].consecutive_traps();
    assert_eq!(run, 4, "a run at its limit stands until somebody has looked");
}

#[tokio::test]
async fn a_guest_that_hangs_is_a_504_after_its_timeout() {
    let traffic = ServiceTraffic {
        timeout: Duration::from_millis(20),
        ..ServiceTraffic::default()
    };
    let world = World::with(
        vec![fake::guest(|_| std::future::pending())],
        1,
        traffic,
        ServerOptions::default(),
    );
    let mut client = world.connect().await;
    assert_eq!(client.get("/").await.status, 504);
    world.settled().await;
}

#[tokio::test]
async fn a_guest_that_fails_after_its_head_never_ends_cleanly() {
    for old in [false, true] {
        let world = World::of(vec![fake::guest(|_| async {
            let (frames, body) = mpsc::channel(2);
            frames.try_send(Ok("begun")).unwrap();
            frames.try_send(Err(trap())).unwrap();
            Ok(Response::new(channel_body(body)))
        })]);
        let mut client = world.connect().await;
        client
            .send(format!("GET / HTTP/1.{}\r\nhost: a\r\n\r\n", u8::from(!old)))
            .await;
        let mut bytes = Vec::new();
        let end = within(client.stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes);
        if old {
            // An HTTP/1.0 body ends with its connection: only a reset tells.
            assert!(end.is_err(), "{text}");
        }
        assert!(!text.ends_with("0\r\n\r\n"), "{text}");
        world.settled().await;
        assert_eq!(
            *world.recorder.failed.lock().unwrap(),
            [(1, "guest trapped: unreachable".to_owned(), true)]
        );
        assert_eq!(*world.recorder.traps.lock().unwrap(), [1]);
    }
}

#[tokio::test]
async fn a_body_shorter_or_longer_than_announced_never_ends_cleanly() {
    for words in [&["ab"][..], &["abc", "defg"]] {
        let world = World::of(vec![fake::guest(move |_| async move {
            let (frames, body) = mpsc::channel(4);
            for word in words {
                frames.try_send(Ok(*word)).unwrap();
            }
            Ok(http::Response::builder()
                .header("content-length", "6")
                .body(channel_body(body))
                .unwrap())
        })]);
        let got = world.raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(
            got.split_once("\r\n\r\n").is_none_or(|(_, body)| body.len() < 6),
            "{got}"
        );
        world.settled().await;
        assert_eq!(world.recorder.failed.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_a_body_gives_its_slot_back() {
    let left = Arc::new(Notify::new());
    let told = Arc::clone(&left);
    struct Tell(Arc<Notify>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let world = World::with(
        vec![fake::guest(move |_| {
            let tell = Tell(Arc::clone(&told));
            async move {
                let (frames, body) = mpsc::channel(1);
                tokio::spawn(async move {
                    let _tell = tell;
                    while frames.send(Ok("more and more ")).await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                });
                Ok(Response::new(channel_body(body)))
            }
        })],
        1,
        ServiceTraffic::default(),
        ServerOptions::default(),
    );
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("more").await;
    assert_eq!(world.service.in_flight(), 1);
    drop(client);
    within(left.notified()).await;
    world.settled().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_cancels_the_call() {
    let (begun, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, go) = (Arc::clone(&begun), Arc::clone(&gone));
    struct Tell(Arc<Notify>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let world = World::of(vec![fake::guest(move |_| {
        begin.notify_one();
        let tell = Tell(Arc::clone(&go));
        async move {
            let _tell = tell;
            std::future::pending().await
        }
    })]);
    let mut client = world.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within(begun.notified()).await;
    drop(client);
    within(gone.notified()).await;
    world.settled().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let traffic = ServiceTraffic {
        body_bytes: 10,
        ..ServiceTraffic::default()
    };
    let guest = fake::guest(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            // Traps on a body it cannot read, as careless guests do.
            request.into_body().collect().await.map_err(|_| trap())?;
            Ok(Response::new(Body::full("fine")))
        }
    });
    let world = World::with(vec![guest], 4, traffic, ServerOptions::default());
    let mut client = world.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n0123456789")
        .await;
    assert_eq!(client.answer().await.body, "fine");
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10737418240\r\n\r\n")
        .await;
    let got = client.answer().await;
    assert_eq!((got.status, got.field("connection")), (413, Some("close")));
    assert_eq!(calls.load(Ordering::Relaxed), 1);

    let got = world
        .raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n")
        .await;
    assert!(got.starts_with("HTTP/1.1 413"), "{got}");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert!(
        world.recorder.traps.lock().unwrap().is_empty(),
        "a client's fault is no trap of the guest"
    );
    world.settled().await;
}

#[tokio::test]
async fn a_short_body_that_nobody_reads_leaves_the_connection_usable() {
    let world = World::of(vec![fake::hello()]);
    let mut client = world.connect().await;
    for _ in 0..5 {
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
                100_000
            ))
            .await;
        client.send(vec![b'x'; 100_000]).await;
        assert_eq!(client.answer().await.body, "hello\n");
    }
}

#[tokio::test]
async fn a_long_body_that_nobody_reads_closes_the_connection_after_the_answer() {
    let world = World::of(vec![fake::hello()]);
    let mut client = world.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
        .await;
    client.try_send(vec![b'x'; 600_000]).await;
    assert_eq!(client.answer().await.body, "hello\n");
    client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_call_that_never_reached_a_guest_is_tried_on_another_replica_with_its_body() {
    for error in [CallError::Gone, CallError::Busy, CallError::OutOfMemory] {
        let gone = fake::guest(move |_| std::future::ready(Err(error.clone())));
        let world = World::of(vec![gone, mirror()]);
        let mut client = world.connect().await;
        for _ in 0..20 {
            client
                .send("POST /x HTTP/1.1\r\nhost: a\r\nx: y\r\ncontent-length: 3\r\n\r\nabc")
                .await;
            let got = client.answer().await;
            assert_eq!(got.status, 200);
            assert!(
                got.body.starts_with("POST /x\n") && got.body.contains("x=y\n") && got.body.ends_with("abc"),
                "{}",
                got.body
            );
        }
        assert!(world.recorder.failed.lock().unwrap().is_empty());
        world.settled().await;
    }
}

#[tokio::test]
async fn a_retry_happens_once_and_never_after_a_guest_saw_the_request() {
    let calls = Arc::new(AtomicU32::new(0));
    let guest = |error: CallError| {
        let calls = Arc::clone(&calls);
        fake::guest(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err(error.clone()))
        })
    };
    let world = World::of(vec![
        guest(CallError::Gone),
        guest(CallError::Gone),
        guest(CallError::Gone),
    ]);
    assert_eq!(world.connect().await.get("/").await.status, 503);
    assert_eq!(calls.swap(0, Ordering::Relaxed), 2);
    let world = World::of(vec![guest(trap()), guest(trap())]);
    assert_eq!(world.connect().await.get("/").await.status, 500);
    assert_eq!(calls.swap(0, Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_panic_in_a_guest_ends_its_connection_and_nothing_else() {
    let world = World::of(vec![fake::guest(|request| async move {
        assert_ne!(request.uri().path(), "/panic", "wanted by the test");
        Ok(Response::new(Body::full("fine")))
    })]);
    let mut other = world.connect().await;
    assert_eq!(other.get("/").await.status, 200);
    assert_eq!(world.raw("GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await, "");
    assert_eq!(other.get("/").await.status, 200);
    assert_eq!(world.balancer.panics(), 1);
    world.settled().await;
}

#[tokio::test]
async fn an_unknown_route_is_404_and_a_service_without_replicas_503() {
    let world = World::of(vec![fake::hello()]);
    world.service.remove(crate::model::ReplicaId(1)).unwrap();
    let mut client = world.connect().await;
    let got = client.get("/").await;
    assert_eq!(
        (got.status, got.field("x-narae-error"), got.field("retry-after")),
        (503, Some("no-replica"), Some("1"))
    );
    world.balancer.publish(Table::default());
    let got = client.get("/").await;
    assert_eq!((got.status, got.field("x-narae-error")), (404, Some("no-route")));
    assert!(got.field("x-request-id").is_some());
    assert_eq!(
        world.balancer.refusals(),
        [(Reason::NoRoute, 1), (Reason::NoReplica, 1)]
    );
    assert_eq!(
        *world.recorder.refused.lock().unwrap(),
        [Reason::NoReplica, Reason::NoRoute]
    );
}

#[tokio::test]
async fn calls_from_inside_are_answered_by_the_replica_they_name() {
    let world = World::of(vec![fake::hello()]);
    let probed = fake::upstream(9, 1, fake::guest(|_| async { Err(trap()) }));
    let request = || http::Request::builder().uri("/").body(Body::Empty).unwrap();
    let failure = dispatch(
        &world.balancer,
        &world.service,
        Choice::Probe(Arc::clone(&probed)),
        request(),
    )
    .await
    .unwrap_err();
    assert_eq!(
        (failure.reason, failure.to_string().as_str()),
        (Reason::Trap, "guest trapped: unreachable")
    );
    assert_eq!(probed.consecutive_traps(), 0, "a probe is no part of a run");
    let got = dispatch(&world.balancer, &world.service, Choice::Any, request())
        .await
        .unwrap();
    assert_eq!(world.service.in_flight(), 1);
    assert_eq!(got.into_body().collect().await.unwrap().to_bytes(), "hello\n");
    world.settled().await;
    probed.idle().await;
}

#[tokio::test]
async fn a_stripped_prefix_is_told_in_a_header_and_a_client_cannot_make_one_up() {
    let world = World::of(vec![mirror()]);
    let route = |strip, path: &str| Route {
        strip,
        ..Route::of(HostPattern::Any, path)
    };
    let service = |route| (route, Arc::clone(&world.service));
    world.balancer.publish(Table::build(vec![
        service(route(true, "/api/v1")),
        service(route(false, "/")),
    ]));
    for (target, guest_sees, prefix) in [
        ("/api/v1/x?y=1", "GET /x?y=1", Some("/api/v1")),
        ("/api/v1", "GET /", Some("/api/v1")),
        ("/api/v1?y=1", "GET /?y=1", Some("/api/v1")),
        ("/api/v1//x", "GET //x", Some("/api/v1")),
        ("/api/v10", "GET /api/v10", None),
    ] {
        let got = world
            .raw(format!(
                "GET {target} HTTP/1.1\r\nhost: a\r\nx-forwarded-prefix: /evil\r\nconnection: close\r\n\r\n"
            ))
            .await;
        let body = got.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body.lines().next(), Some(guest_sees), "{target}");
        let told = body.lines().find_map(|l| l.strip_prefix("x-forwarded-prefix="));
        assert_eq!(told, prefix, "{target}");
    }
}

#[tokio::test]
async fn without_tls_on_this_node_nothing_is_redirected() {
    let world = World::of(vec![mirror()]);
    let route = Route {
        https_redirect: true,
        ..Route::of(HostPattern::Any, "/")
    };
    world
        .balancer
        .publish(Table::build(vec![(route, Arc::clone(&world.service))]));
    assert!(world.connect().await.get("/").await.status == 200);
}
