//! The metric families and their names. Walks the counters when it is asked; keeps nothing itself.

use std::fmt::Error;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{NodeMetrics, PHASES, Reason, RevisionMetrics, Services};

/// `# EOF`, names and escapes are the library's; the families are ours.
pub(super) fn registry(node: Arc<NodeMetrics>, services: Arc<RwLock<Services>>) -> Registry {
    let mut registry = Registry::with_prefix("narae");
    registry.register_collector(Box::new(Families { node, services }));
    registry
}

#[derive(Debug)]
struct Families {
    node: Arc<NodeMetrics>,
    services: Arc<RwLock<Services>>,
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        encode_node(&self.node, &mut encoder)?;
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let rows: Vec<Row<'_>> = services
            .iter()
            .flat_map(|(service, counters)| {
                let row = move |(number, metrics)| (service.as_str(), number, metrics);
                counters
                    .revisions
                    .iter()
                    .map(|(number, metrics)| (number.to_string(), &**metrics))
                    .map(row)
            })
            .collect();
        encode_requests(&rows, &mut encoder)?;
        encode_errors(&services, &rows, &mut encoder)?;
        encode_replicas(&rows, &mut encoder)?;
        encode_volumes(&services, &mut encoder)?;
        let mut family =
            encoder.encode_descriptor("queued", "Requests waiting for a slot.", None, MetricType::Gauge)?;
        for (service, counters) in services.iter() {
            gauge(&mut family, &[("service", service.as_str())], counters.own.waiting())?;
        }
        let help = "Replicas that are wanted now, of all revisions.";
        let mut family = encoder.encode_descriptor("replicas_wanted", help, None, MetricType::Gauge)?;
        for (service, counters) in services.iter() {
            gauge(
                &mut family,
                &[("service", service.as_str())],
                counters.own.wanted.load(Relaxed),
            )?;
        }
        Ok(())
    }
}

type Row<'a> = (&'a str, String, &'a RevisionMetrics);

fn encode_node(node: &NodeMetrics, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    encoder
        .encode_descriptor("build", "The running program.", None, MetricType::Info)?
        .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
    encoder
        .encode_descriptor("connections", "Open client connections.", None, MetricType::Gauge)?
        .encode_gauge(&node.connections.load(Relaxed))?;
    for (name, help, value) in [
        ("modules_compiled", "Modules compiled since the start.", &node.compiled),
        (
            "modules_loaded",
            "Modules whose compiled code was kept from before.",
            &node.loaded,
        ),
    ] {
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, u64>(&value.load(Relaxed), None)?;
    }
    let panics = node.panics.load(Relaxed) + node.data_path_panics.load(Relaxed);
    encoder
        .encode_descriptor(
            "panics",
            "Tasks that panicked and were caught.",
            None,
            MetricType::Counter,
        )?
        .encode_counter::<NoLabelSet, u64, u64>(&panics, None)?;
    let mut refusals = encoder.encode_descriptor(
        "refused",
        "Requests that reached no replica.",
        None,
        MetricType::Counter,
    )?;
    for (reason, n) in node.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        refusals
            .encode_family(&[("reason", reason.name())])?
            .encode_counter::<NoLabelSet, u64, u64>(n, None)?;
    }
    for (name, help, value) in [
        (
            "memory_budget",
            "Memory that all guests together may use.",
            &node.memory_budget_bytes,
        ),
        (
            "memory_used",
            "Memory that all guests together use.",
            &node.memory_used_bytes,
        ),
    ] {
        encoder
            .encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?
            .encode_gauge(&value.load(Relaxed))?;
    }
    Ok(())
}

fn encode_requests(rows: &[Row<'_>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let help = "Requests answered, by class of status.";
    let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (service, revision, metrics) in rows {
        for (class, n) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&metrics.classes) {
            counter(
                &mut family,
                &[("service", service), ("revision", revision), ("status", class)],
                n.load(Relaxed),
            )?;
        }
    }
    let help = "From the head of a request to the last byte of its answer.";
    let mut family =
        encoder.encode_descriptor("request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (service, revision, metrics) in rows {
        let counts = metrics.duration.counts();
        let (sum, total) = (metrics.duration.sum().as_secs_f64(), counts.total());
        let labels: &[(&str, &str)] = &[("service", service), ("revision", revision)];
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(sum, total, &counts.exposed(), None)?;
    }
    let mut family = encoder.encode_descriptor("in_flight", "Requests running now.", None, MetricType::Gauge)?;
    for (service, revision, metrics) in rows {
        gauge(
            &mut family,
            &[("service", service), ("revision", revision)],
            metrics.in_flight(),
        )?;
    }
    Ok(())
}

fn encode_errors(services: &Services, rows: &[Row<'_>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let help = "Requests that got no answer of a guest or a broken one, by reason; without revision: none was chosen.";
    let mut family = encoder.encode_descriptor("errors", help, None, MetricType::Counter)?;
    for (service, revision, metrics) in rows {
        // A reason appears with its first error: thirteen zeros for each revision tell nothing.
        for reason in Reason::ALL.into_iter().filter(|reason| metrics.errors.get(*reason) > 0) {
            let labels = [("service", *service), ("revision", revision), ("reason", reason.name())];
            counter(&mut family, &labels, metrics.errors.get(reason))?;
        }
    }
    for (service, counters) in services {
        for reason in Reason::ALL
            .into_iter()
            .filter(|reason| counters.own.errors.get(*reason) > 0)
        {
            let labels = [("service", service.as_str()), ("reason", reason.name())];
            counter(&mut family, &labels, counters.own.errors.get(reason))?;
        }
    }
    Ok(())
}

fn encode_replicas(rows: &[Row<'_>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let help = "Processor time of guests.";
    let mut family = encoder.encode_descriptor("cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
    for (service, revision, metrics) in rows {
        let labels: &[(&str, &str)] = &[("service", service), ("revision", revision)];
        let seconds = metrics.cpu_ns.load(Relaxed) as f64 / 1e9;
        family
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, f64, u64>(&seconds, None)?;
    }
    let help = "Linear memory of guests now.";
    let mut family = encoder.encode_descriptor("memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
    for (service, revision, metrics) in rows {
        gauge(
            &mut family,
            &[("service", service), ("revision", revision)],
            metrics.memory_bytes(),
        )?;
    }
    let mut family = encoder.encode_descriptor("replicas", "Replicas by phase.", None, MetricType::Gauge)?;
    for (service, revision, metrics) in rows {
        for (phase, n) in PHASES.into_iter().zip(&metrics.replicas) {
            gauge(
                &mut family,
                &[("service", service), ("revision", revision), ("phase", phase)],
                n.load(Relaxed),
            )?;
        }
    }
    let help = "Replicas that were started again.";
    let mut family = encoder.encode_descriptor("restarts", help, None, MetricType::Counter)?;
    for (service, revision, metrics) in rows {
        counter(
            &mut family,
            &[("service", service), ("revision", revision)],
            metrics.restarts(),
        )?;
    }
    let help = "Times that a replica left the routes because its calls kept failing.";
    let mut family = encoder.encode_descriptor("ejections", help, None, MetricType::Counter)?;
    for (service, revision, metrics) in rows {
        counter(
            &mut family,
            &[("service", service), ("revision", revision)],
            metrics.ejections.load(Relaxed),
        )?;
    }
    Ok(())
}

fn encode_volumes(services: &Services, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let help = "What the files of a volume count against its size.";
    let mut family = encoder.encode_descriptor("volume_used", help, Some(&Unit::Bytes), MetricType::Gauge)?;
    for (service, counters) in services {
        let volumes = counters.own.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        for (volume, used) in volumes.iter() {
            gauge(&mut family, &[("service", service.as_str()), ("volume", volume)], *used)?;
        }
    }
    Ok(())
}

fn counter(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], value: u64) -> Result<(), Error> {
    family
        .encode_family(&labels)?
        .encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], value: u64) -> Result<(), Error> {
    family.encode_family(&labels)?.encode_gauge(&value)
}
