//! The core of a report: memory and registers at the fault, in a file beside it for `gdb`.

use serde::{Deserialize, Serialize};

/// The name of the file in the report's directory.
pub const CORE_NAME: &str = "core";

/// What is in a report's core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Bytes of the file.
    pub bytes: u64,
    /// The program to open it with.
    pub program: String,
    /// Pages that the request had written and that are in it, as they were at the fault.
    pub pages_written: u64,
    /// Pages that the request had written and that are not in it: there was no room.
    pub pages_left_out: u64,
    /// Where it is; the store knows. None if it was removed.
    #[serde(default, skip_deserializing)]
    pub path: Option<String>,
}

impl Core {
    /// The command that opens it, for a shell.
    pub fn command(&self) -> Option<String> {
        let path = shell_word(self.path.as_ref()?);
        Some(format!("gdb {} {path}", shell_word(&self.program)))
    }
}

/// `text` as one word of a shell's command line.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_survives_a_shell() {
        let mut core = Core {
            bytes: 1,
            program: "/opt/my server/o'clock".into(),
            pages_written: 1,
            pages_left_out: 0,
            path: None,
        };
        assert_eq!(core.command(), None);
        core.path = Some("/r/1-0/core".into());
        let command = core.command().unwrap();
        assert_eq!(command, r"gdb '/opt/my server/o'\''clock' /r/1-0/core");
    }
}
