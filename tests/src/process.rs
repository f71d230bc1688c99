//! Child processes with a bounded life: waits have a deadline, and a child that is dropped is
//! killed and reaped together with its process group.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(5);

/// A child's standard streams, as far as they are pipes.
pub type Pipes = (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>);

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct Bounded {
    child: Child,
    /// The child leads a process group, so what it forked is killed with it.
    leads_group: bool,
    status: Option<ExitStatus>,
}

impl Bounded {
    /// Starts `command` as the leader of a new process group.
    pub fn spawn_group(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        Ok(Self {
            child,
            leads_group: true,
            status: None,
        })
    }

    /// Starts `command` in this process's group, so that an interrupt at the terminal ends it too.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Ok(Self {
            child: command.spawn()?,
            leads_group: false,
            status: None,
        })
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The ends of the child's pipes that are this process's, the first time it is called.
    pub fn take_pipes(&mut self) -> Pipes {
        let child = &mut self.child;
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// The exit status, if the child has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for the child to end, at most `patience`; `None` means that it still runs.
    pub fn wait_for(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Sends `signal` to the child, unless it has already been reaped.
    pub fn signal(&mut self, signal: libc::c_int) -> io::Result<()> {
        match self.try_wait()? {
            Some(_) => Ok(()),
            None => send(self.pid(), signal),
        }
    }

    /// Kills the child, with its group if it leads one, and reaps it.
    pub fn kill(&mut self) {
        if self.leads_group {
            // What the child forked may have outlived it; an empty group is not an error.
            let _ = send(-self.pid(), libc::SIGKILL);
        }
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    fn pid(&self) -> libc::pid_t {
        // Process ids are positive `pid_t`s that the standard library stores as `u32`.
        self.child.id() as libc::pid_t
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        self.kill();
    }
}

fn send(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `kill` takes no pointers. `pid` is a child that has not been reaped, or the group it
    // leads or led: an emptied group's number is not given out again before the process ids wrap.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Stdio};

    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null());
        command
    }

    #[test]
    fn a_wait_is_bounded_and_a_signal_ends_the_child() {
        let mut child = Bounded::spawn_group(&mut sleeper()).unwrap();
        assert_eq!(child.wait_for(Duration::from_millis(20)).unwrap(), None);
        child.signal(libc::SIGTERM).unwrap();
        let status = child.wait_for(Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        child.signal(libc::SIGTERM).unwrap();
    }

    #[test]
    fn what_the_child_forked_is_killed_with_it() {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut child = Bounded::spawn_group(&mut shell).unwrap();
        let mut line = String::new();
        let out = child.child.stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(out), &mut line).unwrap();
        child.kill();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The orphan becomes a zombie until its new parent reaps it: either is dead.
        let stat = format!("/proc/{}/stat", line.trim());
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < deadline, "the forked process still runs");
            thread::sleep(POLL);
        }
    }
}
