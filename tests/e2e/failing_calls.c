/* Calls of the operating system below one folder that fail on demand, whoever makes them: Python or a library in C++.

   gcc -shared -fPIC -o failing_calls.so failing_calls.c -ldl; LD_PRELOAD=failing_calls.so COMMAND

   Nothing fails until fail_arm is called, which a forked process does for itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], report[4096];
static atomic_long made;
static long first = -1, last = -1;
static int number;

/* Calls `from` to `to` (excluded) below `path` fail with errno `code`. What failed first is written to `told`. */
void fail_arm(const char *path, long from, long to, int code, const char *told) {
    snprintf(folder, sizeof folder, "%s", path);
    snprintf(report, sizeof report, "%s", told);
    first = from, last = to, number = code;
    atomic_store(&made, 0);
}

long fail_count(void) { return atomic_load(&made); }

static void tell(const char *call, const char *path) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int file = real(report, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file >= 0) {
        dprintf(file, "%s %s", call, path);
        close(file);
    }
}

static int fails(const char *call, const char *path) {
    if (!*folder || strncmp(path, folder, strlen(folder))) return 0;
    long turn = atomic_fetch_add(&made, 1);
    if (turn < first || turn >= last) return 0;
    tell(call, path);
    errno = number;
    return 1;
}

static int fails_at(const char *call, int where, const char *path) {
    char name[4096], base[4096];
    if (!*folder) return 0;
    if (path && *path == '/') return fails(call, path);
    if (where == AT_FDCWD) snprintf(name, sizeof name, "/proc/self/cwd");
    else snprintf(name, sizeof name, "/proc/self/fd/%d", where);
    ssize_t size = readlink(name, base, sizeof base - 1);
    if (size < 0) return 0;
    base[size] = 0;
    if (!path) return fails(call, base);
    snprintf(name, sizeof name, "%.2000s/%.2000s", base, path);
    return fails(call, name);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE(flags) mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { REAL(name); MODE(flags) return fails_at("open", AT_FDCWD, path) ? -1 : real(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { REAL(name); MODE(flags) return fails_at("open", at, path) ? -1 : real(at, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) { REAL(write); return fails_at("write", file, NULL) ? -1 : real(file, data, size); }
ssize_t writev(int file, const struct iovec *parts, int count) { REAL(writev); return fails_at("write", file, NULL) ? -1 : real(file, parts, count); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { REAL(pwrite); return fails_at("write", file, NULL) ? -1 : real(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { REAL(pwrite64); return fails_at("write", file, NULL) ? -1 : real(file, data, size, at); }
int fsync(int file) { REAL(fsync); (void)real; return fails_at("fsync", file, NULL) ? -1 : 0; } /* disks take their time */
int fdatasync(int file) { REAL(fdatasync); (void)real; return fails_at("fsync", file, NULL) ? -1 : 0; }
int rename(const char *from, const char *to) { REAL(rename); return fails_at("rename", AT_FDCWD, to) ? -1 : real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); return fails_at("rename", b, to) ? -1 : real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { REAL(renameat2); return fails_at("rename", b, to) ? -1 : real(a, from, b, to, flags); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails_at("mkdir", AT_FDCWD, path) ? -1 : real(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { REAL(mkdirat); return fails_at("mkdir", at, path) ? -1 : real(at, path, mode); }
