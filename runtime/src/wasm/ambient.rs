//! What a guest's own calls inherit from the requests that its instance serves: how many calls between services led here,
//! and the names that traces know the request by. The guest sees none of it change and cannot reset it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::guest::Hops;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Of one call.
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

    /// Names the call as its request, where the guest has not named it.
    pub fn name(&self, headers: &mut HeaderMap) {
        for (name, value) in [X_REQUEST_ID, TRACEPARENT].into_iter().zip(&self.names) {
            if let Some(value) = value {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
}

/// Of one instance: what a call inherits now.
#[derive(Default)]
pub struct Serving {
    now: Ambient,
    /// Hops of the requests that were not answered yet.
    running: Vec<u32>,
}

impl Serving {
    /// What a call inherits that is made now.
    pub fn now(&self) -> &Ambient {
        &self.now
    }

    /// The instance takes on a request. A call cannot be told to which of several requests it belongs: it then counts as
    /// coming from the deepest, and under no request's name.
    pub fn take_on(&mut self, request: Ambient, beside_others: bool) {
        if !beside_others {
            self.running.clear();
        }
        self.running.push(request.hops);
        if beside_others {
            self.now.names = [None, None];
            self.count();
        } else {
            self.now = request;
        }
    }

    /// A request with so many hops was answered: those beside it are no deeper for it any more. What the guest does after
    /// the last answer still counts as that request's.
    pub fn answered(&mut self, hops: u32) {
        if let Some(at) = self.running.iter().position(|running| *running == hops) {
            self.running.swap_remove(at);
        }
        self.count();
    }

    fn count(&mut self) {
        self.now.hops = self.running.iter().copied().max().unwrap_or(self.now.hops);
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
        let mut serving = Serving::default();
        serving.take_on(request(3, "a"), false);
        let mut headers = HeaderMap::new();
        serving.now().name(&mut headers);
        assert_eq!(
            (serving.now().hops, &headers[X_REQUEST_ID]),
            (3, &HeaderValue::from_static("a"))
        );
        serving.take_on(request(1, "b"), true);
        let mut headers = HeaderMap::new();
        serving.now().name(&mut headers);
        assert_eq!((serving.now().hops, headers.len()), (3, 0));
        serving.take_on(request(0, "c"), false);
        assert_eq!(serving.now().hops, 0);
    }

    #[test]
    fn a_deep_request_that_ended_no_longer_counts_for_those_beside_it() {
        let mut serving = Serving::default();
        serving.take_on(request(0, "a"), false);
        serving.take_on(request(15, "loop"), true);
        serving.take_on(request(15, "loop"), true);
        serving.answered(15);
        assert_eq!(serving.now().hops, 15, "the other one still runs");
        serving.answered(15);
        assert_eq!(serving.now().hops, 0);
        serving.take_on(request(2, "b"), true);
        serving.answered(0);
        assert_eq!(serving.now().hops, 2);
        serving.answered(2);
        assert_eq!(serving.now().hops, 2, "what goes on after the last answer");
        serving.take_on(request(0, "c"), false);
        assert_eq!(serving.now().hops, 0);
    }

    #[test]
    fn a_name_that_the_guest_gave_stays() {
        let mut headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static("mine"))]);
        request(0, "theirs").name(&mut headers);
        assert_eq!(headers[X_REQUEST_ID], "mine");
    }
}
