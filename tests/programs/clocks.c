/* Clocks do not go back, in any thread or from one thread to the next, and agree with each other.
   Prints the clocks' readings: `REALTIME MONOTONIC BOOTTIME` in nanoseconds. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

enum { THREADS = 4, READINGS = 200000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long long latest;
static int backward;

static long long now(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t))
        exit(2);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void *read_clock(void *arg)
{
    long long last = 0;
    for (int i = 0; i < READINGS; i++) {
        long long t = now(CLOCK_MONOTONIC);
        if (t < last)
            backward = 1;
        last = t;
        if (i % 64 == 0) {
            pthread_mutex_lock(&lock);
            t = now(CLOCK_MONOTONIC);
            if (t < latest)
                backward = 2;
            latest = t;
            pthread_mutex_unlock(&lock);
        }
    }
    return arg;
}

int main(void)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, read_clock, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    struct timeval day;
    gettimeofday(&day, NULL);
    long long real = now(CLOCK_REALTIME);
    long long apart = real - (day.tv_sec * 1000000000ll + day.tv_usec * 1000ll);
    time_t seconds = time(NULL);
    printf("%lld %lld %lld\n", real, now(CLOCK_MONOTONIC), now(CLOCK_BOOTTIME));
    if (apart < 0 || apart > 100000000 || seconds < day.tv_sec || seconds > day.tv_sec + 1) {
        fprintf(stderr, "gettimeofday and time do not agree with clock_gettime\n");
        return 1;
    }
    if (backward)
        fprintf(stderr, "a clock went back (%s)\n", backward == 1 ? "in a thread" : "between threads");
    return backward;
}
