//! Counters, rates and their text.

use std::collections::BTreeSet;

use super::*;

fn name() -> ServiceName {
    "hello".parse().unwrap()
}

const R1: RevisionNumber = RevisionNumber(1);

fn answer(revision: &RevisionMetrics, status: u16, ms: u64) {
    revision.started();
    revision.finished(status, Duration::from_millis(ms));
}

#[test]
fn the_text_is_openmetrics() {
    let metrics = Metrics::new();
    let revision = metrics.revision(&name(), R1);
    answer(&revision, 200, 3);
    answer(&revision, 999, 40_000);
    revision.started();
    revision.started();
    revision.failed(Reason::Trap);
    revision.set_replicas([0, 0, 0, 2, 0, 0, 1]);
    revision.add_cpu(1_500_000_000);
    metrics.service(&name()).failed(Reason::NoReplica);
    metrics.service(&name()).set_waiting(1);
    metrics.node().set_data_path(1, 2, vec![(Reason::NoRoute, 3)]);
    metrics.node().set_memory(1 << 30, 1 << 20);
    let text = metrics.encode();
    for line in [
        "# TYPE narae_requests counter",
        "narae_requests_total{service=\"hello\",revision=\"1\",status=\"2xx\"} 1",
        "narae_requests_total{service=\"hello\",revision=\"1\",status=\"5xx\"} 2",
        "narae_errors_total{service=\"hello\",revision=\"1\",reason=\"trap\"} 1",
        "narae_errors_total{service=\"hello\",reason=\"no-replica\"} 1",
        "# TYPE narae_request_duration_seconds histogram",
        "# UNIT narae_request_duration_seconds seconds",
        "narae_request_duration_seconds_sum{service=\"hello\",revision=\"1\"} 40.003",
        "narae_request_duration_seconds_count{service=\"hello\",revision=\"1\"} 2",
        "narae_request_duration_seconds_bucket{le=\"0.002\",service=\"hello\",revision=\"1\"} 0",
        "narae_request_duration_seconds_bucket{le=\"0.005\",service=\"hello\",revision=\"1\"} 1",
        "narae_request_duration_seconds_bucket{le=\"30.0\",service=\"hello\",revision=\"1\"} 1",
        "narae_request_duration_seconds_bucket{le=\"+Inf\",service=\"hello\",revision=\"1\"} 2",
        "narae_in_flight{service=\"hello\",revision=\"1\"} 1",
        "narae_queued{service=\"hello\"} 1",
        "narae_cpu_seconds_total{service=\"hello\",revision=\"1\"} 1.5",
        "narae_replicas{service=\"hello\",revision=\"1\",phase=\"serving\"} 2",
        "narae_connections 1",
        "narae_panics_total 2",
        "narae_refused_total{reason=\"no-route\"} 3",
        "narae_memory_budget_bytes 1073741824",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
    assert!(text.contains("narae_build_info{version=\""));
    assert!(text.ends_with("# EOF\n"));
    well_formed(&text);
}

#[test]
fn the_text_of_nothing_is_openmetrics() {
    well_formed(&Metrics::new().encode());
}

/// Each family once, its samples together, each sample once, `# EOF` last.
fn well_formed(text: &str) {
    let (mut families, mut samples, mut family) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            assert!(families.insert(family), "{family} twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(family), "{sample} is not of {family}");
            assert!(samples.insert(sample), "{sample} twice");
            assert!(value.parse::<f64>().is_ok(), "{value}");
        }
    }
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[test]
fn rates_are_those_of_the_last_minute() {
    let metrics = Metrics::new();
    let revision = metrics.revision(&name(), R1);
    metrics.tick(Millis(0));
    for second in 1..=300_u64 {
        let ms = if second <= 240 { 500 } else { 1 };
        for _ in 0..10 {
            answer(&revision, 200, ms);
        }
        metrics.tick(Millis(second * 1000));
    }
    let rates = metrics.rates(&name(), Millis(300_000));
    assert!((rates.requests_per_second - 10.0).abs() < 0.5, "{rates:?}");
    assert_eq!(rates.p50_ms, Some(1.0));
    assert_eq!(rates.p99_ms, Some(1.0), "the slow ones are older than a minute");
    // A quiet minute later.
    for second in 301..=370_u64 {
        metrics.tick(Millis(second * 1000));
    }
    let rates = metrics.rates(&name(), Millis(370_000));
    assert_eq!((rates.requests_per_second, rates.p99_ms), (0.0, None));
}

#[test]
fn a_young_service_has_rates_at_once() {
    let metrics = Metrics::new();
    let revision = metrics.revision(&name(), R1);
    metrics.tick(Millis(1000));
    for _ in 0..20 {
        answer(&revision, 200, 2);
    }
    let rates = metrics.rates(&name(), Millis(3000));
    assert!((rates.requests_per_second - 10.0).abs() < 0.01);
}

#[test]
fn only_live_revisions_are_shown() {
    let metrics = Metrics::new();
    let old = metrics.revision(&name(), R1);
    metrics.revision(&name(), RevisionNumber(2));
    metrics.keep(&name(), &[RevisionNumber(2)]);
    answer(&old, 200, 1);
    assert!(!metrics.encode().contains("revision=\"1\""));
    metrics.forget(&name());
    assert!(!metrics.encode().contains("hello"));
}

#[test]
fn requests_in_flight_come_back_to_zero_however_they_end() {
    let metrics = Metrics::new();
    let revision = metrics.revision(&name(), R1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..1000 {
                    revision.started();
                    if n % 3 == 0 {
                        revision.failed(Reason::ClientGone)
                    } else {
                        revision.finished(200, Duration::ZERO)
                    }
                }
            });
        }
    });
    assert_eq!(revision.in_flight(), 0);
    assert_eq!(revision.answered() + revision.errors.get(Reason::ClientGone), 4000);
}
