//! A report as text for people: what, whose request, where, what it had written, what became of that, how long.

use std::fmt::{self, Write};

use super::{Excerpt, FaultReport, Frame};
use crate::event::Outcome;
use crate::origin::Origin;

/// Width of the lines that show bytes.
const BYTES_WIDTH: usize = 96;

/// Renders `report`. It may hold what a client sent, so no control character in it reaches the terminal.
pub(super) fn render(report: &FaultReport) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, report);
    out.lines()
        .flat_map(|line| line.trim_end().chars().map(visible).chain(['\n']))
        .collect()
}

/// The replacement character for a control character other than a line end, anything else as it is.
fn visible(c: char) -> char {
    match c {
        '\n' => c,
        _ if c.is_control() => '\u{fffd}',
        _ => c,
    }
}

/// A string of the guest on one line.
fn line(text: &str) -> String {
    text.replace('\n', " ")
}

fn write_report(out: &mut String, r: &FaultReport) -> fmt::Result {
    let place = line(&r.place());
    let headline = r.outcome.as_str().to_uppercase();
    match &r.signal {
        Some(signal) => writeln!(out, "{headline}: {} ({}) in {place}", line(signal), r.kind)?,
        None => writeln!(out, "{headline}: {} in {place}", r.kind)?,
    }
    writeln!(out, "{}", verdict(r))?;
    writeln!(out)?;
    writeln!(out, "Report    {}", r.id)?;
    writeln!(out, "Time      {}", line(&r.time))?;
    writeln!(out, "Program   {} (process {})", line(&r.program), r.pid)?;
    match &r.signal {
        Some(signal) => write!(out, "Fault     {}, {}", line(signal), r.kind)?,
        None => write!(out, "Fault     {}", r.kind)?,
    }
    if let Some(address) = r.address {
        write!(out, ", address {address}")?;
    }
    let symbol = r
        .symbol
        .as_ref()
        .map_or_else(String::new, |s| format!(" {}", line(s)));
    writeln!(out, "\n          at {}{symbol}", r.rip)?;
    if r.function.is_some() {
        writeln!(out, "          in {place}")?;
    }
    if let Some(detail) = &r.detail {
        writeln!(out, "          {}", line(detail))?;
    }
    writeln!(out, "Thread    {} {}", r.thread, line(&r.thread_name))?;
    let peer = r
        .peer
        .as_ref()
        .map_or_else(|| "no peer".to_owned(), |p| format!("peer {}", line(p)));
    writeln!(out, "Request   {}, {peer}", line(&r.origin))?;
    if !r.rung.is_empty() {
        writeln!(out, "Rung      {}", line(&r.rung))?;
    }
    writeln!(out, "Pause     {} us{}", r.pause_us, pause_parts(r))?;
    if r.replied {
        writeln!(
            out,
            "Reply     the client was sent the configured error reply"
        )?;
    }
    if r.repeat > 0 {
        writeln!(out, "Repeat    the same fault as {} before it", r.repeat)?;
    }
    if let Some(more) = &r.more {
        write!(
            out,
            "Again     {} times more, last {}",
            more.count,
            line(&more.last)
        )?;
        match &more.last_peer {
            Some(peer) => writeln!(out, " by {}", line(peer))?,
            None => writeln!(out)?,
        }
    }

    write_core(out, r)?;

    section_bytes(out, "Input of the request", &r.input)?;
    section(
        out,
        "Stack",
        r.stack
            .iter()
            .enumerate()
            .map(|(i, frame)| frame_line(i, frame)),
    )?;
    let written = format!(
        "Written: {} pages, {} restored",
        r.pages_written, r.pages_restored
    );
    let mappings = r.written.iter().map(|w| {
        format!(
            "{:<32} {:>6} pages {:>9} bytes changed",
            line(&w.mapping),
            w.pages,
            w.bytes_changed
        )
    });
    section(out, &written, mappings)?;
    section(out, "Undone", r.undone.iter().map(|s| line(s)))?;
    section_bytes(out, "Output dropped", &r.dropped_output)?;
    section(out, "Kept", r.kept.iter().map(|s| line(s)))?;
    let registers = r.registers.chunks(3).map(|row| {
        let cells: Vec<String> = row
            .iter()
            .map(|reg| format!("{:<8}{:#018x}", line(&reg.name), reg.value.0))
            .collect();
        cells.join("  ")
    });
    section(out, "Registers", registers)
}

/// Where the core is and how to open it.
fn write_core(out: &mut String, r: &FaultReport) -> fmt::Result {
    if let Some(missing) = &r.core_missing {
        writeln!(out, "Core      none: {}", line(missing))?;
    }
    let Some(core) = &r.core else {
        return Ok(());
    };
    let Some((path, command)) = core.path.as_ref().zip(core.command()) else {
        return writeln!(out, "Core      removed");
    };
    let kib = core.bytes.div_ceil(1024);
    writeln!(out, "Core      {} ({kib} KiB)", line(path))?;
    writeln!(out, "          {}", line(&command))?;
    if core.pages_left_out > 0 {
        let all = core.pages_written.saturating_add(core.pages_left_out);
        let what = "the request had written are in it; --core-limit allows for more";
        writeln!(
            out,
            "          {} of {all} pages that {what}",
            core.pages_written
        )?;
    }
    Ok(())
}

/// One sentence for who has not read the manual.
fn verdict(r: &FaultReport) -> String {
    let reason = r
        .reason
        .as_ref()
        .map_or_else(|| "no reason given".to_owned(), |s| line(s));
    match r.outcome {
        // Nobody's request: whether that helped is told by what comes next.
        Outcome::Recovered if is_own_work(r) => {
            "The server's own work was undone and is run again; no client is concerned.".to_owned()
        }
        Outcome::Recovered => {
            "The request was undone as a whole; the server and everyone else went on.".to_owned()
        }
        Outcome::Degraded => {
            format!("The server went on, but the request could not be undone as a whole: {reason}.")
        }
        Outcome::Escalated => format!("The fault could not be contained: {reason}."),
    }
}

/// Whether the fault belongs to no client's request.
fn is_own_work(r: &FaultReport) -> bool {
    let own = [Origin::Internal, Origin::Timer].map(|origin| origin.to_string());
    own.contains(&r.origin) && r.peer.is_none()
}

fn pause_parts(r: &FaultReport) -> String {
    let parts: Vec<String> = r
        .pause
        .iter()
        .map(|part| format!("{} {}", line(&part.step), part.us))
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}

fn frame_line(index: usize, frame: &Frame) -> String {
    let module = frame
        .module
        .as_ref()
        .map_or_else(|| "?".to_owned(), |m| line(m));
    let mut text = format!("#{index:<3} {:#018x} ", frame.address.0);
    match &frame.symbol {
        Some(symbol) => text += &format!("{}+{} in {module}", line(symbol), frame.offset),
        None => text += &format!("{module}+{}", frame.offset),
    }
    if let Some(file) = &frame.file {
        let number = frame.line.map_or_else(String::new, |n| format!(":{n}"));
        text += &format!(" ({}{number})", line(file));
    }
    text
}

/// A heading and its lines; nothing if there is nothing to say.
fn section(out: &mut String, heading: &str, lines: impl Iterator<Item = String>) -> fmt::Result {
    let mut lines = lines.peekable();
    // A heading that already tells a number is worth showing alone.
    if lines.peek().is_some() || heading.contains(':') {
        writeln!(out, "\n{heading}")?;
    }
    lines.try_for_each(|text| writeln!(out, "  {text}"))
}

fn section_bytes(out: &mut String, heading: &str, bytes: &Excerpt) -> fmt::Result {
    let cut = match bytes.kept() < bytes.length {
        true => format!(", the first {} shown", bytes.kept()),
        false => String::new(),
    };
    section(
        out,
        &format!("{heading}: {} bytes{cut}", bytes.length),
        wrap(&bytes.text).into_iter(),
    )
}

/// Breaks escaped text into lines: after each escaped line end, and never inside an escape.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let mut token = String::from(c);
        if c == '\\' {
            token.extend(chars.next());
            if token == "\\x" {
                token.extend(chars.by_ref().take(2));
            }
        }
        if current.len() + token.len() > BYTES_WIDTH {
            lines.push(std::mem::take(&mut current));
        }
        current += &token;
        if token == "\\n" {
            lines.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        lines.push(current);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn the_whole_report() {
        let report = sample(UNIX_EPOCH);
        let expected = format!(
            r"RECOVERED: SIGSEGV (null-write) in set_value (server.c:120)
The request was undone as a whole; the server and everyone else went on.

Report    {}
Time      1970-01-01T00:00:00.000000Z
Program   /usr/bin/server (process {})
Fault     SIGSEGV, null-write, address 0x18
          at 0x401234 set_value+0x14
          in set_value (server.c:120)
Thread    17 worker-2
Request   stream:7, peer 127.0.0.1:4242
Pause     84 us (restore 50)

Input of the request: 13 bytes
  SET a \x1b[31m\r\n

Stack
  #0   0x0000000000401234 set_value+0x14 in /usr/bin/server (server.c:120)
  #1   0x0000000000401234 /usr/bin/server+0x14

Written: 3 pages, 3 restored
  [heap]                                3 pages        40 bytes changed

Undone
  open -> 9 closed

Output dropped: 5 bytes
  +OK\r\n

Registers
  rax     0x0000000000000001
",
            report.id, report.pid
        );
        assert_eq!(render(&report), expected);
    }

    #[test]
    fn work_of_the_server_itself_is_no_request() {
        let mut report = sample(UNIX_EPOCH);
        report.origin = "timer".into();
        report.peer = None;
        assert!(render(&report).contains("\nThe server's own work was undone and is run again;"));
        // Charged to the connections of its wake-up.
        report.peer = Some("127.0.0.1:4242".into());
        assert!(render(&report).contains("\nThe request was undone"));
    }

    #[test]
    fn lesser_outcomes_say_why() {
        let mut report = sample(UNIX_EPOCH);
        report.outcome = Outcome::Degraded;
        report.reason = Some("page 0x1000 was read by another thread".into());
        assert!(render(&report).contains("as a whole: page 0x1000 was read by another thread.\n"));
        report.outcome = Outcome::Escalated;
        assert!(render(&report).starts_with("ESCALATED: SIGSEGV"));
    }

    #[test]
    fn a_repeated_fault_says_so() {
        let mut report = sample(UNIX_EPOCH);
        report.repeat = 2;
        report.replied = true;
        report.more = Some(crate::report::Tally {
            count: 997,
            last: "1970-01-02T00:00:00.000000Z".into(),
            last_peer: Some("127.0.0.1:9".into()),
        });
        let text = render(&report);
        assert!(
            text.contains("\nRepeat    the same fault as 2 before it\n"),
            "{text}"
        );
        let again = "\nAgain     997 times more, last 1970-01-02T00:00:00.000000Z by 127.0.0.1:9\n";
        assert!(text.contains(again), "{text}");
        assert!(text.contains("\nReply  "), "{text}");
    }

    #[test]
    fn the_core_is_told_with_its_command() {
        let mut report = sample(UNIX_EPOCH);
        report.core = Some(crate::report::Core {
            bytes: 5000,
            program: "/usr/bin/server".into(),
            pages_written: 3,
            pages_left_out: 0,
            path: Some("/r/1-0/core".into()),
        });
        let text = render(&report);
        let told = "\nCore      /r/1-0/core (5 KiB)\n          gdb /usr/bin/server /r/1-0/core\n\n";
        assert!(text.contains(told), "{text}");
        if let Some(core) = &mut report.core {
            core.pages_left_out = 1000;
        }
        let left_out = "\n          3 of 1003 pages that the request had written are in it;";
        assert!(render(&report).contains(left_out));
        if let Some(core) = &mut report.core {
            core.path = None;
        }
        assert!(render(&report).contains("\nCore      removed\n"));
        report.core = None;
        report.core_missing = Some("no room".into());
        assert!(render(&report).contains("\nCore      none: no room\n"));
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let mut report = sample(UNIX_EPOCH);
        let evil = "x\x1b[2J\r\ny\u{9b}".to_owned();
        report.thread_name = evil.clone();
        report.peer = Some(evil.clone());
        report.stack[0].symbol = Some(evil.clone());
        report.core_missing = Some(evil.clone());
        report.undone = vec![evil];
        assert!(
            render(&report)
                .chars()
                .all(|c| c == '\n' || !c.is_control())
        );
        // The line about the core is one more.
        assert_eq!(
            render(&report).lines().count(),
            render(&sample(UNIX_EPOCH)).lines().count() + 1
        );
    }

    #[test]
    fn escapes_are_not_broken() {
        assert_eq!(wrap(r"a\r\nb"), [r"a\r\n", "b"]);
        assert!(wrap("").is_empty());
    }

    proptest! {
        #[test]
        fn wrapping_loses_nothing(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let text = bytes.escape_ascii().to_string();
            let lines = wrap(&text);
            prop_assert_eq!(lines.concat(), text);
            prop_assert!(lines.iter().all(|l| l.len() <= BYTES_WIDTH));
        }
    }
}
