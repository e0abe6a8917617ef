//! The rules of `print`, one test each.

use super::*;
use crate::config::service;
use proptest::prelude::*;
use std::time::Duration;

fn round(text: &str) {
    let spec = service(text, "a")
        .unwrap_or_else(|p| panic!("{}", crate::config::render_all(&p, false)))
        .spec;
    let printed = effective(&spec);
    let again =
        service(&printed, "b").unwrap_or_else(|p| panic!("{printed}\n{}", crate::config::render_all(&p, false)));
    assert_eq!(again.spec, spec, "{printed}");
    assert_eq!(effective(&again.spec), printed);
}

#[test]
fn the_smallest_and_the_full_file_read_back_as_they_were() {
    round(crate::config::service::tests::SMALL);
    round(crate::config::service::tests::FULL);
}

#[test]
fn odd_texts_read_back_as_they_were() {
    round(
        "name = \"a\"\nmodule = \"a b\\\\\\\"'.wasm\"\n[env]\n\"a.b c\" = \"\\u0001\\n'\\\"\\\"\\\"\\\\\"\n\"Ü\" = \"ü\"\n",
    );
}

#[test]
fn every_default_is_shown() {
    insta::assert_snapshot!(
        "effective_small",
        effective(&service(crate::config::service::tests::SMALL, "a").unwrap().spec)
    );
    insta::assert_snapshot!("effective_node", effective_node(&NodeConfig::default()));
}

/// The tables say what the default is, and the models too: they must agree.
#[test]
fn the_defaults_of_the_models_are_those_of_the_table() {
    let spec = service("name = \"a\"\nmodule = \"a.wasm\"\n", "a").unwrap().spec;
    assert_eq!(spec.limits, narae_runtime::Limits::default());
    assert_eq!(spec.traffic, crate::model::service::Traffic::default());
    assert_eq!(spec.startup, crate::model::service::StartupProbe::default());
    assert_eq!(spec.restart, crate::model::service::Restart::default());
    assert_eq!(spec.rollout, crate::model::service::Rollout::default());
    assert_eq!(spec.autoscale, None);
    let table = service("name = \"a\"\nmodule = \"a.wasm\"\n[autoscale]\n", "a")
        .unwrap()
        .spec;
    assert_eq!(table.autoscale, Some(crate::model::service::Autoscale::default()));
    assert_eq!(spec.outbound, narae_runtime::Outbound::default());
    assert_eq!(spec.logs, crate::model::service::Logs::default());
    assert_eq!(
        (spec.replicas.get(), spec.world, spec.readiness),
        (1, World::Auto, None)
    );
}

#[test]
fn every_key_of_the_table_is_printed_or_has_no_value() {
    let job = "name = \"a\"\nmodule = \"a.wasm\"\nworld = \"command\"\n";
    let printed = [crate::config::service::tests::FULL, job].map(|text| effective(&service(text, "a").unwrap().spec));
    let printed = printed.concat();
    for (path, key) in crate::config::service_keys::SERVICE.walk() {
        // `routes` is printed as [[route]].
        assert!(path == "routes" || printed.contains(key.name), "{path} is not printed");
    }
}

prop_compose! {
    fn quantity()(ms in 1_u64..3_000_000, bytes in 65_536_u64..4 << 30, n in 1_u32..1_000, percent in 1_u32..1_000, factor in 1_000_u32..100_000)
        -> (u64, u64, u32, u32, u32) { (ms, bytes, n, percent, factor) }
}

proptest! {
    #[test]
    fn any_spec_reads_back_as_it_was(
        (ms, bytes, n, percent, factor) in quantity(),
        texts in prop::collection::btree_map("[^=\u{0}-\u{1f}\u{7f}-\u{9f}]{1,12}", "[^\u{0}]{0,20}", 0..4),
        description in "[ -~가-힣]{0,30}",
        flag: bool,
        paths in prop::collection::btree_set("/[a-z0-9._~-]{1,8}x(/[a-z]{1,5})?", 0..5),
    ) {
        let mut spec = service(crate::config::service::tests::FULL, "a").unwrap().spec;
        spec.limits.timeout = Duration::from_millis(ms);
        spec.limits.memory_bytes = bytes;
        spec.keyvalue[0].size_bytes = bytes;
        spec.limits.requests_at_once = flag.then_some(n);
        spec.rollout.max_surge = Amount::Percent(percent);
        spec.restart.factor_milli = factor;
        spec.env = texts;
        spec.description = Some(description);
        spec.outbound.private = flag;
        spec.readiness = None;
        spec.routes = paths.into_iter().map(|path| crate::model::service::Route::of(crate::model::service::HostPattern::Any, path)).collect();
        let printed = effective(&spec);
        let again = service(&printed, "b");
        prop_assert!(again.is_ok(), "{printed}\n{:?}", again.err());
        prop_assert_eq!(again.unwrap().spec, spec);
    }
}

#[test]
fn keys_are_quoted_where_toml_needs_it() {
    let spec = service(
        "name = \"a\"\nmodule = \"a.wasm\"\n[env]\n\"a b\" = \"1\"\nC-D_e = \"2\"\n",
        "a",
    )
    .unwrap()
    .spec;
    let keys: Vec<String> = entries(&spec)
        .iter()
        .filter(|e| e.under("env"))
        .map(Entry::key)
        .collect();
    assert_eq!(keys, ["env.C-D_e", "env.\"a b\""]);
}
