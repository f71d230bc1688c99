//! Debian's packages start their server when they are installed, unless `policy-rc.d` forbids it.
//! The tests start servers of their own; a machine on which they run should not gain a Redis that
//! listens. So while packages are installed, a `policy-rc.d` that forbids everything is in place.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// 101 is "action forbidden by policy". The comment marks the file as ours, so that the next run
/// can remove one that a killed run has left.
const FORBID_ALL: &str =
    "#!/bin/sh\n# Placed by the vmsrs tests while they install packages.\nexit 101\n";

/// While this lives, installing a package starts nothing. Dropping it restores what was there.
#[derive(Debug)]
pub struct NoServices {
    policy: PathBuf,
    saved: PathBuf,
}

impl NoServices {
    /// Puts the machine's own policy aside, if it has one, and forbids every start.
    pub fn forbid() -> io::Result<Self> {
        Self::forbid_at(Path::new(POLICY))
    }

    fn forbid_at(policy: &Path) -> io::Result<Self> {
        let guard = Self {
            policy: policy.to_path_buf(),
            saved: policy.with_extension("d.vmsrs-saved"),
        };
        guard.restore()?;
        if guard.policy.symlink_metadata().is_ok() {
            fs::rename(&guard.policy, &guard.saved)?;
        }
        fs::write(&guard.policy, FORBID_ALL)?;
        fs::set_permissions(&guard.policy, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }

    /// Removes our policy, if it is in place, and puts the machine's own back, if it is aside.
    fn restore(&self) -> io::Result<()> {
        if fs::read_to_string(&self.policy).is_ok_and(|text| text == FORBID_ALL) {
            fs::remove_file(&self.policy)?;
        }
        match fs::rename(&self.saved, &self.policy) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("cannot restore {}: {error}", self.policy.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_policy_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        fs::write(&policy, "own").unwrap();
        let guard = NoServices::forbid_at(&policy).unwrap();
        assert_eq!(fs::read_to_string(&policy).unwrap(), FORBID_ALL);
        drop(guard);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_a_policy_none_is_left() {
        let dir = tempfile::tempdir().unwrap();
        drop(NoServices::forbid_at(&dir.path().join("policy-rc.d")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        fs::write(&policy, "own").unwrap();
        std::mem::forget(NoServices::forbid_at(&policy).unwrap());
        drop(NoServices::forbid_at(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
    }
}
