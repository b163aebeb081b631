//! A daemon's numbers as Prometheus reads them; each is described in `docs/metrics.md`.
//!
//! **Source**: the OpenMetrics text format 1.0, written by the crate `prometheus-client`.

use std::fmt;
use std::sync::Arc;

use mirror::{BaseNumbers, Outages};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use store::ChunkCacheNumbers;

use crate::counts::{Counts, FETCH_SECONDS_BOUNDS, Fetches, Operation, RequestCounts};
use crate::mirrors::MirrorStatus;

/// What the text is called on the wire.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told about a host.
#[derive(Debug)]
pub struct HostNumbers {
    /// Mirrors that are served.
    pub served_count: usize,
    /// Mirrors that will be served as soon as they can.
    pub waiting_count: usize,
    /// The bases: what they take, what was evicted.
    pub bases: BaseNumbers,
    /// The chunk cache, where there is one.
    pub chunks: ChunkCacheNumbers,
    /// Bytes of disk that overlays take, of mirrors that are served. Not a cache: nothing evicts them.
    pub overlay_bytes: u64,
    /// Outages of the repository.
    pub outages: Outages,
    /// Fetches of all mirrors.
    pub fetches: Arc<Fetches>,
    /// The mirrors that are served.
    pub mirrors: Vec<MirrorNumbers>,
}

/// What is told about a mirror.
#[derive(Debug)]
pub struct MirrorNumbers {
    /// How it is.
    pub status: MirrorStatus,
    /// What went through its doors.
    pub counts: Arc<Counts>,
}

/// All numbers as text.
pub fn text(numbers: HostNumbers) -> String {
    let mut registry = Registry::with_prefix("larder");
    registry.register_collector(Box::new(numbers));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

impl Collector for HostNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.encode_host(encoder)?;
        self.encode_fetches(encoder)?;
        self.encode_mirrors(encoder)
    }
}

impl HostNumbers {
    fn encode_host(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let states = [("served", self.served_count), ("waiting", self.waiting_count)];
        let mirrors = states.map(|(state, count)| ([("state", state)], count as u64));
        gauges(encoder, "mirrors", "Mirrors of this host", None, mirrors)?;
        let bytes = Some(Unit::Bytes);
        let help = "Disk that local copies of versions take";
        gauge(encoder, "bases", help, bytes.clone(), self.bases.bytes)?;
        self.encode_caches(encoder)?;
        let memory = resident_bytes();
        gauge(encoder, "resident_memory", "Memory of the daemon", Some(Unit::Bytes), memory)?;
        let outages = &self.outages;
        let reachable = u64::from(!outages.is_lost);
        let help = "1 while the repository answers, 0 while it cannot be reached";
        gauge(encoder, "repository_reachable", help, None, reachable)?;
        let waiting = outages.waiting_count as u64;
        gauge(encoder, "waiting_reads", "Reads that wait for the repository", None, waiting)?;
        let help = "How often the repository went out of reach";
        counter(encoder, "repository_outages", help, None, outages.count as f64)?;
        let (help, unit) = ("Time without the repository", Some(Unit::Seconds));
        counter(encoder, "repository_lost", help, unit, outages.lost.as_secs_f64())
    }

    fn encode_caches(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = Some(Unit::Bytes);
        let limit = self.bases.limit_bytes.unwrap_or(u64::MAX);
        let help = "Disk that local copies of versions may take";
        gauge(encoder, "bases_limit", help, bytes.clone(), limit)?;
        let help = "Disk that local copies have given back to stay within their limit";
        counter(encoder, "bases_evicted", help, bytes.clone(), self.bases.evicted_bytes as f64)?;
        let help = "Segments of 64 MiB that were evicted one by one";
        counter(encoder, "evicted_segments", help, None, self.bases.evicted_segments as f64)?;
        let help = "Local copies that were evicted whole";
        counter(encoder, "evicted_bases", help, None, self.bases.evicted_bases as f64)?;
        let help = "Fetches that were not kept because there was no room";
        counter(encoder, "unkept_fetches", help, None, self.bases.refused as f64)?;
        let help = "Disk that changes of guests take; no cache";
        gauge(encoder, "overlays", help, bytes.clone(), self.overlay_bytes)?;
        let chunks = &self.chunks;
        let help = "Disk that compressed chunks take";
        gauge(encoder, "chunk_cache", help, bytes.clone(), chunks.bytes)?;
        let help = "Disk that compressed chunks may take";
        gauge(encoder, "chunk_cache_limit", help, bytes.clone(), chunks.limit_bytes)?;
        let help = "Compressed chunks that were given up to stay within the limit";
        counter(encoder, "chunk_cache_evicted", help, bytes, chunks.evicted_bytes as f64)?;
        let help = "Chunks that were found compressed on this host";
        counter(encoder, "chunk_cache_hits", help, None, chunks.hits as f64)?;
        let help = "Chunks that were looked for there in vain";
        counter(encoder, "chunk_cache_misses", help, None, chunks.misses as f64)
    }

    fn encode_fetches(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let fetches = &self.fetches;
        let (help, unit) = ("Unpacked bytes of fetched chunks", Some(Unit::Bytes));
        counter(encoder, "fetched_plain", help, unit, fetches.bytes() as f64)?;
        let help = "Fetches of chunks that failed";
        counter(encoder, "fetch_errors", help, None, fetches.errors() as f64)?;
        let bounds = FETCH_SECONDS_BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(fetches.buckets()).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let (help, kind) = ("Time that fetches of chunks took", MetricType::Histogram);
        let mut metric = encoder.encode_descriptor("fetch", help, Some(&Unit::Seconds), kind)?;
        let sum = fetches.total_time().as_secs_f64();
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn encode_mirrors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Number = fn(&RequestCounts) -> u64;
        let kinds: [(&str, &str, Option<Unit>, Number); 3] = [
            ("requests", "Requests at a mirror's doors", None, RequestCounts::requests),
            (
                "request",
                "Bytes of requests that went well",
                Some(Unit::Bytes),
                RequestCounts::bytes,
            ),
            ("request_errors", "Requests that failed", None, RequestCounts::errors),
        ];
        for (name, help, unit, number) in kinds {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for mirror in &self.mirrors {
                for operation in Operation::ALL {
                    let labels =
                        [("mirror", mirror.status.name.as_str()), ("operation", operation.name())];
                    let value = number(mirror.counts.of(operation)) as f64;
                    encode_counter(&mut metric, &labels, value)?;
                }
            }
        }
        let (help, unit) = ("Stored bytes read from the repository", Some(&Unit::Bytes));
        let mut metric =
            encoder.encode_descriptor("mirror_fetched", help, unit, MetricType::Counter)?;
        for mirror in &self.mirrors {
            let labels = [("mirror", mirror.status.name.as_str())];
            encode_counter(&mut metric, &labels, mirror.status.fetched_bytes as f64)?;
        }
        let of = |number: fn(&MirrorStatus) -> u64| {
            self.mirrors.iter().map(move |mirror| {
                ([("mirror", mirror.status.name.as_str())], number(&mirror.status))
            })
        };
        let (help, bytes) = ("Changed since the last commit", Some(Unit::Bytes));
        gauges(encoder, "mirror_dirty", help, bytes, of(|status| status.dirty_bytes))?;
        let (help, bytes) = ("Disk that a mirror and its base take", Some(Unit::Bytes));
        gauges(encoder, "mirror_host", help, bytes, of(|status| status.host_bytes))
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: u64,
) -> fmt::Result {
    encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
}

fn gauges<S: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl IntoIterator<Item = (S, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in values {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: f64,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?
        .encode_counter::<NoLabelSet, _, f64>(&value, None)
}

fn encode_counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: f64,
) -> fmt::Result {
    metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

/// Memory that this process has in use; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).map(str::parse::<u64>);
    kib.and_then(|kib| kib.ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and units are what dashboards are built on: they are in this text and in
    /// `docs/metrics.md`.
    #[test]
    fn every_metric_is_described_in_the_docs_and_ends_in_its_unit() {
        let status = MirrorStatus {
            name: "web".into(),
            base: "debian@1".into(),
            length_bytes: 1,
            dirty_bytes: 2,
            fetched_bytes: 3,
            fetched_plain_bytes: 4,
            host_bytes: 5,
            served_by: Some(6),
            exports: Vec::new(),
        };
        let numbers = HostNumbers {
            served_count: 1,
            waiting_count: 2,
            bases: BaseNumbers { bytes: 3, limit_bytes: Some(4), ..BaseNumbers::default() },
            chunks: ChunkCacheNumbers::default(),
            overlay_bytes: 5,
            outages: Outages::default(),
            fetches: Arc::default(),
            mirrors: vec![MirrorNumbers { status, counts: Arc::default() }],
        };
        let text = text(numbers);
        for line in [
            "larder_mirrors{state=\"waiting\"} 2",
            "larder_bases_bytes 3",
            "larder_bases_limit_bytes 4",
            "larder_overlays_bytes 5",
            "larder_chunk_cache_hits_total 0.0",
            "larder_repository_reachable 1",
            "larder_requests_total{mirror=\"web\",operation=\"write_zeroes\"} 0.0",
            "larder_request_bytes_total{mirror=\"web\",operation=\"read\"} 0.0",
            "larder_mirror_dirty_bytes{mirror=\"web\"} 2",
            "larder_fetch_seconds_bucket{le=\"+Inf\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let docs = std::fs::read_to_string("../../docs/metrics.md").unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = if kind == "counter" { "_total" } else { "" };
            assert!(docs.contains(&format!("`{name}{suffix}`")), "{name}{suffix} is not described");
        }
    }
}
