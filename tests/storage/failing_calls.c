/* Lets a process's calls that write files fail from the so manieth on: preloaded by test_failing_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int count, armed;

/* FAIL_AT: the first call that fails, from 1 on; FAIL_WITH: ENOSPC or EIO; calls count once FAIL_FILE exists. */
static int fails(int descriptor)
{
    const char *at = getenv("FAIL_AT"), *with = getenv("FAIL_WITH"), *file = getenv("FAIL_FILE");
    if (!at || getenv("FAIL_READS") || descriptor <= 2) return 0;
    if (!armed && file && access(file, F_OK) != 0) return 0;
    armed = 1;
    if (__sync_add_and_fetch(&count, 1) < atoi(at)) return 0;
    errno = with && !strcmp(with, "EIO") ? EIO : ENOSPC;
    return 1;
}

/* FAIL_READS: reads count instead, of files whose path ends so. */
static int fails_to_read(int descriptor)
{
    const char *at = getenv("FAIL_AT"), *end = getenv("FAIL_READS");
    char link[64], path[4096];
    if (!at || !end) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < (ssize_t)strlen(end) || memcmp(path + length - strlen(end), end, strlen(end))) return 0;
    if (__sync_add_and_fetch(&count, 1) < atoi(at)) return 0;
    errno = EIO;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int d, const void *b, size_t n) { return fails(d) ? -1 : NEXT(write)(d, b, n); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { return fails(d) ? -1 : NEXT(pwrite)(d, b, n, o); }
ssize_t pwrite64(int d, const void *b, size_t n, off_t o) { return fails(d) ? -1 : NEXT(pwrite64)(d, b, n, o); }
int posix_fallocate(int d, off_t o, off_t n) { return fails(d) ? errno : NEXT(posix_fallocate)(d, o, n); }
int posix_fallocate64(int d, off_t o, off_t n) { return fails(d) ? errno : NEXT(posix_fallocate64)(d, o, n); }
int ftruncate(int d, off_t n) { return fails(d) ? -1 : NEXT(ftruncate)(d, n); }
int ftruncate64(int d, off_t n) { return fails(d) ? -1 : NEXT(ftruncate64)(d, n); }
int fsync(int d) { return fails(d) ? -1 : NEXT(fsync)(d); }
ssize_t read(int d, void *b, size_t n) { return fails_to_read(d) ? -1 : NEXT(read)(d, b, n); }
ssize_t pread(int d, void *b, size_t n, off_t o) { return fails_to_read(d) ? -1 : NEXT(pread)(d, b, n, o); }
ssize_t pread64(int d, void *b, size_t n, off_t o) { return fails_to_read(d) ? -1 : NEXT(pread64)(d, b, n, o); }
