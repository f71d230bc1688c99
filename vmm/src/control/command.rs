//! The commands of the control interface.

use std::sync::Arc;

use guest_agentless::heap::Heaps;
use guest_agentless::{GuestRange, syscall};
use serde_json::{Value, json};

use crate::inject::{Injector, Spec};
use crate::process::heap::Guest;
use crate::process::{Process, Turn, strike};

/// What there is, for `--help`.
pub const HELP: &str = "\
Commands:
  inject SPEC      inject faults, as with `vmsrs run --inject SPEC`; answers with the injection's number
  injections       what came of all injections so far
  clear [ID]       take an injection away, or all
  stats            the counters, as `--stats` writes them at the end
  check-heap       walk the glibc heap and say whether it is consistent
  help             this list";

/// Executes a command line.
pub fn execute(process: &Arc<Process>, line: &str) -> Value {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let done = match (name, rest.trim()) {
        ("inject", spec) => inject(process, spec),
        ("injections", "") => injector(process).map(|injector| json!(injector.status())),
        ("clear", id) => clear(process, id),
        ("stats", "") => Ok(process
            .stats
            .to_json(|n| syscall::lookup(n).map(|row| row.name))),
        ("check-heap", "") => check_heap(process),
        ("help", "") => Ok(json!(
            HELP.lines().skip(1).map(str::trim).collect::<Vec<_>>()
        )),
        _ => Err(format!("`{line}` is no command; `help` lists them")),
    };
    match done {
        Ok(result) => json!({ "ok": result }),
        Err(error) => json!({ "error": error }),
    }
}

fn injector(process: &Process) -> Result<&Injector, String> {
    let injector = process.injector.as_deref();
    injector.ok_or_else(|| "without protection nothing can be injected".into())
}

fn inject(process: &Arc<Process>, spec: &str) -> Result<Value, String> {
    let spec: Spec = spec
        .parse()
        .map_err(|error: crate::inject::BadSpec| error.to_string())?;
    let id = injector(process)?
        .add(spec)
        .map_err(|error| error.to_string())?;
    strike::await_time(process, id).map_err(|error| error.to_string())?;
    Ok(json!({ "id": id }))
}

fn clear(process: &Process, id: &str) -> Result<Value, String> {
    let id = match id {
        "" => None,
        id => Some(id.parse().map_err(|_| format!("`{id}` is no number"))?),
    };
    Ok(json!({ "cleared": injector(process)?.clear(id) }))
}

/// Walks all of the heap at a moment when no request runs.
fn check_heap(process: &Arc<Process>) -> Result<Value, String> {
    let mut turn = Turn::take(process, 0);
    let (start, end) = turn.space.heap();
    let brk = GuestRange::from_bounds(start, end);
    turn.restore_in(process, brk);
    let main = turn.main_arena().map_err(|error| error.to_string())?;
    let mut heaps = Heaps::new(main);
    heaps.refresh(&Guest, brk);
    let pages: Vec<_> = brk.pages().filter(|page| heaps.contains(*page)).collect();
    match heaps.check(&Guest, 0, pages.iter().copied()) {
        Ok(checked) => Ok(json!({
            "consistent": true, "pages": pages.len(), "chunks": checked.chunks, "locked": checked.locked,
        })),
        Err(corruption) => Ok(json!({
            "consistent": false, "pages": pages.len(), "corruption": corruption.to_string(),
        })),
    }
}
