//! The report: Markdown that reads well in a terminal too, and the same as JSON.

mod table;

use std::fmt;

use serde::Serialize;
use table::Table;

use crate::{
    exit_cost::ExitCost,
    load,
    machine::Machine,
    recovery::{Recovery, Times},
    rounds::Sample,
    settings::Settings,
    spread::Spread,
    summary::{PerRequest, Summary, VariantSummary},
    variant::Variant,
};

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// How much was asked for.
    pub settings: Settings,
    /// How many rounds were measured.
    pub rounds: u32,
    /// The price of an exit.
    pub exit_cost: ExitCost,
    /// Each server.
    pub summaries: Vec<Summary>,
    /// The recovery pause.
    pub recovery: Recovery,
    /// What the summaries were made of.
    pub samples: Vec<Sample>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let unknown = || "unknown".to_owned();
        writeln!(f, "- date: {}", machine.date)?;
        let commit = machine.commit.clone().unwrap_or_else(unknown);
        let monitor = match machine.monitor_built_here {
            true => "",
            false => " (the monitor is the one that VMSRS_BIN names)",
        };
        writeln!(f, "- commit: {commit}{monitor}")?;
        writeln!(f, "- machine: {} cores, {}", machine.cores, machine.cpu)?;
        let entry = machine.entry_path.clone().unwrap_or_else(unknown);
        let (kernel, kvm) = (&machine.kernel, machine.kvm.join(", "));
        writeln!(f, "- kernel: Linux {kernel}, {kvm}, entry path {entry}")?;
        let (before, after) = (&machine.load_average_before, &machine.load_average_after);
        writeln!(f, "- load average: {before} before, {after} after")?;
        for server in &machine.servers {
            writeln!(f, "- {server}")?;
        }
        writeln!(
            f,
            "- an empty system call: {} µs native, {} µs under the monitor",
            number(self.exit_cost.native_us),
            number(self.exit_cost.monitored_us)
        )?;
        writeln!(
            f,
            "- rounds: {}; medians, with the least and the greatest in parentheses",
            self.rounds
        )?;
        for summary in &self.summaries {
            write_service(f, summary)?;
        }
        write_recovery(f, &self.recovery)
    }
}

fn write_service(f: &mut fmt::Formatter<'_>, summary: &Summary) -> fmt::Result {
    let (name, load) = (summary.service.name(), load::description(summary.service));
    writeln!(f, "\n### {name}: {load}\n")?;
    let mut header = vec![String::new()];
    header.extend(Variant::ALL.map(|variant| format!("`{}`", variant.label())));
    header[1] = Variant::Native.label().to_owned();
    let mut table = Table::new(header);
    let mut row = |name: &str, cell: &dyn Fn(&VariantSummary) -> Option<String>| {
        let cells = summary.variants.iter().map(cell);
        table.row(
            name,
            cells.map(|cell| cell.unwrap_or_else(|| "–".to_owned())),
        );
    };
    let names = summary.variants.first().map(|v| &v.operations[..]);
    for (at, operation) in names.unwrap_or_default().iter().enumerate() {
        let name = &operation.name;
        row(&format!("{name}, requests/s"), &|v| {
            Some(spread(&v.operations.get(at)?.throughput))
        });
        row(&format!("{name}, ratio to native"), &|v| match v.variant {
            Variant::Native => Some("1".to_owned()),
            _ => Some(spread(&v.operations.get(at)?.ratio)),
        });
        row(&format!("{name}, latency p50 / p99, ms"), &|v| {
            let operation = v.operations.get(at)?;
            let (p50, p99) = (number(operation.p50_ms), number(operation.p99_ms));
            Some(format!("{p50} / {p99}"))
        });
    }
    row("CPU time of the server, µs/request", &|v| {
        Some(spread(&v.cpu_us_per_request))
    });
    type Count = fn(&PerRequest) -> f64;
    let counts: [(&str, Count); 9] = [
        ("exits/request", |p| p.exits),
        ("– of these page faults", |p| p.page_fault_exits),
        ("system calls/request", |p| p.syscalls),
        ("write-protection faults/request", |p| {
            p.write_protection_faults
        }),
        ("pages written by the host/request", |p| p.host_written),
        ("domains/request", |p| p.domains),
        ("pages compared at commit/request", |p| p.pages_compared),
        ("pages copied at commit/request", |p| p.pages_copied),
        ("waits for the run token/request", |p| p.run_token_waits),
    ];
    for (name, count) in counts {
        row(name, &|v| Some(number(count(v.per_request.as_ref()?))));
    }
    row("start-up to the first answer, ms", &|v| {
        Some(spread(&v.startup_ms))
    });
    row("resident memory, idle, MiB", &|v| {
        Some(mebibytes(v.idle_rss))
    });
    row("resident memory after the load, MiB", &|v| {
        Some(mebibytes(v.rss))
    });
    row("– proportional share (PSS), MiB", &|v| {
        Some(mebibytes(v.pss))
    });
    row("shadow pages at most, MiB", &|v| {
        Some(mebibytes(v.shadow_bytes?))
    });
    write!(f, "{table}")?;
    for variant in &summary.variants {
        if let Some(per_request) = &variant.per_request {
            let calls = per_request.frequent_calls.iter();
            let calls: Vec<_> = calls
                .map(|(name, n)| format!("{name} {}", number(*n)))
                .collect();
            let (label, calls) = (variant.variant.label(), calls.join(", "));
            writeln!(f, "\nSystem calls per request with `{label}`: {calls}.")?;
        }
    }
    Ok(())
}

fn write_recovery(f: &mut fmt::Formatter<'_>, recovery: &Recovery) -> fmt::Result {
    writeln!(
        f,
        "\n### Recovery: `DEBUG SEGFAULT` in redis-server, one other client at work\n"
    )?;
    let (recovered, others) = (recovery.recovered, recovery.not_recovered);
    writeln!(
        f,
        "{recovered} crashes recovered, {others} degraded or escalated.\n"
    )?;
    let header = ["µs", "median", "p99", "max", "count"];
    let mut table = Table::new(header.map(str::to_owned).to_vec());
    let mut row = |name: &str, times: &Times| {
        let cells = [
            times.median_us,
            times.p99_us,
            times.max_us,
            times.count as u64,
        ];
        table.row(name, cells.map(|n| grouped(&n.to_string())));
    };
    row("recovery pause (events)", &recovery.pause);
    row("crashing request sent to connection reset", &recovery.reset);
    row(
        "the other client's request that met a crash",
        &recovery.delayed,
    );
    row("the other client's other requests", &recovery.undisturbed);
    write!(f, "{table}")
}

fn spread(spread: &Spread) -> String {
    let (median, min, max) = (spread.median, spread.min, spread.max);
    match min == max {
        true => number(median),
        false => format!("{} ({} to {})", number(median), number(min), number(max)),
    }
}

fn mebibytes(bytes: f64) -> String {
    number(bytes / f64::from(1 << 20))
}

/// About three significant digits; thousands are set apart.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{x:.4}"),
        ..1.0 => format!("{x:.3}"),
        ..10.0 => format!("{x:.2}"),
        ..100.0 => format!("{x:.1}"),
        _ => grouped(&format!("{x:.0}")),
    }
}

fn grouped(digits: &str) -> String {
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.02964, "0.0296"),
            (0.5, "0.500"),
            (3.149, "3.15"),
            (52.25, "52.2"),
            (147929.0, "147,929"),
            (1_000_000.0, "1,000,000"),
            (3003.4, "3,003"),
            (123.0, "123"),
        ];
        for (x, text) in cases {
            assert_eq!(number(x), text);
        }
    }

    #[test]
    fn a_single_measurement_has_no_range() {
        let one = Spread::of([2.0]).unwrap();
        assert_eq!(spread(&one), "2.00");
        let two = Spread::of([1.0, 2.0]).unwrap();
        assert_eq!(spread(&two), "1.50 (1.00 to 2.00)");
    }
}
