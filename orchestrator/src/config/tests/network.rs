//! What a file can say about the outside, and what it cannot.

use super::*;
use crate::config::service::tests::{bad, codes, good};

const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

#[test]
fn tcp_and_services_are_allowed_beside_origins() {
    let spec = good(&format!(
        "{HEAD}[outbound]\nallow = [\"service:stock\", \"tcp://10.20.0.5:5432\", \"https://a.test\", \"tcp://[fd00::5]:6379\"]\n"
    ));
    assert_eq!(spec.outbound.services, ["stock"]);
    assert_eq!(spec.outbound.allow[0].scheme, "tcp");
    let shown: Vec<_> = show_allowed(&spec.outbound).collect();
    assert_eq!(
        shown,
        [
            "tcp://10.20.0.5:5432",
            "https://a.test",
            "tcp://[fd00::5]:6379",
            "service:stock"
        ]
    );
    for text in [
        "tcp://10.0.0.1",
        "tcp://a.test/x",
        "tcp://u@a:1",
        "service:",
        "service:A_B",
        "service:a.b",
        "service://a",
    ] {
        let found = codes(&format!("{HEAD}[outbound]\nallow = [\"{text}\"]\n"));
        assert_eq!(found, [Code::BadTarget], "{text}");
    }
}

#[test]
fn a_credential_names_one_host_one_header_and_a_secret() {
    let line = "credentials = [{ host = \"Pay.test\", header = \"Authorization\", secret = \"token\" }]";
    let spec = good(&format!("{HEAD}[outbound]\nallow = [\"https://pay.test\"]\n{line}\n"));
    let credential = &spec.outbound.credentials[0];
    assert_eq!(
        (
            credential.host.as_str(),
            credential.header.as_str(),
            credential.secret.as_str()
        ),
        ("pay.test", "authorization", "token")
    );
    for (entry, code) in [
        (
            "{ host = \"*.test\", header = \"authorization\", secret = \"s\" }",
            Code::BadCredential,
        ),
        (
            "{ host = \"https://a.test\", header = \"authorization\", secret = \"s\" }",
            Code::BadHost,
        ),
        (
            "{ host = \"a.test\", header = \"Host\", secret = \"s\" }",
            Code::BadCredential,
        ),
        (
            "{ host = \"a.test\", header = \"a b\", secret = \"s\" }",
            Code::BadCredential,
        ),
        ("{ host = \"a.test\", secret = \"s\" }", Code::MissingKey),
        ("{ host = \"a.test\", header = \"authorization\" }", Code::MissingKey),
    ] {
        let text =
            format!("{HEAD}[outbound]\nallow = [\"https://a.test\", \"https://b.test\"]\ncredentials = [{entry}]\n");
        assert!(codes(&text).contains(&code), "{entry}: {:?}", codes(&text));
    }
    let twice = format!(
        "{HEAD}[outbound]\nallow = [\"https://*.test\"]\ncredentials = [{{ host = \"a.test\", header = \"x\", secret = \"s\" }}, {{ host = \"a.test\", header = \"X\", secret = \"t\" }}]\n"
    );
    assert_eq!(codes(&twice), [Code::BadCredential]);
}

#[test]
fn a_redis_backend_is_a_server_without_a_password() {
    let backend = |text: &str| {
        good(&format!("{HEAD}[[keyvalue]]\nbackend = \"{text}\"\n")).keyvalue[0]
            .backend
            .clone()
    };
    assert_eq!(backend("embedded"), KeyValueBackend::Embedded);
    for (text, url) in [
        ("redis://10.0.0.6", "redis://10.0.0.6:6379/0"),
        ("redis://Cache.test:6380/3", "redis://cache.test:6380/3"),
        ("redis://narae@[::1]/", "redis://narae@[::1]:6379/0"),
    ] {
        assert_eq!(backend(text), KeyValueBackend::Redis(url.into()), "{text}");
    }
    for text in [
        "redis",
        "redis://",
        "redis://a.test/x",
        "redis://a.test:0",
        "redis://a.test?db=1",
        "redis://*.test",
        "http://a.test",
        "redis://user:pass@a.test",
        "redis://:pass@a.test",
        "redis://a b@a.test",
    ] {
        let found = codes(&format!("{HEAD}[[keyvalue]]\nbackend = \"{text}\"\n"));
        assert_eq!(found, [Code::BadBackend], "{text}");
    }
    let found = bad(&format!("{HEAD}[[keyvalue]]\nbackend = \"redis://:hunter2@a.test\"\n"));
    assert!(
        found[0]
            .help
            .as_ref()
            .is_some_and(|help| help.contains("narae secret set"))
    );
    assert_eq!(
        codes(&format!("{HEAD}[[keyvalue]]\nbackend = \"rediss://a.test\"\n")),
        [Code::NotSupportedYet]
    );
    let lonely = format!("{HEAD}[[keyvalue]]\npassword = \"redis-password\"\n");
    assert_eq!(codes(&lonely), [Code::BadBackend]);
}
