//! The function that a reader of a report looks for.
//!
//! A failed assertion faults in `raise`, a bad length in `memcpy`: the place that needs a repair is the first frame
//! below them that belongs to the program.

use super::Frame;

/// Libraries of the language runtimes, by the beginning of their file names. A fault in them is a fault of the
/// caller.
const RUNTIME_LIBRARIES: [&str; 12] = [
    "libc.so",
    "libc-",
    "libc.musl",
    "ld-linux",
    "ld-musl",
    "libpthread",
    "libm.so",
    "libstdc++",
    "libgcc_s",
    "libjemalloc",
    "libtcmalloc",
    "libasan",
];

/// The same functions where they are linked into the program, and what runtimes call on the way to `abort`.
const RUNTIME_FUNCTIONS: [&str; 13] = [
    "abort",
    "raise",
    "gsignal",
    "pthread_kill",
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "strlen",
    "strcpy",
    "strcmp",
    "__assert_fail",
    "rust_panic",
];

/// Beginnings of such names.
const RUNTIME_PREFIXES: [&str; 9] = [
    "__GI_",
    "__pthread_kill",
    "__mem",
    "__str",
    "__stack_chk_fail",
    "__fortify_fail",
    "core::panicking::",
    "std::panicking::",
    "std::process::abort",
];

/// The innermost frame of the program itself; the top frame where there is none.
pub(crate) fn of(stack: &[Frame]) -> Option<&Frame> {
    stack
        .iter()
        .find(|frame| is_of_program(frame))
        .or(stack.first())
}

fn is_of_program(frame: &Frame) -> bool {
    let Some(module) = frame.module.as_deref().filter(|m| m.starts_with('/')) else {
        return false;
    };
    let file = module.rsplit('/').next().unwrap_or(module);
    let is_runtime = |name: &str| {
        RUNTIME_FUNCTIONS.contains(&name) || RUNTIME_PREFIXES.iter().any(|p| name.starts_with(p))
    };
    !RUNTIME_LIBRARIES.iter().any(|name| file.starts_with(name))
        && !frame.symbol.as_deref().is_some_and(is_runtime)
}

/// The name of a frame without the offset in its function: `serverAssert`, or `redis-server+0x1234` where the
/// function is not known.
pub(super) fn name(frame: &Frame) -> Option<String> {
    if let Some(symbol) = &frame.symbol {
        return Some(symbol.clone());
    }
    let file = frame.module.as_deref()?.rsplit('/').next()?;
    Some(format!("{file}+{}", frame.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Hex;

    fn frame(module: &str, symbol: Option<&str>) -> Frame {
        Frame {
            address: Hex(0x1000),
            module: Some(module.into()),
            symbol: symbol.map(str::to_owned),
            offset: Hex(0x12),
            file: None,
            line: None,
        }
    }

    fn found(stack: &[Frame]) -> Option<String> {
        name(of(stack)?)
    }

    #[test]
    fn the_callers_of_the_runtime_are_found() {
        let libc = || frame("/lib/x86_64-linux-gnu/libc.so.6", None);
        let program = |name| frame("/usr/bin/redis-server", name);
        let assertion = [libc(), libc(), program(Some("_serverAssert"))];
        assert_eq!(found(&assertion).as_deref(), Some("_serverAssert"));
        let direct = [program(Some("debugCommand")), program(Some("call"))];
        assert_eq!(found(&direct).as_deref(), Some("debugCommand"));
        let linked = [
            program(Some("__memmove_avx_unaligned")),
            program(Some("abort")),
            program(Some("handler")),
        ];
        assert_eq!(found(&linked).as_deref(), Some("handler"));
        let module = [libc(), frame("/usr/lib/apache2/libphp8.so", Some("zif_x"))];
        assert_eq!(found(&module).as_deref(), Some("zif_x"));
        assert_eq!(
            found(&[libc(), program(None)]).as_deref(),
            Some("redis-server+0x12")
        );
    }

    #[test]
    fn without_a_frame_of_the_program_it_is_the_top() {
        assert_eq!(
            found(&[frame("/lib/libc.so.6", Some("poll"))]).as_deref(),
            Some("poll")
        );
        let wild = Frame {
            module: None,
            ..frame("", None)
        };
        assert_eq!(found(&[wild]), None);
        assert_eq!(found(&[]), None);
    }
}
