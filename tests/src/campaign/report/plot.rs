//! Plots as SVG text that can stand in an HTML page: no fonts, no scripts, and colours that can be
//! read on light and on dark.

use std::{collections::BTreeMap, io};

use plotters::{
    coord::{Shift, ranged1d::ValueFormatter},
    prelude::*,
};

use crate::campaign::rate::Rate;

/// Why a plot could not be drawn.
pub type PlotError = DrawingAreaErrorKind<io::Error>;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

const WIDTH: u32 = 900;
const INK: RGBColor = RGBColor(59, 130, 196);
const AXIS: RGBColor = RGBColor(136, 136, 136);
const GRID: RGBAColor = RGBAColor(136, 136, 136, 0.25);
const FONT: (&str, u32) = ("sans-serif", 13);

/// How many bars a factor of ten has.
const BARS_PER_DECADE: i32 = 10;

/// A row for each rate: a dot for the share and a whisker for its interval, in percent. Rates of
/// nothing have no dot.
pub fn dots(rows: &[(&str, Rate)]) -> Result<String, PlotError> {
    let Some(last) = rows.len().checked_sub(1) else {
        return Ok(String::new());
    };
    let shown = rows.iter().filter(|(_, rate)| rate.share.is_some());
    let low = shown.map(|(_, rate)| 100.0 * rate.interval.low);
    let low = low.fold(90.0, f64::min);
    let low = 10.0 * (low / 10.0).floor();
    draw(60 + 24 * rows.len() as u32, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(30)
            .x_label_area_size(24)
            .y_label_area_size(220)
            // The first row is at the top.
            .build_cartesian_2d(low..100.0, (0..last).into_segmented())?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(at) => rows.get(last - at).map_or("", |row| row.0).to_owned(),
            _ => String::new(),
        };
        mesh(
            &mut chart,
            &|percent| format!("{percent:.0} %"),
            &name,
            rows.len() + 1,
        )?;
        for (at, (_, rate)) in rows.iter().enumerate() {
            let Some(share) = rate.share else { continue };
            let point = |share: f64| (100.0 * share, SegmentValue::CenterOf(last - at));
            let whisker = vec![point(rate.interval.low), point(rate.interval.high)];
            chart
                .plotting_area()
                .draw(&PathElement::new(whisker, INK.stroke_width(2)))?;
            chart
                .plotting_area()
                .draw(&Circle::new(point(share), 5, INK.filled()))?;
        }
        Ok(())
    })
}

/// How often each length of time, in microseconds, occurs; the axis of time is logarithmic.
pub fn histogram(times_us: impl IntoIterator<Item = u64>) -> Result<String, PlotError> {
    let bars = bars(times_us);
    let (Some((first, _)), Some((last, _))) = (bars.first_key_value(), bars.last_key_value())
    else {
        return Ok(String::new());
    };
    let edge = |bar: i32| 10f64.powf(f64::from(bar) / f64::from(BARS_PER_DECADE));
    let highest = bars.values().copied().max().unwrap_or(0) as f64;
    draw(260, |area| {
        // Whole decades, so that there are always labels.
        let decade = |bar: i32| 10f64.powi(bar.div_euclid(BARS_PER_DECADE));
        let times = (decade(*first)..10.0 * decade(*last)).log_scale();
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(30)
            .x_label_area_size(24)
            .y_label_area_size(70)
            .build_cartesian_2d(times, 0.0..1.05 * highest)?;
        mesh(&mut chart, &|us| time(*us), &|count| whole(*count), 6)?;
        for (bar, count) in &bars {
            let corners = [(edge(*bar), 0.0), (edge(bar + 1), *count as f64)];
            chart
                .plotting_area()
                .draw(&Rectangle::new(corners, INK.filled()))?;
        }
        Ok(())
    })
}

/// A line through `points`, of which the first member is a time in seconds.
pub fn line(points: &[(f64, f64)]) -> Result<String, PlotError> {
    let is_finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let points: Vec<_> = points.iter().copied().filter(is_finite).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Ok(String::new());
    };
    let highest = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let highest = if highest > 0.0 { 1.05 * highest } else { 1.0 };
    let end = if last.0 > first.0 {
        last.0
    } else {
        first.0 + 1.0
    };
    draw(220, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(30)
            .x_label_area_size(24)
            .y_label_area_size(80)
            .build_cartesian_2d(first.0..end, 0.0..highest)?;
        mesh(
            &mut chart,
            &|at| format!("{} s", number(*at)),
            &|value| number(*value),
            5,
        )?;
        chart.draw_series(LineSeries::new(points.iter().copied(), INK.stroke_width(2)))?;
        Ok(())
    })
}

fn draw(
    height: u32,
    content: impl FnOnce(&Area) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        content(&area)?;
        area.present()?;
    }
    Ok(svg)
}

fn mesh<X, Y>(
    chart: &mut Chart<X, Y>,
    x_label: &dyn Fn(&X::ValueType) -> String,
    y_label: &dyn Fn(&Y::ValueType) -> String,
    y_labels: usize,
) -> Result<(), PlotError>
where
    X: Ranged + ValueFormatter<X::ValueType>,
    Y: Ranged + ValueFormatter<Y::ValueType>,
{
    chart
        .configure_mesh()
        .axis_style(AXIS)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(FONT.with_color(AXIS))
        .x_label_formatter(x_label)
        .y_label_formatter(y_label)
        .y_labels(y_labels)
        .draw()
}

/// How many times fall in each bar; a bar is named by its place on the logarithmic axis.
fn bars(times_us: impl IntoIterator<Item = u64>) -> BTreeMap<i32, u64> {
    let mut bars = BTreeMap::new();
    for us in times_us {
        let place = (us.max(1) as f64).log10() * f64::from(BARS_PER_DECADE);
        // A power of ten starts a bar, whatever the logarithm was rounded to.
        *bars.entry((place + 1e-9).floor() as i32).or_insert(0) += 1;
    }
    bars
}

/// A label of the logarithmic axis; there is room for those of 1 and 3 in each decade.
fn time(us: f64) -> String {
    let lead = us / 10f64.powf((us.log10() + 1e-9).floor());
    match us {
        _ if ![1.0, 3.0].contains(&lead.round()) => String::new(),
        ..1e3 => format!("{} µs", number(us)),
        ..1e6 => format!("{} ms", number(us / 1e3)),
        _ => format!("{} s", number(us / 1e6)),
    }
}

/// A label of an axis of counts, which has none between whole numbers.
fn whole(count: f64) -> String {
    match count.fract() == 0.0 {
        true => number(count),
        false => String::new(),
    }
}

/// A number with at most three digits after the point.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::balance::assert_balanced, *};

    #[test]
    fn there_is_a_dot_for_each_rate_and_its_name_is_escaped() {
        let rows = [
            ("a<b>&", Rate::new(9, 10)),
            ("none", Rate::new(0, 0)),
            ("c", Rate::new(1, 2)),
        ];
        let svg = dots(&rows).unwrap();
        assert_balanced(&svg);
        assert_eq!(svg.matches("<circle").count(), 2);
        for name in ["a&lt;b&gt;&amp;", "none", "c"] {
            let is_there = svg.lines().any(|line| line.trim() == name);
            assert!(is_there, "{name}: {svg}");
        }
    }

    #[test]
    fn a_greater_share_is_further_right() {
        let x = |count| {
            let svg = dots(&[("all", Rate::new(count, 10))]).unwrap();
            let circle = svg.split("<circle cx=\"").nth(1).unwrap();
            circle.split('"').next().unwrap().parse::<i32>().unwrap()
        };
        assert!(x(10) > x(9) && x(10) <= WIDTH as i32);
    }

    #[test]
    fn a_dot_is_in_the_row_of_its_name() {
        let svg = dots(&[("half", Rate::new(1, 2)), ("all", Rate::new(2, 2))]).unwrap();
        let number = |text: &str, name: &str| {
            let value = text.split(name).nth(1).unwrap();
            value.split('"').next().unwrap().parse::<i32>().unwrap()
        };
        let lines: Vec<_> = svg.lines().collect();
        let circles = lines.iter().filter(|line| line.starts_with("<circle"));
        let dots: Vec<_> = circles.map(|line| number(line, "cy=\"")).collect();
        let names = ["half", "all"].map(|name| {
            let at = lines.iter().position(|line| line.trim() == name).unwrap();
            number(lines[at - 1], " y=\"")
        });
        assert!(names[0] < names[1], "the first is at the top");
        assert_eq!(dots, names);
    }

    #[test]
    fn times_are_counted_in_bars_of_a_logarithmic_axis() {
        let counts = bars([0, 1, 1, 2, 10, 999, 1000, 1001]);
        let expected = [(0, 3), (3, 1), (10, 1), (29, 1), (30, 2)];
        assert_eq!(counts, BTreeMap::from(expected));
        let svg = histogram([1, 10, 1000]).unwrap();
        assert_balanced(&svg);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!(histogram([]).unwrap(), "");
    }

    #[test]
    fn a_line_can_be_drawn_through_anything() {
        let svg = line(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]).unwrap();
        assert_balanced(&svg);
        assert!(svg.contains("<polyline"));
        for points in [&[(5.0, 0.0)][..], &[(f64::INFINITY, 1.0)], &[]] {
            assert_balanced(&line(points).unwrap());
        }
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(time(100.0), "100 µs");
        assert_eq!(time(300_000.0), "300 ms");
        assert_eq!(time(500.0), "");
        assert_eq!(time(1e6), "1 s");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(2.5), "2.5");
        assert_eq!((whole(2.5), whole(2.0)), (String::new(), "2".to_owned()));
    }
}
