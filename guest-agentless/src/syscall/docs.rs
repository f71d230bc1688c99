//! `docs/syscalls.md`, generated from the table.

use std::fmt::Write;

use super::table::{AREAS, Area};
use super::{ArgKind, Effect, Size, Support, Syscall};

const INTRO: &str = "\
# System calls

<!-- Generated from guest-agentless/src/syscall/table. Do not edit: change the table and run
     VMSRS_BLESS=1 cargo test -p guest-agentless syscalls_page -->

The guest's system calls leave the virtual machine and are carried out by the monitor on the host. This page
lists the calls of the x86-64 ABI that the monitor knows. A number that is not here is answered with `ENOSYS`
and logged once.

A pointer that a guest passes must lie in a guest window; otherwise the call fails with `EFAULT`.

**Support** is *full* (as on Linux), *partial* (with the limits in the note) or *refused* (with the error in
the note).

**Effect** says what becomes of the call when it is made inside a request domain. For calls on descriptors of
several kinds the class is that for sockets, and the note gives the others.

";

/// The classes in the order of the legend.
const EFFECTS: &[(Effect, &str)] = &[
    (
        Effect::Pure,
        "nothing outlives it but what it writes to guest memory",
    ),
    (
        Effect::Held,
        "output to a peer: sent in order at commit, dropped at abandon",
    ),
    (Effect::Deferred, "done at commit, forgotten at abandon"),
    (
        Effect::Compensated,
        "done at once, undone in reverse order at abandon",
    ),
    (
        Effect::DeferredWrite,
        "output to a regular file: done at commit, in order, before held output is released; forgotten at abandon",
    ),
    (
        Effect::Consuming,
        "takes something away, which is given back at abandon: the next read returns it again",
    ),
    (
        Effect::Origin,
        "delivers a client's bytes, connection or datagram: a domain begins here, and an abandoned one is \
         answered here with an error",
    ),
    (Effect::Boundary, "waits for work: the domain ends"),
    (
        Effect::External,
        "cannot be undone: the domain commits before the call",
    ),
    (
        Effect::Process,
        "concerns the thread or process itself and is carried by the monitor",
    ),
];

/// The text of `docs/syscalls.md`.
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    out.push_str("| effect | meaning |\n|---|---|\n");
    for (effect, meaning) in EFFECTS {
        line(
            &mut out,
            format_args!("| {} | {meaning} |", effect_name(*effect)),
        );
    }
    let rows = || AREAS.iter().flat_map(|area| area.rows);
    let count = |support| rows().filter(|call| call.support == support).count();
    line(
        &mut out,
        format_args!(
            "\nOf {} calls {} are carried in full, {} in part, and {} are refused.",
            rows().count(),
            count(Support::Full),
            count(Support::Partial),
            count(Support::Refused),
        ),
    );
    AREAS.iter().for_each(|area| area_table(&mut out, area));
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn area_table(out: &mut String, area: &Area) {
    line(out, format_args!("\n## {}\n", area.title));
    line(
        out,
        format_args!("| number | call | effect | support | written by the kernel | note |"),
    );
    line(out, format_args!("|---:|---|---|---|---|---|"));
    for call in area.rows {
        let (effect, written) = match call.support {
            Support::Refused => ("-", String::new()),
            _ => (effect_name(call.effect), written(call)),
        };
        let parameters: Vec<&str> = call.args.iter().map(|arg| arg.name).collect();
        line(
            out,
            format_args!(
                "| {} | `{}({})` | {effect} | {} | {written} | {} |",
                call.number,
                call.name,
                parameters.join(", "),
                support_name(call.support),
                call.note.replace('|', "\\|"),
            ),
        );
    }
}

/// What the call writes to guest memory, in words.
fn written(call: &Syscall) -> String {
    let name = |index: u8| {
        call.args
            .get(usize::from(index))
            .map_or("?", |arg| arg.name)
    };
    let parts = call.args.iter().filter_map(|arg| {
        let what = arg.name;
        Some(match arg.kind {
            ArgKind::Out(size) | ArgKind::InOut(size) => match size {
                Size::Fixed(bytes) => format!("`{what}`: {bytes}"),
                Size::Arg(index) => format!("`{what}`: `{}`", name(index)),
                Size::Elements { count, each } => format!("`{what}`: {each} × `{}`", name(count)),
                Size::Pointee(index) => format!("`{what}`: `*{}`", name(index)),
            },
            ArgKind::IovecOut { .. } => format!("what `{what}` describes"),
            ArgKind::MsgOut => format!("`{what}` and what it describes"),
            ArgKind::Custom => format!("`{what}`: see note"),
            _ => return None,
        })
    });
    parts.collect::<Vec<_>>().join("; ")
}

/// The name of the class in documentation and traces.
pub fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Pure => "pure",
        Effect::Held => "held",
        Effect::Deferred => "deferred",
        Effect::Compensated => "compensated",
        Effect::DeferredWrite => "deferred write",
        Effect::Consuming => "consuming",
        Effect::Origin => "origin",
        Effect::Boundary => "boundary",
        Effect::External => "external",
        Effect::Process => "process",
    }
}

fn support_name(support: Support) -> &'static str {
    match support {
        Support::Full => "full",
        Support::Partial => "partial",
        Support::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_syscalls_page_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/syscalls.md");
        let wanted = markdown();
        if std::env::var_os("VMSRS_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == wanted,
            "docs/syscalls.md differs from the table; write it anew with\n    \
             VMSRS_BLESS=1 cargo test -p guest-agentless syscalls_page"
        );
    }

    #[test]
    fn the_legend_explains_every_class_in_use() {
        for call in AREAS.iter().flat_map(|area| area.rows) {
            assert!(
                EFFECTS.iter().any(|(effect, _)| *effect == call.effect),
                "{}",
                call.name
            );
        }
    }

    #[test]
    fn sizes_are_given_by_argument_names() {
        let written = |name| {
            let mut rows = AREAS.iter().flat_map(|area| area.rows);
            written(rows.find(|call| call.name == name).unwrap())
        };
        assert_eq!(written("epoll_wait"), "`events`: 12 × `maxevents`");
        assert_eq!(
            written("recvfrom"),
            "`buf`: `len`; `src_addr`: `*addrlen`; `addrlen`: 4"
        );
        assert_eq!(written("readv"), "what `iov` describes");
        assert_eq!(written("close"), "");
    }
}
