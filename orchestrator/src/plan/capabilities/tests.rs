//! The diff of capabilities, and who is asked.

use super::*;
use crate::model::service::KeyValueStore;
use crate::plan::world::spec;

const ASK: Wanting = Wanting::Ask;
const ALLOW: Wanting = Wanting::Allow;

fn target(scheme: &str, host: &str, port: u16) -> Target {
    Target {
        scheme: scheme.into(),
        host: host.into(),
        port,
    }
}

/// A file with these origins.
fn calling(origins: &[(&str, &str, u16)]) -> Capabilities {
    let mut spec = spec("a");
    spec.outbound.allow = origins.iter().map(|(s, h, p)| target(s, h, *p)).collect();
    Capabilities::of(&spec, [])
}

fn importing(imports: &[&str]) -> Capabilities {
    Capabilities::of(&spec("a"), imports.iter().copied())
}

fn reading(secrets: &[&str]) -> Capabilities {
    let mut spec = spec("a");
    spec.secrets = secrets
        .iter()
        .enumerate()
        .map(|(n, s)| (format!("V{n}"), (*s).to_owned()))
        .collect();
    Capabilities::of(&spec, [])
}

fn shown(changes: &[Change]) -> Vec<String> {
    let line = |c: &Change| {
        let sign = if c.added { '+' } else { '-' };
        let note = if c.added && !c.asks { " (not asked)" } else { "" };
        format!("{sign} {}{note}", c.capability)
    };
    changes.iter().map(line).collect()
}

fn between(before: &Capabilities, new: &Capabilities) -> Vec<String> {
    shown(&diff(&[before], new))
}

#[test]
fn the_same_again_is_no_difference() {
    for one in [
        calling(&[("https", "a.test", 443), ("http", "::1", 8080)]),
        importing(&["wasi:io/streams@0.2.6", "wasi:http/outgoing-handler@0.2.6", "host"]),
        reading(&["x", "y"]),
    ] {
        assert_eq!(diff(&[&one], &one), []);
    }
}

#[test]
fn origins_are_shown_as_a_file_has_them() {
    let new = calling(&[
        ("https", "a.test", 443),
        ("https", "a.test", 8443),
        ("http", "a.test", 80),
        ("http", "a.test", 443),
        ("http", "fd00::1", 80),
    ]);
    assert_eq!(
        between(&calling(&[]), &new),
        [
            "+ outbound http://[fd00::1]",
            "+ outbound http://a.test",
            "+ outbound http://a.test:443",
            "+ outbound https://a.test",
            "+ outbound https://a.test:8443",
        ]
    );
    assert!(
        between(&new, &calling(&[]))
            .iter()
            .all(|l| l.starts_with("- outbound "))
    );
}

#[test]
fn a_star_covers_exactly_one_label_of_the_same_scheme_and_port() {
    let had = calling(&[("https", "*.example.test", 443)]);
    for (host, beyond) in [
        ("a.example.test", false),
        ("*.example.test", false),
        ("example.test", true),
        ("a.b.example.test", true),
        ("*.b.example.test", true),
        ("aexample.test", true),
        ("a.example.test.evil.test", true),
        (".example.test", true),
    ] {
        let new = calling(&[("https", host, 443)]);
        assert_eq!(diff(&[&had], &new).iter().any(|c| c.added), beyond, "{host}");
    }
    for (scheme, port) in [("http", 443), ("http", 80), ("https", 8443)] {
        let new = calling(&[(scheme, "a.example.test", port)]);
        assert!(diff(&[&had], &new).iter().any(|c| c.added), "{scheme} {port}");
    }
    // The other way is more.
    assert!(
        diff(&[&calling(&[("https", "a.example.test", 443)])], &had)
            .iter()
            .any(|c| c.added)
    );
}

#[test]
fn private_addresses_count_once_anything_may_be_called() {
    let mut open = spec("a");
    open.outbound.private = true;
    assert_eq!(between(&importing(&[]), &Capabilities::of(&open, [])), [""; 0]);
    open.outbound.allow = vec![target("http", "a.test", 80)];
    assert_eq!(
        between(&calling(&[("http", "a.test", 80)]), &Capabilities::of(&open, [])),
        ["+ outbound private addresses"]
    );
}

#[test]
fn a_version_of_the_same_track_is_no_news_and_another_track_is() {
    for (old, new, beyond) in [
        ("0.2.0", "0.2.6", false),
        ("0.2.6", "0.2.0", false),
        ("0.2.6", "0.3.0", true),
        ("0.3.0-rc-2026-01-01", "0.3.0", true),
        ("0.3.0-rc-1", "0.3.0-rc-2", true),
        ("1.0.0", "1.9.3", false),
        ("1.0.0", "2.0.0", true),
        ("0.0.1", "0.0.2", true),
        ("0.2.1+build", "0.2.1", false),
    ] {
        let at = |version: &str| importing(&[&format!("wasi:http/outgoing-handler@{version}")]);
        let changes = diff(&[&at(old)], &at(new));
        assert_eq!(changes.iter().any(|c| c.added), beyond, "{old} {new}");
    }
}

#[test]
fn imports_that_lead_nowhere_are_shown_and_not_asked() {
    let new = importing(&[
        "wasi:io/streams@0.2.6",
        "wasi:clocks/monotonic-clock@0.2.6",
        "wasi:random/random@0.2.6",
        "wasi:cli/environment@0.2.6",
        "wasi:http/types@0.2.6",
        "wasi_snapshot_preview1::fd_write",
        "wasi_snapshot_preview1::path_open",
    ]);
    let changes = diff(&[&importing(&[])], &new);
    assert_eq!(changes.len(), 6, "preview 1 is one");
    assert!(changes.iter().all(|c| c.added && !c.asks));
    assert_eq!(asked(&[ASK], ASK, &changes), Vec::<&Capability>::new());
}

#[test]
fn imports_that_can_reach_something_are_asked() {
    for import in [
        "wasi:http/outgoing-handler@0.2.6",
        "wasi:http/client@0.3.0",
        "wasi:http/types-of-mine@0.2.0",
        "wasi:sockets/tcp@0.2.6",
        "wasi:filesystem/preopens@0.2.6",
        "wasi:keyvalue/store@0.2.0-draft2",
        "wasi:config/store@0.2.0-rc.1",
        "wasi:iota/x@0.1.0",
        "evil:host/anything@1.0.0",
        "anything",
    ] {
        let changes = diff(&[&importing(&[])], &importing(&[import]));
        assert_eq!(asked(&[ASK], ASK, &changes).len(), 1, "{import}");
    }
}

#[test]
fn secrets_stores_and_volumes_are_asked_by_name() {
    let mut new = spec("a");
    new.secrets.insert("DB".into(), "orders-db".into());
    new.keyvalue.push(KeyValueStore {
        backend: Default::default(),
        password: None,
        name: "default".into(),
        size_bytes: 1,
    });
    let changes = diff(&[&importing(&[])], &Capabilities::of(&new, []));
    assert_eq!(shown(&changes), ["+ secret orders-db", "+ keyvalue default"]);
    // The same secret under another variable is the same secret.
    let mut renamed = new.clone();
    renamed.secrets = [("OTHER".to_owned(), "orders-db".to_owned())].into();
    assert_eq!(
        diff(&[&Capabilities::of(&new, [])], &Capabilities::of(&renamed, [])),
        []
    );
}

#[test]
fn who_may_write_a_volume_may_read_it_and_not_the_other_way() {
    let one = |read_only, mount: &str| Capabilities(BTreeSet::from([volume("cache", mount, read_only)]));
    let beyond = |had: &Capabilities, new: &Capabilities| diff(&[had], new).iter().any(|c| c.added);
    assert!(!beyond(&one(false, "/data"), &one(true, "/data")));
    assert!(beyond(&one(true, "/data"), &one(false, "/data")));
    assert!(beyond(&one(false, "/data"), &one(true, "/other")));
    assert_eq!(
        between(&one(true, "/data"), &one(false, "/data")),
        ["+ volume cache at /data, read and write",]
    );
}

#[test]
fn sizes_limits_and_values_are_no_capabilities() {
    let mut new = spec("a");
    new.env.insert("A".into(), "b".into());
    new.config.insert("A".into(), "b".into());
    new.limits.memory_bytes *= 2;
    new.outbound.concurrent = 1;
    assert_eq!(diff(&[&importing(&[])], &Capabilities::of(&new, [])), []);
}

#[test]
fn a_first_deploy_never_asks_and_an_accepted_one_is_not_asked_again() {
    let (small, large) = (reading(&["a"]), reading(&["a", "b"]));
    let changes = diff(&[], &large);
    assert_eq!(asked(&[], ASK, &changes), Vec::<&Capability>::new());
    // The stable one has little, the wanted one was accepted a moment ago and is not proved yet.
    assert_eq!(diff(&[&small, &large], &large), []);
}

#[test]
fn the_question_cannot_be_switched_off_by_the_file_that_wants_more() {
    let mut new = spec("a");
    new.rollout.capabilities = ALLOW;
    let silent = Capabilities::of(&new, []);
    new.secrets.insert("A".into(), "a".into());
    let more = Capabilities::of(&new, []);
    let ask = importing(&[]);

    let both = diff(&[&ask], &more);
    assert_eq!(shown(&both), ["+ rule later revisions do not ask", "+ secret a"]);
    assert_eq!(asked(&[ASK], ALLOW, &both).len(), 2);
    // Giving the rule up is a wish of its own.
    assert_eq!(asked(&[ASK], ALLOW, &diff(&[&ask], &silent)).len(), 1);
    // Afterwards it holds.
    let later = diff(&[&silent], &more);
    assert_eq!(asked(&[ALLOW], ALLOW, &later), Vec::<&Capability>::new());
    // A file that wants to be asked is asked, and so is one whose other predecessor wanted to be.
    assert_eq!(asked(&[ALLOW], ASK, &later).len(), 1);
    assert_eq!(asked(&[ALLOW, ASK], ALLOW, &later).len(), 1);
}

#[test]
fn wanting_less_is_shown_and_never_asked() {
    let changes = diff(&[&reading(&["a", "b"])], &reading(&["b"]));
    assert_eq!(shown(&changes), ["- secret a"]);
    assert!(asked(&[ASK], ASK, &changes).is_empty());
}

#[test]
fn over_many_sets_nothing_beyond_is_missed_and_nothing_had_is_asked() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let set = |bits: usize| -> Vec<&str> {
        let on = names.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1);
        on.map(|(_, name)| *name).collect()
    };
    for old in 0..64 {
        for new in 0..64 {
            let changes = diff(&[&reading(&set(old))], &reading(&set(new)));
            let wanted: Vec<_> = asked(&[ASK], ASK, &changes).iter().map(|c| c.name.as_str()).collect();
            assert_eq!(wanted, set(new & !old));
            let gone: Vec<_> = changes
                .iter()
                .filter(|c| !c.added)
                .map(|c| c.capability.name.as_str())
                .collect();
            assert_eq!(gone, set(old & !new));
        }
    }
}

#[test]
fn an_import_names_the_grant_it_needs() {
    let mut spec = spec("a");
    for (import, grant) in [
        ("wasi:http/outgoing-handler@0.2.6", Some("[outbound] allow")),
        ("wasi:keyvalue/store@0.2.0-draft2", Some("[[keyvalue]]")),
        ("wasi:filesystem/types@0.2.6", Some("[[volume]]")),
        ("wasi:config/store@0.2.0-rc.1", Some("[config]")),
        ("wasi:io/streams@0.2.6", None),
    ] {
        assert_eq!(needs(import), grant, "{import}");
        assert_eq!(grants(&spec, import), grant.is_none(), "{import}");
    }
    spec.outbound.allow = vec![target("http", "a.test", 80)];
    assert!(grants(&spec, "wasi:http/outgoing-handler@0.2.6"));
}

#[test]
fn services_ports_servers_and_where_a_secret_goes_are_wishes() {
    let mut spec = spec("a");
    spec.outbound.allow = vec![target("tcp", "db.test", 80)];
    spec.outbound.services = vec!["stock".into()];
    spec.outbound.credentials = vec![narae_runtime::CredentialName {
        host: "a.test".into(),
        header: "authorization".into(),
        secret: "token".into(),
    }];
    spec.keyvalue = vec![KeyValueStore {
        name: "cache".into(),
        backend: crate::model::service::KeyValueBackend::Redis("redis://10.0.0.6:6379/0".into()),
        password: None,
        size_bytes: 1,
    }];
    let shown: Vec<String> = Capabilities::of(&spec, []).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "outbound service:stock",
            "outbound tcp://db.test:80",
            "secret token",
            "secret token as authorization to a.test",
            "keyvalue cache at redis://10.0.0.6:6379/0"
        ]
    );
}
