//! What may pass: a pure function over a request's head, before anything is routed. Knows no route and no connection.
//!
//! Rules: RFC 9112 sections 3 and 6, RFC 9113 section 8.3, and stricter where two readers could understand two things. What hyper
//! itself hides (a `content-length` beside `transfer-encoding`, a bare LF) is found by `framing` in the raw bytes.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderValue, Method, Uri, Version};

use super::status::Reason;

/// Longest request target, in bytes.
pub const MAX_URI: usize = 8 << 10;
/// Longest header section, in bytes of names, values and 4 per field.
pub const MAX_HEAD: usize = 32 << 10;
/// Most fields of a header section.
pub const MAX_FIELDS: usize = 100;
/// Longest host name with port, in bytes (a DNS name has at most 253).
const MAX_HOST: usize = 260;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A request that may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Lower case, without port and without a final dot. IPv6 in brackets.
    pub host: Cow<'a, str>,
    /// As it was sent, without the query; `*` is given as `/`.
    pub path: &'a str,
    /// There is at least one field to strip.
    pub hop_by_hop: bool,
    /// `content-length`, if there is one.
    pub length: Option<u64>,
}

/// A request that may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub status: u16,
    /// Close the connection after the answer (HTTP/1).
    pub close: bool,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            status: reason.status().as_u16(),
            close: reason.closes(),
        }
    }
}

/// Checks one head. One pass over the fields, no allocation unless the host has upper-case letters.
pub fn check<'a>(
    version: Version,
    method: &Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
) -> Result<Target<'a>, Refusal> {
    if *method == Method::CONNECT {
        return Err(Reason::Connect.into());
    }
    let seen = scan(headers)?;
    let http2 = version == Version::HTTP_2;
    if !matches!(version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(Reason::BadTarget.into());
    }
    if http2 && seen.transfer_encoding {
        return Err(Reason::BadFraming.into());
    }
    if seen.transfer_encoding && (seen.length.is_some() || version == Version::HTTP_10) {
        return Err(Reason::BadFraming.into());
    }
    let path = path(method, uri, http2)?;
    let host = match (http2, uri.authority(), seen.host) {
        (true, Some(authority), None) => host(authority.as_str().as_bytes()),
        (true, Some(authority), Some(field)) => {
            let named = host(authority.as_str().as_bytes());
            let agree = authority.as_str().as_bytes().eq_ignore_ascii_case(field.as_bytes());
            named.filter(|_| agree)
        }
        (true, None, Some(field)) | (false, None, Some(field)) => host(field.as_bytes()),
        _ => None,
    };
    let host = host.ok_or(Refusal::from(Reason::BadHost))?;
    Ok(Target {
        host,
        path,
        hop_by_hop: seen.hop_by_hop,
        length: seen.length,
    })
}

#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a HeaderValue>,
    length: Option<u64>,
    transfer_encoding: bool,
    hop_by_hop: bool,
}

fn scan(headers: &HeaderMap) -> Result<Seen<'_>, Refusal> {
    let mut seen = Seen::default();
    if headers.len() > MAX_FIELDS {
        return Err(Reason::HeadTooLarge.into());
    }
    let mut bytes = 0;
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len() + 4;
        match name.as_str() {
            "host" if seen.host.is_some() => return Err(Reason::BadHost.into()),
            "host" => seen.host = Some(value),
            "content-length" => {
                let length = digits(value.as_bytes()).ok_or(Refusal::from(Reason::BadFraming))?;
                if seen.length.replace(length).is_some() {
                    return Err(Reason::BadFraming.into());
                }
            }
            "transfer-encoding" => {
                if seen.transfer_encoding || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Reason::BadFraming.into());
                }
                seen.transfer_encoding = true;
                seen.hop_by_hop = true;
            }
            name if hop_by_hop(name) || forwarded(name) => seen.hop_by_hop = true,
            _ => {}
        }
    }
    if bytes > MAX_HEAD {
        Err(Reason::HeadTooLarge.into())
    } else {
        Ok(seen)
    }
}

/// Origin-form, or `*` with OPTIONS. In HTTP/2 the scheme and authority come apart from the path and are no absolute-form.
fn path<'a>(method: &Method, uri: &'a Uri, http2: bool) -> Result<&'a str, Refusal> {
    if !http2 && (uri.scheme().is_some() || uri.authority().is_some()) {
        return Err(Reason::BadTarget.into());
    }
    let target = uri.path_and_query().map_or("", |p| p.as_str());
    if target.len() > MAX_URI {
        return Err(Reason::UriTooLong.into());
    }
    match uri.path() {
        "*" if *method == Method::OPTIONS && uri.query().is_none() => Ok("/"),
        path if path.starts_with('/') => Ok(path),
        _ => Err(Reason::BadTarget.into()),
    }
}

/// `host` or `host:port` of a `host` field, normalised; `None` when it is neither a name, an IPv4 nor a bracketed IPv6 address.
fn host(text: &[u8]) -> Option<Cow<'_, str>> {
    if text.is_empty() || text.len() > MAX_HOST {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let (name, rest) = if text.starts_with('[') {
        let end = text.find(']')? + 1;
        text[1..end - 1].parse::<Ipv6Addr>().ok()?;
        text.split_at(end)
    } else {
        let end = text.find(':').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let name = name.strip_suffix('.').unwrap_or(name);
        let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty()
            || name.starts_with('.')
            || name.ends_with('.')
            || name.contains("..")
            || !name.bytes().all(byte)
        {
            return None;
        }
        (name, rest)
    };
    if !rest.is_empty() {
        let port = rest.strip_prefix(':')?;
        if port.is_empty() || port.len() > 5 || digits(port.as_bytes())? > u64::from(u16::MAX) {
            return None;
        }
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Some(Cow::Owned(name.to_ascii_lowercase()))
    } else {
        Some(Cow::Borrowed(name))
    }
}

/// A number of digits only: no sign, no space, no list.
pub fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// RFC 9110 section 7.6.1, and the fields of RFC 2616's list that old peers still send.
pub fn hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// What only a trusted proxy may say. None is trusted yet, so the client's own are dropped.
fn forwarded(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip")
}

/// Removes from a request what [`Target::hop_by_hop`] is about: hop-by-hop fields and what a client says about itself as a proxy.
pub fn strip_request(headers: &mut HeaderMap) {
    strip(headers);
    let claims: Vec<_> = headers
        .keys()
        .filter(|name| forwarded(name.as_str()))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Removes hop-by-hop fields and those that `connection` names. Fields that frame or address the message stay: naming them there
/// must not make them vanish.
pub fn strip(headers: &mut HeaderMap) {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',') {
            if let Ok(name) = HeaderName::from_bytes(token.trim_ascii())
                && name != HOST
                && name != CONTENT_LENGTH
                && named.len() < MAX_FIELDS
            {
                named.push(name);
            }
        }
    }
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GET /x HTTP/1.1` with fields.
    fn http1(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<(String, String), Reason> {
        run(Version::HTTP_11, method, target, fields)
    }

    fn run(version: Version, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<(String, String), Reason> {
        let uri: Uri = target.parse().expect("test target");
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        match check(version, &method.parse().unwrap(), &uri, &headers) {
            Ok(target) => Ok((target.host.into_owned(), target.path.to_owned())),
            Err(refusal) => Err(refusal.reason),
        }
    }

    #[test]
    fn a_plain_request_passes() {
        assert_eq!(
            http1("GET", "/a/b?c=d", &[("host", "Example.Test:8080")]),
            Ok(("example.test".into(), "/a/b".into()))
        );
        assert_eq!(
            http1("GET", "/", &[("host", "example.test.")]).unwrap().0,
            "example.test"
        );
        assert_eq!(http1("GET", "/", &[("host", "127.0.0.1:1")]).unwrap().0, "127.0.0.1");
        assert_eq!(http1("GET", "/", &[("host", "[::1]:80")]).unwrap().0, "[::1]");
        assert_eq!(http1("OPTIONS", "*", &[("host", "a")]).unwrap().1, "/");
        assert_eq!(run(Version::HTTP_10, "GET", "/", &[("host", "a")]).unwrap().0, "a");
    }

    #[test]
    fn there_is_exactly_one_valid_host() {
        assert_eq!(http1("GET", "/", &[]), Err(Reason::BadHost));
        assert_eq!(http1("GET", "/", &[("host", "a"), ("host", "a")]), Err(Reason::BadHost));
        assert_eq!(run(Version::HTTP_10, "GET", "/", &[]), Err(Reason::BadHost));
        for host in [
            "",
            " ",
            "a b",
            "a,b",
            "a/b",
            "user@a",
            "a:",
            "a:b",
            "a:65536",
            "a:123456",
            "a:-1",
            "a:1:2",
            ".",
            "..",
            ".a",
            "a..b",
            "[::1",
            "::1",
            "[::1]a",
            "[::1]:",
            "[zz]",
            "[::1%25eth0]",
            "a%2fb",
            "a\tb",
            "a?b",
            "a#b",
            "http://a",
        ] {
            assert_eq!(http1("GET", "/", &[("host", host)]), Err(Reason::BadHost), "{host:?}");
        }
        assert_eq!(http1("GET", "/", &[("host", &"a".repeat(261))]), Err(Reason::BadHost));
    }

    #[test]
    fn connect_is_refused_whatever_else_is_wrong() {
        assert_eq!(http1("CONNECT", "a:80", &[]), Err(Reason::Connect));
        assert_eq!(Refusal::from(Reason::Connect).status, 405);
    }

    #[test]
    fn only_origin_form_and_a_star_for_options_pass() {
        let host = [("host", "a")];
        assert_eq!(http1("GET", "http://a/", &host), Err(Reason::BadTarget));
        assert_eq!(http1("GET", "a:80", &host), Err(Reason::BadTarget));
        assert_eq!(http1("GET", "*", &host), Err(Reason::BadTarget));
        assert_eq!(
            http1("GET", &format!("/{}", "a".repeat(MAX_URI)), &host),
            Err(Reason::UriTooLong)
        );
        assert!(http1("GET", &format!("/{}", "a".repeat(MAX_URI - 1)), &host).is_ok());
    }

    #[test]
    fn framing_is_never_ambiguous() {
        let bad = [
            &[("transfer-encoding", "chunked"), ("content-length", "3")][..],
            &[("content-length", "3"), ("content-length", "3")],
            &[("content-length", "3"), ("content-length", "4")],
            &[("content-length", "3, 3")],
            &[("content-length", "+3")],
            &[("content-length", "-1")],
            &[("content-length", "0x3")],
            &[("content-length", "")],
            &[("content-length", "99999999999999999999")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "")],
        ];
        for fields in bad {
            let with_host: Vec<_> = [("host", "a")].into_iter().chain(fields.iter().copied()).collect();
            assert_eq!(http1("POST", "/", &with_host), Err(Reason::BadFraming), "{fields:?}");
        }
        assert!(http1("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")]).is_ok());
        let old = run(
            Version::HTTP_10,
            "POST",
            "/",
            &[("host", "a"), ("transfer-encoding", "chunked")],
        );
        assert_eq!(old, Err(Reason::BadFraming));
    }

    #[test]
    fn too_many_or_too_large_fields_are_refused() {
        let many: Vec<_> = (0..MAX_FIELDS).map(|_| ("x", "y")).chain([("host", "a")]).collect();
        assert_eq!(http1("GET", "/", &many), Err(Reason::HeadTooLarge));
        let large = "x".repeat(MAX_HEAD);
        assert_eq!(
            http1("GET", "/", &[("host", "a"), ("x", &large)]),
            Err(Reason::HeadTooLarge)
        );
    }

    #[test]
    fn http2_authority_and_host_must_agree() {
        let v2 = Version::HTTP_2;
        assert_eq!(
            run(v2, "GET", "http://a.test/x", &[]),
            Ok(("a.test".into(), "/x".into()))
        );
        assert!(run(v2, "GET", "http://a.test/x", &[("host", "A.test")]).is_ok());
        assert_eq!(
            run(v2, "GET", "http://a.test/x", &[("host", "b.test")]),
            Err(Reason::BadHost)
        );
        assert_eq!(run(v2, "GET", "http://u@a.test/x", &[]), Err(Reason::BadHost));
        assert_eq!(run(v2, "GET", "/x", &[]), Err(Reason::BadHost));
        assert!(run(v2, "GET", "/x", &[("host", "a")]).is_ok());
        assert_eq!(
            run(v2, "GET", "http://a.test/", &[("transfer-encoding", "chunked")]),
            Err(Reason::BadFraming)
        );
    }

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_names_are_stripped() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "a"),
            ("content-length", "3"),
            ("connection", "close, X-Secret , host,content-length,, bad name"),
            ("connection", "upgrade"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("x-kept", "2"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-prefix", "/x"),
            ("x-real-ip", "1.2.3.4"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip_request(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-kept"]);
    }
}
