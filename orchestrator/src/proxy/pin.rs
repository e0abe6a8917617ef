//! What one request asks of the choice: a revision, by a header or a cookie that the service allows, and its roll of the dice.
//! Knows no replica.

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};

use crate::model::RevisionNumber;
use crate::model::service::Pin;

/// Longer numbers are none.
const MAX_DIGITS: usize = 19;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Below 1000; thrown once, so that a request that waits stays one of its revision.
    pub roll: u32,
    /// Kept to if it serves.
    pub revision: Option<RevisionNumber>,
}

/// Where a service lets requests name a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    header: Option<HeaderName>,
    cookie: Option<String>,
}

impl Pins {
    pub fn of(pin: &Pin) -> Option<Self> {
        let header = pin.header.as_deref().and_then(|name| name.parse().ok());
        let cookie = pin.cookie.clone();
        (header.is_some() || cookie.is_some()).then_some(Self { header, cookie })
    }

    /// The revision that a request names: by the header first, else by the first such cookie that is a number.
    pub fn asked(&self, headers: &HeaderMap) -> Option<RevisionNumber> {
        let header = self.header.as_ref().and_then(|name| headers.get(name));
        if let Some(found) = header.and_then(|value| number(value.as_bytes())) {
            return Some(found);
        }
        let name = self.cookie.as_deref()?.as_bytes();
        let cookies = headers.get_all(COOKIE).iter();
        let mut pairs = cookies.flat_map(|line| line.as_bytes().split(|b| *b == b';'));
        pairs.find_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
            number(value)
        })
    }
}

fn number(text: &[u8]) -> Option<RevisionNumber> {
    let text = text.trim_ascii();
    if !(1..=MAX_DIGITS).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = text.iter().map(|b| u64::from(b - b'0'));
    Some(RevisionNumber(digits.fold(0, |n, digit| n * 10 + digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&str, &str)]) -> Option<u64> {
        let pins = Pins::of(&Pin {
            header: Some("x-narae-revision".into()),
            cookie: Some("narae-revision".into()),
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        pins.unwrap().asked(&map).map(|n| n.0)
    }

    #[test]
    fn a_revision_is_named_by_header_or_cookie_the_header_first() {
        assert_eq!(asked(&[("x-narae-revision", "6")]), Some(6));
        assert_eq!(asked(&[("cookie", "a=b; narae-revision=7")]), Some(7));
        assert_eq!(asked(&[("cookie", "a=b"), ("cookie", "narae-revision=7;c=d")]), Some(7));
        assert_eq!(
            asked(&[("cookie", "narae-revision=7"), ("x-narae-revision", " 6 ")]),
            Some(6)
        );
    }

    #[test]
    fn what_is_no_number_asks_for_nothing() {
        for value in ["", "six", "-1", "+1", "1.0", "99999999999999999999", "6,7"] {
            assert_eq!(asked(&[("x-narae-revision", value)]), None, "{value}");
        }
        assert_eq!(
            asked(&[("cookie", "xnarae-revision=7; narae-revision; narae-revision2=9")]),
            None
        );
        assert_eq!(asked(&[]), None);
    }
}
