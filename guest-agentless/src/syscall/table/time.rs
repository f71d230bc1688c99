//! Clocks, sleeping and interval timers. The vDSO answers most questions for the time without a call.

super::rows! {
    SYS_clock_gettime(clockid: Value, tp: Out(Fixed(16))) Pure Full "";
    SYS_clock_getres(clockid: Value, res: Out(Fixed(16))) Pure Full "";
    SYS_clock_settime(clockid: Value, tp: In(Fixed(16))) External Full "";
    SYS_clock_adjtime(clockid: Value, buf: InOut(Fixed(208))) External Full "";
    SYS_gettimeofday(tv: Out(Fixed(16)), tz: Out(Fixed(8))) Pure Full "";
    SYS_settimeofday(tv: In(Fixed(16)), tz: In(Fixed(8))) External Full "";
    SYS_adjtimex(buf: InOut(Fixed(208))) External Full "";
    SYS_time(tloc: Out(Fixed(8))) Pure Full "";
    SYS_times(buf: Out(Fixed(32))) Pure Partial "The monitor's own share is counted as well.";
    SYS_nanosleep(req: In(Fixed(16)), rem: Out(Fixed(16))) Pure Full
        "Gives up the run token; the domain goes on afterwards.";
    SYS_clock_nanosleep(clockid: Value, flags: Value, request: In(Fixed(16)), remain: Out(Fixed(16))) Pure Full
        "As nanosleep.";
    SYS_alarm(seconds: Value) Compensated Full "As setitimer.";
    SYS_getitimer(which: Value, curr_value: Out(Fixed(32))) Pure Full "";
    SYS_setitimer(which: Value, new_value: In(Fixed(32)), old_value: Out(Fixed(32))) Compensated Full
        "Set back to the time that was left. A signal that it has sent meanwhile is dropped.";
    SYS_timer_create(clockid: Value, sevp: In(Fixed(64)), timerid: Out(Fixed(4))) Compensated Full "";
    SYS_timer_settime(timerid: Value, flags: Value, new_value: In(Fixed(32)), old_value: Out(Fixed(32)))
        Compensated Full "";
    SYS_timer_gettime(timerid: Value, curr_value: Out(Fixed(32))) Pure Full "";
    SYS_timer_getoverrun(timerid: Value) Pure Full "";
    SYS_timer_delete(timerid: Value) Deferred Full "";
}
