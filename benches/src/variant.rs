//! The three ways a server is run.

use serde::Serialize;
use vmsrs_tests::Launch;

use crate::settings::Tools;

/// How a server is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Without the monitor.
    Native,
    /// Under the monitor, without recovery.
    ProtectOff,
    /// Under the monitor, with recovery.
    ProtectOn,
}

impl Variant {
    /// In the order in which each round takes them.
    pub const ALL: [Variant; 3] = [Variant::Native, Variant::ProtectOff, Variant::ProtectOn];

    /// For the reader.
    pub fn label(self) -> &'static str {
        match self {
            Variant::Native => "native",
            Variant::ProtectOff => "--protect off",
            Variant::ProtectOn => "--protect on",
        }
    }

    /// `command`, run this way.
    pub fn launch(self, command: Vec<String>, tools: &Tools) -> Launch {
        let native = Launch::native(command);
        let protect = match self {
            Variant::Native => return native,
            Variant::ProtectOff => "off",
            Variant::ProtectOn => "on",
        };
        native.monitor(&tools.vmsrs).options(["--protect", protect])
    }
}
