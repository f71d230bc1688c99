//! What the samples of all rounds come down to.

use serde::Serialize;

use crate::{
    counters::Counters,
    load::Operation,
    rounds::Sample,
    server::Service,
    spread::{Spread, median},
    variant::Variant,
};

/// One server in all variants.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The server.
    pub service: Service,
    /// In the order of [`Variant::ALL`].
    pub variants: Vec<VariantSummary>,
}

/// One server in one variant, over all rounds. Where only one number is given, it is the median.
#[derive(Clone, Debug, Serialize)]
pub struct VariantSummary {
    /// The variant.
    pub variant: Variant,
    /// What the clients saw, by the kind of request.
    pub operations: Vec<OperationSummary>,
    /// Processor time of the server for a request, in microseconds.
    pub cpu_us_per_request: Spread,
    /// From the start of the process to the first answer, in milliseconds.
    pub startup_ms: Spread,
    /// Resident bytes of the idle server.
    pub idle_rss: f64,
    /// Resident bytes at the end of the load.
    pub rss: f64,
    /// The same, of shared pages only this process' share.
    pub pss: f64,
    /// The most that shadow pages took, in bytes.
    pub shadow_bytes: Option<f64>,
    /// From the monitor's counters.
    pub per_request: Option<PerRequest>,
}

/// What the clients saw of one kind of request.
#[derive(Clone, Debug, Serialize)]
pub struct OperationSummary {
    /// `SET`, `GET`, ...
    pub name: String,
    /// Requests per second.
    pub throughput: Spread,
    /// Throughput divided by that of the native server in the same round.
    pub ratio: Spread,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the latency in milliseconds.
    pub p99_ms: f64,
}

/// Events per request.
#[derive(Clone, Debug, Serialize)]
pub struct PerRequest {
    /// Exits for any reason.
    pub exits: f64,
    /// Exits for page faults.
    pub page_fault_exits: f64,
    /// System calls.
    pub syscalls: f64,
    /// Write-protection faults: first writes that KVM's dirty tracking reported, and first writes
    /// to trapped pages.
    pub write_protection_faults: f64,
    /// Pages that became part of the write set because the host wrote them for a system call.
    pub host_written: f64,
    /// Domains that were committed.
    pub domains: f64,
    /// Pages compared with their shadow at commits.
    pub pages_compared: f64,
    /// Pages found changed by that, and copied.
    pub pages_copied: f64,
    /// Waits for the run token.
    pub run_token_waits: f64,
    /// The system calls that are made most often, most often first.
    pub frequent_calls: Vec<(String, f64)>,
}

/// How many system calls are named.
const FREQUENT: usize = 4;

/// Summarizes each server of which there is a sample of every variant.
pub fn summarize(samples: &[Sample]) -> Vec<Summary> {
    let summarize_service = |service| {
        let variants = Variant::ALL.map(|variant| summarize_variant(samples, service, variant));
        Some(Summary {
            service,
            variants: variants.into_iter().collect::<Option<_>>()?,
        })
    };
    Service::ALL
        .into_iter()
        .filter_map(summarize_service)
        .collect()
}

fn of(samples: &[Sample], service: Service, variant: Variant) -> impl Iterator<Item = &Sample> {
    samples
        .iter()
        .filter(move |sample| sample.service == service && sample.variant == variant)
}

fn summarize_variant(
    samples: &[Sample],
    service: Service,
    variant: Variant,
) -> Option<VariantSummary> {
    let these: Vec<&Sample> = of(samples, service, variant).collect();
    let over = |value: fn(&Sample) -> f64| Spread::of(these.iter().map(|sample| value(sample)));
    let operations = these.first()?.outcome.operations.iter();
    Some(VariantSummary {
        variant,
        operations: operations
            .map(|operation| summarize_operation(samples, &these, &operation.name))
            .collect::<Option<_>>()?,
        cpu_us_per_request: over(|sample| sample.cpu_us_per_request)?,
        startup_ms: Spread::of(these.iter().flat_map(|sample| sample.startup_ms))?,
        idle_rss: over(|sample| sample.idle_memory.rss as f64)?.median,
        rss: over(|sample| sample.memory.rss as f64)?.median,
        pss: over(|sample| sample.memory.pss as f64)?.median,
        shadow_bytes: median(these.iter().filter_map(|s| Some(s.shadow_bytes? as f64))),
        per_request: per_request(&these),
    })
}

fn operation<'a>(sample: &'a Sample, name: &str) -> Option<&'a Operation> {
    let mut operations = sample.outcome.operations.iter();
    operations.find(|operation| operation.name == name)
}

fn summarize_operation(
    samples: &[Sample],
    these: &[&Sample],
    name: &str,
) -> Option<OperationSummary> {
    let over = |value: fn(&Operation) -> f64| {
        Spread::of(these.iter().filter_map(|s| operation(s, name).map(value)))
    };
    let ratios = these.iter().filter_map(|sample| {
        let mut natives = of(samples, sample.service, Variant::Native);
        let native = natives.find(|native| native.round == sample.round)?;
        Some(operation(sample, name)?.throughput / operation(native, name)?.throughput)
    });
    Some(OperationSummary {
        name: name.to_owned(),
        throughput: over(|operation| operation.throughput)?,
        ratio: Spread::of(ratios)?,
        p50_ms: over(|operation| operation.p50_ms)?.median,
        p99_ms: over(|operation| operation.p99_ms)?.median,
    })
}

fn per_request(these: &[&Sample]) -> Option<PerRequest> {
    let over = |count: &dyn Fn(&Counters) -> u64| {
        let counted = these.iter().filter_map(|sample| {
            Some(count(sample.counters.as_ref()?) as f64 / sample.outcome.served as f64)
        });
        median(counted)
    };
    let last = these.last()?.counters.as_ref()?;
    let mut calls: Vec<(&str, u64)> = last.below("syscalls").collect();
    calls.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let frequent = calls.into_iter().take(FREQUENT).map(|(name, _)| {
        let path = format!("syscalls.{name}");
        Some((name.to_owned(), over(&|counters| counters.get(&path))?))
    });
    Some(PerRequest {
        exits: over(&|c| c.sum("exits"))?,
        page_fault_exits: over(&|c| c.get("exits.page_fault"))?,
        syscalls: over(&|c| c.sum("syscalls"))?,
        write_protection_faults: over(&|c| {
            c.get("pages.dirty_harvested") + c.get("pages.tracked")
        })?,
        host_written: over(&|c| c.get("pages.host_written"))?,
        domains: over(&|c| c.get("domains.committed"))?,
        pages_compared: over(&|c| c.get("pages.compared"))?,
        pages_copied: over(&|c| c.get("pages.copied"))?,
        run_token_waits: over(&|c| c.get("run_token_waits"))?,
        frequent_calls: frequent.collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{load::Outcome, server::Memory};

    fn sample(round: u32, variant: Variant, throughput: f64) -> Sample {
        let memory = Memory {
            rss: 4096,
            pss: 2048,
        };
        let stats = json!({
            "exits": {"syscall": 200, "page_fault": 10},
            "syscalls": {"read": 120, "write": 80},
            "pages": {"dirty_harvested": 290, "tracked": 10},
        });
        Sample {
            round,
            service: Service::Redis,
            variant,
            startup_ms: [1.0, 3.0],
            outcome: Outcome {
                operations: vec![Operation {
                    name: "GET".to_owned(),
                    throughput,
                    p50_ms: 1.0,
                    p99_ms: 2.0,
                }],
                served: 100,
            },
            cpu_us_per_request: 5.0,
            idle_memory: memory,
            memory,
            shadow_bytes: None,
            counters: (variant != Variant::Native).then(|| Counters::of(&stats)),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round ran on a machine that was busy with something else.
        let samples: Vec<Sample> = [(0, 1000.0, 500.0), (1, 100.0, 40.0)]
            .into_iter()
            .flat_map(|(round, native, on)| {
                [
                    sample(round, Variant::Native, native),
                    sample(round, Variant::ProtectOff, native),
                    sample(round, Variant::ProtectOn, on),
                ]
            })
            .collect();
        let summaries = summarize(&samples);
        assert_eq!(summaries.len(), 1, "there is no sample of memcached");
        let [native, _, on] = &summaries[0].variants[..] else {
            panic!("not three variants")
        };
        assert_eq!(native.operations[0].ratio.median, 1.0);
        assert!((on.operations[0].ratio.median - 0.45).abs() < 1e-9);
        assert_eq!(on.startup_ms.median, 2.0);
        assert!(native.per_request.is_none());
        let per_request = on.per_request.as_ref().unwrap();
        assert_eq!(per_request.exits, 2.1);
        assert_eq!(per_request.write_protection_faults, 3.0);
        assert_eq!(per_request.frequent_calls[0], ("read".to_owned(), 1.2));
    }
}
