//! Real guests on the host interfaces: what was granted is there, what was not is refused in the interface's words.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Full};
use narae_runtime::guest::{KeyValue, Outbound, Target};
use narae_runtime::wasm::host::config::{self, ConfigValues};
use narae_runtime::wasm::host::keyvalue::{self, KeyValueCtx, MemoryKeyValue};
use narae_runtime::wasm::host::outbound::OutboundClient;
use narae_runtime::wasm::host::outside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: OutboundClient,
    config: ConfigValues,
    key_values: KeyValueCtx,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

#[derive(Default)]
struct Grants {
    outbound: Outbound,
    config: Vec<(String, String)>,
    stores: BTreeMap<String, Arc<dyn KeyValue>>,
}

struct Service {
    engine: Engine,
    pre: ProxyPre<State>,
    outbound: OutboundClient,
    grants: Grants,
}

impl Service {
    fn new(name: &str, grants: Grants) -> Self {
        let path = format!("{}/../modules/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
        let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
        let component = Component::from_file(&engine, &path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut linker = Linker::<State>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).unwrap();
        config::add_to_linker(&mut linker, |state| state.config.view()).unwrap();
        keyvalue::add_to_linker(&mut linker, |state| state.key_values.view(&mut state.table)).unwrap();
        let pre = ProxyPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
        let outbound = OutboundClient::new(grants.outbound.clone(), outside::real());
        Self {
            engine,
            pre,
            outbound,
            grants,
        }
    }

    async fn call(&self, method: &str, path: &str, body: &'static str) -> (u16, String) {
        let mut wasi = WasiCtx::builder();
        outside::furnish(&mut wasi, &outside::real());
        let state = State {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            outbound: self.outbound.clone(),
            config: ConfigValues::new(&self.grants.config),
            key_values: KeyValueCtx::new(self.grants.stores.clone()),
        };
        let mut store = Store::new(&self.engine, state);
        let body = if body.is_empty() {
            Empty::new().map_err(|never| match never {}).boxed_unsync()
        } else {
            Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
        };
        let request: hyper::Request<wasmtime_wasi_http::WasiBody> = hyper::Request::builder()
            .method(method)
            .uri(format!("http://svc.test{path}"))
            .body(body)
            .unwrap();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let request = store
            .data_mut()
            .http()
            .new_incoming_request(Scheme::Http, request)
            .unwrap();
        let out = store.data_mut().http().new_response_outparam(answer).unwrap();
        let proxy = self.pre.instantiate_async(&mut store).await.unwrap();
        let guest = proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out);
        let read = async {
            let response = answered.await.unwrap().unwrap();
            let status = response.status().as_u16();
            (
                status,
                String::from_utf8(response.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
            )
        };
        let (done, answer) = tokio::join!(guest, read);
        done.unwrap();
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reads_its_configuration() {
    let config = vec![("currency".into(), "KRW".into())];
    let service = Service::new(
        "config",
        Grants {
            config,
            ..Grants::default()
        },
    );
    assert_eq!(service.call("GET", "/config/currency", "").await, (200, "KRW\n".into()));
    assert_eq!(service.call("GET", "/config/missing", "").await.0, 404);
    assert_eq!(service.call("GET", "/config", "").await, (200, "currency=KRW\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_keeps_values_over_its_instances() {
    let store: Arc<dyn KeyValue> = Arc::new(MemoryKeyValue::new(1 << 20));
    let stores = BTreeMap::from([("default".to_owned(), store.clone())]);
    let service = Service::new(
        "config",
        Grants {
            stores,
            ..Grants::default()
        },
    );
    assert_eq!(service.call("GET", "/kv/colour", "").await.0, 404);
    assert!(service.call("PUT", "/kv/colour", "blue").await.0 < 300);
    assert_eq!(service.call("GET", "/kv/colour", "").await.1.trim_end(), "blue");
    assert_eq!(service.call("GET", "/incr/visits", "").await.1.trim_end(), "1");
    assert_eq!(service.call("GET", "/incr/visits", "").await.1.trim_end(), "2");
    assert_eq!(store.get(vec!["visits".into()]).await.unwrap(), [Some(b"2".to_vec())]);
    assert_eq!(service.call("GET", "/kv/colour?bucket=other", "").await.0, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_store_is_refused_and_runs_on() {
    let service = Service::new("config", Grants::default());
    let (status, text) = service.call("GET", "/kv/colour", "").await;
    assert_eq!(status, 502);
    assert!(text.contains("NoSuchStore"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_what_is_allowed_and_nothing_else() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
                .await;
        }
    });
    let path = format!("/?url=http://{address}/x");
    let denied = Service::new("fetch", Grants::default());
    let (status, text) = denied.call("GET", &path, "").await;
    assert_eq!(status, 502);
    assert!(text.contains("HttpRequestDenied"), "{text}");

    let target = |host: &str| Target {
        scheme: "http".into(),
        host: host.into(),
        port: address.port(),
    };
    let outbound = |host: &str| Outbound {
        allow: vec![target(host)],
        ..Outbound::default()
    };
    let allowed = Service::new(
        "fetch",
        Grants {
            outbound: outbound("127.0.0.1"),
            ..Grants::default()
        },
    );
    assert_eq!(allowed.call("GET", &path, "").await, (200, "hello".into()));

    let by_name = Service::new(
        "fetch",
        Grants {
            outbound: outbound("localhost"),
            ..Grants::default()
        },
    );
    let (status, text) = by_name
        .call("GET", &format!("/?url=http://localhost:{}/x", address.port()), "")
        .await;
    assert_eq!(status, 502);
    assert!(text.contains("DestinationIpProhibited"), "{text}");
}
