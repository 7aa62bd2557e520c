/* segment.c - creating, finding, validating and leaving a segment.
 *
 * Purpose    Create a store or open an existing one, and make this process its client.
 * Algorithm  A new segment is a memfd, or an unnamed file on tmpfs.  We link an unnamed file to its path as the last
 *            step, so that no process can open a segment whose superblock is incomplete.  To attach, we copy the
 *            superblock to private memory, recompute the layout from its sizes and compare the two layouts before we
 *            map anything; then we check the tables under the store lock, a slice at a time.
 * Guarantee  No size or offset from the file is used before it is checked.  The page of constants and the
 *            data area are mapped read-only, from a descriptor that cannot write.
 */
#include "platform/advise.h"
#include "platform/descriptor.h"
#include "store.h"
#include <errno.h>
#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

#define CAPACITY_GRAIN (1024u * 1024u)
#define CAPACITY_MAX ((uint64_t)1 << 43)
#define CAPACITY_LEAST (16u * 1024 * 1024) /* we do not shrink a default below this */
#define ROOM_LEFT ((size_t)64 << 20)
#define SLOTS_MIN (1u << 20)
#define SLOTS_LEAST (1u << 14) /* the default if a limit of the process does not allow more */
#define SLOTS_MAX (1u << 24)

/* ---- layout ------------------------------------------------------------------------------------- */

static uint64_t layout_hash(void)
{
    const uint64_t parts[] = {sizeof(prs_super),
                              offsetof(prs_super, lock),
                              offsetof(prs_super, serial),
                              offsetof(prs_super, published),
                              offsetof(prs_super, epoch),
                              offsetof(prs_super, arena),
                              sizeof(prs_arena),
                              offsetof(prs_arena, bins),
                              sizeof(prs_slot),
                              offsetof(prs_slot, links),
                              sizeof(prs_extent),
                              sizeof(prs_link),
                              sizeof(prs_client),
                              sizeof(prs_name),
                              PRS_FL_COUNT,
                              PRS_SL_BITS,
                              PRS_UNIT,
                              PRS_SLOT_CHUNK,
                              PRS_LINK_LAST,
                              PRS_LAYOUT_VERSION};
    uint64_t hash = 0xcbf29ce484222325ull; /* FNV-1a */
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (int byte = 0; byte < 8; byte++)
            hash = (hash ^ (parts[i] >> (8 * byte) & 0xFF)) * 0x100000001b3ull;
    return hash;
}

/* Fill in all sizes and offsets that follow from capacity, max_clients, max_slots and max_links. */
static void lay_out(prs_super *p)
{
    p->version = PRS_LAYOUT_VERSION;
    p->page = PRS_PAGE;
    p->layout_hash = layout_hash();
    p->holder_words = (p->max_clients + 63) / 64;
    p->slot_stride = (uint32_t)prs_round_up(sizeof(prs_slot) + 16 * p->holder_words, 64);
    p->max_extents = 2 * p->max_slots + 8;
    p->clients_off = prs_round_up(sizeof(prs_super), PRS_PAGE);
    p->names_off = prs_round_up(p->clients_off + (uint64_t)p->max_clients * sizeof(prs_client), PRS_PAGE);
    p->buckets_off = prs_round_up(p->names_off + (uint64_t)PRS_NAMES_MAX * sizeof(prs_name), PRS_PAGE);
    p->slots_off = prs_round_up(p->buckets_off + (uint64_t)PRS_NAMES_MAX * sizeof(uint32_t), PRS_PAGE);
    p->extents_off = prs_round_up(p->slots_off + (uint64_t)p->max_slots * p->slot_stride, PRS_PAGE);
    p->links_off = prs_round_up(p->extents_off + (uint64_t)p->max_extents * sizeof(prs_extent), PRS_PAGE);
    p->backed_off = prs_round_up(p->links_off + (uint64_t)p->max_links * sizeof(prs_link), PRS_PAGE);
    p->data_off = prs_round_up(p->backed_off + prs_pages_bytes(p->capacity / PRS_PAGE), 2 * 1024 * 1024);
    p->file_size = p->data_off + p->capacity;
}

static int validate(prs_super *p, uint64_t file_size, prs_error *error)
{
    if (prs_load_relaxed(&p->ready) != PRS_MAGIC)
        return prs_fail(error, PRS_E_FOREIGN, 0, "the file is not a store of this library");
    if (p->version != PRS_LAYOUT_VERSION || p->layout_hash != layout_hash() || p->page != PRS_PAGE)
        return prs_fail(error, PRS_E_VERSION, 0, "the store has layout %u, this library knows layout %u", p->version,
                        PRS_LAYOUT_VERSION);
    /* unreached by tests (damaged tables, 4 branches) */
    if (p->capacity == 0 || p->capacity % CAPACITY_GRAIN || p->capacity > CAPACITY_MAX || p->max_clients < 4 ||
        p->max_clients > PRS_CLIENTS_MAX || p->max_slots == 0 || p->max_slots > SLOTS_MAX || p->max_links == 0 ||
        p->max_links > PRS_LINKS_MAX || p->store_id == 0 || memchr(p->spill_dir, 0, sizeof p->spill_dir) == NULL)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the superblock of the store is damaged");
    prs_super again = {
        .capacity = p->capacity, .max_clients = p->max_clients, .max_slots = p->max_slots, .max_links = p->max_links};
    lay_out(&again);
    /* unreached by tests (damaged tables, 3 branches) */
    if (again.holder_words != p->holder_words || again.slot_stride != p->slot_stride ||
        again.max_extents != p->max_extents || again.clients_off != p->clients_off || again.names_off != p->names_off ||
        again.buckets_off != p->buckets_off || again.slots_off != p->slots_off || again.extents_off != p->extents_off ||
        again.links_off != p->links_off || again.backed_off != p->backed_off || again.data_off != p->data_off ||
        again.file_size != p->file_size)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the superblock of the store contradicts itself");
    if (p->file_size != file_size)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the store should have %llu bytes and has %llu",
                        (unsigned long long)p->file_size, (unsigned long long)file_size);
    return PRS_OK;
}

/* ---- the handle ------------------------------------------------------------------------------------ */

static prs_store *new_handle(int fd, const prs_options *options)
{
    /* Separate pages: the C library does not reuse the memory of aligned blocks for others of their size, so that a
     * process that opens and closes many stores would grow. */
    prs_store *s = prs_os_reserve(sizeof *s);
    /* unreached by tests (no injected fault): mmap */
    if (!s)
        return NULL;
    s->fd_rw = fd;
    s->fd_ro = s->fd_lock = s->child_fd = s->birth[0] = s->birth[1] = s->fd_spill = s->fd_spill_lock = -1;
    s->me = PRS_NIL;
    s->dying = PRS_NIL;
    s->lock_timeout = options && options->lock_timeout > 0 ? options->lock_timeout : PRS_SECOND;
    s->flags = options ? options->flags : 0;
    prs_store_relaxed(&s->keeps, 1);
    if (options && options->path)
        s->path = strdup(options->path);
    return s;
}

void prs_discard(prs_store *s)
{
    prs_os_unmap(s->super, s->control_len);
    prs_os_unmap(s->ro, s->capacity);
    prs_os_unmap(prs_load_relaxed(&s->wr), s->capacity);
    prs_os_unmap(s->area.mapped.words, s->mapped_len);
    prs_os_unmap(s->priv, s->priv_len);
    prs_client_unanchor(s);
    prs_spill_close(s);
    if (!s->torn) {
        prs_os_close(s->fd_rw);
        prs_os_close(s->fd_ro);
        prs_os_close(s->fd_lock);
    }
    while (s->windows) {
        prs_window *w = s->windows;
        s->windows = w->next;
        prs_os_unmap(w->addr, w->len);
        free(w);
    }
    free(s->path);
    free(s->spill_dir);
    prs_os_unmap(s, sizeof *s);
}

static int reopen(const prs_store *s, prs_access access)
{
    int fd = prs_os_reopen(s->fd_rw, access);
    if (fd < 0 && s->path) { /* open the file by its path if /proc is missing */
        prs_error ignored;
        /* unreached by tests (other kernel): no /proc */
        if (prs_os_open_file(s->path, &fd, &ignored) < 0)
            return -EBADF;
    }
    /* unreached by tests (race): the descriptor number refers to another file by now */
    if (fd >= 0 && !prs_os_same(fd, &s->file)) {
        prs_os_close(fd);
        return -ESTALE;
    }
    return fd;
}

/* Map all parts according to the validated sizes and offsets in `p`. */
static int map_all(prs_store *s, const prs_super *p, prs_error *error)
{
    s->control_len = p->data_off;
    s->capacity = p->capacity;
    s->id = p->store_id;
    s->holder_words = p->holder_words;
    s->slot_stride = p->slot_stride;
    s->max_slots = p->max_slots;
    s->max_links = p->max_links;
    s->fd_ro = reopen(s, PRS_READ_ONLY);
    s->fd_lock = reopen(s, PRS_WRITABLE);
    if (s->fd_ro < 0 || s->fd_lock < 0)
        return prs_fail(error, PRS_E_SYS, s->fd_ro < 0 ? -s->fd_ro : -s->fd_lock, "cannot open the store once more");
    s->priv_len = (size_t)s->max_slots * sizeof(prs_private);
    s->super = prs_os_map(s->fd_rw, 0, s->control_len, PRS_WRITABLE);
    /* unreached by tests (failing call) */
    s->ro = s->super ? prs_os_map(s->fd_ro, p->data_off, s->capacity, PRS_READ_ONLY) : NULL;
    s->priv = s->ro ? prs_os_reserve(s->priv_len) : NULL;
    if (!s->priv)
        return prs_fail(error, PRS_E_NOMEM, errno, "no address space for a store of %llu bytes",
                        (unsigned long long)s->capacity);
    uint8_t *base = (uint8_t *)s->super;
    s->clients = (prs_client *)(base + p->clients_off);
    s->names = (prs_name *)(base + p->names_off);
    s->name_buckets = (uint32_t *)(base + p->buckets_off);
    s->slots = base + p->slots_off;
    s->extents = (prs_extent *)(base + p->extents_off);
    s->links = (prs_link *)(base + p->links_off);
    s->area.base = p->data_off;
    s->area.fd = s->fd_rw;
    s->area.backed = prs_pages_at(base + p->backed_off, s->capacity / PRS_PAGE);
    int rc = prs_os_populate(base, p->names_off, s->fd_rw, 0);
    /* unreached by tests (failing call) */
    if (rc < 0)
        return prs_fail(error, PRS_E_BACKING, -rc, "no memory for the tables of the store");
    return PRS_OK;
}

/* Become a client, and make the page of constants read-only in this mapping, too. */
static int enter(prs_store *s, prs_error *error)
{
    _Static_assert(offsetof(prs_super, lock) == 4096, "the constants fill the first page");
    int rc = prs_os_map_fixed(s->super, s->fd_ro, 0, PRS_PAGE);
    /* unreached by tests (failing call) */
    if (rc < 0)
        return prs_fail(error, PRS_E_SYS, -rc, "mapping the superblock failed");
    if (prs_load_acquire(&s->super->published) > s->max_slots ||
        prs_load_acquire(&s->super->links_published) > s->max_links ||
        prs_load_acquire(&s->super->client_high) > s->super->max_clients)
        return prs_fail(error, PRS_E_CORRUPT, 0, "a table of the store is longer than its room");
    s->pid = (int32_t)getpid();
    s->start_time = prs_start_time(s->pid);
    s->pid_ns = prs_os_pid_ns();
    prs_headroom_open(&s->headroom);
    rc = prs_spill_open(s, PRS_SPILL_ATTACH, error);
    if (rc == PRS_OK)
        rc = prs_client_claim(s, error);
    if (rc < 0)
        return rc;
    rc = prs_tables_prefault(s);
    /* unreached by tests (failing call) */
    if (rc < 0) {
        prs_client_release(s);
        return prs_fail(error, PRS_E_BACKING, -rc, "no memory for the tables of the store");
    }
    prs_atfork_register(s);
    return PRS_OK;
}

/* Return whether the kernel's page size differs from PRS_PAGE, on which mapping offsets and the bitmap of pages
 * depend. */
static bool other_pages(void)
{
    return PRS_POINT_ERRNO(page_size) || prs_page_size() != PRS_PAGE;
}

static int refuse_pages(prs_error *error)
{
    return prs_fail(error, PRS_E_INVAL, 0, "a store needs a kernel with pages of %u bytes, not %u", (unsigned)PRS_PAGE,
                    (unsigned)prs_page_size());
}

/* ---- create ------------------------------------------------------------------------------------------ */

static void choose(prs_super *p, const prs_options *options, uint64_t capacity, uint64_t slots_min)
{
    /* unreached by tests (no test): a store of more than 8 TiB */
    if (capacity > CAPACITY_MAX)
        capacity = CAPACITY_MAX;
    p->capacity = prs_round_up(capacity, CAPACITY_GRAIN);
    p->max_clients = options && options->max_clients ? options->max_clients : PRS_CLIENTS_DEFAULT;
    if (p->max_clients < 4)
        p->max_clients = 4;
    if (p->max_clients > PRS_CLIENTS_MAX)
        p->max_clients = PRS_CLIENTS_MAX;
    uint64_t slots = options && options->max_objects ? options->max_objects : p->capacity / 4096;
    if (!(options && options->max_objects) && slots < slots_min)
        slots = slots_min;
    slots = prs_round_up(slots, PRS_SLOT_CHUNK);
    p->max_slots = (uint32_t)(slots > SLOTS_MAX ? SLOTS_MAX : slots);
    p->max_links = p->max_slots < PRS_LINKS_MAX ? p->max_slots : PRS_LINKS_MAX;
    p->warm_reserve = options && options->warm_reserve ? options->warm_reserve : 256u * 1024 * 1024;
    p->flags = options ? options->flags : 0;
}

/* Return whether enough address space is left for the writable mapping that the first put makes, and for other
 * allocations. */
static bool roomy(const prs_store *s)
{
    return prs_os_room(s->capacity + s->capacity / 2 + ROOM_LEFT);
}

static int create(prs_store **out, const prs_options *options, uint64_t capacity, uint64_t slots_min, bool given,
                  prs_error *error)
{
    prs_super plan;
    memset(&plan, 0, sizeof plan);
    *out = NULL;
    if (other_pages())
        return refuse_pages(error);
    choose(&plan, options, capacity, slots_min);
    lay_out(&plan);
    int rc = prs_os_random(&plan.store_id, sizeof plan.store_id);
    /* unreached by tests (no injected fault): getrandom */
    if (rc < 0)
        return prs_fail(error, PRS_E_SYS, -rc, "no random number for the store");
    plan.store_id |= 1;
    plan.born_ns = (uint64_t)prs_now();
    plan.uid = (uint32_t)geteuid();
    if (options && options->spill_dir) {
        if (options->spill_dir[0] != '/' || strlen(options->spill_dir) >= sizeof plan.spill_dir)
            return prs_fail(error, PRS_E_INVAL, 0, "the spill directory must be an absolute path of less than %u bytes",
                            PRS_SPILL_DIR);
        strcpy(plan.spill_dir, options->spill_dir);
    }
    int fd = options && options->path ? prs_os_create_file(options->path, error) : prs_os_memfd(plan.store_id, error);
    if (fd < 0)
        return fd;
    PRS_POINT(segment_created);
    prs_store *s = new_handle(fd, options);
    /* unreached by tests (no injected fault): mmap */
    if (!s) {
        prs_os_close(fd);
        return prs_fail(error, PRS_E_NOMEM, ENOMEM, "no memory for a store handle");
    }
    uint64_t size;
    rc = prs_os_size(fd, plan.file_size);
    if (rc < 0) {
        /* unreached by tests (failing call) */
        rc = prs_fail(error, PRS_E_SYS, -rc, "cannot make a file of %llu bytes%s", (unsigned long long)plan.file_size,
                      rc == -EFBIG ? " (RLIMIT_FSIZE, ulimit -f, allows less)" : "");
        goto fail;
    }
    if (!s->path)
        (void)prs_os_seal(fd); /* this may fail on some kernels, but only our own code could shrink the file */
    PRS_POINT(segment_sized);
    /* unreached by tests (no injected fault): fstat */
    if ((rc = prs_os_inspect(fd, &s->file, &size, error)) < 0 || (rc = map_all(s, &plan, error)) < 0)
        goto fail;
    if (!given && !roomy(s)) {
        rc = prs_fail(error, PRS_E_NOMEM, ENOMEM, "no address space for a store of %llu bytes",
                      (unsigned long long)s->capacity);
        goto fail;
    }
    memcpy(s->super, &plan, offsetof(prs_super, lock));
    if ((rc = prs_spill_open(s, PRS_SPILL_CREATE, error)) < 0)
        goto fail;
    prs_super *p = s->super;
    prs_store_relaxed(&p->serial, 1);
    prs_store_relaxed(&p->client_high, 1);
    p->arena.slot_free = p->arena.link_free = PRS_NIL;
    rc = prs_os_populate((uint8_t *)p + p->extents_off, PRS_PAGE, fd, p->extents_off);
    /* unreached by tests (failing call) */
    if (rc < 0) {
        rc = prs_fail(error, PRS_E_BACKING, -rc, "no memory for the tables of the store");
        goto fail;
    }
    prs_extent_init(s);
    prs_store_release(&p->ready, PRS_MAGIC);
    PRS_POINT(segment_ready);
    /* unreached by tests (failing call) */
    if ((rc = enter(s, error)) < 0)
        goto fail;
    if (s->path && (rc = prs_os_publish_file(fd, s->path, error)) < 0) {
        prs_close(s);
        prs_dispose(s);
        return rc;
    }
    *out = s;
    return PRS_OK;
fail:
    prs_discard(s);
    return rc;
}

int prs_create(prs_store **out, const prs_options *options, prs_error *error)
{
    bool given = options && options->capacity;
    uint64_t first = given ? options->capacity : prs_default_capacity();
    /* unreached by tests (other kernel): neither /proc nor a cgroup tells the size of memory */
    if (first == 0) /* the size of the memory is unknown */
        first = (uint64_t)1 << 30;
    uint64_t capacity = first, slots_min = SLOTS_MIN;
    prs_error why = {0};
    int rc;
    /* If the caller chose no sizes, shrink the defaults rather than fail on a limit of address space or file size. */
    while ((rc = create(out, options, capacity, slots_min, given, &why)) < 0 &&
           (rc == PRS_E_NOMEM || why.sys_errno == EFBIG)) {
        if (!given && capacity / 2 >= CAPACITY_LEAST)
            capacity /= 2;
        else if (!(options && options->max_objects) && slots_min > SLOTS_LEAST)
            slots_min /= 2;
        else
            break;
    }
    if (rc < 0 && error)
        *error = why;
    if (rc == PRS_OK && capacity < first)
        (*out)->shrunk_from = first;
    return rc;
}

uint64_t prs_shrunk_from(const prs_store *s)
{
    return s->shrunk_from;
}

/* ---- attach -------------------------------------------------------------------------------------------- */

static int attach(prs_store **out, int fd, uint64_t store, const prs_options *options, prs_error *error)
{
    *out = NULL;
    prs_super *head = NULL;
    if (other_pages()) {
        prs_os_close(fd);
        return refuse_pages(error);
    }
    prs_store *s = new_handle(fd, options);
    /* unreached by tests (no injected fault): mmap */
    if (!s) {
        prs_os_close(fd);
        return prs_fail(error, PRS_E_NOMEM, ENOMEM, "no memory for a store handle");
    }
    uint64_t size;
    int rc = prs_os_inspect(fd, &s->file, &size, error);
    if (rc < 0)
        goto fail;
    /* unreached by tests (no injected fault): mmap */
    if (!(head = prs_os_reserve(sizeof *head))) {
        rc = prs_fail(error, PRS_E_NOMEM, ENOMEM, "no memory to read the superblock");
        goto fail;
    }
    /* unreached by tests (failing call) */
    if (size < sizeof *head || prs_os_pread(fd, head, sizeof *head, 0) < 0) {
        rc = prs_fail(error, PRS_E_FOREIGN, 0, "the file is too short for a store");
        goto fail;
    }
    if ((rc = validate(head, size, error)) < 0)
        goto fail;
    /* unreached by tests (race): the descriptor number refers to another file by now */
    if (store && head->store_id != store) {
        rc = prs_fail(error, PRS_E_FOREIGN, 0, "the file is another store");
        goto fail;
    }
    if ((rc = map_all(s, head, error)) < 0 || (rc = enter(s, error)) < 0)
        goto fail;
    prs_os_unmap(head, sizeof *head);
    rc = prs_check_in_slices(s, error);
    if (rc < 0) { /* do not call prs_close(), which would use the corrupt tables */
        prs_atfork_unregister(s);
        prs_client_release(s);
        prs_discard(s);
        return rc;
    }
    *out = s;
    return PRS_OK;
fail:
    prs_os_unmap(head, sizeof *head);
    prs_discard(s);
    return rc;
}

int prs_attach_path(prs_store **out, const char *path, const prs_options *options, prs_error *error)
{
    prs_options named = options ? *options : (prs_options){0};
    named.path = path;
    int fd, rc = prs_os_open_file(path, &fd, error);
    *out = NULL;
    return rc < 0 ? rc : attach(out, fd, 0, &named, error);
}

/* Return the store id of the file behind `fd`, or 0 if the file is not a store that we may use. */
static uint64_t id_behind(int fd)
{
    struct {
        uint64_t ready;
        uint32_t version, page;
        uint64_t layout_hash, store_id;
    } head;
    _Static_assert(offsetof(prs_super, store_id) == 24, "id_behind reads the head of prs_super");
    prs_file file;
    uint64_t size;
    /* unreached by tests (failing call) */
    if (prs_os_inspect(fd, &file, &size, NULL) < 0 || prs_os_pread(fd, &head, sizeof head, 0) < 0)
        return 0;
    /* unreached by tests (no test): a file with the name of a store that is no store */
    return head.ready == PRS_MAGIC ? head.store_id : 0;
}

int prs_list_pid(int32_t pid, uint64_t *ids, int *fds, int cap)
{
    char path[64], link[80];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *directory = prs_open_listing(path);
    if (!directory)
        return 0;
    /* unreached by tests (no test): the process has more stores than the caller has room for */
    for (struct dirent *entry; n < cap && (entry = readdir(directory));) {
        /* Open only files with a name that a store can have, because opening other files may have side effects. */
        ssize_t len = readlinkat(dirfd(directory), entry->d_name, link, sizeof link - 1);
        if (len < 0)
            continue;
        link[len] = 0;
        /* unreached by tests (no test): the process has the store open under its path */
        if (strncmp(link, "/memfd:pyray_ser:", 17) != 0 && !strstr(link, "pyray_ser"))
            continue;
        int number = atoi(entry->d_name), fd = prs_os_reopen_of(pid, number, PRS_READ_ONLY);
        /* unreached by tests (race): the process closed it meanwhile */
        uint64_t id = fd >= 0 ? id_behind(fd) : 0;
        prs_os_close(fd);
        bool known = id == 0;
        for (int i = 0; i < n; i++)
            known |= ids[i] == id;
        if (known)
            continue;
        ids[n] = id;
        fds[n++] = number;
    }
    closedir(directory);
    return n;
}

int prs_attach_pid(prs_store **out, int32_t pid, int fd, uint64_t store, const prs_options *options, prs_error *error)
{
    *out = NULL;
    int mine = fd >= 0 ? prs_os_reopen_of(pid, fd, PRS_WRITABLE) : -1;
    if (mine >= 0) {
        uint64_t id = id_behind(mine);
        /* unreached by tests (no test): the caller accepts any store */
        /* unreached by tests (no test): the descriptor number refers to another store by now */
        if (id == 0 || (store && id != store)) {
            prs_os_close(mine); /* the descriptor number refers to another file by now */
            mine = -1;
        }
    }
    if (mine < 0) {
        uint64_t ids[64];
        int fds[64], n = prs_list_pid(pid, ids, fds, 64);
        for (int i = 0; i < n && mine < 0; i++)
            /* unreached by tests (no test, 2 branches): the caller accepts any store, or the process has several */
            if (store == 0 || ids[i] == store)
                mine = prs_os_reopen_of(pid, fds[i], PRS_WRITABLE);
    }
    if (mine < 0)
        return prs_fail(error, PRS_E_NOTFOUND, 0, "process %d has no such store open", (int)pid);
    return attach(out, mine, store, options, error);
}

/* ---- queries ---------------------------------------------------------------------------------------------- */

uint64_t prs_id(const prs_store *s)
{
    return s->id;
}

uint64_t prs_capacity(const prs_store *s)
{
    return s->capacity;
}

void prs_chosen(const prs_store *s, prs_options *out)
{
    memset(out, 0, sizeof *out);
    out->capacity = s->capacity;
    out->max_clients = s->super->max_clients;
    out->max_objects = s->super->max_slots;
    out->lock_timeout = s->lock_timeout;
    out->warm_reserve = s->super->warm_reserve;
    out->flags = s->flags | s->super->flags;
}

void prs_locator(prs_store *s, int32_t *pid, uint64_t *start_time, int32_t *fd)
{
    *pid = s->pid;
    *start_time = s->start_time;
    *fd = s->fd_rw;
}

/* ---- leaving -------------------------------------------------------------------------------------------------- */

static void lock_shards(prs_store *s)
{
    for (uint32_t i = 0; i < PRS_SHARDS; i++)
        prs_spin_lock(&s->shards[i]);
}

static void unlock_shards(prs_store *s)
{
    for (uint32_t i = 0; i < PRS_SHARDS; i++)
        prs_spin_unlock(&s->shards[i]);
}

/* Drop all refs of this process. */
static void drop_refs(prs_store *s)
{
    uint32_t published = prs_slots_published(s);
    for (uint32_t i = 0; i < published; i++) {
        prs_spin *shard = prs_shard(s, i);
        prs_private *p = &s->priv[i];
        if (prs_load_relaxed(&p->refs) == 0)
            continue;
        prs_spin_lock(shard);
        bool had = prs_load_relaxed(&p->refs) != 0;
        prs_store_relaxed(&p->refs, 0);
        /* unreached by tests (race): two threads close the handle */
        if (had)
            prs_fetch_and_seqcst(&prs_slot_at(s, i)->holders[s->my_word], ~s->my_bit);
        prs_spin_unlock(shard);
        /* unreached by tests (race): two threads close the handle */
        if (had)
            prs_try_free(s, i);
    }
}

/* Called after the last pin was dropped.  The address ranges stay mapped to zero pages until prs_dispose, so that a
 * thread that is still in a call does not fault. */
void prs_tear_down(prs_store *s)
{
    if (s->torn)
        return;
    prs_atfork_unregister(s);
    /* Detach the windows before the drafts are freed below, so that no thread can write to freed memory. */
    prs_windows_detach(s);
    if (prs_load_relaxed(&s->wr))
        prs_os_map_zero_fixed(prs_load_relaxed(&s->wr), s->capacity);
    if (!s->orphan)
        prs_client_recover_slots(s, s->me); /* this also returns the reserved slots that are in no list */
    (void)prs_mutex_lock(&s->mutex, -1);    /* wait until no thread of ours holds the store lock */
    if (!s->orphan)
        prs_client_release(s);
    prs_client_unanchor(s);
    prs_spill_close(s);
    s->torn = true;
    prs_os_map_zero_fixed(s->super, s->control_len);
    prs_os_map_zero_fixed(s->ro, s->capacity);
    prs_mutex_unlock(&s->mutex);
    int fds[] = {s->fd_rw, s->fd_ro, s->fd_lock};
    for (int i = 0; i < 3; i++)
        if (prs_os_same(fds[i], &s->file)) /* otherwise the descriptor number belongs to another file by now */
            prs_os_close(fds[i]);
    if (s->released)
        prs_keep_end(s);
}

void prs_close(prs_store *s)
{
    if (prs_load_acquire(&s->closed))
        return;
    if (!s->orphan) {
        drop_refs(s);
        prs_magazines_flush(s);
        prs_deferred_run(s, PRS_WAIT);
    }
    uint64_t pinned = 0;
    lock_shards(s);
    bool again = prs_exchange_seqcst(&s->closed, 1);
    /* unreached by tests (race): two threads close the handle */
    if (!again) {
        uint32_t published = prs_slots_published(s);
        for (uint32_t i = 0; i < published; i++)
            pinned += prs_load_relaxed(&s->priv[i].pins) != 0;
        prs_fetch_add_seqcst(&s->pinned_slots, PRS_PINS_COUNTED + pinned + 1); /* one pin stands for this call */
    }
    unlock_shards(s);
    /* unreached by tests (race): two threads close the handle */
    if (again)
        return;
    /* unreached by tests (race): the handle was closed while another thread writes */
    while (prs_load_seqcst(&s->filling))
        prs_os_sleep(PRS_MS);
    if (prs_fetch_sub_acqrel(&s->pinned_slots, 1) == (PRS_PINS_COUNTED | 1))
        prs_tear_down(s);
}

void prs_dispose(prs_store *s)
{
    prs_close(s);
    if (s->torn)
        prs_discard(s);
}
