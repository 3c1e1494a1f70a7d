//! Latencies as they are shown.

use hdrhistogram::Histogram;

/// A quantile of a histogram of nanoseconds, in microseconds.
#[must_use]
pub fn us(latency_ns: &Histogram<u64>, quantile: f64) -> f64 {
    latency_ns.value_at_quantile(quantile) as f64 / 1000.0
}
