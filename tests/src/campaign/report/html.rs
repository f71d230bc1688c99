//! A campaign as one HTML page.

use maud::{Markup, PreEscaped, html};

use super::{
    groups::Groups,
    json::{self, Summary},
    page::page,
    plot::{self, PlotError},
    table::{self, COLUMNS, FIRST},
};
use crate::campaign::{
    funnel::{Funnel, ServerFunnel},
    trial::Trial,
};

/// The page on `trials`, of which `summary` is the summary.
pub fn report(summary: &Summary, trials: &[Trial]) -> Result<String, PlotError> {
    let servers = summary.servers.iter().map(|funnel| server(funnel, trials));
    let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
    let total = &summary.total;
    let body = html! {
        ul {
            @for (name, value) in &summary.parameters {
                li { (name) ": " (json::shown(value)) }
            }
        }
        p {
            "Survival: " (total.survival) " of " (total.survival.of) " trials that count. "
            "Silent corruption: " (total.silent) " of " (total.injected) " injected faults."
        }
        p { (table::LEGEND) }
        @for server in servers { (server) }
        (list("Silent corruption", &Groups::silent(trials)))
        (list("Not recovered and correct", &Groups::not_survived(trials)))
    };
    Ok(page("Fault-injection campaign", &body))
}

fn server(server: &ServerFunnel, trials: &[Trial]) -> Result<Markup, PlotError> {
    let rates = table::rows(server).map(|(class, funnel)| (class, funnel.survival));
    let dots = plot::dots(&rates.collect::<Vec<_>>())?;
    let own = trials.iter().filter(|trial| trial.server == server.server);
    let injected = own.filter(|trial| trial.injected.is_some());
    let pauses = plot::histogram(injected.filter_map(|trial| trial.pause_us))?;
    Ok(html! {
        h2 { (server.server) }
        (bars(&server.total))
        h3 { "Survival, with 95 % intervals" }
        (PreEscaped(dots))
        h3 { "Pauses of " (server.total.pause.count) " recoveries" }
        (PreEscaped(pauses))
        h3 { "Counts" }
        (counts(server))
    })
}

/// How many faults came how far, as bars.
fn bars(funnel: &Funnel) -> Markup {
    let stages = [
        ("trials", funnel.trials),
        ("injected", funnel.injected),
        ("activated", funnel.activated),
        ("manifested", funnel.manifested),
        ("detected", funnel.detected),
        ("recovered", funnel.recovered),
        ("and correct", funnel.correct),
    ];
    let width = |count: u64| 100.0 * count as f64 / funnel.trials.max(1) as f64;
    html! {
        div.bars {
            @for (name, count) in stages {
                span { (name) }
                div.bar style=(format!("width: {:.2}%", width(count))) {}
                span { (count) }
            }
        }
    }
}

fn counts(server: &ServerFunnel) -> Markup {
    let rows: Vec<_> = table::rows(server).collect();
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { (FIRST) }
                        @for (title, _) in COLUMNS { th { (title) } }
                    }
                }
                tbody {
                    @for (at, (class, funnel)) in rows.iter().enumerate() {
                        tr.total[at + 1 == rows.len()] {
                            td { (class) }
                            @for (_, cell) in COLUMNS { td { (cell(funnel)) } }
                        }
                    }
                }
            }
        }
    }
}

fn list(title: &str, groups: &Groups) -> Markup {
    html! {
        h2 { (title) }
        @if groups.is_empty() { p { "None." } }
        ul {
            @for group in &groups.groups {
                li {
                    (group.count) " × " b { (group.server) ", " (group.class) } ": "
                    (group.reason) ". Example: " (group.example)
                }
            }
        }
        @if let Some(rest) = groups.rest() { p { (rest) } }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::balance::assert_balanced, *};
    use crate::campaign::sample;
    use serde_json::{Map, Value};

    fn sample_page() -> String {
        let parameters = Map::from_iter([("machine".to_owned(), Value::from("<i> & co"))]);
        let trials = sample::trials();
        report(&Summary::new(parameters, &trials), &trials).unwrap()
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let page = sample_page();
        assert_balanced(&page);
        assert!(page.contains("color-scheme"));
        for needs in [
            "<script", "<link", "<img", "src=", "href=", "@import", "url(",
        ] {
            assert!(!page.contains(needs), "{needs}");
        }
    }

    #[test]
    fn what_servers_say_is_escaped() {
        let page = sample_page();
        for raw in ["<b>\"", "stack|<b>", "<safe>", "<i>", "<script>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        // The class is in the table, the list, and the plot.
        assert_eq!(page.matches("stack|&lt;b&gt;").count(), 3);
    }

    #[test]
    fn the_numbers_are_those_of_the_trials() {
        let page = sample_page();
        let row = "<td>pointer=bit</td><td>6</td><td>5</td><td>4</td><td>4</td><td>4</td>\
                   <td>4</td><td>3</td>";
        assert!(page.contains(row));
        assert!(page.contains("<td>66.7 % (20.8–93.9)</td>"));
        // Of ten Redis trials, eight manifested.
        let bar = "<span>manifested</span><div class=\"bar\" style=\"width: 80.00%\">";
        assert!(page.contains(bar));
        assert!(page.contains("Pauses of 4 recoveries"));
        assert_eq!(page.matches("<li>").count(), 1 + 2 + 5);
        // A dot for each class of Redis and one for all; nginx had nothing to survive.
        assert_eq!(page.matches("<circle").count(), 3);
    }

    #[test]
    fn an_empty_campaign_is_a_page_too() {
        let page = report(&Summary::new(Map::new(), &[]), &[]).unwrap();
        assert_balanced(&page);
        assert_eq!(page.matches("None.").count(), 2);
    }
}
