/*
 * headroom.c - how much memory may be allocated before the kernel kills processes; see headroom.h.
 *
 * Purpose    If a put would exceed a cgroup limit or the machine's memory, it fails with an error instead of a
 *            SIGKILL.
 * Algorithm  /proc/self/cgroup contains the process's cgroup in each hierarchy, /proc/self/mountinfo the mount points
 *            and the mounted parts of hierarchies. Together they give the directory of the cgroup; each of its parents
 *            up to the mount point may have a further limit. Every measurement reads the limits again, because they may
 *            change at run time.
 * Guarantee  See headroom.h. Reads are bounded, and text that cannot be parsed counts as absent.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "descriptor.h"
#include "headroom.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define NO_LIMIT UINT64_MAX

/* cgroup v1 writes "no limit" as the largest multiple of the page size; no machine has an exbibyte. */
#define V1_NO_LIMIT ((uint64_t)1 << 60)

/* If a cgroup is nested more deeply, we ignore the outermost levels; the kernel allows at most 254 levels by
 * default. */
#define MAX_LEVELS 256

/* ---- files ------------------------------------------------------------------------------------- */

/* A line reader with a buffer on the stack; lines that do not fit are truncated. */
typedef struct reader {
    int fd;
    size_t begin, end;
    bool eof;
    char buffer[2 * PRS_HEADROOM_PATH + 512];
} reader;

static int reader_open(reader *r, const char *root, const char *dir, const char *name)
{
    char path[PRS_HEADROOM_PATH + 300];
    int n = snprintf(path, sizeof path, "%s%s%s", root, dir, name);
    /* unreached by tests (impossible, 2 branches): the buffer has room for root, directory and name */
    if (n < 0 || (size_t)n >= sizeof path)
        return -ENAMETOOLONG;
    r->begin = r->end = 0;
    r->eof = false;
    do
        r->fd = prs_above_standard(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY));
    /* unreached by tests (no injected fault): open interrupted */
    while (r->fd < 0 && errno == EINTR);
    return r->fd < 0 ? -errno : 0;
}

static void reader_close(reader *r)
{
    close(r->fd);
}

/* Return the next line without its newline, or NULL at the end. The line is valid until the next call. */
static char *reader_line(reader *r)
{
    for (;;) {
        char *start = r->buffer + r->begin;
        char *newline = memchr(start, '\n', r->end - r->begin);
        if (newline) {
            *newline = 0;
            r->begin = (size_t)(newline - r->buffer) + 1;
            return start;
        }
        if (r->begin > 0) {
            memmove(r->buffer, start, r->end - r->begin);
            r->end -= r->begin;
            r->begin = 0;
        }
        if (r->eof || r->end == sizeof r->buffer - 1) {
            if (r->end == 0)
                return NULL;
            r->buffer[r->end] = 0;
            r->begin = r->end;
            return r->buffer;
        }
        ssize_t got = read(r->fd, r->buffer + r->end, sizeof r->buffer - 1 - r->end);
        if (got > 0)
            r->end += (size_t)got;
        /* unreached by tests (no injected fault, 3 branches): read fails or is interrupted */
        else if (got == 0 || errno != EINTR)
            r->eof = true;
    }
}

/* Parse the decimal digits at `text`; numbers that are too large become UINT64_MAX. Return false if there are no
 * digits. */
static bool parse_u64(const char *text, uint64_t *value)
{
    while (*text == ' ' || *text == '\t')
        text++;
    /* unreached by tests (damaged tables): the first character is below "0" */
    if (*text < '0' || *text > '9')
        return false;
    *value = 0;
    /* unreached by tests (damaged tables): a character above "9" ends the number */
    for (; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (*value > (UINT64_MAX - digit) / 10) {
            *value = UINT64_MAX;
            return true;
        }
        *value = *value * 10 + digit;
    }
    return true;
}

/* Read a file that holds one number, or "max". */
static bool read_number(const char *dir, const char *name, uint64_t *value)
{
    reader r;
    int saved = errno;
    bool found = false;
    if (reader_open(&r, "", dir, name) == 0) {
        char *line = reader_line(&r);
        /* unreached by tests (damaged tables): an empty file */
        if (line && strcmp(line, "max") == 0) {
            *value = NO_LIMIT;
            found = true;
        } else {
            /* unreached by tests (damaged tables): an empty file */
            found = line && parse_u64(line, value);
        }
        reader_close(&r);
    }
    errno = saved;
    return found;
}

/* Return the sum of two counters of a file with lines of the form "key value"; absent counters are 0. */
static uint64_t read_sum(const char *dir, const char *name, const char *key1, const char *key2)
{
    reader r;
    int saved = errno;
    uint64_t sum = 0, v;
    size_t len1 = strlen(key1), len2 = strlen(key2);
    unsigned missing = 2;
    /* unreached by tests (damaged tables): a cgroup without statistics */
    if (reader_open(&r, "", dir, name) == 0) {
        /* unreached by tests (damaged tables): statistics without one of the two keys */
        for (char *line; missing && (line = reader_line(&r));) {
            size_t len = strcspn(line, " ");
            bool hit = (len == len1 && memcmp(line, key1, len) == 0) || (len == len2 && memcmp(line, key2, len) == 0);
            /* unreached by tests (damaged tables): a key without a number */
            if (hit && parse_u64(line + len, &v)) {
                sum += v;
                missing--;
            }
        }
        reader_close(&r);
    }
    errno = saved;
    return sum;
}

/* Read MemTotal and MemAvailable in bytes; NO_LIMIT if unknown. */
static int read_meminfo(const prs_headroom *h, uint64_t *total, uint64_t *available)
{
    reader r;
    int saved = errno, rc;
    *total = *available = NO_LIMIT;
    if ((rc = reader_open(&r, h->root, "", "/proc/meminfo")) == 0) {
        uint64_t v;
        for (char *line; (line = reader_line(&r)) && (*total == NO_LIMIT || *available == NO_LIMIT);) {
            if (strncmp(line, "MemTotal:", 9) == 0 && parse_u64(line + 9, &v) && v < NO_LIMIT / 1024)
                *total = v * 1024;
            else if (strncmp(line, "MemAvailable:", 13) == 0 && parse_u64(line + 13, &v) && v < NO_LIMIT / 1024)
                *available = v * 1024;
        }
        reader_close(&r);
    }
    errno = saved;
    return rc;
}

/* ---- finding the cgroups ----------------------------------------------------------------------- */

/* Return whether `word` is one of the comma-separated words of `list`. */
static bool has_word(const char *list, const char *word)
{
    size_t len = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        /* unreached by tests (no test): "memory" is the first of several controllers */
        if (strncmp(at, word, len) == 0 && (at[len] == ',' || at[len] == 0))
            return true;
    }
    return false;
}

/* mountinfo writes space, tab, newline and backslash as three octal digits. */
static void unescape(char *text)
{
    char *out = text;
    for (char *in = text; *in; out++) {
        /* unreached by tests (damaged tables, 4 branches): a backslash that no kernel writes */
        if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' && in[2] <= '7' && in[3] >= '0' &&
            in[3] <= '7') {
            *out = (char)((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
            in += 4;
        } else {
            *out = *in++;
        }
    }
    *out = 0;
}

/* Return the next field of a line of fields separated by spaces, and advance; NULL when there is none. */
static char *next_field(char **line)
{
    char *field = *line;
    if (!field || !*field)
        return NULL;
    char *space = strchr(field, ' ');
    if (space)
        *space = 0;
    *line = space ? space + 1 : NULL;
    return field;
}

typedef struct mount_line {
    char *root, *point;
    int version; /* 1: the memory hierarchy of v1, 2: that of v2, 0: any other mount */
} mount_line;

static bool parse_mount(char *line, mount_line *m)
{
    char *rest = line, *field;
    for (int i = 0; i < 3; i++)
        if (!next_field(&rest))
            return false;
    m->root = next_field(&rest);
    m->point = next_field(&rest);
    if (!m->point)
        return false;
    do /* skip options and optional fields, up to the separator */
        field = next_field(&rest);
    while (field && strcmp(field, "-") != 0);
    char *type = next_field(&rest);
    next_field(&rest); /* skip the source field */
    char *options = next_field(&rest);
    if (!field || !type)
        return false;
    m->version = strcmp(type, "cgroup2") == 0                                            ? 2
                 : strcmp(type, "cgroup") == 0 && options && has_word(options, "memory") ? 1
                                                                                         : 0;
    unescape(m->root);
    unescape(m->point);
    return true;
}

/* Return the part of the cgroup path `path` below the cgroup path `root`, or NULL if it is not below `root`. */
static const char *below(const char *path, const char *root)
{
    size_t len = strlen(root);
    if (len == 1) /* "/" */
        len = 0;
    /* unreached by tests (no test): a mount of another cgroup */
    if (strncmp(path, root, len) != 0 || (path[len] != '/' && path[len] != 0))
        return NULL;
    return path[len] == '/' && path[len + 1] == 0 ? path + len + 1 : path + len;
}

/* Return whether `path` has a ".." component, which means that the process is outside its cgroup namespace. */
static bool leaves_namespace(const char *path)
{
    for (const char *at = path; (at = strstr(at, "/..")); at += 3)
        /* unreached by tests (no test, 3 branches): a path that ends with "..", a name that begins with ".." */
        if (at[3] == '/' || at[3] == 0)
            return true;
    return false;
}

static void add_tree(prs_headroom *h, const mount_line *m, const char *own)
{
    int slot = m->version - 1;
    const char *tail = own && !leaves_namespace(own) ? below(own, m->root) : NULL;
    bool exact = tail != NULL;
    if (!tail)
        tail = ""; /* inside a container, only the mounted part is visible */
    /* unreached by tests (no test, 3 branches): a hierarchy is mounted twice */
    if (h->trees[slot].version != 0 && !exact)
        return; /* do not replace the tree by a bind mount of another cgroup */
    char path[PRS_HEADROOM_PATH];
    int n = snprintf(path, sizeof path, "%s%s%s", h->root, m->point, tail);
    /* unreached by tests (impossible): snprintf */
    /* unreached by tests (no test): a path longer than the buffer */
    if (n < 0 || (size_t)n >= sizeof path)
        return;
    size_t top = strlen(h->root) + strlen(m->point);
    struct stat st;
    /* unreached by tests (no test): a file in place of a cgroup directory */
    while (strlen(path) > top && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        *strrchr(path, '/') = 0; /* this level has a name of the host and is not visible here */
    h->trees[slot].version = m->version;
    h->trees[slot].top = top;
    memcpy(h->trees[slot].path, path, strlen(path) + 1);
}

int prs_headroom_open_at(prs_headroom *h, const char *root)
{
    memset(h->trees, 0, sizeof h->trees);
    atomic_init(&h->budget, 0);
    atomic_init(&h->measured, 0);
    atomic_init(&h->pending, 0);
    h->root[0] = 0;
    if (strlen(root) >= sizeof h->root)
        return -ENAMETOOLONG;
    memcpy(h->root, root, strlen(root) + 1);

    int saved = errno, rc;
    reader r;
    char own[PRS_HEADROOM_TREES][PRS_HEADROOM_PATH];
    bool known[PRS_HEADROOM_TREES] = {false, false};
    if ((rc = reader_open(&r, h->root, "", "/proc/self/cgroup")) == 0) {
        for (char *line; (line = reader_line(&r));) { /* id:controllers:path */
            char *controllers = strchr(line, ':');
            char *path = controllers ? strchr(controllers + 1, ':') : NULL;
            if (!path)
                continue;
            *path++ = 0;
            *controllers++ = 0;
            int slot = has_word(controllers, "memory") ? 0 : *controllers == 0 && strcmp(line, "0") == 0 ? 1 : -1;
            /* unreached by tests (no test): a path longer than the buffer */
            if (slot >= 0 && path[0] == '/' && strlen(path) < PRS_HEADROOM_PATH) {
                memcpy(own[slot], path, strlen(path) + 1);
                known[slot] = true;
            }
        }
        reader_close(&r);
    }
    int rc2 = reader_open(&r, h->root, "", "/proc/self/mountinfo");
    if (rc2 == 0) {
        for (char *line; (line = reader_line(&r));) {
            mount_line m;
            if (parse_mount(line, &m) && m.version != 0)
                add_tree(h, &m, known[m.version - 1] ? own[m.version - 1] : NULL);
        }
        reader_close(&r);
    }
    errno = saved;
    return rc ? rc : rc2;
}

int prs_headroom_open(prs_headroom *h)
{
    return prs_headroom_open_at(h, "");
}

/* ---- measuring --------------------------------------------------------------------------------- */

/* Return the bytes to keep free below `limit`: 64 MiB or 2 %, whichever is more, but at most a quarter, so that stores
 * also work in small containers. */
static uint64_t margin_of(uint64_t limit)
{
    uint64_t margin = limit / 50 > 64 * MIB ? limit / 50 : 64 * MIB;
    return margin < limit / 4 ? margin : limit / 4;
}

static void set_path(prs_headroom_limit *which, const char *path)
{
    size_t len = strlen(path), room = sizeof which->path - 1;
    /* unreached by tests (no test): a path longer than the buffer */
    const char *tail = len > room ? path + (len - room) : path;
    memcpy(which->path, tail, strlen(tail) + 1);
}

/* Return the limit of the cgroup in `dir`, or NO_LIMIT if it has none. */
static uint64_t limit_of(const char *dir, int version)
{
    uint64_t limit, high;
    if (version == 1)
        return read_number(dir, "/memory.limit_in_bytes", &limit) && limit < V1_NO_LIMIT ? limit : NO_LIMIT;
    if (!read_number(dir, "/memory.max", &limit))
        limit = NO_LIMIT;
    /* Above memory.high the kernel does not kill a process, but throttles it, almost to a standstill if it has much
     * shared memory. */
    if (read_number(dir, "/memory.high", &high) && high < limit)
        limit = high;
    return limit;
}

typedef void visit(const char *dir, int version, uint64_t limit, void *arg);

/* Call `f` for every cgroup with a limit, from the process's own up to the root. */
static void each_limit(const prs_headroom *h, visit *f, void *arg)
{
    for (int t = 0; t < PRS_HEADROOM_TREES; t++) {
        if (h->trees[t].version == 0)
            continue;
        char dir[PRS_HEADROOM_PATH];
        memcpy(dir, h->trees[t].path, sizeof dir);
        /* unreached by tests (no test): cgroups nested 256 levels deep */
        for (int level = 0; level < MAX_LEVELS; level++) {
            uint64_t limit = limit_of(dir, h->trees[t].version);
            if (limit != NO_LIMIT)
                f(dir, h->trees[t].version, limit, arg);
            if (strlen(dir) <= h->trees[t].top)
                break;
            *strrchr(dir, '/') = 0;
        }
    }
}

typedef struct tightest {
    size_t root_len;
    bool known; /* there is one */
    uint64_t headroom;
    prs_headroom_limit limit;
} tightest;

static void consider(tightest *best, const char *path, uint64_t limit, uint64_t usage, uint64_t free)
{
    uint64_t margin = margin_of(limit), headroom = free > margin ? free - margin : 0;
    /* unreached by tests (no test): the limit is not the tightest without the file cache */
    if (best->known && headroom >= best->headroom)
        return;
    best->known = true;
    best->headroom = headroom;
    best->limit.limit = limit;
    best->limit.usage = usage;
    best->limit.free = free;
    best->limit.margin = margin;
    set_path(&best->limit, path);
}

static void visit_usage(const char *dir, int version, uint64_t limit, void *arg)
{
    tightest *best = arg;
    uint64_t usage, cache;
    bool known = read_number(dir, version == 1 ? "/memory.usage_in_bytes" : "/memory.current", &usage);
    /* unreached by tests (damaged tables): a usage of "max" */
    if (!known || usage == NO_LIMIT)
        return;
    uint64_t free = limit > usage ? limit - usage : 0;
    /* Read the size of the file cache only if this limit would be the tightest one if the cache were empty. */
    uint64_t margin = margin_of(limit);
    /* unreached by tests (no test): a cgroup limit without /proc/meminfo */
    if (best->known && free > margin && free - margin >= best->headroom)
        return;
    /* These counters do not include shared memory, which cannot be dropped. */
    cache = version == 1 ? read_sum(dir, "/memory.stat", "total_inactive_file", "total_active_file")
                         : read_sum(dir, "/memory.stat", "inactive_file", "active_file");
    if (cache > usage)
        cache = usage;
    free = limit > usage - cache ? limit - (usage - cache) : 0;
    consider(best, dir + best->root_len, limit, usage, free);
}

static uint64_t measure(prs_headroom *h, prs_headroom_limit *which)
{
    tightest best = {.root_len = strlen(h->root), .headroom = NO_LIMIT};
    uint64_t total, available;
    read_meminfo(h, &total, &available);
    if (total != NO_LIMIT && available != NO_LIMIT) {
        available = available < total ? available : total;
        consider(&best, "/proc/meminfo", total, total - available, available);
    }
    each_limit(h, visit_usage, &best);
    best.limit.pending = prs_load_relaxed(&h->pending);
    if (which)
        *which = best.limit;
    return best.headroom;
}

uint64_t prs_headroom_bytes(prs_headroom *h, prs_headroom_limit *which)
{
    uint64_t bytes = measure(h, which), pending = prs_load_relaxed(&h->pending);
    return bytes == NO_LIMIT ? bytes : bytes > pending ? bytes - pending : 0;
}

/* ---- reserving --------------------------------------------------------------------------------- */

static uint64_t coarse_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts); /* needs no system call; a resolution of a few ms is enough */
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool take_from_budget(prs_headroom *h, uint64_t bytes, uint64_t now)
{
    if (now - prs_load_relaxed(&h->measured) > PRS_HEADROOM_FRESH_NS)
        return false;
    uint64_t budget = prs_load_relaxed(&h->budget);
    while (budget >= bytes)
        /* unreached by tests (race) */
        if (prs_cas_weak_relaxed(&h->budget, &budget, budget - bytes))
            return true;
    return false;
}

/* `held` bytes are already part of h->pending. */
static int ask(prs_headroom *h, uint64_t bytes, uint64_t held, prs_headroom_limit *why)
{
    uint64_t now = coarse_now();
    if (bytes == 0 || take_from_budget(h, bytes, now))
        return 0;
    prs_headroom_limit which;
    uint64_t room = measure(h, &which), others = prs_load_relaxed(&h->pending) - held;
    if (room != NO_LIMIT)
        room = room > others ? room - others : 0;
    if (room < bytes) {
        which.pending = others;
        if (why)
            *why = which;
        return -ENOMEM;
    }
    room -= bytes;
    prs_store_relaxed(&h->budget, room < PRS_HEADROOM_BUDGET ? room : PRS_HEADROOM_BUDGET);
    prs_store_relaxed(&h->measured, now);
    return 0;
}

int prs_headroom_reserve(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why)
{
    return ask(h, bytes, 0, why);
}

int prs_headroom_hold(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why)
{
    /* Add to `pending` first, then measure: if two threads reserve bytes at the same time, at least one sees the
     * other's bytes. */
    prs_fetch_add_seqcst(&h->pending, bytes);
    int rc = ask(h, bytes, bytes, why);
    if (rc != 0)
        prs_fetch_sub_seqcst(&h->pending, bytes);
    return rc;
}

void prs_headroom_settle(prs_headroom *h, uint64_t bytes)
{
    prs_fetch_sub_seqcst(&h->pending, bytes);
}

void prs_headroom_after_fork(prs_headroom *h)
{
    prs_store_relaxed(&h->budget, 0u); /* only the parent keeps the remaining budget */
    prs_store_relaxed(&h->pending, 0u);
}

/* ---- capacity ---------------------------------------------------------------------------------- */

static void visit_capacity(const char *dir, int version, uint64_t limit, void *arg)
{
    (void)dir;
    (void)version;
    uint64_t *least = arg;
    if (limit < *least)
        *least = limit;
}

uint64_t prs_headroom_capacity(prs_headroom *h)
{
    uint64_t least, available;
    read_meminfo(h, &least, &available);
    /* unreached by tests (other kernel): no /proc/meminfo */
    if (least == NO_LIMIT && h->root[0] == 0) {
        long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
        /* unreached by tests (other kernel, 4 branches): no /proc/meminfo */
        if (pages > 0 && size > 0)
            least = (uint64_t)pages * (uint64_t)size;
    }
    each_limit(h, visit_capacity, &least);
    return least == NO_LIMIT ? 0 : (least / 10 * 3) & ~(uint64_t)4095;
}

uint64_t prs_default_capacity(void)
{
    prs_headroom h;
    prs_headroom_open(&h);
    return prs_headroom_capacity(&h);
}
