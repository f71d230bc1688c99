//! Later faults of a bug that has enough reports: a count in a file beside the first of them.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bound_string;
use super::store::write_private;

/// Its name in the report's directory.
const NAME: &str = "repeats.json";

/// The faults that only counted up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// When the last of them happened (RFC 3339, UTC).
    pub last: String,
    /// Whose request that was.
    pub last_peer: Option<String>,
}

impl Tally {
    /// Reads the tally in the directory of a report; none if there is none, or no usable one.
    pub(super) fn read(dir: &Path) -> Option<Tally> {
        serde_json::from_slice(&fs::read(dir.join(NAME)).ok()?).ok()
    }

    /// Writes it by renaming, so that a reader sees the old one or the new. The directory must exist.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut bounded = self.clone();
        bounded.last_peer.iter_mut().for_each(bound_string);
        let temporary = dir.join(format!("{NAME}.tmp"));
        write_private(&temporary, &serde_json::to_vec(&bounded)?)?;
        fs::rename(temporary, dir.join(NAME))
    }
}
