//! `#!` lines, read as Linux reads them (`fs/binfmt_script.c`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// How much of a file the kernel looks at (`BINPRM_BUF_SIZE`); what is beyond does not count.
pub const HEAD_BYTES: usize = 256;

/// What a script wants to be run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script<'a> {
    /// The interpreter.
    pub interpreter: &'a OsStr,
    /// Everything after it, blanks included, is one argument.
    pub argument: Option<&'a OsStr>,
}

/// Why a file is not a script that can be run. To `execve` all of them are `ENOEXEC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It does not begin with `#!`.
    #[error("no script: it does not begin with #!")]
    NotAScript,
    /// Nothing but blanks follows.
    #[error("the #! line names no interpreter")]
    NoInterpreter,
    /// The interpreter's path does not end within what the kernel looks at.
    #[error("the #! line is longer than {HEAD_BYTES} bytes")]
    TooLong,
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn ends_word(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0)
}

/// Reads the first line of a file; `head` is the whole file or at least its first [`HEAD_BYTES`].
pub fn parse(head: &[u8]) -> Result<Script<'_>, ScriptError> {
    let head = &head[..head.len().min(HEAD_BYTES)];
    let text = head.strip_prefix(b"#!").ok_or(ScriptError::NotAScript)?;
    let line = match text.iter().position(|byte| *byte == b'\n') {
        Some(end) => &text[..end],
        // The file ends without a line break; the kernel's buffer goes on with zeros.
        None if head.len() < HEAD_BYTES => text,
        None => unfinished_line(text)?,
    };
    let line = trim_blanks(line);
    let name_end = line.iter().position(ends_word).unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(name_end);
    if interpreter.is_empty() {
        return Err(ScriptError::NoInterpreter);
    }
    // A NUL ends everything; a blank is followed by the argument, which a NUL ends as well.
    let argument = match rest.first() {
        Some(byte) if is_blank(byte) => {
            let argument = trim_blanks(rest);
            let end = argument
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(argument.len());
            Some(OsStr::from_bytes(&argument[..end]))
        }
        _ => None,
    };
    Ok(Script {
        interpreter: OsStr::from_bytes(interpreter),
        argument,
    })
}

/// A line that the buffer cuts off: fine if it is only the argument that is cut. The kernel's last byte
/// of the buffer is for its own NUL.
fn unfinished_line(text: &[u8]) -> Result<&[u8], ScriptError> {
    let start = text
        .iter()
        .position(|byte| !is_blank(byte))
        .ok_or(ScriptError::NoInterpreter)?;
    if !text[start..].iter().any(ends_word) {
        return Err(ScriptError::TooLong);
    }
    Ok(&text[..text.len() - 1])
}

fn trim_blanks(line: &[u8]) -> &[u8] {
    let start = line
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(line.len());
    let end = line
        .iter()
        .rposition(|byte| !is_blank(byte))
        .map_or(start, |last| last + 1);
    &line[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(head: &[u8]) -> Result<(&str, Option<&str>), ScriptError> {
        let script = parse(head)?;
        Ok((
            script.interpreter.to_str().unwrap(),
            script.argument.map(|a| a.to_str().unwrap()),
        ))
    }

    #[test]
    fn interpreter_and_one_argument() {
        assert_eq!(parsed(b"#!/bin/sh\necho"), Ok(("/bin/sh", None)));
        assert_eq!(parsed(b"#! \t/bin/sh \t\necho"), Ok(("/bin/sh", None)));
        assert_eq!(
            parsed(b"#!/usr/bin/env  -S a b \nx"),
            Ok(("/usr/bin/env", Some("-S a b")))
        );
        assert_eq!(parsed(b"#!/bin/sh"), Ok(("/bin/sh", None)));
        assert_eq!(parsed(b"#!/bin/sh\0 -x\n"), Ok(("/bin/sh", None)));
        assert_eq!(parsed(b"#!/bin/sh -x\0y\n"), Ok(("/bin/sh", Some("-x"))));
        assert_eq!(parsed(b"#!/bin/sh\r\n"), Ok(("/bin/sh\r", None)));
    }

    #[test]
    fn what_is_no_script() {
        assert_eq!(parsed(b""), Err(ScriptError::NotAScript));
        assert_eq!(parsed(b"\x7fELF"), Err(ScriptError::NotAScript));
        assert_eq!(parsed(b"#!"), Err(ScriptError::NoInterpreter));
        assert_eq!(parsed(b"#! \t \n/bin/sh"), Err(ScriptError::NoInterpreter));
    }

    #[test]
    fn long_lines_are_cut_at_the_argument_only() {
        let mut line = b"#!/bin/sh ".to_vec();
        line.resize(300, b'a');
        let argument = parse(&line).unwrap().argument.unwrap();
        assert_eq!(argument.len(), HEAD_BYTES - 1 - b"#!/bin/sh ".len());

        let mut line = b"#!/".to_vec();
        line.resize(300, b'a');
        assert_eq!(parsed(&line), Err(ScriptError::TooLong));
        assert_eq!(
            parsed(&[b"#!".as_slice(), &[b' '; 300]].concat()),
            Err(ScriptError::NoInterpreter)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(prop::sample::select(&b"#!/a \t\n\0"[..]), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"#!".as_slice(), &bytes].concat());
        }
    }
}
