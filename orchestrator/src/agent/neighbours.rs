//! Calls from one service to another inside this process: the name finds the balancer's service, and the call goes the way
//! of a client's request from there: picked, queued, limited, counted. The caller's own task drives it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use narae_runtime::{Body, BodyError, Hops, Neighbours, Request, Response, Task};

use crate::model::ServiceName;
use crate::proxy::{self, Balancer, Choice, Reason, Service};

/// Calls between services that one request may lead to, one inside the other: deeper than any sane design, and a loop ends in
/// well under a second.
pub const MAX_HOPS: u32 = 8;

/// The services of this node by name. Read on the data path, without a lock.
pub struct Inside {
    balancer: Arc<Balancer>,
    services: ArcSwap<BTreeMap<ServiceName, Arc<Service>>>,
}

impl Inside {
    pub fn new(balancer: Arc<Balancer>) -> Arc<Self> {
        Arc::new(Self {
            balancer,
            services: ArcSwap::default(),
        })
    }

    /// Who can be called from now on.
    pub fn publish(&self, services: &BTreeMap<ServiceName, Arc<Service>>) {
        let known = self.services.load();
        if !known.keys().eq(services.keys()) || !known.values().zip(services.values()).all(|(a, b)| Arc::ptr_eq(a, b)) {
            self.services.store(Arc::new(services.clone()));
        }
    }
}

impl Neighbours for Inside {
    fn call(&self, name: &str, hops: u32, request: Request) -> Option<Task<'static, Response>> {
        let service = Arc::clone(self.services.load().get(&name.parse::<ServiceName>().ok()?)?);
        let balancer = Arc::clone(&self.balancer);
        Some(Box::pin(async move {
            match checked(&service, hops, request) {
                Err(reason) => {
                    balancer.refuse(Some(&service), reason);
                    own(reason)
                }
                Ok(request) => match proxy::dispatch(&balancer, &service, Choice::Any, request).await {
                    Ok(response) => response,
                    Err(failure) => own(failure.reason),
                },
            }
        }))
    }
}

/// What the balancer would see to in a client's request.
fn checked(service: &Service, hops: u32, mut request: Request) -> Result<Request, Reason> {
    if hops > MAX_HOPS {
        return Err(Reason::LoopDetected);
    }
    let limit = service.body_bytes();
    if http_body::Body::size_hint(request.body()).lower() > limit {
        return Err(Reason::BodyTooLarge);
    }
    proxy::strip(request.headers_mut());
    request.extensions_mut().insert(Hops(hops));
    Ok(request.map(|body| match body {
        Body::Stream(_) => {
            let most = usize::try_from(limit).unwrap_or(usize::MAX);
            let limited = http_body_util::Limited::new(body, most);
            Body::stream(http_body_util::BodyExt::map_err(
                limited,
                move |error| match error.downcast::<BodyError>() {
                    Ok(error) => *error,
                    Err(_) => BodyError::TooLarge { limit },
                },
            ))
        }
        small => small,
    }))
}

fn own(reason: Reason) -> Response {
    proxy::answer(reason, false).map(Body::full)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::proxy::ServiceTraffic;

    fn service() -> Arc<Service> {
        let traffic = ServiceTraffic {
            body_bytes: 10,
            ..ServiceTraffic::default()
        };
        Service::new("s".parse().unwrap(), traffic)
    }

    fn request(body: Body) -> Request {
        http::Request::builder()
            .uri("/x")
            .header("keep-alive", "1")
            .body(body)
            .unwrap()
    }

    #[test]
    fn the_ninth_call_in_a_row_is_a_loop() {
        let passed = checked(&service(), MAX_HOPS, request(Body::Empty)).unwrap();
        assert_eq!(passed.extensions().get(), Some(&Hops(MAX_HOPS)));
        assert!(passed.headers().is_empty(), "nothing hop-by-hop");
        let looped = checked(&service(), MAX_HOPS + 1, request(Body::Empty));
        assert_eq!(looped.err(), Some(Reason::LoopDetected));
    }

    #[tokio::test]
    async fn a_body_over_the_callees_limit_is_refused_or_cut_off() {
        let refused = checked(&service(), 1, request(Body::full("12345678901")));
        assert_eq!(refused.err(), Some(Reason::BodyTooLarge));
        let frames = futures::stream::iter(["123456", "789012"].map(|t| Ok(http_body::Frame::data(t.into()))));
        let body = Body::stream(http_body_util::StreamBody::new(frames));
        let streamed = checked(&service(), 1, request(body)).unwrap();
        let error = streamed.into_body().collect().await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 10 }));
    }
}
