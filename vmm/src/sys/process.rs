//! The process as a whole: limits, thread pointers, identity.

use guest_agentless::Errno;

use super::{Call, Handler};
use crate::host::handles;
use crate::memory::{Limit, window};
use crate::process::domain::Early;
use crate::process::effects::{HostCall, Undo};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_arch_prctl => arch_prctl,
        libc::SYS_prlimit64 => prlimit,
        libc::SYS_getrlimit => getrlimit,
        libc::SYS_setrlimit => setrlimit,
        libc::SYS_prctl => prctl,
        libc::SYS_personality => personality,
        libc::SYS_chroot
        | libc::SYS_setuid
        | libc::SYS_setgid
        | libc::SYS_setreuid
        | libc::SYS_setregid
        | libc::SYS_setresuid
        | libc::SYS_setresgid
        | libc::SYS_setfsuid
        | libc::SYS_setfsgid
        | libc::SYS_setgroups
        | libc::SYS_capset => change_rights,
        libc::SYS_exit_group => super::end::exit_group,
        _ => return None,
    })
}

/// Reports are kept where the monitor was told to, whatever the guest may do from now on: the thread that writes them
/// has its rights already.
fn change_rights(call: &mut Call) -> Result<u64, Errno> {
    let reporter = &call.thread.process.reporter;
    if call.thread.process.options.protect {
        reporter.start();
    }
    // A program that the new user executes has a reporter of its own.
    let user = new_user(i64::from(call.row.number), call.args);
    if let (Some(user), Some(store)) = (user, reporter.store()) {
        let made = store.directory_of(user);
        if let Err(error) = made.and_then(|directory| handles::set_reports(&directory)) {
            log::debug!("no directory for the reports of user {user}: {error}");
        }
    }
    call.pass_by_class()
}

/// The effective user after the call, if it is to be another one.
fn new_user(number: i64, args: [u64; 6]) -> Option<u32> {
    let user = match number {
        libc::SYS_setuid => args[0],
        libc::SYS_setreuid | libc::SYS_setresuid => args[1],
        _ => return None,
    } as u32;
    (user != u32::MAX && user != crate::host::effective_user()).then_some(user)
}

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

/// `address`, if Linux takes it for the base of FS or GS.
pub(super) fn segment_base(address: u64) -> Result<u64, Errno> {
    const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;
    match address < TASK_SIZE_MAX {
        true => Ok(address),
        false => Err(Errno::EPERM),
    }
}

fn arch_prctl(call: &mut Call) -> Result<u64, Errno> {
    let [code, address, ..] = call.args;
    let (fs, gs) = (call.thread.vcpu.fs_base(), call.thread.vcpu.gs_base());
    let (fs, gs) = match code {
        ARCH_SET_FS => (segment_base(address)?, gs),
        ARCH_SET_GS => (fs, segment_base(address)?),
        ARCH_GET_FS => return call.write(address, &fs.to_ne_bytes()).map(|()| 0),
        ARCH_GET_GS => return call.write(address, &gs.to_ne_bytes()).map(|()| 0),
        _ => return Err(Errno::EINVAL),
    };
    call.thread.vcpu.set_segment_bases(fs, gs);
    Ok(0)
}

/// Some limits are the guest's own: the host's have to leave room for the monitor.
fn prlimit(call: &mut Call) -> Result<u64, Errno> {
    let (pid, resource) = (call.int(0), call.int(1));
    let (new, old) = (call.args[2], call.args[3]);
    if pid != 0 && pid != std::process::id() as i32 {
        call.commit_early(Early::External)?;
        return call.pass();
    }
    let Some(current) = call.state.own_limits.get(resource as u32) else {
        return match new {
            0 => call.pass(),
            at => call.set_limit(resource, at),
        };
    };
    if old != 0 {
        window::checked(old, 16).ok_or(Errno::EFAULT)?;
    }
    if new != 0 {
        set_own_limit(call, resource as u32, current, new)?;
    }
    if old != 0 {
        call.write_pair(old, current)?;
    }
    Ok(0)
}

fn getrlimit(call: &mut Call) -> Result<u64, Errno> {
    match call.state.own_limits.get(call.args[0] as u32) {
        None => call.pass(),
        Some(limit) => call.write_pair(call.args[1], limit).map(|()| 0),
    }
}

fn setrlimit(call: &mut Call) -> Result<u64, Errno> {
    let resource = call.args[0] as u32;
    match call.state.own_limits.get(resource) {
        None => call.set_limit(call.int(0), call.args[1]),
        Some(old) => set_own_limit(call, resource, old, call.args[1]).map(|()| 0),
    }
}

/// Sets limit `resource` of the guest's own, which was `old`, to what is at `address`.
fn set_own_limit(call: &mut Call, resource: u32, old: Limit, address: u64) -> Result<(), Errno> {
    let bytes: [u8; 16] = call.read(address)?;
    let word = |i: usize| u64::from_ne_bytes(bytes[i..i + 8].try_into().unwrap_or([0; 8]));
    let (soft, hard) = (word(0), word(8));
    if soft > hard {
        return Err(Errno::EINVAL);
    }
    if hard > old.1 && !crate::host::is_capable(CAP_SYS_RESOURCE) {
        return Err(Errno::EPERM);
    }
    call.state.own_limits.set(resource, (soft, hard));
    call.compensate(Undo::OwnLimit {
        resource,
        limit: old,
    });
    Ok(())
}

const CAP_SYS_RESOURCE: u32 = 24;

impl Call<'_, '_> {
    /// Passes a call that sets a limit of the process to what is at `address`.
    fn set_limit(&mut self, resource: i32, address: u64) -> Result<u64, Errno> {
        let wanted: [u8; 16] = self.read(address)?;
        let mut old = vec![0u8; 16];
        let args = [resource as u64, old.as_mut_ptr() as u64, 0, 0, 0, 0];
        // SAFETY: a limit is 16 bytes.
        unsafe { crate::host::syscall(libc::SYS_getrlimit as u64, args) }?;
        let hard = |bytes: &[u8]| u64::from_ne_bytes(bytes[8..16].try_into().unwrap_or([0; 8]));
        // Only a privileged process can raise a hard limit again.
        let undone = hard(&wanted) >= hard(&old) || crate::host::is_capable(CAP_SYS_RESOURCE);
        if !undone {
            self.commit_early(Early::External)?;
        }
        let result = self.pass()?;
        if undone {
            let back = HostCall::with(libc::SYS_setrlimit, [resource as u64, 0, 0, 0, 0, 0], old);
            self.compensate_by(back, "a limit was changed");
        }
        Ok(result)
    }

    fn write_pair(&mut self, address: u64, pair: (u64, u64)) -> Result<(), Errno> {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&pair.0.to_ne_bytes());
        bytes[8..].copy_from_slice(&pair.1.to_ne_bytes());
        self.write(address, &bytes)
    }
}

fn prctl(call: &mut Call) -> Result<u64, Errno> {
    let [option, address, ..] = call.args;
    match option as i32 {
        libc::PR_SET_NAME => {
            let name: Vec<u8> = call.read_path(address)?;
            let old = crate::host::thread_name().into_bytes();
            crate::host::set_thread_name(&name);
            call.compensate(Undo::ThreadName { name: old });
            Ok(0)
        }
        libc::PR_GET_NAME => {
            let mut name = crate::host::thread_name().into_bytes();
            name.resize(16, 0);
            call.write(address, &name).map(|()| 0)
        }
        set @ (libc::PR_SET_DUMPABLE
        | libc::PR_SET_KEEPCAPS
        | libc::PR_SET_TIMERSLACK
        | libc::PR_SET_THP_DISABLE) => {
            let get = match set {
                libc::PR_SET_DUMPABLE => libc::PR_GET_DUMPABLE,
                libc::PR_SET_KEEPCAPS => libc::PR_GET_KEEPCAPS,
                libc::PR_SET_TIMERSLACK => libc::PR_GET_TIMERSLACK,
                _ => libc::PR_GET_THP_DISABLE,
            };
            let old = crate::host::prctl(get, 0)?;
            let result = crate::host::prctl(set, address)?;
            call.compensate(Undo::Prctl {
                option: set,
                value: old,
            });
            Ok(result)
        }
        set @ (libc::PR_SET_PDEATHSIG | libc::PR_SET_CHILD_SUBREAPER) => {
            let get = match set {
                libc::PR_SET_PDEATHSIG => libc::PR_GET_PDEATHSIG,
                _ => libc::PR_GET_CHILD_SUBREAPER,
            };
            let old = crate::host::prctl_asked(get)?;
            let result = crate::host::prctl(set, address)?;
            call.compensate(Undo::Prctl {
                option: set,
                value: old as u64,
            });
            Ok(result)
        }
        get @ (libc::PR_GET_PDEATHSIG | libc::PR_GET_CHILD_SUBREAPER) => {
            let value = crate::host::prctl_asked(get)?;
            call.write(address, &value.to_ne_bytes()).map(|()| 0)
        }
        libc::PR_SET_NO_NEW_PRIVS => {
            // Never taken back.
            call.commit_early(Early::External)?;
            crate::host::prctl(option as i32, address)
        }
        libc::PR_GET_SECCOMP => Ok(call.seccomp_mode()),
        libc::PR_SET_SECCOMP => call.set_seccomp_mode(address, call.args[2]),
        libc::PR_GET_DUMPABLE
        | libc::PR_GET_KEEPCAPS
        | libc::PR_GET_TIMERSLACK
        | libc::PR_GET_NO_NEW_PRIVS
        | libc::PR_GET_THP_DISABLE
        | libc::PR_CAPBSET_READ => {
            let args = [
                call.args[0],
                call.args[1],
                call.args[2],
                call.args[3],
                call.args[4],
                0,
            ];
            // SAFETY: these options take numbers only.
            unsafe { crate::host::syscall(libc::SYS_prctl as u64, args) }
        }
        _ => Err(Errno::EINVAL),
    }
}

fn personality(call: &mut Call) -> Result<u64, Errno> {
    match call.args[0] as u32 {
        0xffff_ffff => call.pass(),
        0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
