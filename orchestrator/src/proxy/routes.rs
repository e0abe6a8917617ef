//! Which service answers for a request. Built whole, never edited. Knows no replica.
//!
//! Order of precedence as the Gateway API has it: the more exact host, the longer path, a method, more headers, more query parameters;
//! among equals the first. A route whose conditions do not hold is not there for this request: the next one is looked at.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};

use super::service::Service;
use crate::model::service::{HostPattern, Route};

/// The route table: host exact before one-label wildcard before any; in each the longest path prefix on whole segments. A host
/// whose routes do not match the path falls through to the next kind.
#[derive(Default)]
pub struct Table {
    exact: HashMap<String, Paths>,
    one_label: HashMap<String, Paths>,
    any: Paths,
}

/// The routes of one host. Looking up costs as many probes as the deepest route has segments, however long the request's path is.
#[derive(Default)]
struct Paths {
    by_prefix: HashMap<String, Vec<Entry>>,
    root: Vec<Entry>,
    deepest: usize,
}

/// Where a route leads.
pub struct Entry {
    pub service: Arc<Service>,
    /// So many bytes at the start of the path are not for the guest.
    pub strip: usize,
    pub https_redirect: bool,
    /// Most routes have none.
    conditions: Option<Box<Conditions>>,
}

/// What a request must have beside host and path.
struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, String)>,
    query: Vec<(String, String)>,
}

/// What a request is routed by.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Lower case, without port.
    pub host: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

impl Table {
    /// Of two equal routes the first wins; a border above refuses them.
    pub fn build(routes: Vec<(Route, Arc<Service>)>) -> Self {
        let mut table = Self::default();
        for (route, service) in routes {
            let paths = match &route.host {
                HostPattern::Any => &mut table.any,
                HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default(),
                HostPattern::OneLabel(suffix) => table.one_label.entry(suffix.clone()).or_default(),
            };
            paths.insert(&route, service);
        }
        table
    }

    pub fn find(&self, asked: Asked<'_>) -> Option<&Entry> {
        let exact = || self.exact.get(asked.host)?.find(asked);
        let one_label = || {
            let (label, suffix) = asked.host.split_once('.')?;
            self.one_label.get(suffix).filter(|_| !label.is_empty())?.find(asked)
        };
        let named = if self.exact.is_empty() { None } else { exact() };
        let named = if named.is_none() && !self.one_label.is_empty() {
            one_label()
        } else {
            named
        };
        named.or_else(|| self.any.find(asked))
    }
}

impl Paths {
    fn insert(&mut self, route: &Route, service: Arc<Service>) {
        let path = route.path.strip_suffix('/').unwrap_or(&route.path);
        let entry = Entry {
            service,
            strip: if route.strip { path.len() } else { 0 },
            https_redirect: route.https_redirect,
            conditions: Conditions::of(route).map(Box::new),
        };
        let entries = if path.is_empty() {
            &mut self.root
        } else {
            self.deepest = self.deepest.max(path.matches('/').count());
            self.by_prefix.entry(path.to_owned()).or_default()
        };
        // Stable: among equals the first stays first.
        let at = entries.partition_point(|e| e.precedence() <= entry.precedence());
        entries.insert(at, entry);
    }

    fn find(&self, asked: Asked<'_>) -> Option<&Entry> {
        let fits = |entry: &&Entry| entry.conditions.as_ref().is_none_or(|c| c.hold(asked));
        if self.deepest > 0 {
            // Where the prefix of `deepest` whole segments ends; from there shorter, one segment at a time.
            let path = asked.path;
            let slashes = path.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'/');
            let mut end = slashes.map(|(at, _)| at).nth(self.deepest - 1).unwrap_or(path.len());
            while end > 0 {
                if let Some(entry) = self.by_prefix.get(&path[..end]).and_then(|e| e.iter().find(fits)) {
                    return Some(entry);
                }
                end = path[..end].rfind('/').unwrap_or(0);
            }
        }
        self.root.iter().find(fits)
    }
}

impl Entry {
    /// The smaller goes first.
    fn precedence(&self) -> (bool, Reverse<usize>, Reverse<usize>) {
        let none = (true, Reverse(0), Reverse(0));
        self.conditions.as_ref().map_or(none, |c| {
            (c.methods.is_empty(), Reverse(c.headers.len()), Reverse(c.query.len()))
        })
    }
}

impl Conditions {
    /// `None` when every request fits. A name that no request can carry fits none.
    fn of(route: &Route) -> Option<Self> {
        if route.methods.is_empty() && route.headers.is_empty() && route.query.is_empty() {
            return None;
        }
        let header = |(name, value): (&String, &String)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap_or(http::header::CONNECTION);
            (name, value.clone())
        };
        Some(Self {
            methods: route.methods.iter().filter_map(|m| m.parse().ok()).collect(),
            headers: route.headers.iter().map(header).collect(),
            query: route.query.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
    }

    fn hold(&self, asked: Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(asked.method))
            && self
                .headers
                .iter()
                .all(|(name, value)| has_header(asked.headers, name, value))
            && self
                .query
                .iter()
                .all(|(key, value)| has_parameter(asked.query, key, value))
    }
}

/// A field that came several times is one list (RFC 9110 section 5.3): its lines are compared joined.
fn has_header(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(only), None) => only.as_bytes() == value.as_bytes(),
        (Some(_), Some(_)) => {
            let all: Vec<&[u8]> = headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
            all.join(&b", "[..]) == value.as_bytes()
        }
        _ => false,
    }
}

/// The first parameter of that name counts, as in the Gateway API.
fn has_parameter(query: Option<&str>, key: &str, value: &str) -> bool {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(k, _)| k == key).is_some_and(|(_, v)| v == value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::service::ServiceTraffic;

    fn table(routes: &[(&str, &str, &str)]) -> Table {
        let built = routes.iter().map(|(host, path, name)| {
            let host = match *host {
                "" => HostPattern::Any,
                h if h.starts_with("*.") => HostPattern::OneLabel(h[2..].to_owned()),
                h => HostPattern::Exact(h.to_owned()),
            };
            let service = Service::new(name.parse().unwrap(), ServiceTraffic::default());
            (Route::of(host, *path), service)
        });
        Table::build(built.collect())
    }

    fn found<'a>(table: &'a Table, host: &str, path: &str) -> &'a str {
        let (method, headers) = (&Method::GET, &HeaderMap::new());
        let asked = Asked {
            host,
            path,
            query: None,
            method,
            headers,
        };
        table.find(asked).map_or("-", |e| e.service.name().as_str())
    }

    #[test]
    fn an_empty_table_answers_for_nothing() {
        assert_eq!(found(&Table::default(), "a", "/"), "-");
    }

    #[test]
    fn the_longest_prefix_on_whole_segments_wins() {
        let t = table(&[
            ("", "/", "root"),
            ("", "/api", "api"),
            ("", "/api/v1", "v1"),
            ("", "/a/b/c/d", "deep"),
        ]);
        for (path, want) in [
            ("/", "root"),
            ("/api", "api"),
            ("/api/", "api"),
            ("/apix", "root"),
            ("/ap", "root"),
            ("/api/v1", "v1"),
            ("/api/v1/x/y/z/w/v", "v1"),
            ("/api/v10", "api"),
            ("/api/x/v1", "api"),
            ("/api//v1", "api"),
            ("//api", "root"),
            ("/a/b/c", "root"),
            ("/a/b/c/d", "deep"),
            ("/a/b/c/d/e", "deep"),
            ("/a/b/c/dd", "root"),
            ("/API", "root"),
            ("/%61pi", "root"),
            ("/api/../x", "api"),
        ] {
            assert_eq!(found(&t, "h", path), want, "{path}");
        }
    }

    #[test]
    fn without_a_root_route_other_paths_have_no_service() {
        let t = table(&[("", "/hello", "hello")]);
        assert_eq!(found(&t, "h", "/hello/x"), "hello");
        for path in ["/", "/hell", "/hellos", "/x/hello", "/x"] {
            assert_eq!(found(&t, "h", path), "-", "{path}");
        }
    }

    #[test]
    fn an_exact_host_wins_over_a_wildcard_and_that_over_any() {
        let t = table(&[
            ("a.test", "/x", "exact"),
            ("*.test", "/", "wild"),
            ("", "/", "any"),
            ("", "/only", "only"),
        ]);
        assert_eq!(found(&t, "a.test", "/x"), "exact");
        assert_eq!(found(&t, "a.test", "/y"), "wild");
        assert_eq!(found(&t, "b.test", "/x"), "wild");
        assert_eq!(found(&t, "b.a.test", "/x"), "any");
        assert_eq!(found(&t, "test", "/x"), "any");
        assert_eq!(found(&t, "other", "/only/1"), "only");
        assert_eq!(found(&t, "a.test", "/only"), "wild");
    }

    #[test]
    fn of_two_equal_routes_the_first_wins() {
        let t = table(&[
            ("", "/a", "one"),
            ("", "/a", "two"),
            ("", "/", "three"),
            ("", "/", "four"),
        ]);
        assert_eq!(found(&t, "h", "/a"), "one");
        assert_eq!(found(&t, "h", "/"), "three");
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    /// Routes of `/` with methods, headers and query, by the name of their service.
    fn conditional(routes: &[(&str, &[&str], Pairs<'_>, Pairs<'_>)]) -> Table {
        let map = |pairs: Pairs<'_>| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let built = routes.iter().map(|(name, methods, headers, query)| {
            let route = Route {
                methods: methods.iter().map(|m| (*m).to_owned()).collect(),
                headers: map(headers),
                query: map(query),
                ..Route::of(HostPattern::Any, "/")
            };
            (route, Service::new(name.parse().unwrap(), ServiceTraffic::default()))
        });
        Table::build(built.collect())
    }

    fn asks<'a>(table: &'a Table, method: &Method, fields: &[(&'static str, &'static str)], query: &str) -> &'a str {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        let asked = Asked {
            host: "h",
            path: "/",
            query: Some(query),
            method,
            headers: &headers,
        };
        table.find(asked).map_or("-", |e| e.service.name().as_str())
    }

    #[test]
    fn a_method_goes_before_headers_and_those_before_the_query() {
        let t = conditional(&[
            ("plain", &[], &[], &[]),
            ("query", &[], &[], &[("a", "1"), ("b", "2")]),
            ("one-header", &[], &[("x-a", "1")], &[]),
            ("two-headers", &[], &[("x-a", "1"), ("x-b", "2")], &[]),
            ("post", &["POST", "PUT"], &[], &[]),
        ]);
        assert_eq!(asks(&t, &Method::GET, &[], ""), "plain");
        assert_eq!(asks(&t, &Method::GET, &[], "b=2&a=1"), "query");
        assert_eq!(asks(&t, &Method::GET, &[], "a=1"), "plain");
        assert_eq!(asks(&t, &Method::GET, &[("x-a", "1")], "a=1&b=2"), "one-header");
        assert_eq!(asks(&t, &Method::GET, &[("x-b", "2"), ("x-a", "1")], ""), "two-headers");
        assert_eq!(asks(&t, &Method::PUT, &[("x-b", "2"), ("x-a", "1")], ""), "post");
    }

    #[test]
    fn values_are_compared_whole_and_a_repeated_header_is_one_list() {
        let t = conditional(&[
            ("list", &[], &[("x-a", "1, 2")], &[]),
            ("one", &[], &[("x-a", "1")], &[]),
        ]);
        assert_eq!(asks(&t, &Method::GET, &[("x-a", "1"), ("x-a", "2")], ""), "list");
        assert_eq!(asks(&t, &Method::GET, &[("x-a", "1")], ""), "one");
        assert_eq!(asks(&t, &Method::GET, &[("x-a", "11")], ""), "-");
        assert_eq!(asks(&t, &Method::GET, &[], ""), "-");
    }

    #[test]
    fn of_a_repeated_parameter_the_first_counts_and_it_is_decoded() {
        let t = conditional(&[("it", &[], &[], &[("a b", "c&d")])]);
        assert_eq!(asks(&t, &Method::GET, &[], "a+b=c%26d"), "it");
        assert_eq!(asks(&t, &Method::GET, &[], "a%20b=c%26d&a%20b=x"), "it");
        assert_eq!(asks(&t, &Method::GET, &[], "a%20b=x&a%20b=c%26d"), "-");
    }

    #[test]
    fn a_longer_path_whose_conditions_fail_falls_back_to_a_shorter_one() {
        let service = |name: &str| Service::new(name.parse().unwrap(), ServiceTraffic::default());
        let post = Route {
            methods: ["POST".to_owned()].into(),
            ..Route::of(HostPattern::Exact("a.test".into()), "/x")
        };
        let t = Table::build(vec![
            (post, service("post")),
            (Route::of(HostPattern::Exact("a.test".into()), "/"), service("root")),
        ]);
        assert_eq!(found(&t, "a.test", "/x"), "root");
    }
}
