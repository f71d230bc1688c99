//! The directory of reports: `<dir>/<id>/report.json` and `report.txt`, and `core` where there is one.
//!
//! A server that becomes another user and then executes a program may not write there any more. Its reports go to
//! `<dir>/uid-<user>/`, which is made for it before.
//!
//! `report.json` comes last and by renaming, so a directory without it is a report that is not finished, and
//! is not listed. Whatever else lies in the directory is left alone, and so is everything inside a report's
//! directory (a core file, say) until the report as a whole is removed.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::core::CORE_NAME;
use super::retention::Retention;
use super::{FaultReport, ReportId, Tally};

/// Reports that are kept unless the user says otherwise.
pub const DEFAULT_KEEP: usize = 1000;

/// Bytes that all reports take at most unless the user says otherwise.
pub const DEFAULT_BYTES: u64 = 256 << 20;

/// How long reports are kept unless the user says otherwise: 90 days.
pub const DEFAULT_AGE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What a `report.json` is at most, so that a foreign file cannot make us read without end.
const JSON_LIMIT: u64 = 16 << 20;

/// Flags of `open(2)` on x86-64 Linux.
const O_DIRECTORY: i32 = 0o200_000;
const O_NOFOLLOW: i32 = 0o400_000;

/// Bytes of a core that are written at once.
const CORE_BUFFER: usize = 64 << 10;

/// The beginning of the names of the directories for other users.
const USER_PREFIX: &str = "uid-";

/// Such directories that are read at most.
const USERS_LIMIT: usize = 64;

/// Identifiers that an error message names.
const NEAR_LIMIT: usize = 5;

/// Why the report directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No directory was given, and the environment does not name one.
    #[error("no report directory: neither XDG_STATE_HOME nor HOME is set")]
    NoStateDirectory,
    /// It does not exist and cannot be created.
    #[error("cannot create the report directory {}", .dir.display())]
    Create {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It exists, but no file can be created in it.
    #[error("cannot write to the report directory {}", .dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A report that could not be saved.
#[derive(Debug, thiserror::Error)]
#[error("cannot save the report {}", .path.display())]
pub struct SaveError {
    /// The directory of the report.
    path: PathBuf,
    source: io::Error,
}

/// Why a report cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory or a file in it cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No report matches; `near` are the most similar identifiers.
    #[error("no report {query:?}{}", list("; there is", near))]
    NotFound {
        /// What was looked for.
        query: String,
        /// The most similar identifiers, newest first.
        near: Vec<ReportId>,
    },
    /// More than one report begins like that.
    #[error("{query:?} is not unique{}", list(": it could be", matches))]
    Ambiguous {
        /// What was looked for.
        query: String,
        /// Some of those that match, newest first.
        matches: Vec<ReportId>,
    },
    /// The file is not a report of this version.
    #[error("{} is not a report", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

fn list(intro: &str, ids: &[ReportId]) -> String {
    let names: Vec<&str> = ids.iter().map(ReportId::as_str).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("{intro} {}", names.join(", "))
    }
}

/// Where reports go by default: `$XDG_STATE_HOME/vmsrs/reports`, else `~/.local/state/vmsrs/reports`.
pub fn default_dir() -> Option<PathBuf> {
    default_dir_from(env::var_os("XDG_STATE_HOME"), env::var_os("HOME"))
}

/// A relative path in either variable is ignored, as the XDG specification asks.
fn default_dir_from(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    state
        .and_then(absolute)
        .or_else(|| Some(home.and_then(absolute)?.join(".local/state")))
        .map(|path| path.join("vmsrs/reports"))
}

/// A report directory to read from.
#[derive(Debug, Clone)]
pub struct ReportArchive {
    dir: PathBuf,
}

impl ReportArchive {
    /// The archive in `dir`, or in the default place. It need not exist: it is empty then.
    pub fn new(dir: Option<PathBuf>) -> Result<Self, OpenError> {
        let dir = dir
            .or_else(default_dir)
            .ok_or(OpenError::NoStateDirectory)?;
        // Absolute, because the guest may change the working directory.
        let dir = std::path::absolute(&dir).map_err(|source| OpenError::Create { dir, source })?;
        Ok(Self { dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of one report, which another user may have saved.
    fn place(&self, id: &ReportId) -> PathBuf {
        let own = self.path(id);
        if own.is_dir() {
            return own;
        }
        let mut places = self.users().into_iter().map(|user| user.path(id));
        places.find(|place| place.is_dir()).unwrap_or(own)
    }

    /// The directories of other users.
    fn users(&self) -> Vec<ReportArchive> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_user = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let is_named_so = name.to_str().is_some_and(|n| n.starts_with(USER_PREFIX));
            is_named_so && entry.file_type().is_ok_and(|t| t.is_dir())
        };
        let users = entries.filter(is_user).take(USERS_LIMIT);
        users
            .map(|entry| ReportArchive { dir: entry.path() })
            .collect()
    }

    /// The directory in which one report is saved.
    pub fn path(&self, id: &ReportId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// The reports, newest first.
    pub fn list(&self) -> Result<Vec<ReportId>, LoadError> {
        let finished = |archive: &ReportArchive| -> io::Result<Vec<ReportId>> {
            let mut ids = archive.entries()?;
            ids.retain(|id| is_plain_file(&archive.path(id).join("report.json")));
            Ok(ids)
        };
        let mut ids = finished(self).map_err(|source| self.unreadable(source))?;
        for user in self.users() {
            ids.extend(finished(&user).map_err(|source| user.unreadable(source))?);
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// The report that `query` means: an identifier, the beginning of just one, or `last`.
    pub fn find(&self, query: &str) -> Result<ReportId, LoadError> {
        let ids = self.list()?;
        let mut matches: Vec<ReportId> = match query {
            "last" => ids.iter().take(1).cloned().collect(),
            _ => ids
                .iter()
                .filter(|id| id.as_str().starts_with(query))
                .cloned()
                .collect(),
        };
        if let Some(exact) = matches.iter().position(|id| id.as_str() == query) {
            return Ok(matches.swap_remove(exact));
        }
        let query = query.to_owned();
        match matches.len() {
            0 => Err(LoadError::NotFound {
                near: nearest(&query, ids),
                query,
            }),
            1 => Ok(matches.swap_remove(0)),
            _ => {
                matches.truncate(NEAR_LIMIT);
                Err(LoadError::Ambiguous { query, matches })
            }
        }
    }

    /// Reads the report that `query` means, as [`Self::find`] takes it.
    pub fn load(&self, query: &str) -> Result<FaultReport, LoadError> {
        self.read(&self.find(query)?)
    }

    /// Reads the report with that identifier.
    pub fn read(&self, id: &ReportId) -> Result<FaultReport, LoadError> {
        let place = self.place(id);
        let path = place.join("report.json");
        let mut json = Vec::new();
        let open = || match is_plain_file(&path) {
            true => File::open(&path),
            false => Err(ErrorKind::NotFound.into()),
        };
        let read = open().and_then(|f| f.take(JSON_LIMIT).read_to_end(&mut json));
        if let Err(source) = read {
            return Err(LoadError::Unreadable { path, source });
        }
        let mut report: FaultReport =
            serde_json::from_slice(&json).map_err(|source| LoadError::Corrupt { path, source })?;
        report.more = Tally::read(&place);
        if let Some(core) = &mut report.core {
            let path = place.join(CORE_NAME);
            core.path = is_plain_file(&path).then(|| path.display().to_string());
        }
        Ok(report)
    }

    /// The directories that are named like a report, finished or not, in no order.
    pub(super) fn entries(&self) -> io::Result<Vec<ReportId>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry?;
            let id = entry
                .file_name()
                .into_string()
                .ok()
                .and_then(|n| ReportId::try_from(n).ok());
            if let Some(id) = id
                && entry.file_type().is_ok_and(|t| t.is_dir())
            {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    fn unreadable(&self, source: io::Error) -> LoadError {
        LoadError::Unreadable {
            path: self.dir.clone(),
            source,
        }
    }
}

/// Whether it is a file, and not a link that another user has left.
fn is_plain_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file())
}

/// Those of `ids` that share the longest beginning with `query`; `ids` are newest first, and so is the result.
fn nearest(query: &str, mut ids: Vec<ReportId>) -> Vec<ReportId> {
    let common = |id: &ReportId| {
        id.as_str()
            .bytes()
            .zip(query.bytes())
            .take_while(|(a, b)| a == b)
            .count()
    };
    ids.sort_by_key(|id| std::cmp::Reverse(common(id)));
    ids.truncate(NEAR_LIMIT);
    ids
}

/// A report directory to save to.
#[derive(Debug, Clone)]
pub struct ReportStore {
    archive: ReportArchive,
    retention: Retention,
}

impl ReportStore {
    /// Opens `dir`, or the default place, creates it for this user alone if it does not exist, and makes sure
    /// that files can be created in it.
    pub fn open(dir: Option<PathBuf>) -> Result<Self, OpenError> {
        let archive = ReportArchive::new(dir)?;
        let dir = archive.dir().to_owned();
        if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            return Err(OpenError::Create { dir, source });
        }
        let trial = dir.join(format!(".trial-{}", std::process::id()));
        if let Err(source) = File::create(&trial).and_then(|_| fs::remove_file(&trial)) {
            return Err(OpenError::Unwritable { dir, source });
        }
        Ok(Self {
            archive,
            retention: Retention::new(DEFAULT_KEEP),
        })
    }

    /// Keeps the newest `keep` reports, at least one, instead of [`DEFAULT_KEEP`].
    pub fn with_keep(self, keep: usize) -> Self {
        Self {
            retention: Retention::new(keep),
            ..self
        }
    }

    /// Limits what all reports take together, and how old one may become.
    pub fn with_limits(self, bytes: u64, age: Duration) -> Self {
        Self {
            retention: self.retention.with_limits(bytes, age),
            ..self
        }
    }

    /// Removes what is too much or too old by now. Saving does the same every so many reports; this is for
    /// the time in which nothing is saved.
    pub fn prune(&self) {
        self.retention
            .remove(&self.archive, None, SystemTime::now());
    }

    /// A directory in this one for the reports of `user`, which this process is about to become.
    pub fn directory_of(&self, user: u32) -> io::Result<File> {
        let dir = self.archive.dir();
        let above = fs::metadata(dir)?;
        let mut open = OpenOptions::new();
        open.read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW);
        let path = dir.join(format!("{USER_PREFIX}{user}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = open.open(&path)?;
        let metadata = file.metadata()?;
        if metadata.uid() != user {
            // Nobody else must have been able to put it there.
            let is_own = metadata.uid() == above.uid() && above.mode() & 0o022 == 0;
            if !is_own || metadata.mode() & 0o077 != 0 {
                return Err(ErrorKind::PermissionDenied.into());
            }
            fchown(&file, Some(user), None)?;
        }
        Ok(file)
    }

    /// What is in the directory.
    pub fn archive(&self) -> &ReportArchive {
        &self.archive
    }

    /// Writes the core of the report `id`, which is saved afterwards; returns its path. If that fails nothing
    /// is left of it.
    pub fn save_core(
        &self,
        id: &ReportId,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<PathBuf, SaveError> {
        let dir = self.archive.path(id);
        let path = dir.join(CORE_NAME);
        let written = make_private_dir(&dir)
            .and_then(|()| create_private(&path))
            .and_then(|file| {
                let mut out = BufWriter::with_capacity(CORE_BUFFER, file);
                write(&mut out)?;
                out.flush()
            });
        match written {
            Ok(()) => Ok(path),
            Err(source) => {
                let _ = fs::remove_file(&path);
                Err(SaveError { path, source })
            }
        }
    }

    /// Saves `report`, removes the oldest ones when it is time to, and returns the report's directory.
    ///
    /// Saving one again replaces its two files. It takes no lock, so it is safe in a forked child.
    pub fn save(&self, report: &FaultReport) -> Result<PathBuf, SaveError> {
        let path = self.archive.path(&report.id);
        if let Err(source) = write_report(&path, &report.bounded()) {
            // Most likely the disk is full: at least leave nothing useless on it.
            let _ = fs::remove_dir_all(&path);
            return Err(SaveError { path, source });
        }
        self.retention.saved(&self.archive, &report.id);
        Ok(path)
    }

    /// Notes in the report `first` that its fault has happened again. An error means most likely that the
    /// report is gone.
    pub fn save_tally(&self, first: &ReportId, tally: &Tally) -> Result<(), SaveError> {
        let path = self.archive.path(first);
        tally
            .write(&path)
            .map_err(|source| SaveError { path, source })
    }
}

fn write_report(path: &Path, report: &FaultReport) -> io::Result<()> {
    make_private_dir(path)?;
    write_private(&path.join("report.txt"), report.to_text().as_bytes())?;
    let temporary = path.join("report.json.tmp");
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    write_private(&temporary, &json)?;
    fs::rename(temporary, path.join("report.json"))
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    // With the directory of all reports, which somebody may have removed.
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    create_private(path)?.write_all(content)
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true);
    options.mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
