//! Mappings and advice about them.

super::rows! {
    SYS_mmap(addr: Address, length: Value, prot: Value, flags: Value, fd: Value, offset: Value) Compensated Full
        "The monitor chooses the place, inside the guest windows; MAP_FIXED outside of them: ENOMEM. The contents \
         of what MAP_FIXED replaces are kept until commit.";
    SYS_munmap(addr: Address, length: Value) Deferred Full
        "At once the guest can no longer reach the range; it is given back at commit.";
    SYS_mprotect(addr: Address, len: Value, prot: Value) Compensated Full
        "With a hole in the range nothing is changed, whereas Linux changes what lies before the hole.";
    SYS_mremap(old_address: Address, old_size: Value, new_size: Value, flags: Value, new_address: Address)
        Compensated Partial "MREMAP_DONTUNMAP: EINVAL. Private mappings of files are not moved: ENOMEM.";
    SYS_brk(addr: Address) Compensated Full "";
    SYS_madvise(addr: Address, length: Value, advice: Value) Compensated Partial
        "MADV_DONTNEED writes zeros (or the file's bytes) to what has been written of the range, which is marked first; so does \
         MADV_FREE, at once. MADV_REMOVE, MADV_DONTFORK, \
         MADV_WIPEONFORK, MADV_HWPOISON: EINVAL. Other advice changes no contents. MADV_DONTNEED of private \
         mappings of files, and of more than 8 MiB that have been written: external.";
    SYS_process_madvise(pidfd: Fd, iovec: Custom, vlen: Value, advice: Value, flags: Value) Pure Refused
        "ENOSYS: reaches into other address spaces.";
    SYS_mincore(addr: Address, length: Value, vec: Custom) Pure Full
        "The kernel writes one byte per page: ceil(length / 4096).";
    SYS_msync(addr: Address, length: Value, flags: Value) DeferredWrite Full "In order with the writes before it.";
    SYS_mlock(addr: Address, len: Value) Compensated Full "";
    SYS_mlock2(addr: Address, len: Value, flags: Value) Compensated Full "";
    SYS_munlock(addr: Address, len: Value) Compensated Full "";
    SYS_mlockall(flags: Value) Pure Refused "EPERM: it would lock the monitor's own memory.";
    SYS_munlockall() Pure Full "";
    SYS_mseal(addr: Address, len: Value, flags: Value) Pure Refused
        "ENOSYS: the monitor could not undo changes of such a mapping.";
    SYS_remap_file_pages(addr: Address, size: Value, prot: Value, pgoff: Value, flags: Value) Pure Refused
        "ENOSYS: deprecated on Linux.";
    SYS_pkey_alloc(flags: Value, access_rights: Value) Pure Refused
        "ENOSYS: the guest's page tables carry no protection keys.";
    SYS_pkey_free(pkey: Value) Pure Refused "ENOSYS: as pkey_alloc.";
    SYS_pkey_mprotect(addr: Address, len: Value, prot: Value, pkey: Value) Pure Refused "ENOSYS: as pkey_alloc.";
    SYS_membarrier(cmd: Value, flags: Value, cpu_id: Value) Pure Full "";
    SYS_shmget(key: Value, size: Value, shmflg: Value) External Full "SHM_HUGETLB is the host's business.";
    SYS_shmat(shmid: Value, shmaddr: Address, shmflg: Value) External Full
        "The monitor chooses the place, inside the guest windows; an address outside of them: EINVAL.";
    SYS_shmdt(shmaddr: Address) External Full "";
    SYS_shmctl(shmid: Value, cmd: Value, buf: Custom) External Full
        "IPC_STAT and SHM_STAT write 112 bytes, IPC_INFO 72, SHM_INFO 48, IPC_SET reads 112.";
    SYS_mbind(addr: Address, len: Value, mode: Value, nodemask: Custom, maxnode: Value, flags: Value) Pure Refused
        "ENOSYS: where memory lies is the monitor's choice.";
    SYS_set_mempolicy(mode: Value, nodemask: Custom, maxnode: Value) Pure Refused "ENOSYS: as mbind.";
    SYS_get_mempolicy(mode: Out(Fixed(4)), nodemask: Custom, maxnode: Value, addr: Address, flags: Value)
        Pure Refused "ENOSYS: as mbind.";
    SYS_set_mempolicy_home_node(start: Address, len: Value, home_node: Value, flags: Value) Pure Refused
        "ENOSYS: as mbind.";
    SYS_migrate_pages(pid: Value, maxnode: Value, old_nodes: Custom, new_nodes: Custom) Pure Refused
        "ENOSYS: as mbind.";
    SYS_move_pages(pid: Value, count: Value, pages: In(Elements { count: 1, each: 8 }),
        nodes: In(Elements { count: 1, each: 4 }), status: Out(Elements { count: 1, each: 4 }), flags: Value)
        Pure Refused "ENOSYS: as mbind.";
    SYS_userfaultfd(flags: Value) Pure Refused "ENOSYS: the guest's faults belong to the monitor.";
    SYS_process_vm_readv(pid: Value, local_iov: Custom, liovcnt: Value, remote_iov: Custom, riovcnt: Value,
        flags: Value) Pure Refused "ENOSYS: reaches into other address spaces, the monitor's among them.";
    SYS_process_vm_writev(pid: Value, local_iov: Custom, liovcnt: Value, remote_iov: Custom, riovcnt: Value,
        flags: Value) Pure Refused "ENOSYS: as process_vm_readv.";
}
