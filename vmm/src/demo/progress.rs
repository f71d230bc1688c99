//! One line on standard error that says how far the demo is, when somebody is watching.

use std::io::{self, IsTerminal, Write};

/// The line; cleared when dropped.
#[derive(Debug)]
pub struct Progress {
    watched: bool,
}

impl Progress {
    /// Shows nothing unless standard error is a terminal.
    pub fn new() -> Self {
        Self {
            watched: io::stderr().is_terminal(),
        }
    }

    /// Replaces the line.
    pub fn show(&self, text: &str) {
        if self.watched {
            // Progress is a courtesy: a failure to show it is not one of the demo.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
