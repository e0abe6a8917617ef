//! What a guest's own calls inherit from the requests that its instance serves: how many calls between services led here,
//! and the names that traces know the request by. The guest sees none of it change and cannot reset it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::guest::Hops;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ambient {
    pub hops: u32,
    names: [Option<HeaderValue>; 2],
}

impl Ambient {
    /// Of one request.
    pub fn of<B>(request: &http::Request<B>) -> Self {
        let name = |name| request.headers().get(name).cloned();
        Self {
            hops: request.extensions().get::<Hops>().copied().unwrap_or_default().0,
            names: [name(X_REQUEST_ID), name(TRACEPARENT)],
        }
    }

    /// The instance takes on a request. A call cannot be told to which of several requests it belongs: it then counts as
    /// coming from the deepest, and under no request's name.
    pub fn take_on(&mut self, request: Self, beside_others: bool) {
        if beside_others {
            self.hops = self.hops.max(request.hops);
            self.names = [None, None];
        } else {
            *self = request;
        }
    }

    /// Names the call as its request, where the guest has not named it.
    pub fn name(&self, headers: &mut HeaderMap) {
        for (name, value) in [X_REQUEST_ID, TRACEPARENT].into_iter().zip(&self.names) {
            if let Some(value) = value {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(hops: u32, id: &str) -> Ambient {
        let request = http::Request::builder()
            .header(X_REQUEST_ID, id)
            .extension(Hops(hops))
            .body(())
            .unwrap();
        Ambient::of(&request)
    }

    #[test]
    fn several_requests_in_one_instance_count_as_the_deepest_and_have_no_name() {
        let mut ambient = Ambient::default();
        ambient.take_on(request(3, "a"), false);
        let mut headers = HeaderMap::new();
        ambient.name(&mut headers);
        assert_eq!(
            (ambient.hops, &headers[X_REQUEST_ID]),
            (3, &HeaderValue::from_static("a"))
        );
        ambient.take_on(request(1, "b"), true);
        let mut headers = HeaderMap::new();
        ambient.name(&mut headers);
        assert_eq!((ambient.hops, headers.len()), (3, 0));
        ambient.take_on(request(0, "c"), false);
        assert_eq!(ambient.hops, 0);
    }

    #[test]
    fn a_name_that_the_guest_gave_stays() {
        let mut headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static("mine"))]);
        request(0, "theirs").name(&mut headers);
        assert_eq!(headers[X_REQUEST_ID], "mine");
    }
}
