//! One id for each request: the client's when it is a decent token, else a new one. Knows nothing of what it identifies.

use std::cell::Cell;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Given to the guest and back to the client.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids are replaced: they end up in logs and in other people's headers.
const MAX_BYTES: usize = 128;

/// The client's id if it sent exactly one that is 1 to 128 of letters, digits and `-_.:+/=@~`; else a new one.
pub fn take_or_make(headers: &HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(X_REQUEST_ID)
        && valid(id.as_bytes())
        && headers.get_all(X_REQUEST_ID).iter().nth(1).is_none()
    {
        return id.clone();
    }
    make()
}

fn valid(id: &[u8]) -> bool {
    (1..=MAX_BYTES).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=@~".contains(b))
}

/// 32 hex digits: 64 random bits of the thread, then its count. Unique, not secret.
pub fn make() -> HeaderValue {
    thread_local! {
        static NEXT: Cell<(u64, u64)> = Cell::new((fastrand::u64(..), 0));
    }
    let (thread, count) = NEXT.get();
    NEXT.set((thread, count.wrapping_add(1)));
    let mut text = [0; 32];
    hex(thread, &mut text[..16]);
    hex(count, &mut text[16..]);
    HeaderValue::from_bytes(&text).expect("hex digits are a header value")
}

fn hex(mut n: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(n & 15) as usize];
        n >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ids: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append(X_REQUEST_ID, id.parse().unwrap());
        }
        take_or_make(&headers).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_decent_id_is_kept() {
        for id in [
            "a",
            "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            "Root=1-67891233-abcdef012345678912345678",
        ] {
            assert_eq!(taken(&[id]), id);
        }
    }

    #[test]
    fn anything_else_is_replaced() {
        let long = "x".repeat(129);
        for ids in [
            &[""][..],
            &["a b"],
            &["a\tb"],
            &["<script>"],
            &[&long],
            &["a", "b"],
            &["a", "a"],
            &[],
        ] {
            let id = taken(ids);
            assert_eq!(id.len(), 32, "{ids:?}");
            assert!(id.bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn no_two_made_ids_are_equal() {
        let here: Vec<_> = (0..1000).map(|_| make()).collect();
        let there = std::thread::spawn(|| (0..1000).map(|_| make()).collect::<Vec<_>>())
            .join()
            .unwrap();
        let all: std::collections::HashSet<_> = here.iter().chain(&there).collect();
        assert_eq!(all.len(), 2000);
    }
}
