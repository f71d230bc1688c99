//! What a campaign, or a soak run, found: as JSON for programs, as Markdown for the documentation,
//! and as an HTML page to look at. Whatever comes from a server is escaped.

#[cfg(test)]
mod balance;
pub mod groups;
pub mod html;
pub mod json;
pub mod markdown;
mod page;
pub mod plot;
mod table;
pub mod timeline;
