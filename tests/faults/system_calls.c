/* Fails or ends the process at the n-th call that changes a file below a folder.

   Preloaded by system_calls.py, which arms it in the process that is to fail. Calls of other
   processes, and of files elsewhere, go through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pid_t armed;       /* the process */
static char root[PATH_MAX];
static long calls, first, last; /* calls so far; those that fail, counted from 1 */
static int how;           /* errno of the failing calls; 0 for SIGKILL */
static int told;          /* descriptor that gets the name of the first failing call */

void faults_arm(const char *folder, long from, long to, int fault, int descriptor) {
    strncpy(root, folder, sizeof root - 1);
    calls = 0, first = from, last = to, how = fault, told = descriptor;
    armed = getpid();
}

long faults_calls(void) { return calls; }

static int is_below(const char *path) {
    size_t size = strlen(root);
    return !strncmp(path, root, size) && (path[size] == '/' || !path[size]);
}

static int has_descriptor(int descriptor, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, found, PATH_MAX - 1);
    found[size > 0 ? size : 0] = 0;
    return size > 0 && is_below(found);
}

static int has_path(int folder, const char *path, char *found) {
    if (path[0] == '/') {
        snprintf(found, PATH_MAX, "%s", path);
        return is_below(found);
    }
    char here[PATH_MAX];
    if (folder == AT_FDCWD ? !getcwd(here, sizeof here) : !has_descriptor(folder, here)) return 0;
    snprintf(found, PATH_MAX, "%.2000s/%.2000s", here, path);
    return is_below(found);
}

/* Whether this call fails. */
static int fails(const char *call, const char *path) {
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (number < first || number > last) return 0;
    if (number == first && told >= 0) dprintf(told, "call %ld: %s %s", number, call, path);
    return 1;
}

static int fails_at(const char *call, int folder, const char *path) {
    char found[PATH_MAX];
    int saved = errno;
    int bad = armed == getpid() && has_path(folder, path, found) && fails(call, found);
    errno = saved;
    return bad;
}

static int fails_of(const char *call, int descriptor) {
    char found[PATH_MAX];
    int saved = errno;
    int bad = armed == getpid() && has_descriptor(descriptor, found) && fails(call, found);
    errno = saved;
    return bad;
}

static int fail(void) {
    if (!how) kill(getpid(), SIGKILL), pause();
    errno = how;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OF_PATH(result, name, folder, path, parameters, arguments)      \
    result name parameters {                                            \
        if (fails_at(#name, folder, path)) return fail();               \
        return REAL(name) arguments;                                    \
    }
#define OF_FILE(result, name, parameters, arguments)                    \
    result name parameters {                                            \
        if (fails_of(#name, file)) return fail();                       \
        return REAL(name) arguments;                                    \
    }
/* A process that is killed has written half. */
#define WRITE(name, parameters, arguments, half)                        \
    ssize_t name parameters {                                           \
        if (fails_of(#name, file)) {                                    \
            if (!how) REAL(name) half;                                  \
            return fail();                                              \
        }                                                               \
        return REAL(name) arguments;                                    \
    }
#define OPEN(name, parameters, folder, path, arguments)                 \
    int name parameters {                                               \
        mode_t mode = 0;                                                \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                          \
            va_list more;                                               \
            va_start(more, flags);                                      \
            mode = va_arg(more, mode_t);                                \
            va_end(more);                                               \
        }                                                               \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC);   \
        if (writes && fails_at("open", folder, path)) return fail();    \
        return REAL(name) arguments;                                    \
    }
#define FOPEN(name)                                                     \
    FILE *name(const char *path, const char *mode) {                    \
        if (strpbrk(mode, "wa+") && fails_at("open", AT_FDCWD, path)) { \
            fail();                                                     \
            return NULL;                                                \
        }                                                               \
        return REAL(name)(path, mode);                                  \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPEN(openat, (int folder, const char *path, int flags, ...), folder, path,
     (folder, path, flags, mode))
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, path,
     (folder, path, flags, mode))
FOPEN(fopen)
FOPEN(fopen64)
WRITE(write, (int file, const void *data, size_t size), (file, data, size),
      (file, data, size / 2))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at),
      (file, data, size / 2, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at),
      (file, data, size / 2, at))
WRITE(writev, (int file, const struct iovec *parts, int count), (file, parts, count),
      (file, parts, count / 2))
OF_FILE(ssize_t, sendfile, (int file, int from, off_t *at, size_t size), (file, from, at, size))
OF_FILE(ssize_t, sendfile64, (int file, int from, off64_t *at, size_t size),
        (file, from, at, size))
ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *to, size_t size,
                        unsigned int flags) {
    if (fails_of("copy_file_range", file)) return fail();
    return REAL(copy_file_range)(from, at, file, to, size, flags);
}
OF_FILE(int, fsync, (int file), (file))
OF_FILE(int, fdatasync, (int file), (file))
OF_FILE(int, ftruncate, (int file, off_t size), (file, size))
OF_FILE(int, ftruncate64, (int file, off64_t size), (file, size))
OF_PATH(int, truncate, AT_FDCWD, path, (const char *path, off_t size), (path, size))
OF_PATH(int, truncate64, AT_FDCWD, path, (const char *path, off64_t size), (path, size))
OF_PATH(int, rename, AT_FDCWD, path, (const char *path, const char *to), (path, to))
OF_PATH(int, renameat, folder, path, (int folder, const char *path, int other, const char *to),
        (folder, path, other, to))
OF_PATH(int, unlink, AT_FDCWD, path, (const char *path), (path))
OF_PATH(int, unlinkat, folder, path, (int folder, const char *path, int flags),
        (folder, path, flags))
OF_PATH(int, rmdir, AT_FDCWD, path, (const char *path), (path))
OF_PATH(int, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
OF_PATH(int, mkdirat, folder, path, (int folder, const char *path, mode_t mode),
        (folder, path, mode))
OF_PATH(int, link, AT_FDCWD, to, (const char *path, const char *to), (path, to))
OF_PATH(int, linkat, other, to,
        (int folder, const char *path, int other, const char *to, int flags),
        (folder, path, other, to, flags))
OF_PATH(int, symlink, AT_FDCWD, to, (const char *path, const char *to), (path, to))
