//! `redis-benchmark -t get,set -c 50`.

use std::{
    io::{Read, Seek},
    process::{Command, Stdio},
    time::Duration,
};

use vmsrs_tests::{interrupt, process::Bounded};

use super::{Operation, Outcome};
use crate::Error;

/// Requests of each kind that warm the server up. Their rate says how many it can answer in the
/// time of the measurement proper.
const WARM_UP: u64 = 2_000;
const LEAST: u64 = 1_000;
const MOST: u64 = 10_000_000;

/// What is left of the expected speed when a run is given up.
const SLOWEST: u32 = 10;

pub fn run(port: u16, duration: Duration) -> Result<Outcome, Error> {
    let warm_up = benchmark(port, WARM_UP, Duration::from_secs(20))?;
    let rates = warm_up.iter().map(|operation| operation.throughput);
    let slowest = rates.fold(f64::INFINITY, f64::min);
    let requests = (slowest * duration.as_secs_f64() / warm_up.len() as f64) as u64;
    let requests = requests.clamp(LEAST, MOST);
    let patience = duration * SLOWEST + Duration::from_secs(10);
    let operations = benchmark(port, requests, patience)?;
    let served = WARM_UP * warm_up.len() as u64 + requests * operations.len() as u64;
    Ok(Outcome { operations, served })
}

/// Runs `redis-benchmark` with so many requests of each kind.
fn benchmark(port: u16, requests: u64, patience: Duration) -> Result<Vec<Operation>, Error> {
    let (mut output, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-t", "get,set", "-c", "50", "--csv"])
        .args(["-n", &requests.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?);
    let status = Bounded::spawn(&mut command)?.wait_for(patience)?;
    interrupt::check()?;
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    match status {
        Some(status) if status.success() => parse(&text),
        status => {
            errors.rewind()?;
            errors.read_to_string(&mut text)?;
            let how = match status {
                Some(status) => format!("ended with {status}"),
                None => format!("had not ended after {patience:?}"),
            };
            Err(format!("redis-benchmark {how}:\n{text}").into())
        }
    }
}

/// Reads the output of `--csv`: a header that names the columns, and a line for each kind.
fn parse(csv: &str) -> Result<Vec<Operation>, Error> {
    let mut lines = csv.lines().map(fields).filter(|f| f.len() > 1);
    let header = lines.next().unwrap_or_default();
    let column = |name: &str| header.iter().position(|field| *field == name);
    let columns = || {
        let (test, rps) = (column("test")?, column("rps")?);
        let (p50, p99) = (column("p50_latency_ms")?, column("p99_latency_ms")?);
        Some([test, rps, p50, p99])
    };
    let [test, rps, p50, p99] =
        columns().ok_or_else(|| format!("redis-benchmark printed no such table:\n{csv}"))?;
    let operations: Option<Vec<Operation>> = lines
        .map(|line| {
            let number = |at: usize| line.get(at)?.parse::<f64>().ok();
            Some(Operation {
                name: (*line.get(test)?).to_owned(),
                throughput: number(rps)?,
                p50_ms: number(p50)?,
                p99_ms: number(p99)?,
            })
        })
        .collect();
    operations
        .filter(|operations| !operations.is_empty())
        .ok_or_else(|| format!("redis-benchmark printed no figures:\n{csv}").into())
}

/// Fields are quoted and hold neither quotes nor commas.
fn fields(line: &str) -> Vec<&str> {
    line.split(',')
        .map(|field| field.trim().trim_matches('"'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                          \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n";

    #[test]
    fn the_columns_are_found_by_name() {
        let csv = format!(
            "{HEADER}\"SET\",\"3003.00\",\"16.543\",\"0.600\",\"16.191\",\"21.647\",\"28.543\",\"75.327\"\n\
             \"GET\",\"147929.00\",\"0.2\",\"0.1\",\"0.215\",\"0.3\",\"0.407\",\"0.5\"\n"
        );
        let set = Operation {
            name: "SET".to_owned(),
            throughput: 3003.0,
            p50_ms: 16.191,
            p99_ms: 28.543,
        };
        let operations = parse(&csv).unwrap();
        assert_eq!(operations.len(), 2);
        assert_eq!(operations[0], set);
        assert_eq!(operations[1].throughput, 147929.0);
    }

    #[test]
    fn other_columns_in_another_order_do_no_harm() {
        let csv = "\"p99_latency_ms\",\"x\",\"p50_latency_ms\",\"rps\",\"test\"\n9,8,5,100,GET\n";
        let operations = parse(csv).unwrap();
        assert_eq!((operations[0].p50_ms, operations[0].p99_ms), (5.0, 9.0));
    }

    #[test]
    fn what_is_no_table_is_an_error_that_shows_it() {
        for wrong in [
            "",
            HEADER,
            "Could not connect to Redis at 127.0.0.1:1\n",
            "\"test\",\"rps\"\n\"GET\",\"100\"\n",
            &format!("{HEADER}\"GET\",\"fast\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\"\n"),
            &format!("{HEADER}\"GET\",\"100\"\n"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
