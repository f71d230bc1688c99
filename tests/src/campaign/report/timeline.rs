//! A soak run over time: whether anything grows, slows down, or stops.

use maud::{PreEscaped, html};
use serde::{Deserialize, Serialize};

use super::{
    markdown::row,
    page::page,
    plot::{self, PlotError},
};

/// About so many rows has the table.
const ROWS: usize = 10;

/// What was measured at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When: seconds since the start.
    pub at_s: f64,
    /// Requests of healthy clients that were answered in a second.
    pub healthy_per_s: f64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// None took longer.
    pub max_us: f64,
    /// Resident memory of the server and its monitor, which are one process, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors of that process.
    pub descriptors: u64,
    /// Pages that wait for the cleaner to be restored.
    pub backlog_pages: u64,
    /// Crashes since the last sample.
    pub crashes: u64,
}

/// A quantity: its title, its value, and how many digits after the point are of interest.
type Quantity = (&'static str, fn(&Sample) -> f64, usize);

const QUANTITIES: [Quantity; 8] = [
    ("healthy requests/s", |s| s.healthy_per_s, 0),
    ("median (ms)", |s| s.p50_us / 1e3, 3),
    ("p99 (ms)", |s| s.p99_us / 1e3, 3),
    ("slowest (ms)", |s| s.max_us / 1e3, 3),
    (
        "resident (MiB)",
        |s| s.resident_bytes as f64 / 1_048_576.0,
        1,
    ),
    ("descriptors", |s| s.descriptors as f64, 0),
    ("backlog (pages)", |s| s.backlog_pages as f64, 0),
    ("crashes", |s| s.crashes as f64, 0),
];

/// A page with a plot of each quantity.
pub fn html(title: &str, samples: &[Sample]) -> Result<String, PlotError> {
    let plots = QUANTITIES.iter().map(|(name, value, _)| {
        let points: Vec<_> = samples.iter().map(|s| (s.at_s, value(s))).collect();
        let svg = plot::line(&points)?;
        Ok(html! {
            h2 { (name) }
            (PreEscaped(svg))
        })
    });
    let plots: Vec<_> = plots.collect::<Result<_, PlotError>>()?;
    let body = html! {
        p { (samples.len()) " samples." }
        @for plot in plots { (plot) }
    };
    Ok(page(title, &body))
}

/// A table of some ten samples, evenly spread, with the first and the last.
pub fn markdown(samples: &[Sample]) -> String {
    let titles = QUANTITIES.iter().map(|(name, ..)| (*name).to_owned());
    let mut text = row(["time (s)".to_owned()].into_iter().chain(titles));
    text += &format!("|{}\n", "---:|".repeat(QUANTITIES.len() + 1));
    for sample in spread(samples) {
        let time = format!("{:.0}", sample.at_s);
        let cells = QUANTITIES.iter();
        let cells = cells.map(|(_, value, digits)| format!("{:.digits$}", value(sample)));
        text += &row([time].into_iter().chain(cells));
    }
    text
}

fn spread(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    let rows = samples.len().min(ROWS);
    let last = samples.len().saturating_sub(1);
    (0..rows).filter_map(move |row| samples.get(row * last / rows.saturating_sub(1).max(1)))
}

#[cfg(test)]
mod tests {
    use super::{super::balance::assert_balanced, *};

    fn samples(count: u32) -> Vec<Sample> {
        let sample = |at| Sample {
            at_s: 10.0 * f64::from(at),
            healthy_per_s: 5000.4,
            p50_us: 120.0,
            p99_us: 950.0,
            max_us: 20_500.0,
            resident_bytes: 300 << 20,
            descriptors: 64,
            backlog_pages: u64::from(at % 7),
            crashes: u64::from(at),
        };
        (0..count).map(sample).collect()
    }

    fn times(text: &str) -> Vec<&str> {
        let rows = text.lines().skip(2);
        rows.map(|line| line.split(" | ").next().unwrap().trim_start_matches("| "))
            .collect()
    }

    #[test]
    fn the_table_is_a_digest_with_both_ends() {
        let text = markdown(&samples(100));
        let expected = [
            "0", "110", "220", "330", "440", "550", "660", "770", "880", "990",
        ];
        assert_eq!(times(&text), expected);
        let last = "| 990 | 5000 | 0.120 | 0.950 | 20.500 | 300.0 | 64 | 1 | 99 |";
        assert_eq!(text.lines().last(), Some(last));
    }

    #[test]
    fn a_short_run_is_shown_whole() {
        assert_eq!(times(&markdown(&samples(3))), ["0", "10", "20"]);
        assert_eq!(times(&markdown(&samples(1))), ["0"]);
        assert!(times(&markdown(&[])).is_empty());
    }

    #[test]
    fn the_page_has_a_plot_for_each_quantity() {
        let page = html("Soak <1 h>", &samples(50)).unwrap();
        assert_balanced(&page);
        assert_eq!(page.matches("<svg").count(), QUANTITIES.len());
        assert!(page.contains("<h1>Soak &lt;1 h&gt;</h1>") && page.contains("<h2>crashes</h2>"));
        assert_balanced(&html("nothing", &[]).unwrap());
    }

    #[test]
    fn samples_are_read_back_as_they_were_written() {
        let sample = samples(2)[1];
        let text = serde_json::to_string(&sample).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sample);
    }
}
