//! The frame of an HTML page: it needs nothing from elsewhere, and follows the reader's choice of
//! light or dark.

use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
.total td { font-weight: bold; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.2rem 0.8rem; }
.bar { background: #3b82c4; height: 1.1rem; align-self: center; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; }
li { overflow-wrap: anywhere; }
";

/// A whole page.
pub(super) fn page(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                (body)
            }
        }
    };
    page.into_string()
}
