//! `docs/ioctls.md`, generated from the table.

use std::fmt::Write;

use super::{Argument, GROUPS, Group, Ioctl, On};
use crate::syscall::docs::effect_name;

const INTRO: &str = "\
# Requests of ioctl

<!-- Generated from guest-agentless/src/ioctl/table.rs. Do not edit: change the table and run
     VMSRS_BLESS=1 cargo test -p guest-agentless ioctls_page -->

The requests that the monitor carries, as Linux does. The kernel is given a buffer of the monitor's, of the size in the
table. Any other request, and a request to a descriptor of another kind, is `ENOTTY`. The effect classes are those of
[the system calls](syscalls.md). What is compensated is set back as it was; what is external commits the running request
first, and so do settings of a terminal if the request has output that waits. A request that *waits* is made while others
run.
";

/// The text of `docs/ioctls.md`.
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    GROUPS.iter().for_each(|group| table(&mut out, group));
    out
}

fn table(out: &mut String, group: &Group) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\n## {}\n", group.title);
    let _ = writeln!(
        out,
        "| number | request | on | argument | effect | waits | note |\n|---:|---|---|---|---|---|---|"
    );
    for row in group.rows {
        let waits = if row.waits { "yes" } else { "" };
        let _ = writeln!(
            out,
            "| {:#x} | `{}` | {} | {} | {} | {waits} | {} |",
            row.request,
            row.name,
            on(row),
            argument(row),
            effect_name(row.effect),
            row.note,
        );
    }
}

fn on(row: &Ioctl) -> &'static str {
    match row.on {
        On::Any => "all",
        On::File => "files",
        On::Terminal => "terminals",
        On::Socket => "sockets",
        On::TerminalOrSocket => "terminals, sockets",
    }
}

fn argument(row: &Ioctl) -> String {
    match row.argument {
        Argument::Unused => String::new(),
        Argument::Value => "a number".into(),
        Argument::Fd => "a descriptor".into(),
        Argument::In(bytes) => format!("{bytes} bytes read"),
        Argument::Out(bytes) => format!("{bytes} bytes written"),
        Argument::InOut(bytes) => format!("{bytes} bytes read and written"),
        Argument::Leading {
            bytes,
            len_at,
            address_at,
        } => format!(
            "{bytes} bytes read and written; at {address_at} the address, at {len_at} the length of more that is written"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctls_page_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ioctls.md");
        let wanted = markdown();
        if std::env::var_os("VMSRS_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == wanted,
            "docs/ioctls.md differs from the table; write it anew with\n    \
             VMSRS_BLESS=1 cargo test -p guest-agentless ioctls_page"
        );
    }
}
